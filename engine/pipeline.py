"""How one step is executed: a pipeline of named functions, each `Execution` in, `Execution` out.

    check_condition -> resolve_inputs -> record_intent -> perform

The first that sets a result ends it. Nothing here raises for what a tenant or the outside world did wrong: that becomes
a failed `StepResult` with a code and a sentence. Only `Cancelled` (the run is no longer ours), `Unavailable` (a
dependency of ours is down; the run stays as it is and is delivered again) and programming errors leave the pipeline.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import Secret, ValidationError

from engine import retry
from engine.db import Database, Row, TenantSession
from engine.errors import (
    ActionError,
    Cancelled,
    ExpressionFailed,
    FairlaneError,
    Fatal,
    RetryLater,
    Suspend,
    Unavailable,
    VaultError,
)
from engine.execution import Execution, StepResult, bounded
from engine.expressions import Evaluator, render_legacy
from engine.patience import patiently
from engine.ports import Action, Json
from engine.redaction import Redactor
from engine.repository import credentials, runs
from engine.states import StepState
from engine.vault import Vault


@dataclass(frozen=True, slots=True)
class Tools:
    """What the pipeline works with; made once per process."""

    database: Database
    vault: Vault
    actions: Mapping[str, Action]
    evaluator: Evaluator


def execute_step(execution: Execution, tools: Tools) -> StepResult:
    """Take one step from its condition to its result."""
    for stage in (check_condition, resolve_inputs, record_intent, perform):
        execution = stage(execution, tools)
        if execution.result is not None:
            return execution.result
    raise AssertionError("perform always sets a result")


def check_condition(execution: Execution, tools: Tools) -> Execution:
    """Skip the step unless its `if` is the boolean true."""
    source = execution.step.if_
    if source is None:
        return execution
    try:
        met = tools.evaluator.condition(source, execution.roots)
    except ExpressionFailed as error:
        return _failed(execution, error.error_code, f"if: {error.detail}")
    if met:
        return execution
    execution.log("info", "Skipped: its condition is not true.")
    return _with_result(execution, StepState.SKIPPED)


def resolve_inputs(execution: Execution, tools: Tools) -> Execution:
    """Fill the templates of `with` and read it as the action's input."""
    action = tools.actions.get(execution.step.action)
    if action is None:
        return _failed(execution, "unknown_action", f"This worker does not have the action {execution.step.action}.")
    try:
        values = _render(execution, tools.evaluator)
        return replace(execution, parameters=action.input_model.model_validate(values))
    except ExpressionFailed as error:
        return _failed(execution, error.error_code, f"with: {error.detail}")
    except ValidationError as error:
        faults = [f"with.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        return _failed(execution, "invalid_input", "; ".join(faults))


def _render(execution: Execution, evaluator: Evaluator) -> Json:
    if execution.step.templates == "legacy":
        return render_legacy(execution.step.with_, execution.run.input.get("body"))
    return evaluator.render(execution.step.with_, execution.roots)


def record_intent(execution: Execution, tools: Tools) -> Execution:
    """Decrypt the credential and store that the effect is about to be tried, in one transaction.

    An action without effects and without a credential needs neither.
    """
    action = tools.actions[execution.step.action]
    if not action.has_effects and action.service is None:
        return execution
    lines = execution.run.journal.take() if action.has_effects else []
    try:
        return patiently(execution.run.hold, lambda: _prepare(execution, action, tools, lines))
    except (Fatal, VaultError) as error:
        execution.run.journal.put_back(lines)
        return _failed(execution, error.error_code, error.detail)


def _prepare(execution: Execution, action: Action, tools: Tools, lines: list[Row]) -> Execution:
    with tools.database.tenant(execution.run.tenant_id) as session:
        execution = _unlock(execution, action, session, tools.vault)
        if action.has_effects:
            _store_intent(execution, session, lines)
    return execution


def _unlock(execution: Execution, action: Action, session: TenantSession, vault: Vault) -> Execution:
    name = execution.step.credential
    if action.service is None or (name is None and not action.credential_required):
        return execution
    rows = credentials.for_step(
        session,
        name=name,
        service=action.service,
        run_id=execution.run.run_id,
        step_id=execution.step.id,
        attempt=execution.attempt,
    )
    row = _the_one(rows, action=action, name=name)
    secret = vault.open(session, row)
    return replace(execution, credential=secret, redact=Redactor(secret.get_secret_value()))


def _the_one(rows: list[Row], *, action: Action, name: str | None) -> Row:
    wanted = f"named {name!r}" if name is not None else f"of the service {action.service!r}"
    if not rows:
        raise Fatal(f"There is no credential {wanted}; add one or name another.", code="credential_missing")
    if len(rows) > 1:
        raise Fatal(
            f"There are several credentials {wanted}; name one of them in the step.", code="credential_ambiguous"
        )
    if rows[0]["service"] != action.service:
        raise Fatal(
            f"The credential {name!r} is for {rows[0]['service']}, but {action.name} needs one for {action.service}.",
            code="credential_of_another_service",
        )
    return rows[0]


def _store_intent(execution: Execution, session: TenantSession, lines: list[Row]) -> None:
    intent = StepResult(
        execution.step.id, StepState.RUNNING, attempt=execution.attempt, started_at=execution.started_at
    )
    run = execution.run
    if not runs.save_progress(session, run.run_id, attempt=run.attempt, steps=[intent.row()], lines=lines):
        run.hold.lose()
        raise Cancelled("the run is no longer this worker's")


def perform(execution: Execution, tools: Tools) -> Execution:
    """Call the action until it succeeds, fails for good, or is better parked."""
    action = tools.actions[execution.step.action]
    policy = execution.step.retry_policy
    first = execution.attempt
    clock = time.perf_counter()
    while True:
        execution.run.hold.check()
        calls = execution.attempt - first + 1
        try:
            output = _call(action, execution)
        except Suspend as suspension:
            return _parked(execution, suspension.reason, _until(suspension.wake_at), calls=calls, since=clock)
        except (Unavailable, Cancelled):
            raise
        except Exception as error:
            decision = retry.decide(policy, execution.attempt, error, random=random.random)
            execution.log("warning", f"Attempt {execution.attempt} failed: {_sentence(error)}", _data(error))
            if isinstance(decision, retry.GiveUp):
                return _failed(execution, _code(error), _sentence(error), data=_data(error), calls=calls, since=clock)
            seconds: float = decision.after.total_seconds()
            if not retry.in_place(decision.after):
                return _parked(execution, "retry_backoff", seconds, calls=calls, since=clock)
            execution.run.hold.wait(seconds)
            execution = replace(execution, attempt=execution.attempt + 1)
        else:
            output = bounded(execution.redact(output))
            execution.log("info", f"{action.name} succeeded.")
            return _with_result(execution, StepState.SUCCEEDED, output=output, calls=calls, since=clock)


class Context:
    """The `StepContext` of one attempt."""

    def __init__(self, execution: Execution) -> None:
        run, step = execution.run, execution.step
        self.tenant_id = run.tenant_id
        self.workflow_id = run.workflow_id
        self.run_id = run.run_id
        self.step_id = step.id
        self.attempt = execution.attempt
        self.idempotency_key = f"{run.run_id}:{step.id}"
        self.credential: Secret[dict[str, Any]] | None = execution.credential
        self._execution = execution
        self._deadline = time.monotonic() + step.timeout.total_seconds()

    def remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def wait(self, seconds: float) -> None:
        self._execution.run.hold.wait(seconds)

    def log(self, level: str, message: str, **data: Json) -> None:
        self._execution.log(level, message, data or None)


def _call(action: Action, execution: Execution) -> Json:
    """Once, under the step's timeout. An action that does not end by itself is left behind in a thread of its own."""
    context = Context(execution)
    if action.honours_deadline:
        return action.run(context, execution.parameters)
    answer: list[Any] = []

    def body() -> None:
        try:
            answer[:] = [True, action.run(context, execution.parameters)]
        except BaseException as error:
            answer[:] = [False, error]

    thread = threading.Thread(target=body, name=f"action-{action.name}", daemon=True)
    thread.start()
    thread.join(execution.step.timeout.total_seconds())
    if not answer:
        raise RetryLater(f"No answer within {execution.step.timeout.total_seconds():g} s.", code="timeout")
    if answer[0]:
        return answer[1]
    raise answer[1]


def _with_result(
    execution: Execution, status: StepState, *, since: float | None = None, calls: int = 0, **fields: Any
) -> Execution:
    result = StepResult(
        execution.step.id,
        status,
        attempt=execution.attempt,
        started_at=execution.started_at,
        finished_at=None if status is StepState.RUNNING else datetime.now(UTC),
        action=execution.step.action,
        seconds=0.0 if since is None else time.perf_counter() - since,
        calls=calls,
        **fields,
    )
    return replace(execution, result=result)


def _failed(
    execution: Execution,
    code: str,
    message: str,
    *,
    data: Json = None,
    calls: int = 0,
    since: float | None = None,
) -> Execution:
    error = {"code": code, "message": execution.redact(message), "step": execution.step.id}
    if data:
        error["data"] = bounded(execution.redact(data))
    execution.log("error", f"Failed: {message}")
    return _with_result(execution, StepState.FAILED, error=error, calls=calls, since=since)


def _parked(execution: Execution, reason: str, wake_seconds: float | None, *, calls: int, since: float) -> Execution:
    when = "until it is resumed" if wake_seconds is None else f"for {wake_seconds:.0f} s"
    execution.log("info", f"Waits {when} without a worker ({reason}).")
    return _with_result(
        execution, StepState.RUNNING, calls=calls, since=since, wait_reason=reason, wake_seconds=wake_seconds
    )


def _until(moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _code(error: Exception) -> str:
    return error.error_code if isinstance(error, FairlaneError) else "action_crashed"


def _sentence(error: Exception) -> str:
    return error.detail if isinstance(error, FairlaneError) else f"{type(error).__name__}: {error}"


def _data(error: Exception) -> Json:
    return dict(error.data) or None if isinstance(error, ActionError) else None
