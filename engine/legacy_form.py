"""The multi-user system's workflows as documents: one action, a bag of settings, ``{{dotted.path}}`` templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from engine.errors import Fault, InvalidInput
from engine.ports import Json

DEFAULT_INTERVAL_MINUTES = 10
LONGEST_INTERVAL_MINUTES = 366 * 24 * 60
STEP_ID = "action"


def _setting(name: str) -> Callable[[Mapping[str, Json]], Json]:
    def read(config: Mapping[str, Json]) -> Json:
        if not config.get(name):
            raise InvalidInput([Fault(f"/config_json/{name}", f"'{name}' is missing; it is the text to send")])
        return config[name]

    return read


_ACTIONS: Mapping[str, tuple[str, str, Callable[[Mapping[str, Json]], Json]]] = {
    "slack_message": ("slack.message", "text", _setting("slack_message")),
    "discord_post": ("discord.message", "content", _setting("discord_message")),
    "weather_check": ("openweather.current", "city", lambda config: config.get("city") or "London"),
}


def from_legacy(
    name: str,
    trigger_type: str,
    action_type: str,
    config_json: Mapping[str, Json] | str | None,
    *,
    actions: Collection[str] | None = None,
) -> dict[str, Json]:
    """The document that does what the old workflow did. Raises InvalidInput; `actions` are those that exist, if known.

    An action without a successor has the code ``unknown_action`` and the pointer ``/action_type``.
    """
    if action_type not in _ACTIONS or (actions is not None and _ACTIONS[action_type][0] not in actions):
        message = f"there is no action '{action_type}'; known are {', '.join(_ACTIONS)}"
        raise InvalidInput([Fault("/action_type", message)], code="unknown_action")
    config = _config(config_json)
    action, parameter, read = _ACTIONS[action_type]
    return {
        "name": name,
        "trigger": _trigger(trigger_type, config),
        "steps": [{"id": STEP_ID, "action": action, "with": {parameter: read(config)}, "templates": "legacy"}],
    }


def _config(text: Mapping[str, Json] | str | None) -> Mapping[str, Any]:
    if isinstance(text, Mapping):
        return text
    if text is None or not text.strip():
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput([Fault("/config_json", f"not JSON: {error}")]) from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise InvalidInput([Fault("/config_json", "must be a JSON object")])
    return config


def _trigger(trigger_type: str, config: Mapping[str, Json]) -> dict[str, Json]:
    if trigger_type == "webhook":
        return {"type": "webhook", "legacy": True}
    if trigger_type == "schedule":
        return {"type": "schedule", "every": f"{_minutes(config.get('interval'))}m"}
    raise InvalidInput([Fault("/trigger_type", "must be webhook or schedule")])


def _minutes(interval: Json) -> int:
    """Whole minutes; ten when the setting is missing, no number, or not above zero."""
    try:
        minutes = int(float(interval)) if not isinstance(interval, bool) else 0
    except (TypeError, ValueError, OverflowError):
        minutes = 0
    return min(minutes, LONGEST_INTERVAL_MINUTES) if minutes > 0 else DEFAULT_INTERVAL_MINUTES
