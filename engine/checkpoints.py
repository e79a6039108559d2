"""Storing what a run has come to: steps, log, ledger and the run's state, in one transaction, patiently.

The transaction that ends a run also does what its end means for others: it wakes the run that waits for it, hands its
place under a limit to the next, starts the workflow that deals with failures, and cancels the runs that it waited for.
Locks are taken from above: the limit, the parent, the run, its children; whoever ends or cancels runs keeps that order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import structlog

from engine.db import Row, TenantSession
from engine.errors import Cancelled, FairlaneError, PutBack, Unavailable
from engine.execution import MAX_DEPTH, Hold, RunInHand, StepResult, json_bytes
from engine.patience import patiently
from engine.ports import Json
from engine.repository import relatives, runs
from engine.runs import Start, Ties
from engine.states import RunState
from engine.tools import Tools

ON_FAILURE = "on_failure"
"""What started a run that deals with another's failure; it has no such run of its own."""

log = structlog.get_logger(__name__)


def save(
    run: RunInHand,
    tools: Tools,
    state: RunState,
    done: Sequence[StepResult] = (),
    *,
    usage: Sequence[Row] = (),
    output: Json = None,
    error: Json = None,
    wait_reason: str | None = None,
    wake_seconds: float | None = None,
    numbered: bool = True,
) -> None:
    """One checkpoint. Raises Cancelled, with nothing stored, when the run is no longer this worker's.

    When it gives up because nobody answers, `put_back` stores what was done, unless it has been stored nevertheless.
    One behind another that was refused (TooLarge) must not be `numbered`, for that one's number is missing.
    """
    progress: dict[str, Any] = {
        "attempt": run.attempt,
        "checkpoint": next(run.checkpoints) if numbered else None,
        "status": state,
        "steps": [result.row() for result in done],
        "lines": run.journal.take(),
        "usage": [row for result in done for row in result.usage()] + list(usage),
        "output": output,
        "error": error,
        "wait_reason": wait_reason,
        "wake_seconds": wake_seconds,
    }

    def store() -> None:
        with tools.database.tenant(run.tenant_id) as session:
            if state.is_terminal:
                _before_end(session, run, tools, state, error)
            if not runs.save_progress(session, run.run_id, **progress):
                run.hold.lose()
                raise Cancelled("the run is no longer this worker's")
            if state.is_terminal and run.workflow.has_children:
                tools.runs.cancel_children(session, run.run_id)

    try:
        patiently(run.hold, store, size=partial(json_bytes, progress))
    except (Cancelled, Unavailable):
        if numbered:
            rows = [row for result in done for row in result.usage()]
            kept = {name: progress[name] for name in ("attempt", "checkpoint", "steps", "lines")}
            run.unanswered.append({**kept, "usage": rows})
        raise


def put_back(
    run: RunInHand,
    tools: Tools,
    why: Cancelled | Unavailable,
    done: Sequence[StepResult] = (),
    *,
    usage: Sequence[Row] = (),
) -> NoReturn:
    """Queue a run that this worker lets go for no fault of the run, if it is its own still; then raise `why`.

    It is its own still when its organization is not active, or when a part of ours does not answer: then it is PutBack
    that is raised. What it has done is kept and no crash is counted. The sweeper publishes it, that of a suspended
    organization once that is active again.
    """
    reason = why.detail if isinstance(why, Unavailable) else "its organization is not active"
    run.journal.add("warning", f"The run was put back in line: {reason}")
    progress: dict[str, Any] = {
        "attempt": run.attempt,
        "status": RunState.QUEUED,
        "steps": [result.row() for result in done],
        "lines": run.journal.take(),
        "usage": [row for result in done for row in result.usage()] + list(usage),
    }

    def store() -> bool:
        with tools.database.tenant(run.tenant_id) as session:
            parts = [*run.unanswered, progress]
            return all(runs.save_progress(session, run.run_id, **part) for part in parts)

    if isinstance(why, Cancelled):
        patiently(Hold(), store, size=partial(json_bytes, [run.unanswered, progress]))
        raise why
    stored = False
    with contextlib.suppress(Unavailable):  # if it is Postgres, there is nothing to be done
        stored = store()
    raise PutBack(why.detail) if stored else why


def _before_end(session: TenantSession, run: RunInHand, tools: Tools, state: RunState, error: Json) -> None:
    ties = Ties(run.workflow_id, run.parent_run_id, run.concurrency_key, has_children=run.workflow.has_children)
    if ties.bind:
        tools.runs.before_end(session, run.run_id, ties)
    if state is RunState.FAILED and run.workflow.on_failure is not None:
        _start_on_failure(session, run, tools, run.workflow.on_failure.workflow, error)


def _start_on_failure(session: TenantSession, run: RunInHand, tools: Tools, workflow_id: str, error: Json) -> None:
    """Never for a run that was itself started by a failure, nor by its own workflow: that could go round for ever."""
    if run.trigger == ON_FAILURE or workflow_id == run.workflow_id or run.depth >= MAX_DEPTH:
        return
    request = Start(
        workflow_id=workflow_id,
        trigger=ON_FAILURE,
        input={"input": {**relatives.failed_run(session, run.run_id), "status": "failed", "error": error}},
        idempotency_key=f"{ON_FAILURE}:{run.run_id}",  # the other way round it could be that of a step's child
        depth=run.depth + 1,
    )
    try:
        tools.runs.start(session, request)
    except Unavailable:
        raise
    except FairlaneError as refusal:
        log.warning("on_failure_not_started", run=run.run_id, handler=workflow_id, reason=refusal.detail)
