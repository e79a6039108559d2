"""The ways in which a step can end or be put aside: each takes an `Execution` and returns it with its result."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from engine.durations import format_duration
from engine.errors import ActionError, FairlaneError
from engine.execution import APPROVAL, Execution, StepResult, json_bytes
from engine.ports import Json
from engine.states import StepState

RUN_TIMEOUT = "run_timeout"


def with_result(
    execution: Execution, status: StepState, *, since: float | None = None, calls: int = 0, **fields: Any
) -> Execution:
    """The step in `status`; `since` is when its call began, on the performance counter."""
    result = StepResult(
        execution.step.id,
        status,
        attempt=execution.attempt,
        item=execution.item,
        started_at=execution.started_at,
        finished_at=None if status is StepState.RUNNING else datetime.now(UTC),
        action=execution.step.action,
        seconds=0.0 if since is None else time.perf_counter() - since,
        calls=calls,
        given_bytes=json_bytes(execution.parameters) if calls else 0,
        **fields,
    )
    return replace(execution, result=result)


def failed(
    execution: Execution,
    code: str,
    message: str,
    *,
    data: Json = None,
    calls: int = 0,
    since: float | None = None,
) -> Execution:
    """The step has failed for good; secrets are masked here."""
    error = {"code": code, "message": execution.redact(message), "step": execution.step.id}
    if execution.item:
        error["item"] = int(execution.item)
    if data:
        error["data"] = execution.masked(data)
    execution.log("error", f"Failed: {message}")
    return with_result(execution, StepState.FAILED, error=error, calls=calls, since=since)


def out_of_time(execution: Execution, *, calls: int = 0, since: float | None = None) -> Execution:
    """The run's deadline passed while the step was tried."""
    return failed(execution, RUN_TIMEOUT, execution.run.deadline.reason, calls=calls, since=since)


def _how_long(reason: str, wake_seconds: float | None) -> str:
    if wake_seconds is None:
        return "until something comes for it"
    lasting = format_duration(timedelta(seconds=math.ceil(wake_seconds)))
    return f"for {lasting} at most" if reason == APPROVAL else f"for {lasting}"


def parked(
    execution: Execution,
    reason: str,
    wake_seconds: float | None,
    *,
    output: Json = None,
    calls: int = 0,
    since: float | None = None,
) -> Execution:
    """The step waits without a worker, for so long or until something comes for it."""
    execution.log("info", f"Waits without a worker {_how_long(reason, wake_seconds)} ({reason}).")
    return with_result(
        execution,
        StepState.RUNNING,
        output=output,
        calls=calls,
        since=since,
        wait_reason=reason,
        wake_seconds=wake_seconds,
    )


def code_of(error: Exception) -> str:
    return error.error_code if isinstance(error, FairlaneError) else "action_crashed"


def sentence_of(error: Exception) -> str:
    return error.detail if isinstance(error, FairlaneError) else f"{type(error).__name__}: {error}"


def data_of(error: Exception) -> Json:
    return dict(error.data) or None if isinstance(error, ActionError) else None
