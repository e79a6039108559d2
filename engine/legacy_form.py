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
    action_chain: str | None = None,
    parameters: str | None = None,
    actions: Collection[str] | None = None,
) -> dict[str, Json]:
    """The document that does what the old workflow did. Raises InvalidInput; `actions` are those that exist, if known.

    An action without a successor has the code ``unknown_action`` and the pointer ``/action_type``. The actions of
    `action_chain` follow the first; a chain that begins with that very action is the whole. `parameters` with a
    ``default_value`` fill templates whose first name the webhook's body lacks.
    """
    config = _config(config_json)
    first = _with(action_type, config, "/action_type", "/config_json", actions)
    links = _links(action_chain)
    if links and (links[0].get("action_type"), links[0].get("config")) == (action_type, dict(config)):
        links = links[1:]
    defaults = _defaults(parameters)
    steps = [_step(STEP_ID, first, data={"defaults": defaults} if defaults else {})]
    for number, link in enumerate(links):
        place = f"/action_chain/{number}"
        wanted = str(link.get("action_type"))
        settings = _config(link.get("config"), f"{place}/config")
        made = _with(wanted, settings, f"{place}/action_type", f"{place}/config", actions)
        from_previous = link.get("use_data_from") == "previous"
        data: dict[str, Json] = (
            {"step": steps[-1]["id"]} if from_previous else {"defaults": defaults} if defaults else {}
        )
        steps.append(_step(f"{STEP_ID}_{number + 2}", made, data=data))
    return {"name": name, "trigger": _trigger(trigger_type, config), "steps": steps}


def _with(
    action_type: str, config: Mapping[str, Json], place: str, config_place: str, actions: Collection[str] | None
) -> tuple[str, dict[str, Json]]:
    """The action that succeeds an old one, and its input."""
    if action_type not in _ACTIONS or (actions is not None and _ACTIONS[action_type][0] not in actions):
        message = f"there is no action '{action_type}'; known are {', '.join(_ACTIONS)}"
        raise InvalidInput([Fault(place, message)], code="unknown_action")
    action, parameter, read = _ACTIONS[action_type]
    try:
        return action, {parameter: read(config)}
    except InvalidInput as error:
        moved = [Fault(fault.pointer.replace("/config_json", config_place, 1), fault.message) for fault in error.faults]
        raise InvalidInput(moved) from None


def _step(step_id: str, made: tuple[str, dict[str, Json]], *, data: Mapping[str, Json]) -> dict[str, Json]:
    step: dict[str, Json] = {"id": step_id, "action": made[0], "with": made[1], "templates": "legacy"}
    return {**step, "template_data": dict(data)} if data else step


def _links(text: str | None) -> list[Mapping[str, Any]]:
    links = _list(text, "/action_chain")
    for number, link in enumerate(links):
        if not isinstance(link, dict):
            raise InvalidInput([Fault(f"/action_chain/{number}", "must be a JSON object")])
    return links


def _defaults(text: str | None) -> dict[str, Json]:
    """Names and default values; a parameter that is not described as it should be has none."""
    described = [item for item in _list(text, "/parameters") if isinstance(item, dict)]
    return {str(item.get("name")): item["default_value"] for item in described if item.get("default_value") is not None}


def _list(text: str | None, place: str) -> list[Any]:
    if text is None or not text.strip():
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput([Fault(place, f"not JSON: {error}")]) from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput([Fault(place, "must be a JSON array")])
    return value


def _config(text: Mapping[str, Json] | str | None, place: str = "/config_json") -> Mapping[str, Any]:
    if isinstance(text, Mapping):
        return text
    if text is not None and not isinstance(text, str):
        raise InvalidInput([Fault(place, "must be a JSON object")])
    if text is None or not text.strip():
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput([Fault(place, f"not JSON: {error}")]) from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise InvalidInput([Fault(place, "must be a JSON object")])
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
