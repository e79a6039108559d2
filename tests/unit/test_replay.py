"""What a replay keeps and what it repeats: decisions over two versions of a workflow and what became of one run."""

from __future__ import annotations

from typing import Any

import pytest

from engine.replay import carried_over, continued, edited
from engine.states import StepState
from engine.workflow import Workflow

OK, FAILED, SKIPPED, RUNNING = StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.RUNNING


def step(step_id: str, **more: Any) -> dict[str, Any]:
    return {"id": step_id, "action": "debug.echo", **more}


def workflow(*steps: dict[str, Any]) -> Workflow:
    return Workflow.model_validate({"name": "W", "trigger": {"type": "manual"}, "steps": steps})


LINE = workflow(step("a"), step("b"), step("c"))
DIAMOND = workflow(
    step("a"), step("left", needs=["a"]), step("right", needs=["a"]), step("end", needs=["left", "right"])
)


def test_from_the_start_nothing_is_kept() -> None:
    assert carried_over(LINE, LINE, {"a": OK, "b": OK, "c": OK}, start="start") == set()


def test_from_what_failed_everything_before_it_is_kept() -> None:
    assert carried_over(LINE, LINE, {"a": OK, "b": FAILED}, start="failed") == {"a"}
    assert carried_over(LINE, LINE, {"a": SKIPPED, "b": OK, "c": FAILED}, start="failed") == {"a", "b"}


def test_from_a_step_it_and_what_needs_it_is_done_again() -> None:
    done = dict.fromkeys(("a", "left", "right", "end"), OK)
    assert carried_over(DIAMOND, DIAMOND, done, start="left") == {"a", "right"}
    assert carried_over(DIAMOND, DIAMOND, done, start="a") == set()


def test_what_was_left_in_the_middle_is_done_again() -> None:
    assert carried_over(LINE, LINE, {"a": OK, "b": RUNNING}, start="failed") == {"a"}


def test_a_failure_that_is_allowed_counts_as_done() -> None:
    tolerant = workflow(step("a", on_error="continue"), step("b"))
    assert carried_over(tolerant, tolerant, {"a": FAILED, "b": FAILED}, start="failed") == {"a"}
    handled = workflow(step("a", on_error="sorry"), step("sorry"), step("b", needs=["sorry"]))
    assert carried_over(handled, handled, {"a": FAILED, "sorry": OK, "b": FAILED}, start="failed") == {"a", "sorry"}


def test_a_step_that_is_new_in_the_version_is_run_and_so_is_what_needs_it() -> None:
    longer = workflow(step("a"), step("new"), step("b"), step("c"))
    assert carried_over(LINE, longer, {"a": OK, "b": OK, "c": FAILED}, start="failed") == {"a"}


def test_a_step_that_has_become_something_else_is_run_again() -> None:
    other = workflow(step("a"), {"id": "b", "action": "slack.message"}, step("c"))
    assert carried_over(LINE, other, {"a": OK, "b": OK, "c": FAILED}, start="failed") == {"a"}
    slept = workflow(step("a"), {"id": "b", "wait": {"for": "1s"}}, step("c"))
    assert carried_over(LINE, slept, {"a": OK, "b": OK, "c": FAILED}, start="failed") == {"a"}
    each = workflow(step("a"), step("b", for_each="[1]"), step("c"))
    assert carried_over(LINE, each, {"a": OK, "b": OK, "c": FAILED}, start="failed") == {"a"}


def test_another_input_of_a_step_does_not_undo_it() -> None:
    changed = workflow(step("a", **{"with": {"text": "new"}}), step("b"), step("c"))
    assert carried_over(LINE, changed, {"a": OK, "b": FAILED}, start="failed") == {"a"}


def test_a_list_goes_on_behind_its_finished_items_only_while_nothing_about_it_has_changed() -> None:
    each = workflow(step("a"), step("b", for_each="[1, 2]"))
    assert continued(each, each, {"a"}, {"b"}) == {"b"}
    assert continued(each, each, set(), {"b"}) == set()
    changed = workflow(step("a"), step("b", for_each="[1, 2, 3]"))
    assert continued(each, changed, {"a"}, {"b"}) == set()


REQUEST = {"body": 1, "headers": {"a": "b"}, "query": {}}
ITEM = {"item": 1, "item_id": "i", "source": "s"}


@pytest.mark.parametrize(
    ("root", "given", "becomes"),
    [
        ({"input": {"n": 1}}, {"n": 2}, {"input": {"n": 2}}),
        ({"input": {"n": 1}}, None, {"input": None}),
        ({"scheduled_at": "then"}, 5, {"scheduled_at": "then", "input": 5}),
        (REQUEST, {"n": 2}, REQUEST | {"body": {"n": 2}}),
        (REQUEST, {"body": 2, "query": {"q": "1"}}, REQUEST | {"body": 2, "query": {"q": "1"}}),
        (REQUEST, {"body": 2, "x": 1}, REQUEST | {"body": {"body": 2, "x": 1}}),
        (ITEM, {"title": "t"}, ITEM | {"item": {"title": "t"}}),
    ],
)
def test_an_input_is_given_in_the_terms_of_its_trigger(root: Any, given: Any, becomes: Any) -> None:
    assert edited(root, given) == becomes
