"""How one step is executed: a pipeline of named functions, each `Execution` in, `Execution` out.

    an action    take_up -> check_condition -> resolve_inputs -> record_intent -> perform
    a wait       check_condition -> wait
    a switch     check_condition -> choose

The first that sets a result ends it. Nothing here raises for what a tenant or the outside world did wrong: that becomes
a failed `StepResult` with a code and a sentence. Only `Cancelled` (the run is no longer ours), `Unavailable` (a
dependency of ours is down; the run stays as it is and is delivered again) and programming errors leave the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from pydantic import ValidationError
from structlog.contextvars import bound_contextvars

from engine import tracing
from engine.control import choose, take_up, wait
from engine.errors import ExpressionFailed
from engine.execution import Execution, StepResult
from engine.expressions import Evaluator, legacy_data, render_legacy
from engine.intent import record_intent
from engine.outcomes import failed, with_result
from engine.perform import perform
from engine.ports import Json
from engine.states import StepState
from engine.step import TemplateData
from engine.tools import Tools

__all__ = ["Tools", "check_condition", "execute_step", "resolve_inputs"]

Stage: TypeAlias = Callable[[Execution, Tools], Execution]


def execute_step(execution: Execution, tools: Tools) -> StepResult:
    """Take one step, or one item of it, from its condition to its result."""
    with bound_contextvars(**_ids(execution)), tracing.span("step", _about(execution)) as span:
        for stage in _stages(execution):
            execution = stage(execution, tools)
            if execution.result is not None:
                _note(span, execution.result)
                return execution.result
    raise AssertionError("the last stage always sets a result")


def _ids(execution: Execution) -> dict[str, str]:
    """What log lines say."""
    return {"step": execution.step.id} | ({"item": execution.item} if execution.item else {})


def _about(execution: Execution) -> tracing.About:
    run, step = execution.run, execution.step
    about = {"fairlane.tenant": run.tenant_id, "fairlane.workflow": run.workflow_id, "fairlane.run": run.run_id}
    return {
        **about,
        "fairlane.action": step.action or ("wait" if step.wait is not None else "switch"),
        **{f"fairlane.{name}": value for name, value in _ids(execution).items()},
    }


def _note(span: tracing.Span, result: StepResult) -> None:
    status = result.wait_reason or result.status.value
    span.note({"fairlane.status": status, "fairlane.step_attempt": result.attempt, "fairlane.calls": result.calls})
    if result.status is StepState.FAILED:
        span.fail(str((result.error or {}).get("code")))


def _stages(execution: Execution) -> tuple[Stage, ...]:
    if execution.step.wait is not None:
        return check_condition, wait
    if execution.step.switch is not None:
        return check_condition, choose
    return take_up, check_condition, resolve_inputs, record_intent, perform


def check_condition(execution: Execution, tools: Tools) -> Execution:
    """Skip the step unless its `if` is the boolean true. What has begun, or is one item of many, is past that."""
    source = execution.step.if_
    if source is None or execution.left is not None or execution.item:
        return execution
    try:
        met = tools.evaluator.condition(source, execution.roots)
    except ExpressionFailed as error:
        return failed(execution, error.error_code, f"if: {error.detail}")
    if met:
        return execution
    execution.log("info", "Skipped: its condition is not true.")
    return with_result(execution, StepState.SKIPPED)


def resolve_inputs(execution: Execution, tools: Tools) -> Execution:
    """Fill the templates of `with` and read it as the action's input."""
    action = tools.actions.get(str(execution.step.action))
    if action is None:
        return failed(execution, "unknown_action", f"This worker does not have the action {execution.step.action}.")
    try:
        values = _render(execution, tools.evaluator)
        return replace(execution, parameters=action.input_model.model_validate(values))
    except ExpressionFailed as error:
        return failed(execution, error.error_code, f"with: {error.detail}")
    except ValidationError as error:
        faults = [
            f"with.{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        return failed(execution, "invalid_input", "; ".join(faults))


def _render(execution: Execution, evaluator: Evaluator) -> Json:
    if execution.step.templates == "legacy":
        given = execution.step.template_data or TemplateData()
        data = legacy_data(execution.roots, step=given.step, defaults=given.defaults)
        return render_legacy(execution.step.with_, data)
    return evaluator.render(execution.step.with_, execution.roots)
