"""Executes a run: begins it, finds out where it stands, and walks on from there to its end or its next wait.

Promises: a finished step is never run again for the same run, however often a worker dies; every write names the
attempt that it belongs to, so a worker that lost the run changes nothing; a run that crashed its worker `MAX_CRASHES`
times fails with that reason instead of going round for ever. A run without effects costs two transactions here.

When Postgres is down before the run began this raises `Unavailable`: the run stays as it is, and is delivered again.
Once it has begun the worker waits for Postgres (`engine.patience`), so that what a step did is not lost. A run whose
organization was suspended, or for which no evaluator answers, is put back in line with what it has done; one whose
document a newer version wrote is left for a worker that can read it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from engine import checkpoints, tracing
from engine.concurrency import admit
from engine.db import Row, TenantSession
from engine.definition import load
from engine.durations import format_duration
from engine.errors import Cancelled, InvalidInput, TooLarge, Unavailable
from engine.execution import (
    MAX_OUTPUT_BYTES,
    NEVER,
    WORKFLOW,
    Clock,
    Deadline,
    Journal,
    LeftBehind,
    RunInHand,
    StepResult,
)
from engine.heartbeat import Heartbeat
from engine.progress import Progress
from engine.repository import relatives, runs
from engine.resume_links import ResumeLinks
from engine.runs import Ties
from engine.states import RunState, StepState
from engine.tools import Tools
from engine.walk import Walk, attempt_row
from engine.workflow import Workflow

MAX_CRASHES = 3
CACHED_WORKFLOWS = 2048

log = structlog.get_logger(__name__)


class Executor:
    """Executes runs, one at a time per thread; threads of a process share one executor."""

    def __init__(self, tools: Tools, *, lease_seconds: float = 30.0) -> None:
        self._tools = tools
        self.heartbeat = Heartbeat(tools.database, lease_seconds=lease_seconds)
        self._workflows = lru_cache(maxsize=CACHED_WORKFLOWS)(_Cached)

    def run(self, tenant_id: str, run_id: str) -> RunState | None:
        """Execute the run as far as it goes; the state it reached, or None when it was not ours to execute."""
        began = time.perf_counter()
        about = {"fairlane.tenant": tenant_id, "fairlane.run": run_id}
        with tracing.span("run", about, kind="consumer") as span:
            with self._tools.database.tenant(tenant_id) as session:
                begun = self._begin(session, run_id)
            if begun is None:
                span.note({"fairlane.status": "dropped"})
                log.debug("run_dropped", tenant=tenant_id, run=run_id)
                return None
            run, progress = begun
            span.note({"fairlane.workflow": run.workflow_id, "fairlane.attempt": run.attempt})
            with bound_contextvars(workflow=run.workflow_id), self.heartbeat.holding(run):
                state = self._as_far_as_it_goes(run, progress, began)
            span.note({"fairlane.status": "given_up" if state is None else state.value})
            if state is RunState.FAILED:
                span.fail("run_failed")
            return state

    def _as_far_as_it_goes(self, run: RunInHand, progress: Progress, began: float) -> RunState | None:
        try:
            return self._go_on(run, progress, began)
        except Cancelled:
            _say_given_up(run)
            return None
        except TooLarge as error:
            return self._end_unstorable(run, began, error)

    def _end_unstorable(self, run: RunInHand, began: float, refusal: TooLarge) -> RunState | None:
        """Postgres cannot store what the run has come to, now or later: it fails, and says so.

        None when somebody cancelled it meanwhile, which stays so.
        """
        run.journal.take()
        run.journal.add("error", f"The run failed: {refusal.detail}")
        error = {"code": refusal.error_code, "message": refusal.detail}
        usage = [attempt_row(began)]
        try:
            checkpoints.save(run, self._tools, RunState.FAILED, usage=usage, error=error, numbered=False)
        except Cancelled:
            _say_given_up(run)
            return None
        return RunState.FAILED

    def _begin(self, session: TenantSession, run_id: str) -> tuple[RunInHand, Progress] | None:
        row = runs.begin(session, run_id, stale_seconds=self.heartbeat.stale_seconds)
        if row is None:
            return None
        try:
            workflow = self._workflows(session.tenant_id, row["workflow_id"], row["version"]).get(session)
        except InvalidInput as error:
            self._unreadable(session, row, f"The workflow cannot be read here: {error.detail}")
            return None
        earlier = runs.steps_so_far(session, run_id) if row["attempt"] > 1 or row["replay_of"] else []
        waits_for_runs = any(step["wait_reason"] == WORKFLOW for step in earlier)
        children = relatives.children(session, run_id) if waits_for_runs else {}
        run = _in_hand(session.tenant_id, row, workflow, earlier, self._tools.links)
        return run, _progress(run, earlier, children)

    def _go_on(self, run: RunInHand, progress: Progress, began: float) -> RunState:
        if run.crashes >= MAX_CRASHES:
            message = f"Its worker died {run.crashes} times while it executed this run."
            run.journal.add("error", message)
            error = {"code": "crashed", "message": message}
            checkpoints.save(run, self._tools, RunState.FAILED, usage=[attempt_row(began)], error=error)
            return RunState.FAILED
        try:
            admitted = admit(run, self._tools)
        except (Cancelled, Unavailable) as why:
            checkpoints.put_back(run, self._tools, why)
        if isinstance(admitted, RunState):
            return admitted
        return Walk(admitted, progress, self._tools, began=began).go()

    def _unreadable(self, session: TenantSession, row: Row, message: str) -> None:
        """End a run of which only the row can be read; whoever waits for it learns of it."""
        journal = Journal()
        journal.add("error", message)
        self._tools.runs.before_end(
            session, row["id"], Ties(row["workflow_id"], row["parent_run_id"], row["concurrency_key"])
        )
        runs.save_progress(
            session,
            row["id"],
            attempt=row["attempt"],
            status=RunState.FAILED,
            lines=journal.take(),
            error={"code": "definition_unreadable", "message": message},
        )


def _say_given_up(run: RunInHand) -> None:
    log.info("run_given_up", tenant=run.tenant_id, run=run.run_id, attempt=run.attempt)


class _Cached:
    """One version of a workflow, read when it is first needed; a version never changes."""

    def __init__(self, _tenant_id: str, workflow_id: str, version: int) -> None:
        self._key = (workflow_id, version)
        self._workflow: Workflow | None = None

    def get(self, session: TenantSession) -> Workflow:
        if self._workflow is None:
            row = runs.workflow_version(session, *self._key)
            if row is None:
                raise InvalidInput((), detail="its version is gone")
            self._workflow = load(row["definition"])
        return self._workflow


def _in_hand(
    tenant_id: str, row: Row, workflow: Workflow, earlier: Sequence[Row], links: ResumeLinks | None
) -> RunInHand:
    run = RunInHand(
        tenant_id=tenant_id,
        run_id=row["id"],
        workflow_id=row["workflow_id"],
        version=row["version"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        trigger=row["trigger"],
        input=row["input"],
        queued_at=row["queued_at"],
        workflow=workflow,
        priority=row["priority"],
        depth=row["depth"],
        parent_run_id=row["parent_run_id"],
        concurrency_key=row["concurrency_key"],
        most_output=min(row["max_payload"] or MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES),
        working=_working(row),
        whole=_whole(row, workflow),
        clock=Clock(row["now"]),
        links=links,
        journal=Journal(written=earlier[0]["lines"] if earlier else 0),
    )
    if row["attempt"] == 1:
        run.journal.add("info", f"The run begins (started by {run.trigger}).")
    else:
        run.journal.add("info", f"The run goes on with attempt {run.attempt}.")
    return run


def _working(row: Row) -> Deadline:
    if row["seconds_left"] is None:
        return NEVER
    reason = f"The run has had its {row['max_seconds']} s of a worker's time (max_run_seconds of the plan)."
    return Deadline.after(row["seconds_left"], reason)


def _whole(row: Row, workflow: Workflow) -> Deadline:
    if workflow.timeout is None:
        return NEVER
    reason = f"The run did not end within {format_duration(workflow.timeout)} (timeout of the workflow)."
    return Deadline.after(workflow.timeout.total_seconds() - row["age"], reason)


def _progress(run: RunInHand, earlier: Sequence[Row], children: Mapping[str, Row]) -> Progress:
    """Where the run stands: what has finished, what still waits, and what is to be taken up."""
    progress = Progress()
    for row in earlier:
        key = row["step_id"], row["item"]
        if row["status"] == StepState.RUNNING:
            left = _left_behind(row, children.get(":".join(filter(None, (run.run_id, *key)))))
            if left.is_due:
                progress.left[key] = left
            else:
                progress.wait(key, str(left.wait_reason), left.wake_seconds)
        elif row["item"]:
            progress.done_items.setdefault(row["step_id"], {})[int(row["item"])] = _result(row)
        else:
            progress.results[row["step_id"]] = _result(row)
    return progress


def _result(row: Row) -> StepResult:
    return StepResult(
        row["step_id"],
        StepState(row["status"]),
        row["attempt"],
        output=row["output"],
        error=row["error"],
        started_at=row["started_at"],
        item=row["item"],
    )


def _left_behind(row: Row, child: Mapping[str, Any] | None) -> LeftBehind:
    return LeftBehind(
        attempt=row["attempt"],
        started_at=row["started_at"],
        wait_reason=row["wait_reason"],
        wake_seconds=row["wake_seconds"],
        signal=row["signal"],
        child=child,
    )
