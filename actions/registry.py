"""The registry: every action by name, the built-in ones and those that other packages add.

A package adds actions through the entry-point group ``fairlane.actions``. An entry point names a callable which takes
the guarded client and returns one `engine.ports.Action` or several; a class with such an ``__init__`` will do. A
plug-in that does not load, lacks an attribute, or takes a name that is taken, is left out, logged, and listed in
`Registry.problems` by name; the others are not affected.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel

from actions.connectors import debug, discord, http, openweather, slack, workflow
from actions.guard import AddressPolicy, parse_url
from actions.http import DEFAULT_USER_AGENT, GuardedClient
from engine.errors import ActionError, ConfigurationError
from engine.ports import Action

GROUP = "fairlane.actions"

_logger = logging.getLogger("fairlane.actions")
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_ATTRIBUTES: Mapping[str, type | tuple[type, ...]] = {
    "summary": str,
    "service": (str, type(None)),
    "credential_required": bool,
    "has_effects": bool,
    "honours_deadline": bool,
    "output_schema": Mapping,
}


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """An entry point, or one action of it, that was left out, and why."""

    plugin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.plugin}: {self.reason}"


class Registry(Mapping[str, Action]):
    """Actions by name. `client` is the guarded client that they and the poll sources share."""

    def __init__(self, client: GuardedClient, actions: Iterable[Action]) -> None:
        self.client = client
        self.problems: tuple[PluginProblem, ...] = ()
        self._actions: dict[str, Action] = {}
        for action in actions:
            self._add(action)

    def __getitem__(self, name: str) -> Action:
        return self._actions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._actions)

    def __len__(self) -> int:
        return len(self._actions)

    def describe(self) -> list[dict[str, Any]]:
        """What a client must know of each action, sorted by name; JSON values only."""
        return [_description(self._actions[name]) for name in sorted(self._actions)]

    def credential_schema(self, service: str) -> type[BaseModel] | None:
        """The model of what a credential of `service` holds; None for an unknown service, whose data is free-form."""
        models = (_credential_model(action) for action in self._actions.values() if action.service == service)
        return next((model for model in models if model is not None), None)

    def load(self, plugins: Iterable[EntryPoint]) -> None:
        """Add the actions of other packages; what is wrong with one is kept in `problems`."""
        for plugin in sorted(plugins, key=lambda plugin: plugin.name):
            try:
                made = plugin.load()(self.client)
                found = list(made) if isinstance(made, Iterable) else [made]
            except Exception as error:
                self._report(plugin.name, f"does not load: {type(error).__name__}: {error}")
                continue
            for action in found:
                try:
                    self._add(action)
                except ValueError as error:
                    self._report(plugin.name, str(error))

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def _add(self, action: Action) -> None:
        """Raises ValueError with a sentence when the action is incomplete or its name is taken."""
        _check(action)
        if action.name in self._actions:
            raise ValueError(f"the action name {action.name} is taken")
        model = _credential_model(action)
        known = self.credential_schema(action.service) if action.service else None
        if model is not None and known is not None and model is not known:
            raise ValueError(f"{action.name} describes credentials of {action.service} in another way")
        self._actions[action.name] = action

    def _report(self, plugin: str, reason: str) -> None:
        problem = PluginProblem(plugin, reason)
        self.problems += (problem,)
        _logger.error("An action plug-in was left out: %s", problem)


def build(
    *,
    allowed_networks: Sequence[str] = (),
    service_urls: Mapping[str, str] | None = None,
    user_agent: str = DEFAULT_USER_AGENT,
) -> Registry:
    """The registry of this process: built-in actions and plug-ins. Opens no connection.

    `allowed_networks` are CIDRs or host:port that may be called although private. `service_urls` gives other base URLs
    of services (``{"slack": "http://127.0.0.1:9999"}``); being the operator's word, those hosts and ports are allowed
    too. Raises `ConfigurationError` with a sentence per bad item.
    """
    bases, endpoints = _bases(service_urls or {})
    client = GuardedClient(AddressPolicy([*allowed_networks, *endpoints]), user_agent=user_agent)
    registry = Registry(client, builtins(client, bases))
    registry.load(entry_points(group=GROUP))
    return registry


def builtins(client: GuardedClient, bases: Mapping[str, str]) -> list[Action]:
    """The actions that come with Fairlane; `bases` gives other base URLs by service."""
    return [
        http.HttpRequest(client),
        slack.SlackMessage(client, base=bases.get("slack")),
        discord.DiscordMessage(client, base=bases.get("discord")),
        openweather.CurrentWeather(client, base=bases.get("openweather")),
        debug.Echo(client),
        debug.Sleep(client),
        debug.Fail(client),
        workflow.Run(client),
    ]


def _bases(service_urls: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Base URLs without a trailing slash, and host:port of each as items for the policy."""
    bases: dict[str, str] = {}
    endpoints: list[str] = []
    for service, text in service_urls.items():
        try:
            url = parse_url(text)
        except ActionError as error:
            raise ConfigurationError(f"FAIRLANE_SERVICE_URLS: {service}: {error.detail}") from error
        bases[service] = str(url).rstrip("/")
        host = f"[{url.host}]" if ":" in url.host else url.host
        endpoints.append(f"{host}:{url.port or (443 if url.scheme == 'https' else 80)}")
    return bases, endpoints


def _credential_model(action: Action) -> type[BaseModel] | None:
    model: type[BaseModel] | None = getattr(action, "credential_model", None)
    return model


def _check(action: Action) -> None:
    name = getattr(action, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"an action needs a name such as product.verb, not {name!r}")
    for attribute, kind in _ATTRIBUTES.items():
        if not isinstance(getattr(action, attribute, ...), kind):
            raise ValueError(f"{name} lacks the attribute {attribute}, or it has the wrong type")
    model = getattr(action, "input_model", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ValueError(f"{name} needs an input_model which is a pydantic model")
    if not callable(getattr(action, "run", None)):
        raise ValueError(f"{name} has no method run(context, parameters)")


def _description(action: Action) -> dict[str, Any]:
    model = _credential_model(action)
    return {
        "name": action.name,
        "summary": action.summary,
        "service": action.service,
        "credential_required": action.credential_required,
        "has_effects": action.has_effects,
        "credential_schema": None if model is None else model.model_json_schema(),
        "input_schema": action.input_model.model_json_schema(),
        "output_schema": dict(action.output_schema),
    }
