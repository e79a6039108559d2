"""The registry: names, schemas, plug-ins of other packages; and the debug actions."""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import actions
from actions.connectors.http import HttpCredential
from actions.guard import AddressPolicy
from actions.http import GuardedClient
from actions.registry import Registry, builtins
from engine.errors import Cancelled, ConfigurationError, Fatal, RetryLater
from engine.ports import StepContext
from tests.action_step import Step, run

BUILT_IN = {
    "http.request",
    "slack.message",
    "discord.message",
    "openweather.current",
    "debug.echo",
    "debug.sleep",
    "debug.fail",
    "workflow.run",
}


@pytest.fixture
def registry() -> Registry:
    return actions.build()


class Nothing(BaseModel):
    pass


class Shout:
    name = "shout.say"
    summary = "Says it loudly."
    service: str | None = None
    credential_required = False
    has_effects = False
    honours_deadline = True
    input_model: type[BaseModel] = Nothing
    output_schema: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, client: object) -> None:
        self.client = client

    def run(self, context: StepContext, parameters: Nothing) -> str:
        return "HA"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An importable module that entry points of these tests point into."""
    module = types.ModuleType("plugin_under_test")
    monkeypatch.setitem(sys.modules, "plugin_under_test", module)
    return module


def entry(attribute: str) -> EntryPoint:
    return EntryPoint(name=attribute, value=f"plugin_under_test:{attribute}", group="fairlane.actions")


def fresh() -> Registry:
    client = GuardedClient()
    return Registry(client, builtins(client, {}))


def test_the_built_in_actions_are_there(registry: Registry) -> None:
    assert set(registry) == BUILT_IN
    assert registry.problems == ()
    assert all(registry[name].name == name for name in registry)


def test_the_public_surface_is_pinned() -> None:
    assert sorted(actions.__all__) == ["PluginProblem", "Registry", "build"]


def test_every_description_is_json_with_its_schemas(registry: Registry) -> None:
    described = registry.describe()
    assert [item["name"] for item in described] == sorted(BUILT_IN)
    assert json.loads(json.dumps(described)) == described
    by_name = {item["name"]: item for item in described}
    assert set(by_name["http.request"]["input_schema"]["properties"]) >= {"method", "url", "json", "body", "expect"}
    assert by_name["slack.message"]["credential_required"] is True
    assert by_name["slack.message"]["credential_schema"]["properties"].keys() == {"webhook_url", "bot_token"}
    assert by_name["debug.echo"]["credential_schema"] is None
    assert {name for name in by_name if by_name[name]["has_effects"]} == {
        "http.request",
        "slack.message",
        "discord.message",
        "workflow.run",
    }


def test_an_action_of_another_package_is_found(plugin: types.ModuleType) -> None:
    vars(plugin)["shout"] = Shout
    registry = fresh()
    registry.load([entry("shout")])
    assert registry.problems == ()
    assert run(registry["shout.say"], Step()) == "HA"
    assert getattr(registry["shout.say"], "client", None) is registry.client


def test_a_broken_plugin_is_named_and_stops_no_other(plugin: types.ModuleType) -> None:
    class Nameless(Shout):
        name = "Shout!"

    class Mute(Shout):
        name = "shout.mute"
        run = None  # type: ignore[assignment]

    class Vague(Shout):
        name = "shout.vague"
        summary = None  # type: ignore[assignment]

    class Wild(Shout):
        name = "shout.wild"
        input_model = dict  # type: ignore[assignment]

    def exploding(client: object) -> object:
        raise RuntimeError("no licence")

    vars(plugin).update(shout=Shout, nameless=Nameless, mute=Mute, vague=Vague, wild=Wild, exploding=exploding)
    registry = fresh()
    registry.load([entry(name) for name in ("exploding", "missing", "mute", "nameless", "shout", "vague", "wild")])
    assert "shout.say" in registry
    problems = {problem.plugin: problem.reason for problem in registry.problems}
    assert set(problems) == {"exploding", "missing", "mute", "nameless", "vague", "wild"}
    assert "no licence" in problems["exploding"]
    assert "summary" in problems["vague"]


def test_a_name_that_is_taken_is_refused(plugin: types.ModuleType) -> None:
    class Impostor(Shout):
        name = "http.request"

    vars(plugin).update(impostor=Impostor, many=lambda client: [Shout(client), Shout(client)])
    registry = fresh()
    original = registry["http.request"]
    registry.load([entry("impostor"), entry("many")])
    assert registry["http.request"] is original
    assert [(problem.plugin, "is taken" in problem.reason) for problem in registry.problems] == [
        ("impostor", True),
        ("many", True),
    ]
    assert "shout.say" in registry


def test_a_plugin_may_not_redefine_the_credentials_of_a_service(plugin: types.ModuleType) -> None:
    class Other(Shout):
        service = "slack"
        credential_model = Nothing

    vars(plugin)["other"] = Other
    registry = fresh()
    registry.load([entry("other")])
    assert "credentials of slack" in str(registry.problems[0])
    assert "shout.say" not in registry


@pytest.mark.parametrize(
    ("service", "data"),
    [
        ("slack", {"webhook_url": "https://hooks.slack.com/x"}),
        ("slack", {"bot_token": "xoxb-1"}),
        ("discord", {"webhook_url": "https://discord.com/x"}),
        ("openweather", {"api_key": "k"}),
        ("http", {"headers": {"X-Key": "k"}}),
        ("http", {"basic": {"username": "u", "password": "p"}}),
        ("http", {"bearer": "t", "headers": {"X-Org": "o"}, "hosts": ["api.example.com"]}),
    ],
)
def test_the_credential_of_a_known_service_is_checked(registry: Registry, service: str, data: dict[str, Any]) -> None:
    model = registry.credential_schema(service)
    assert model is not None
    assert "xoxb" not in repr(model.model_validate(data))


@pytest.mark.parametrize(
    ("service", "data"),
    [
        ("slack", {}),
        ("slack", {"webhook_url": "hush", "bot_token": "hush"}),
        ("slack", {"webhook_url": "hush"}),
        ("slack", {"webhook_url": "https://user:hush@hooks.slack.com/"}),
        ("discord", {"webhook_url": "file:///hush"}),
        ("discord", {"url": "hush"}),
        ("openweather", {"api_key": None}),
        ("http", {}),
        ("http", {"bearer": "hush", "basic": {"username": "u", "password": "hush"}}),
        ("http", {"headers": {"X": "hush\r\nEvil: 1"}}),
        ("http", {"headers": {"X Y": "hush"}}),
    ],
)
def test_a_credential_that_does_not_fit_is_refused_without_its_value(
    registry: Registry, service: str, data: dict[str, Any]
) -> None:
    model = registry.credential_schema(service)
    assert model is not None
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    assert "hush" not in str(caught.value)


def test_a_service_that_nobody_knows_is_free_form(registry: Registry) -> None:
    assert registry.credential_schema("salesforce") is None
    assert registry.credential_schema("http") is HttpCredential


@pytest.mark.parametrize(
    ("networks", "urls"),
    [(["nonsense"], {}), ([], {"slack": "ftp://x"}), ([], {"slack": "not a url"}), ([], {"slack": "http://u:p@h"})],
)
def test_a_bad_setting_is_a_configuration_error(networks: list[str], urls: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="FAIRLANE_"):
        actions.build(allowed_networks=networks, service_urls=urls)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("http.request", {"url": "https://a.example", "unknown": 1}),
        ("http.request", {}),
        ("http.request", {"url": "https://a.example", "method": "BREW"}),
        ("http.request", {"url": "https://a.example", "json": 1, "body": "x"}),
        ("http.request", {"url": "https://a.example", "body": {"a": 1}}),
        ("http.request", {"url": "https://a.example", "expect": ["soon"]}),
        ("http.request", {"url": "https://a.example", "headers": {"X": "a\nb"}}),
        ("slack.message", {"text": ["a"]}),
        ("slack.message", {"text": ""}),
        ("slack.message", {"text": None}),
        ("discord.message", {"content": "x" * 2001}),
        ("openweather.current", {"city": "  "}),
        ("openweather.current", {"city": "London", "units": "kelvin"}),
        ("debug.sleep", {"seconds": 61}),
        ("debug.sleep", {"seconds": -1}),
        ("debug.fail", {"times": -1}),
    ],
)
def test_inputs_that_make_no_sense_are_refused(registry: Registry, name: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        registry[name].input_model.model_validate(given)


def test_json_null_is_a_body_of_its_own(registry: Registry) -> None:
    model = registry["http.request"].input_model
    assert getattr(model.model_validate({"url": "https://a.example", "json": None}), "has_json", None) is True
    assert getattr(model.model_validate({"url": "https://a.example"}), "has_json", None) is False


def test_echo_returns_what_it_is_given(registry: Registry) -> None:
    given = {"a": 1, "nested": {"list": [1, None, "x"]}, "json": True, "model_config": 2}
    assert run(registry["debug.echo"], Step(), **given) == given


def test_sleep_waits_and_ends_with_the_step(registry: Registry) -> None:
    assert run(registry["debug.sleep"], Step(), seconds=0.01) == {"slept": 0.01}
    with pytest.raises(RetryLater) as caught:
        run(registry["debug.sleep"], Step(seconds=0.02), seconds=30)
    assert caught.value.error_code == "timeout"


def test_sleep_ends_when_the_run_is_cancelled(registry: Registry) -> None:
    step = Step(seconds=60)
    step.cancelled.set()
    with pytest.raises(Cancelled):
        run(registry["debug.sleep"], step, seconds=30)


def test_fail_fails_always_or_so_many_times(registry: Registry) -> None:
    action = registry["debug.fail"]
    with pytest.raises(RetryLater, match="on purpose"):
        run(action, Step(attempt=100))
    for attempt in (1, 2):
        with pytest.raises(RetryLater, match="boom"):
            run(action, Step(attempt=attempt), message="boom", times=2)
    assert run(action, Step(attempt=3), message="boom", times=2) == {"attempt": 3}


def test_nothing_is_opened_before_the_first_call() -> None:
    client = GuardedClient(AddressPolicy())
    client.close()
    assert actions.build().client is not None


def test_the_example_of_the_manual_is_a_working_plugin(plugin: types.ModuleType) -> None:
    page = Path(__file__).parents[2] / "docs" / "actions.md"
    source = page.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(source, str(page), "exec"), vars(plugin))
    registry = fresh()
    registry.load([entry("CreateTicket")])
    assert registry.problems == ()
    assert registry.credential_schema("acme") is vars(plugin)["AcmeCredential"]
    with pytest.raises(Fatal) as caught:
        run(registry["acme.ticket"], Step(), title=5)
    assert caught.value.error_code == "credential_missing"


def test_the_manual_names_every_built_in_action(registry: Registry) -> None:
    page = (Path(__file__).parents[2] / "docs" / "actions.md").read_text()
    assert [name for name in registry if f"`{name}`" not in page] == []
