"""Reading workflow documents: what is accepted, what is refused and in which words."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

import actions
from engine.definition import (
    Step,
    WebhookTrigger,
    Workflow,
    canonical,
    from_legacy,
    json_schema,
    load,
    parse,
    version_hash,
)
from engine.errors import InvalidInput
from engine.ports import Action, HttpClient, Json, PollResult, PollSource, RetryPolicy, StepContext

DOCS = Path(__file__).parents[2] / "docs"


class WeatherInput(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str
    days: int = Field(default=1, ge=1, le=7)
    tags: list[int] = []


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Weather(Action):
    name = "openweather.current"
    summary = "The weather."
    service = "openweather"
    credential_required = True
    has_effects = False
    honours_deadline = True
    input_model = WeatherInput
    output_schema: Mapping[str, Json] = {}

    def run(self, context: StepContext, parameters: WeatherInput) -> Json:
        return {"temp": 20.0, "city": parameters.city}


class Echo(Weather):
    name = "debug.echo"
    service = None  # type: ignore[assignment]
    input_model = Anything  # type: ignore[assignment]


class Message(Echo):
    name = "slack.message"


class Feed(PollSource):
    name = "rss"
    summary = "A feed."

    class input_model(BaseModel):  # noqa: N801
        model_config = ConfigDict(extra="forbid")
        url: str

    def poll(self, parameters: Any, cursor: Json, client: HttpClient) -> PollResult:
        return PollResult(items=())


ACTIONS: Mapping[str, Action] = {action.name: action for action in (Weather(), Echo(), Message())}
BUILT_IN: Mapping[str, Action] = actions.build()
SOURCES: Mapping[str, PollSource] = {"rss": Feed()}

WEATHER = """
name: Weather to Slack
trigger: {type: webhook}
steps:
  - id: weather
    action: openweather.current
    credential: openweather
    with: {city: "{{ trigger.body.city }}"}
    retry: {attempts: 3, initial: 1s, max: 60s}
    timeout: 30s
  - id: notify
    if: steps.weather.output.temp > 25.0
    action: slack.message
    with: {text: "It is {{ steps.weather.output.temp }} in {{ trigger.body.city }}"}
"""


def echo(step_id: str, **more: Any) -> dict[str, Any]:
    return {"id": step_id, "action": "debug.echo", **more}


def document(*steps: Any, **more: Any) -> dict[str, Any]:
    return {"name": "n", "trigger": {"type": "manual"}, "steps": list(steps or [echo("a")]), **more}


def read(value: Any) -> Workflow:
    return parse(value, actions=ACTIONS, sources=SOURCES)


def faults(value: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as refused:
        read(value)
    return {fault.pointer: fault.message for fault in refused.value.faults}


# ------------------------------------------------------------------------------------------------------- accepted


def test_document_of_the_contract_is_read_from_yaml_json_and_mapping() -> None:
    workflow = read(WEATHER)
    assert isinstance(workflow.trigger, WebhookTrigger)
    weather, notify = workflow.steps
    assert weather.retry_policy == RetryPolicy(3, timedelta(seconds=1), timedelta(seconds=60))
    assert (weather.timeout, notify.timeout) == (timedelta(seconds=30), timedelta(seconds=30))
    assert notify.if_ == "steps.weather.output.temp > 25.0"
    stored = canonical(workflow)
    assert read(json.dumps(stored)) == read(json.dumps(stored).encode()) == read(stored) == load(stored) == workflow


@pytest.mark.parametrize(
    "trigger",
    [
        {"type": "webhook", "secret": "whsec_x"},
        {"type": "schedule", "cron": "0 9 * * MON-FRI", "timezone": "Europe/Berlin", "missed": "all"},
        {"type": "schedule", "every": "30s", "jitter": "5s"},
        {"type": "poll", "source": "rss", "every": "10m", "with": {"url": "https://x"}, "initial": "all"},
        {"type": "manual"},
    ],
)
def test_every_kind_of_trigger_keeps_its_form(trigger: dict[str, Any]) -> None:
    assert canonical(read(document(trigger=trigger)))["trigger"] == trigger


def test_canonical_form_leaves_defaults_out_so_that_meaning_alone_decides_the_hash() -> None:
    spelled = document(echo("a", retry={"attempts": 1}, timeout="30000ms", templates="cel", **{"with": {}}))
    assert canonical(read(spelled)) == document()
    assert version_hash(read(spelled)) == version_hash(read(document()))
    assert version_hash(read(document(echo("a", timeout="31s")))) != version_hash(read(document()))


@pytest.mark.parametrize(
    ("value", "digest"),
    [
        (WEATHER, "8f3e055a1cab40d569f843bdfd89e79d0cf9fcc6c361407123616867f92fc265"),
        (
            document(
                echo(
                    "a",
                    retry={"attempts": 3, "max": "2m"},
                    timeout="1m",
                    **{"if": "true", "with": {"x": "{{ trigger.x }}"}},
                ),
                echo("b", needs=[]),
                trigger={"type": "schedule", "every": "30s"},
            ),
            "ad17acb15541cbd8c23e43d543e117b4cf247989d0484bedb3ba9bd606f444d2",
        ),
    ],
)
def test_hashes_of_stored_versions_never_change(value: Any, digest: str) -> None:
    assert version_hash(read(value)) == digest


def test_both_forms_of_a_list_mean_the_same() -> None:
    short, whole = document(echo("a", for_each="[1]")), document(echo("a", for_each={"items": "[1]", "parallel": 1}))
    assert version_hash(read(short)) == version_hash(read(whole))
    assert canonical(read(short))["steps"][0]["for_each"] == {"items": "[1]"}


def test_yaml_scalars_are_json_values() -> None:
    values = "{a: no, b: 1:30, c: 1.5, d: ~, e: 0o7, f: true}"
    text = f"name: 2026-01-01\ntrigger: {{type: manual}}\nsteps: [{{id: on, action: debug.echo, with: {values}}}]"
    workflow = read(text)
    assert workflow.name == "2026-01-01"
    assert workflow.steps[0].with_ == {"a": "no", "b": "1:30", "c": 1.5, "d": None, "e": "0o7", "f": True}


# ---------------------------------------------------------------------------------------------------------- graph


def test_steps_without_needs_run_in_order() -> None:
    graph = read(document(echo("a"), echo("b"), echo("c"))).graph
    assert [step.id for step in graph.ready([])] == ["a"]
    assert [step.id for step in graph.ready({"a"})] == ["b"]
    assert graph.ready({"a"}, begun={"b"}) == []
    assert graph.ready({"a", "b", "c"}) == []


def test_needs_make_a_graph_whose_independent_steps_are_ready_together() -> None:
    workflow = read(
        document(echo("join", needs=["left", "right"]), echo("left", needs=[]), echo("right", needs=[]), echo("after"))
    )
    assert [step.id for step in workflow.graph.ready([])] == ["left", "right"]
    assert [step.id for step in workflow.graph.ready({"left"}, begun={"right"})] == []
    assert [step.id for step in workflow.graph.ready({"left", "right"})] == ["join", "after"]
    assert workflow.plan() == (("left", "right"), ("join", "after"))


def test_cycle_is_named() -> None:
    found = faults(document(echo("a", needs=["c"]), echo("b"), echo("c"), echo("d", needs=[])))
    ((place, sentence),) = found.items()
    assert place in {"/steps/0/needs", "/steps/1/needs", "/steps/2/needs"}
    names = sentence.removeprefix("these steps wait for each other: ").split(" -> ")
    assert names[0] == names[-1]
    assert set(names) == {"a", "b", "c"}


def test_step_may_not_wait_for_itself() -> None:
    assert "wait for each other: a -> a" in faults(document(echo("a", needs=["a"])))["/steps/0/needs"]


# -------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("value", "place", "sentence"),
    [
        (document(more=1), "/more", "unknown key 'more'"),
        (document(nmae="x"), "/nmae", "did you mean 'name'?"),
        (document(echo("a", actoin=1)), "/steps/0/actoin", "unknown key 'actoin'; did you mean 'action'?"),
        (document(echo("a", wait={"for": "2h"})), "/steps/0", "give one of action, wait, switch, not action and wait"),
        (document({"id": "a", "wait": {}}), "/steps/0/wait", "give one of for, until and approval"),
        (document({"id": "a", "wait": {"for": "2h", "until": "x"}}), "/steps/0/wait", "give one of for"),
        (document({"id": "a", "wait": {"fro": "2h"}}), "/steps/0/wait/fro", "did you mean 'for'?"),
        (document({"id": "a", "wait": {"for": "soon"}}), "/steps/0/wait/for", "number and a unit"),
        (document({"id": "a", "wait": {"until": "{{ x }}"}}), "/steps/0/wait/until", "without {{ }}"),
        (
            document({"id": "a", "wait": {"approval": {"mesage": "x"}}}),
            "/steps/0/wait/approval/mesage",
            "did you mean 'message'?",
        ),
        (
            document({"id": "a", "wait": {"approval": {"message": "{{ steps.z.output }}"}}}),
            "/steps/0/wait/approval/message",
            "there is no step 'z'",
        ),
        (document({"id": "a", "wait": {"for": "1s"}, "with": {"x": 1}}), "/steps/0", "'with' goes with an action"),
        (document({"id": "a", "wait": {"for": "1s"}, "for_each": "[1]"}), "/steps/0", "'for_each' goes with an"),
        (document(echo("a", for_each="{{ [1] }}")), "/steps/0/for_each", "write the expression without {{ }}"),
        (document(echo("a", for_each={"items": "[1]", "parallel": 0})), "/steps/0/for_each/parallel", "than or equal"),
        (document(echo("a", for_each={"itms": "[1]"})), "/steps/0/for_each/itms", "did you mean 'items'?"),
        (document(echo("a", for_each=["x"])), "/steps/0/for_each", "must be an object"),
        (document(echo("a", **{"with": {"x": "{{ item }}"}})), "/steps/0/with/x", "for_each only"),
        (document(echo("a", for_each="[1]", **{"if": "index > 0"})), "/steps/0/if", "for_each only"),
        (document(echo("a", on_error="b")), "/steps/0/on_error", "there is no step 'b'"),
        (document(echo("b"), echo("a", on_error="b")), "/steps/0/needs", "wait for each other"),
        (document(echo("a", on_error="a")), "/steps/0/needs", "wait for each other: a -> a"),
        (document(echo("a", on_unknown="guess")), "/steps/0/on_unknown", "'retry', 'fail' or 'ask'"),
        (document({"id": "a", "switch": {"cases": []}}), "/steps/0/switch/cases", "at least 1"),
        (
            document({"id": "a", "switch": {"cases": [{"if": "true", "then": ["b"]}]}}),
            "/steps/0/switch/cases/0/then/0",
            "there is no step 'b'",
        ),
        (
            document({"id": "a", "switch": {"cases": [{"fi": "true", "then": ["b"]}]}}),
            "/steps/0/switch/cases/0/fi",
            "known are if, then",
        ),
        (
            document({"id": "a", "switch": {"cases": [{"if": "{{ true }}", "then": ["b"]}], "else": ["c"]}}, echo("b")),
            "/steps/0/switch/else/0",
            "there is no step 'c'",
        ),
        (
            document(echo("b"), {"id": "a", "switch": {"cases": [{"if": "true", "then": ["b"]}]}}),
            "/steps/0/needs",
            "wait for each other",
        ),
        (document(timeout="0s"), "/timeout", "at least 1s"),
        (document(on_failure={"workflw": "x"}), "/on_failure/workflw", "did you mean 'workflow'?"),
        (document(concurrency={"limit": 0}), "/concurrency/limit", "greater than or equal to 1"),
        (document(concurrency={"kye": "x"}), "/concurrency/kye", "did you mean 'key'?"),
        (document(concurrency={"key": "{{ x }}"}), "/concurrency/key", "without {{ }}"),
        (document(concurrency={"key": "steps.a.output"}), "/concurrency/key", "no step has run yet"),
        (document({"id": "a"}), "/steps/0/action", "the key 'action' is missing"),
        (document("text"), "/steps/0", "must be an object"),
        (document(echo("A b")), "/steps/0/id", "an id is a small letter"),
        (document(echo("a" * 65)), "/steps/0/id", "at most 64"),
        (document(echo("a"), echo("a")), "/steps/1/id", "used by another step"),
        (document(steps=[]), "/steps", "1 to 100"),
        (document(*[echo(f"s{n}") for n in range(101)]), "/steps", "1 to 100"),
        (document(steps={}), "/steps", "a list"),
        (document(name=" "), "/name", "at least 1 character"),
        (document(echo("a", timeout="2h")), "/steps/0/timeout", "at most 1h"),
        (document(echo("a", timeout="0s")), "/steps/0/timeout", "more than 0"),
        (document(echo("a", timeout=30)), "/steps/0/timeout", "with a unit, such as 30s"),
        (document(echo("a", retry={"attempts": 0})), "/steps/0/retry/attempts", "greater than or equal to 1"),
        (document(echo("a", retry={"atempts": 2})), "/steps/0/retry/atempts", "did you mean 'attempts'?"),
        (document(echo("a", retry={"initial": "2m"})), "/steps/0/retry", "max must not be less than initial"),
        (document({"id": "a", "action": "slack.mesage"}), "/steps/0/action", "did you mean 'slack.message'?"),
        (document({"id": "a", "action": "x"}), "/steps/0/action", "known are debug.echo"),
        (document(echo("a", credential="x")), "/steps/0/credential", "takes no credential"),
        (document(echo("a", needs=["b"])), "/steps/0/needs/0", "there is no step 'b'"),
        (document(trigger={}), "/trigger", "the key 'type' is missing; one of webhook, schedule, poll, manual"),
        (document(trigger={"type": "webhok"}), "/trigger", "did you mean 'webhook'?"),
        (document(trigger={"type": "webhook", "secrt": 1}), "/trigger/secrt", "did you mean 'secret'?"),
        (document(trigger={"type": "schedule"}), "/trigger", "give either cron or every"),
        (document(trigger={"type": "schedule", "cron": "* * * *"}), "/trigger/cron", "five fields"),
        (document(trigger={"type": "schedule", "cron": "61 * * * *"}), "/trigger/cron", "bad minute"),
        (document(trigger={"type": "schedule", "cron": "* * 31 2 *"}), "/trigger/cron", "day-of-month"),
        (
            document(trigger={"type": "schedule", "cron": "* * * * *", "timezone": "Mars/Base"}),
            "/trigger/timezone",
            "Europe/Berlin",
        ),
        (document(trigger={"type": "schedule", "every": "10"}), "/trigger/every", "number and a unit"),
        (document(trigger={"type": "schedule", "every": "500ms"}), "/trigger/every", "at least 1s"),
        (document(trigger={"type": "poll", "source": "rs", "every": "1m"}), "/trigger/source", "did you mean 'rss'?"),
        (
            document(trigger={"type": "poll", "source": "rss", "every": "1m", "with": {"ulr": "x"}}),
            "/trigger/with/ulr",
            "did you mean 'url'?",
        ),
        (document(echo("a", **{"if": "{{ true }}"})), "/steps/0/if", "without {{ }}"),
        (document(echo("a", **{"with": {"x": ["{{ y"]}})), "/steps/0/with/x/0", "no closing"),
        (document(echo("a", **{"if": "steps.b.output"})), "/steps/0/if", "there is no step 'b'"),
        (document(echo("a", **{"if": "steps.a.output"})), "/steps/0/if", "cannot read its own result"),
        (
            document(echo("a", **{"with": {"x": "{{ steps.b.output }}"}}), echo("b")),
            "/steps/0/with/x",
            "step 'b' does not run before 'a'",
        ),
        (
            document(echo("a"), echo("b", needs=[], **{"if": "steps['a'].status == 'x'"})),
            "/steps/1/if",
            "name it in needs",
        ),
    ],
)
def test_fault_has_its_place_and_says_what_would_be_right(value: Any, place: str, sentence: str) -> None:
    found = faults(value)
    assert place in found
    assert sentence in found[place]


@pytest.mark.parametrize(
    ("given", "place", "sentence"),
    [
        ({}, "/steps/0/with/city", "the key 'city' is missing"),
        ({"city": "x", "dayz": 2}, "/steps/0/with/dayz", "did you mean 'days'?"),
        ({"city": "x", "dayz": "{{ trigger.n }}"}, "/steps/0/with/dayz", "did you mean 'days'?"),
        ({"city": "x", "days": 9}, "/steps/0/with/days", "less than or equal to 7"),
        ({"city": "{{ trigger.x }}", "days": "many"}, "/steps/0/with/days", "integer"),
        ({"city": "x", "tags": [1, "two"]}, "/steps/0/with/tags/1", "integer"),
    ],
)
def test_literal_input_is_checked_against_the_action(given: dict[str, Any], place: str, sentence: str) -> None:
    found = faults(document({"id": "a", "action": "openweather.current", "with": given}))
    assert list(found) == [place]
    assert sentence in found[place]


def test_templated_input_is_left_for_the_run() -> None:
    given = {"city": "{{ trigger.x }}", "days": "{{ trigger.n }}", "tags": ["{{ trigger.n }}"]}
    assert read(document({"id": "a", "action": "openweather.current", "with": given})).steps[0].with_ == given


def test_all_faults_of_a_document_are_told_at_once() -> None:
    found = faults(
        {
            "nam": "x",
            "trigger": {"type": "schedule", "cron": "x"},
            "steps": [{"id": "a", "action": "nope"}, {"id": "B", "action": "debug.echo"}, echo("c", needs=["zz"])],
        }
    )
    assert found.keys() == {"/nam", "/name", "/trigger/cron", "/steps/0/action", "/steps/1/id", "/steps/2/needs/0"}


def test_a_step_with_a_fault_of_its_own_is_there_for_those_that_read_it() -> None:
    reader = echo("b", **{"with": {"x": "{{ steps.a.output.x }}", "y": "{{ steps.z.output.x }}"}})
    assert faults(document({"id": "a", "actoin": "debug.echo"}, reader)).keys() == {
        "/steps/0/actoin",
        "/steps/1/with/y",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &x [1]\nb: *x", "anchors and aliases"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ("[" * 100_000, "nested deeper"),
        ("- " * 5_000, "nested deeper"),
        ('{"a":' * 40_000, "nested deeper"),
        ("a: !!python/object/apply:os.system [x]", "tags are not allowed"),
        ("a: !!binary aGk=", "tags are not allowed"),
        ("1: 2", "is not text; quote it"),
        ("? [1, 2]\n: 3", "a key must be text"),
        ("a: [", "not YAML: line 2"),
        ('{"a": ]', "not JSON"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        ("", "a workflow is an object"),
        ("just text", "a workflow is an object"),
        ("x" * 300_000, "larger than 256 KiB"),
        ({"name": "x" * 300_000}, "larger than 256 KiB"),
        ({"name": float("inf")}, "no JSON value"),
        ({"name": {1, 2}}, "no JSON value"),
        ({1: 2}, "is not text"),
    ],
)
def test_text_that_is_no_plain_document_is_refused(text: Any, sentence: str) -> None:
    assert any(sentence in message for message in faults(text).values())


def test_stored_document_of_a_newer_version_is_refused_by_load() -> None:
    with pytest.raises(InvalidInput, match="/steps/0/later: unknown key"):
        load(document(echo("a", later={"for": "2h"})))


# --------------------------------------------------------------------------------------------------------- legacy


@pytest.mark.parametrize(
    ("action", "config", "step"),
    [
        (
            "slack_message",
            {"slack_message": "{{user.name}}"},
            {"action": "slack.message", "with": {"text": "{{user.name}}"}},
        ),
        ("discord_post", {"discord_message": "hi"}, {"action": "discord.message", "with": {"content": "hi"}}),
        ("weather_check", {"city": "Oslo"}, {"action": "openweather.current", "with": {"city": "Oslo"}}),
        ("weather_check", {}, {"action": "openweather.current", "with": {"city": "London"}}),
    ],
)
def test_legacy_action_becomes_one_step(action: str, config: dict[str, str], step: dict[str, Any]) -> None:
    made = from_legacy("n", "webhook", action, json.dumps(config))
    assert made["steps"] == [{"id": "action", "templates": "legacy", **step}]
    assert load(made).steps[0].templates == "legacy"


@pytest.mark.parametrize(
    ("interval", "every"),
    [
        (15, "15m"),
        (None, "10m"),
        (0, "10m"),
        (-3, "10m"),
        ("7", "7m"),
        ("x", "10m"),
        (2.9, "2m"),
        (True, "10m"),
        ([], "10m"),
        (1e300, "527040m"),
    ],
)
def test_legacy_interval_is_whole_minutes_and_ten_without(interval: Any, every: str) -> None:
    made = from_legacy("n", "schedule", "weather_check", {"interval": interval})
    assert made["trigger"] == {"type": "schedule", "every": every}
    load(made)


def test_legacy_chain_becomes_steps_and_reads_the_previous_result_where_it_said_so() -> None:
    chain = [
        {"action_type": "slack_message", "config": {"slack_message": "{{temp}}"}, "use_data_from": "previous"},
        {"action_type": "slack_message", "config": '{"slack_message": "{{shop}}"}'},
    ]
    described = [{"name": "shop", "default_value": "ours", "required": True}, {"name": "no default"}, "odd"]
    made = from_legacy(
        "n", "webhook", "weather_check", "", action_chain=json.dumps(chain), parameters=json.dumps(described)
    )
    legacy = {"templates": "legacy"}
    defaults = {"template_data": {"defaults": {"shop": "ours"}}}
    assert made["steps"] == [
        {"id": "action", "action": "openweather.current", "with": {"city": "London"}, **legacy, **defaults},
        {"id": "action_2", "action": "slack.message", "with": {"text": "{{temp}}"}, **legacy,
         "template_data": {"step": "action"}},
        {"id": "action_3", "action": "slack.message", "with": {"text": "{{shop}}"}, **legacy, **defaults},
    ]  # fmt: skip
    assert canonical(load(made)) == made


def test_legacy_chain_that_begins_with_the_first_action_is_the_whole() -> None:
    config = {"slack_message": "x"}
    chain = json.dumps([{"action_type": "slack_message", "config": config}])
    assert len(from_legacy("n", "webhook", "slack_message", config, action_chain=chain)["steps"]) == 1


@pytest.mark.parametrize(
    ("chain", "place", "code"),
    [
        ("{", "/action_chain", "invalid_input"),
        ('{"a": 1}', "/action_chain", "invalid_input"),
        ("[1]", "/action_chain/0", "invalid_input"),
        ('[{"action_type": "soap_call"}]', "/action_chain/0/action_type", "unknown_action"),
        ('[{"action_type": "slack_message"}]', "/action_chain/0/config/slack_message", "invalid_input"),
        ('[{"action_type": "slack_message", "config": 5}]', "/action_chain/0/config", "invalid_input"),
    ],
)
def test_legacy_fault_in_a_chain_names_its_link(chain: str, place: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        from_legacy("n", "webhook", "weather_check", "{}", action_chain=chain)
    assert (refused.value.faults[0].pointer, refused.value.error_code) == (place, code)


def test_legacy_document_passes_every_check() -> None:
    made = from_legacy("n", "webhook", "slack_message", {"slack_message": "{{a.b}} {{"}, actions=ACTIONS)
    assert canonical(read(made)) == made


@pytest.mark.parametrize(
    ("arguments", "place", "code"),
    [
        (("webhook", "twilio_sms", "{}"), "/action_type", "unknown_action"),
        (("webhook", "discord_post", {"discord_message": "x"}), "/action_type", "unknown_action"),
        (("cron", "weather_check", "{}"), "/trigger_type", "invalid_input"),
        (("webhook", "slack_message", ""), "/config_json/slack_message", "invalid_input"),
        (("webhook", "weather_check", "{not json"), "/config_json", "invalid_input"),
        (("webhook", "weather_check", "[1]"), "/config_json", "invalid_input"),
    ],
)
def test_legacy_fault_names_the_old_field(arguments: tuple[str, str, Any], place: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        from_legacy("n", *arguments, actions=ACTIONS)
    assert refused.value.faults[0].pointer == place
    assert refused.value.error_code == code


# --------------------------------------------------------------------------------------------- published documents


def test_json_schema_names_every_key() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {"name", "trigger", "steps", "timeout", "concurrency", "on_failure"}
    step = schema["$defs"]["Step"]
    assert set(step["properties"]) == {field.alias or name for name, field in Step.model_fields.items()}
    assert step["additionalProperties"] is False


def test_page_about_workflows_names_every_key_and_its_examples_are_valid() -> None:
    page = (DOCS / "workflows.md").read_text()
    for name, definition in json_schema()["$defs"].items():
        assert all(f"`{key}`" in page for key in definition.get("properties", {})), name
    examples = [block.split("```")[0] for block in page.split("```yaml\n")[1:]]
    assert len(examples) >= 3
    for example in examples:
        parse(example, actions=BUILT_IN, sources=SOURCES)


# ------------------------------------------------------------------------------------------------------ properties

IDS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("abc{ }é"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=3), inner, max_size=3),
    max_leaves=6,
)
DURATIONS = st.integers(1_000, 3_600_000).map(lambda n: f"{n}ms")
TRIGGERS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "manual"}),
    st.fixed_dictionaries({"type": st.just("webhook")}, optional={"secret": st.text("ab", min_size=1)}),
    st.fixed_dictionaries(
        {"type": st.just("schedule"), "every": DURATIONS},
        optional={"missed": st.sampled_from(["skip", "once", "all"]), "jitter": DURATIONS},
    ),
    st.fixed_dictionaries(
        {"type": st.just("schedule"), "cron": st.sampled_from(["* * * * *", "0 0 L * *"])},
        optional={"timezone": st.sampled_from(["UTC", "Europe/Berlin"])},
    ),
)


STEERING: st.SearchStrategy[dict[str, Any]] = st.one_of(
    DURATIONS.map(lambda text: {"wait": {"for": text}}),
    st.just({"wait": {"until": "trigger.at"}}),
    st.fixed_dictionaries({}, optional={"message": st.just("{{ trigger.x }}?"), "expires": DURATIONS}).map(
        lambda approval: {"wait": {"approval": approval}}
    ),
)


def switches(later: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    targets = st.lists(st.sampled_from(later), min_size=1, unique=True)
    cases = st.lists(st.fixed_dictionaries({"if": st.just("true"), "then": targets}), min_size=1, max_size=3)
    return st.fixed_dictionaries({"cases": cases}, optional={"else": targets}).map(lambda switch: {"switch": switch})


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    steps = []
    for position, step_id in enumerate(ids):
        step = echo(
            step_id, **{"with": {"x": "{{ trigger.x }}", "y": draw(VALUES.filter(lambda v: "{{" not in str(v)))}}
        )
        step |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "needs": st.lists(st.sampled_from(ids[:position]), unique=True) if position else st.just([]),
                    "timeout": DURATIONS,
                    "if": st.just("trigger.x == 1"),
                    "retry": st.fixed_dictionaries({"attempts": st.integers(1, 20)}),
                    "on_error": st.sampled_from(["fail", "continue", *ids[position + 1 :]]),
                    "on_unknown": st.sampled_from(["retry", "fail", "ask"]),
                    "for_each": st.just("trigger.x")
                    | st.fixed_dictionaries({"items": st.just("trigger.x"), "parallel": st.integers(1, 20)}),
                },
            )
        )
        if draw(st.integers(0, 3)) == 0:
            step = {key: step[key] for key in ("id", "needs", "if", "on_error") if key in step}
            step |= draw(STEERING if position + 1 == len(ids) else STEERING | switches(ids[position + 1 :]))
        steps.append(step)
    more: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "timeout": DURATIONS,
                "on_failure": st.just({"workflow": "wf_1"}),
                "concurrency": st.fixed_dictionaries(
                    {},
                    optional={
                        "key": st.just("trigger.x"),
                        "limit": st.integers(1, 1000),
                        "on_limit": st.sampled_from(["queue", "cancel_running", "drop_new"]),
                    },
                ),
            },
        )
    )
    return {"name": draw(st.text("abc", min_size=1)), "trigger": draw(TRIGGERS), "steps": steps, **more}


@given(documents())
def test_canonical_form_reads_back_as_the_same_workflow(value: dict[str, Any]) -> None:
    workflow = read(value)
    stored = json.loads(json.dumps(canonical(workflow)))
    assert read(stored) == load(stored) == workflow
    assert version_hash(load(stored)) == version_hash(workflow)
    done: set[str] = set()
    while ready := workflow.graph.ready(done):
        done |= {step.id for step in ready}
    assert done == {step.id for step in workflow.steps}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(documents(), st.data())
def test_damaged_document_is_read_or_refused_and_never_an_error(value: dict[str, Any], data: st.DataObject) -> None:
    damaged = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 4))):
        target: Any = damaged
        while True:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(target[key], dict | list) and data.draw(st.booleans()):
                target = target[key]
                continue
            target[key] = data.draw(VALUES | st.sampled_from(["{{", "{{ steps.a }}", "1h", [{}], {"type": "poll"}]))
            break
    for text in (damaged, json.dumps(damaged)):
        with contextlib.suppress(InvalidInput):
            read(text)


@given(st.text(alphabet="abn:-{}[]'\"\n #&*!|>1?", max_size=80))
def test_any_text_is_a_document_or_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read(text)
