"""Calling a step's action: its attempts, their backoff, and where it goes on without a worker.

An attempt ends at the step's timeout, at the run's deadline, and as soon as the run is lost or cancelled. What the
action raises is classified by `engine.retry`: a short wait is slept through here, a long one parks the run.
"""

from __future__ import annotations

import random
import threading
import time
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import Secret

from engine import retry
from engine.children import start_child, with_child
from engine.errors import Cancelled, Fatal, RetryLater, RunWorkflow, Suspend, Unavailable, VaultError
from engine.execution import BACKOFF, Execution, RunInHand, Unstorable, storable
from engine.intent import renew_credential
from engine.outcomes import code_of, data_of, failed, out_of_time, parked, sentence_of, with_result
from engine.ports import Action, Json
from engine.states import StepState
from engine.tools import Tools

LOOK_SECONDS = 0.25
"""How often somebody who waits for an action that does not end by itself looks whether the run is lost."""


def perform(execution: Execution, tools: Tools) -> Execution:
    """Call the action until it succeeds, fails for good, or is better parked."""
    action = tools.actions[str(execution.step.action)]
    first, clock = execution.attempt, time.perf_counter()
    while True:
        run = execution.run
        run.hold.check()
        if run.remaining() <= 0:
            return out_of_time(execution, calls=execution.attempt - first, since=clock)
        calls = execution.attempt - first + 1
        try:
            output = _stored_form(action, execution, _call(action, execution, tools))
        except Suspend as suspension:
            return parked(execution, suspension.reason, _until(suspension.wake_at, run), calls=calls, since=clock)
        except _HasChild as started:
            return with_child(execution, started.child, calls=calls, since=clock)
        except (Unavailable, Cancelled):
            raise
        except Exception as error:
            if run.remaining() <= 0:
                return out_of_time(execution, calls=calls, since=clock)
            execution.log("warning", f"Attempt {execution.attempt} failed: {sentence_of(error)}", data_of(error))
            execution = _after_failure(execution, tools, error, calls=calls, since=clock)
            if execution.result is not None:
                return execution
        else:
            execution.log("info", f"{action.name} succeeded.")
            return with_result(execution, StepState.SUCCEEDED, output=output, calls=calls, since=clock)


def _stored_form(action: Action, execution: Execution, output: Json) -> Json:
    """Raises Fatal for what cannot be stored: the effect has happened, and another attempt would only repeat it."""
    try:
        return storable(execution.redact, output, most=execution.run.most_output)
    except Unstorable as error:
        raise Fatal(
            f"{action.name} has done its work, but answered what is no output: {error}.", code="bad_output"
        ) from error


def _after_failure(execution: Execution, tools: Tools, error: Exception, *, calls: int, since: float) -> Execution:
    """Failed, parked, or, after the wait, the next attempt with the credential as it is by then."""
    decision = retry.decide(execution.step.retry_policy, execution.attempt, error, random=random.random)
    if isinstance(decision, retry.GiveUp):
        return failed(execution, code_of(error), sentence_of(error), data=data_of(error), calls=calls, since=since)
    seconds: float = decision.after.total_seconds()
    if not retry.in_place(decision.after):
        return parked(execution, BACKOFF, seconds, calls=calls, since=since)
    execution.run.hold.wait(min(seconds, execution.run.remaining()))
    try:
        return renew_credential(replace(execution, attempt=execution.attempt + 1), tools)
    except (Fatal, VaultError) as gone:
        return failed(execution, gone.error_code, gone.detail, calls=calls, since=since)


class Context:
    """The `StepContext` of one attempt."""

    def __init__(self, execution: Execution) -> None:
        run, step = execution.run, execution.step
        self.tenant_id = run.tenant_id
        self.workflow_id = run.workflow_id
        self.run_id = run.run_id
        self.step_id = step.id
        self.attempt = execution.attempt
        self.idempotency_key = execution.idempotency_key
        self.credential: Secret[dict[str, Any]] | None = execution.credential
        self._execution = execution
        self._deadline = min(time.monotonic() + step.timeout.total_seconds(), run.deadline.at)

    def remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def wait(self, seconds: float) -> None:
        self._execution.run.hold.wait(seconds)

    def log(self, level: str, message: str, **data: Json) -> None:
        self._execution.log(level, message, data or None)


class _HasChild(Exception):
    """The action asked for a run of another workflow, which is there now."""

    def __init__(self, child: dict[str, Any]) -> None:
        super().__init__()
        self.child = child


def _call(action: Action, execution: Execution, tools: Tools) -> Json:
    """Once, under the step's timeout."""
    context = Context(execution)
    try:
        if action.honours_deadline:
            return action.run(context, execution.parameters)
        return _call_apart(action, context, execution)
    except RunWorkflow as wish:
        raise _HasChild(start_child(execution, tools, wish)) from None


def _call_apart(action: Action, context: Context, execution: Execution) -> Json:
    """An action that does not end by itself runs in a thread of its own, and is left behind when its time is over."""
    answer: list[Any] = []
    done = threading.Event()

    def body() -> None:
        try:
            answer[:] = [True, action.run(context, execution.parameters)]
        except BaseException as error:
            answer[:] = [False, error]
        finally:
            done.set()

    threading.Thread(target=copy_context().run, args=(body,), name=f"action-{action.name}", daemon=True).start()
    while not done.wait(min(LOOK_SECONDS, context.remaining())):
        execution.run.hold.check()
        if context.remaining() <= 0:
            raise RetryLater(f"No answer within {execution.step.timeout.total_seconds():g} s.", code="timeout")
    if answer[0]:
        return answer[1]
    raise answer[1]


def _until(moment: datetime | None, run: RunInHand) -> float | None:
    return None if moment is None else max(0.0, (moment - run.clock.now()).total_seconds())
