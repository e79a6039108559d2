"""The limit that runs of one workflow share: who goes on, who waits, who gives way.

A run takes its place when it first reaches a worker, and keeps it until it ends, however often it waits meanwhile.
Places are counted under a lock of their key, so the limit is exact. When a run with a place ends, the oldest of those
that wait for one gets it in the same transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from engine import checkpoints
from engine.db import TenantSession
from engine.errors import Cancelled, ExpressionFailed
from engine.execution import RunInHand
from engine.patience import patiently
from engine.repository import relatives, runs
from engine.states import RunState
from engine.templates import as_text
from engine.tools import Tools
from engine.workflow import Concurrency

CONCURRENCY = "concurrency"
"""Why a run waits for a place."""
DROPPED = "concurrency_limit"
MAX_KEY = 200


@dataclass(frozen=True, slots=True)
class GoOn:
    """There is a place, once `displaced` have been cancelled for it, oldest first."""

    displaced: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Queue:
    """Wait for a place."""


@dataclass(frozen=True, slots=True)
class Drop:
    """There is none, and it is not waited for."""


Decision: TypeAlias = GoOn | Queue | Drop


def decide(concurrency: Concurrency, under_way: Sequence[str], *, waiting: int) -> Decision:
    """What a new run does when the runs `under_way` (oldest first) have a place and `waiting` others wait for one."""
    free = concurrency.limit - len(under_way) - waiting
    if free > 0:
        return GoOn()
    match concurrency.on_limit:
        case "queue":
            return Queue()
        case "drop_new":
            return Drop()
    return GoOn(under_way[: max(0, len(under_way) - concurrency.limit + 1)])


def admit(run: RunInHand, tools: Tools) -> RunInHand | RunState:
    """The run with its place, or the state that it was left in because it has none."""
    concurrency = run.workflow.concurrency
    if concurrency is None or run.concurrency_key is not None:
        return run
    try:
        key = _key(run, concurrency, tools)
    except ExpressionFailed as error:
        run.journal.add("error", f"concurrency.key: {error.detail}")
        problem = {"code": error.error_code, "message": f"concurrency.key: {error.detail}"}
        checkpoints.save(run, tools, RunState.FAILED, error=problem)
        return RunState.FAILED
    decision = patiently(run.hold, lambda: _take_place(run, tools, concurrency, key))
    if isinstance(decision, Queue):
        return RunState.WAITING
    if isinstance(decision, Drop):
        message = f"As many runs as may be under way at once are ({concurrency.limit})."
        run.journal.add("warning", f"Not started: {message}")
        checkpoints.save(run, tools, RunState.CANCELLED, error={"code": DROPPED, "message": message})
        return RunState.CANCELLED
    return replace(run, concurrency_key=key)


def _key(run: RunInHand, concurrency: Concurrency, tools: Tools) -> str:
    """What the run counts by, as text of a bounded length."""
    if concurrency.key is None:
        return ""
    text = as_text(tools.evaluator.value(concurrency.key, run.roots({})))
    return text if len(text) <= MAX_KEY else hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _take_place(run: RunInHand, tools: Tools, concurrency: Concurrency, key: str) -> Decision:
    """Decide and store it in one transaction, under the lock of the key."""
    with tools.database.tenant(run.tenant_id) as session:
        relatives.lock_key(session, run.workflow_id, key)
        under_way, waiting = relatives.under_way(session, run.workflow_id, key, but=run.run_id)
        if run.depth and set(under_way) & set(relatives.ancestors(session, run.run_id)):
            return GoOn()  # under the place of the run that waits for it; else both would wait for ever
        decision = decide(concurrency, under_way, waiting=waiting)
        if isinstance(decision, Drop):
            return decision
        if not relatives.join_key(session, run.run_id, attempt=run.attempt, key=key, limit=concurrency.limit):
            run.hold.lose()
            raise Cancelled("the run is no longer this worker's")
        if isinstance(decision, Queue):
            _put_aside(session, run)
        else:
            for run_id in decision.displaced:
                tools.runs.cancel(session, run_id, by=f"the run {run.run_id}, which took its place (concurrency)")
        return decision


def _put_aside(session: TenantSession, run: RunInHand) -> None:
    run.journal.add("info", "Waits until another run of the workflow has ended (concurrency).")
    seconds = run.whole.remaining()
    runs.save_progress(
        session,
        run.run_id,
        attempt=run.attempt,
        status=RunState.WAITING,
        lines=run.journal.take(),
        wait_reason=CONCURRENCY,
        wake_seconds=None if seconds == float("inf") else max(0.0, seconds),
    )
