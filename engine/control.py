"""Steps that steer: waits, switches, lists of items; and what a step does that an earlier attempt left behind.

Waits hold no worker: the step is put aside with the moment when it goes on, and what was decided then is never decided
again. All of it is worked out from what is stored, so a wake-up too many harms nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.answers import Done, answered, moment
from engine.children import with_child
from engine.errors import ExpressionFailed
from engine.execution import APPROVAL, SLEEPING, UNKNOWN, WORKFLOW, Execution, LeftBehind, bounded
from engine.expressions import Evaluator
from engine.outcomes import failed, parked, with_result
from engine.ports import Json
from engine.states import StepState
from engine.step import Wait
from engine.tools import Tools

MAX_ITEMS = 1000


def take_up(execution: Execution, tools: Tools) -> Execution:
    """What an action does that was left behind: go on, ask, give up, or take what its child run came to."""
    left = execution.left
    if left is None:
        return execution
    if left.wait_reason == WORKFLOW:
        return _child_of(replace(execution, attempt=left.attempt), left)
    if left.wait_reason == UNKNOWN and left.signal is not None:
        if left.signal["approved"]:
            execution.log("info", f"Tried again, as {left.signal['by']} decided.")
            return execution
        return failed(replace(execution, attempt=left.attempt), UNKNOWN, f"Given up by {left.signal['by']}.")
    if left.wait_reason is None:
        return _after_crash(execution, tools)
    return execution


def _child_of(execution: Execution, left: LeftBehind) -> Execution:
    if left.child is None:
        return failed(execution, "workflow_gone", "The run that it waited for is gone.")
    return with_child(execution, left.child)


def _after_crash(execution: Execution, tools: Tools) -> Execution:
    """The worker died while the action was called. Those without effects, and children, are safe to repeat."""
    action = tools.actions.get(str(execution.step.action))
    if action is None or not action.has_effects:
        return execution
    match execution.step.on_unknown:
        case "fail":
            return failed(
                replace(execution, attempt=execution.attempt - 1),
                UNKNOWN,
                "Its worker died while it was tried; whether it happened is not known.",
            )
        case "ask":
            execution.log("warning", "Its worker died while it was tried; somebody must say whether to try again.")
            return parked(replace(execution, attempt=execution.attempt - 1), UNKNOWN, None)
    execution.log("warning", "Its worker died while it was tried; tried again with the same idempotency key.")
    return execution


def wait(execution: Execution, tools: Tools) -> Execution:
    """Put the step aside, or see what its wait came to."""
    asked = execution.step.wait
    assert asked is not None, "the pipeline sends waits here"  # noqa: S101
    if execution.left is not None:
        return _waited(replace(execution, attempt=execution.left.attempt), asked)
    try:
        if asked.approval is not None:
            message = tools.evaluator.render(asked.approval.message, execution.roots)
            expires = asked.approval.expires
            return parked(
                execution,
                APPROVAL,
                None if expires is None else expires.total_seconds(),
                output=bounded({"message": message}),
            )
        seconds = _seconds(asked, execution, tools.evaluator)
    except ExpressionFailed as error:
        return failed(execution, error.error_code, f"wait: {error.detail}")
    if seconds <= 0:
        return with_result(execution, StepState.SUCCEEDED, output={"waited": False})
    return parked(execution, SLEEPING, seconds)


def _seconds(asked: Wait, execution: Execution, evaluator: Evaluator) -> float:
    if asked.for_ is not None:
        return asked.for_.total_seconds()
    source = asked.until or ""
    until = moment(evaluator.value(source, execution.roots), source)
    return (until - execution.run.clock.now()).total_seconds()


def _waited(execution: Execution, asked: Wait) -> Execution:
    left = execution.left
    if asked.approval is None:
        return with_result(execution, StepState.SUCCEEDED, output={"waited": True})
    outcome = answered(left.signal if left else None)
    if isinstance(outcome, Done):
        execution.log("info", f"Approved by {outcome.output['by']}.")
        return with_result(execution, StepState.SUCCEEDED, output=bounded(outcome.output))
    return failed(execution, outcome.code, outcome.message)


def choose(execution: Execution, tools: Tools) -> Execution:
    """The first case of a switch whose condition is true, else what `else` names."""
    switch = execution.step.switch
    assert switch is not None, "the pipeline sends switches here"  # noqa: S101
    for number, case in enumerate(switch.cases):
        try:
            met = tools.evaluator.condition(case.if_, execution.roots)
        except ExpressionFailed as error:
            return failed(execution, error.error_code, f"switch.cases.{number}.if: {error.detail}")
        if met:
            return _chosen(execution, number, case.then)
    return _chosen(execution, None, switch.else_)


def _chosen(execution: Execution, case: int | None, steps: Sequence[str]) -> Execution:
    execution.log("info", f"Chose {', '.join(steps) or 'nothing'}.")
    return with_result(execution, StepState.SUCCEEDED, output={"case": case, "chosen": list(steps)})


def list_items(execution: Execution, tools: Tools) -> list[Json] | Execution:
    """The items of a step that is done for each; the execution with its result where there is no list."""
    asked = execution.step.for_each
    assert asked is not None, "only steps with for_each come here"  # noqa: S101
    try:
        items = tools.evaluator.value(asked.items, execution.roots)
    except ExpressionFailed as error:
        return failed(execution, error.error_code, f"for_each: {error.detail}")
    if not isinstance(items, list):
        return failed(execution, "invalid_items", "for_each: want a list; make one with [x] or map.map(key, ...)")
    if len(items) > MAX_ITEMS:
        return failed(execution, "invalid_items", f"for_each: {len(items)} items, at most {MAX_ITEMS} are done.")
    return items
