"""Dry runs of what steers a workflow: choices, waits, lists, failures that are dealt with. No action is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import actions
from engine import dry_run
from engine.definition import parse
from engine.dry_run import DryRun, masked
from engine.errors import InvalidInput
from engine.expressions import Evaluator
from engine.ports import Json
from tests.scripted import echo

REGISTRY = actions.build()
FETCH = {"id": "fetch", "action": "http.request", "with": {"url": "https://x.example"}}


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    with Evaluator(children=1) as evaluator:
        yield evaluator


def would(evaluator: Evaluator, *steps: dict[str, Any], trigger: Json = None) -> dict[str, Any]:
    document = {"name": "W", "trigger": {"type": "manual"}, "steps": list(steps)}
    workflow = parse(document, actions=REGISTRY, evaluator=evaluator)
    dry = DryRun(
        workflow=workflow, workflow_id="wf_1", version=1, actions=REGISTRY, credentials={}, evaluator=evaluator
    )
    return {step["id"]: step["would"] for step in dry.run(trigger or {"input": {}})}


def switch(condition: str) -> dict[str, Any]:
    return {"id": "kind", "switch": {"cases": [{"if": condition, "then": ["a"]}], "else": ["b"]}}


def test_a_switch_shows_what_it_chooses(evaluator: Evaluator) -> None:
    found = would(evaluator, switch("1 > 2"), echo("a"), echo("b"))
    assert found["kind"] == {"chosen": ["b"]}
    assert found["a"] == {"skip": "The switch kind did not choose it."}
    assert found["b"]["action"] == "debug.echo"


def test_a_switch_over_an_unknown_answer_may_choose_anything(evaluator: Evaluator) -> None:
    found = would(evaluator, FETCH, switch("steps.fetch.output.status == 200"), echo("a"), echo("b"))
    assert found["kind"] == {
        "chosen": ["a", "b"],
        "unknown": [{"pointer": "/switch/cases/0/if", "needs": ["fetch"]}],
    }
    assert "action" in found["a"]
    assert "action" in found["b"]


def test_waits_are_shown_and_not_waited_for(evaluator: Evaluator) -> None:
    found = would(
        evaluator,
        {"id": "sleep", "wait": {"for": "2h"}},
        {"id": "moment", "wait": {"until": "trigger.input.at"}},
        {"id": "ask", "wait": {"approval": {"message": "Pay {{ trigger.input.n }}?", "expires": "3d"}}},
        trigger={"input": {"at": "2026-01-01T00:00:00Z", "n": 7}},
    )
    assert [found[name]["wait"] for name in ("sleep", "moment", "ask")] == [
        {"for": "2h"},
        {"until": "2026-01-01T00:00:00Z"},
        {"approval": {"message": "Pay 7?", "expires": "3d"}},
    ]


def test_a_list_shows_its_length_and_its_first_item(evaluator: Evaluator) -> None:
    step = echo("each", for_each="trigger.input.list", with_={"x": "{{ item }}", "n": "{{ index }}"})
    found = would(evaluator, step, trigger={"input": {"list": ["first", "second"]}})
    assert (found["each"]["items"], found["each"]["with"]) == (2, {"x": "first", "n": 0})
    assert would(evaluator, step, trigger={"input": {"list": []}})["each"]["items"] == 0
    assert would(evaluator, step, trigger={"input": {"list": "text"}})["each"] == {"fail": "for_each: want a list."}


def test_a_list_that_is_not_known_yet_says_what_it_needs(evaluator: Evaluator) -> None:
    step = echo("each", for_each="steps.fetch.output.body.list", with_={"x": "{{ item }}"})
    found = would(evaluator, FETCH, step)["each"]
    assert (found["items"], found["unknown"]) == (None, [{"pointer": "/for_each", "needs": ["fetch"]}])


def test_a_failure_that_is_dealt_with_does_not_end_it(evaluator: Evaluator) -> None:
    bad = echo("try", with_={"x": "{{ trigger.input.missing }}"}, on_error="catch")
    found = would(evaluator, bad, echo("then"), echo("catch"), echo("after"))
    assert "fail" in found["try"]
    assert found["then"] == {"skip": "The step try failed, and catch deals with that."}
    assert "action" in found["catch"]
    assert "action" in found["after"]


def test_what_looks_like_a_secret_is_masked_in_texts_of_any_length() -> None:
    text = "https://x.example/?a=1&my_token=hidden?hidden#part ?n=/b?api-key=hidden Bearer hidden"
    assert "hidden" not in str(masked(text))
    assert masked("?a=1&b=2 a token of love") == "?a=1&b=2 a token of love"
    hostile = "?token" * 40_000  # took an older expression hours
    assert masked(hostile) == hostile


def test_texts_grow_up_to_a_limit_over_the_whole_of_a_dry_run(evaluator: Evaluator) -> None:
    steps = [echo(f"s{number}", with_={"x": "{{ trigger.input }}" * 5}) for number in range(4)]
    found = would(evaluator, *steps, trigger={"input": "x" * 1024 * 1024})
    assert ["with" in found["s0"], "with" in found["s1"]] == [True, True]
    assert "name smaller parts" in found["s2"]["fail"]


def test_a_dry_run_ends_when_its_time_is_over(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "MOST_SECONDS", 0.0)
    with pytest.raises(InvalidInput, match="try parts of it"):
        would(evaluator, echo("a"))
