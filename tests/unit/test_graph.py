"""The order of steps, and which of them are passed over: decisions over values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.graph import Graph, graph_of
from engine.ports import Json
from engine.states import StepState
from engine.step import Step


@dataclass
class Outcome:
    status: StepState
    output: Json = None


def step(step_id: str, **keys: Any) -> Step:
    return Step.model_validate({"id": step_id, "action": "debug.echo", **keys})


def walked(graph: Graph, outcome: dict[str, Outcome]) -> dict[str, Outcome]:
    """Every step that comes to its end, in turn, when each that runs comes to `outcome` (succeeded unless given)."""
    results: dict[str, Outcome] = {}
    by_id = {item.id: item for item in graph.steps}
    while ready := graph.ready(results):
        for item in ready:
            skipped = graph.passed_over(item, results) is not None
            results[item.id] = (
                Outcome(StepState.SKIPPED) if skipped else outcome.get(item.id, Outcome(StepState.SUCCEEDED))
            )
            if results[item.id].status is StepState.FAILED and by_id[item.id].on_error == "fail":
                return results
    return results


def ran(results: dict[str, Outcome]) -> list[str]:
    return [name for name, outcome in results.items() if outcome.status is not StepState.SKIPPED]


FAILED = Outcome(StepState.FAILED)


def test_a_handler_comes_after_what_it_handles_even_without_needs() -> None:
    graph = graph_of([step("a", needs=[], on_error="h"), step("h", needs=[])])
    assert graph.needs["h"] == {"a"}


@pytest.mark.parametrize(
    ("failing", "runs"),
    [
        ([], ["a", "b", "c", "z"]),
        (["a"], ["a", "h", "z"]),
        (["b"], ["a", "b", "h", "z"]),
        (["a", "h"], ["a", "h"]),
        (["c"], ["a", "b", "c"]),
    ],
)
def test_what_lies_between_a_failure_and_its_handler_is_passed_over(failing: list[str], runs: list[str]) -> None:
    graph = graph_of([step("a", on_error="h"), step("b", on_error="h"), step("c"), step("h"), step("z")])
    assert ran(walked(graph, dict.fromkeys(failing, FAILED))) == runs


def test_handlers_may_stand_inside_each_other() -> None:
    graph = graph_of([step("a", on_error="outer"), step("b", on_error="inner"), step("inner"), step("outer")])
    assert ran(walked(graph, {"a": FAILED})) == ["a", "outer"]
    assert ran(walked(graph, {"b": FAILED})) == ["a", "b", "inner"]


def test_a_step_that_two_switches_may_choose_runs_when_one_does() -> None:
    cases = {"cases": [{"if": "true", "then": ["x"]}], "else": ["y"]}
    switches = [Step.model_validate({"id": name, "switch": cases, "needs": []}) for name in ("one", "two")]
    graph = graph_of([*switches, step("x", needs=[]), step("y", needs=[])])
    assert graph.needs["x"] == {"one", "two"}
    chosen = {
        "one": Outcome(StepState.SUCCEEDED, {"chosen": ["x"]}),
        "two": Outcome(StepState.SUCCEEDED, {"chosen": []}),
    }
    assert ran(walked(graph, chosen)) == ["one", "two", "x"]


NAMES = [f"s{n}" for n in range(8)]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any sound graph: needs point backwards, handlers and chosen steps forwards."""
    count = draw(st.integers(1, 8))
    steps = []
    for position, name in enumerate(NAMES[:count]):
        earlier, later = NAMES[:position], NAMES[position + 1 : count]
        keys: dict[str, Any] = {"id": name}
        odd = draw(st.tuples(st.booleans(), st.booleans()))
        if earlier and odd[0]:
            keys["needs"] = draw(st.lists(st.sampled_from(earlier), unique=True))
        if later and odd[1]:
            keys["switch"] = {"cases": [{"if": "true", "then": draw(st.lists(st.sampled_from(later), min_size=1))}]}
        else:
            keys["action"] = "debug.echo"
        keys["on_error"] = draw(st.sampled_from(["fail", "continue", *later]))
        steps.append(Step.model_validate(keys))
    return graph_of(steps)


@st.composite
def outcomes(draw: st.DrawFn, graph: Graph) -> dict[str, Outcome]:
    found = {}
    for item in graph.steps:
        if draw(st.integers(0, 3)) == 0:
            found[item.id] = FAILED
        elif item.switch is not None:
            targets = item.switch.targets
            found[item.id] = Outcome(StepState.SUCCEEDED, {"chosen": draw(st.lists(st.sampled_from(targets)))})
    return found


@given(graphs(), st.data())
def test_every_walk_ends_with_every_step_settled_or_a_failure_that_nobody_deals_with(
    graph: Graph, data: st.DataObject
) -> None:
    assert graph.cycle() is None
    results = walked(graph, data.draw(outcomes(graph)))
    ended_by_failure = any(
        results[item.id].status is StepState.FAILED and item.on_error == "fail"
        for item in graph.steps
        if item.id in results
    )
    assert ended_by_failure or results.keys() == {item.id for item in graph.steps}


@given(graphs(), st.data())
def test_no_step_runs_that_relies_on_a_failure_dealt_with_elsewhere(graph: Graph, data: st.DataObject) -> None:
    results = walked(graph, data.draw(outcomes(graph)))
    by_id = {item.id: item for item in graph.steps}
    for name in ran(results):
        before = graph.before(name)
        for failed in before:
            if results[failed].status is StepState.FAILED:
                handler = by_id[failed].handler
                assert handler is None or handler == name or handler in before


@given(graphs(), st.data())
def test_a_handler_runs_only_after_a_failure_that_it_deals_with(graph: Graph, data: st.DataObject) -> None:
    results = walked(graph, data.draw(outcomes(graph)))
    for name in set(ran(results)) & graph.handled.keys():
        assert any(results[watched].status is StepState.FAILED for watched in graph.handled[name])


@given(graphs(), st.data())
def test_a_walk_that_is_interrupted_anywhere_comes_to_the_same(graph: Graph, data: st.DataObject) -> None:
    """What is decided depends on finished steps alone, so another worker decides alike."""
    outcome = data.draw(outcomes(graph))
    whole = walked(graph, outcome)
    part = dict(list(whole.items())[: data.draw(st.integers(0, len(whole)))])
    for item in graph.ready(part):
        if item.id in whole:
            assert (graph.passed_over(item, part) is not None) == (whole[item.id].status is StepState.SKIPPED)
