"""Executes a run: begins it, walks its graph of steps, checkpoints each, and ends it.

Promises: a finished step is never run again for the same run, however often a worker dies; every write names the
attempt that it belongs to, so a worker that lost the run changes nothing; a run that crashed its worker `MAX_CRASHES`
times fails with that reason instead of going round for ever. A run without effects costs two transactions here.

When Postgres is down before the run began this raises `Unavailable`: the run stays as it is, and is delivered again.
Once it has begun the worker waits for Postgres (`engine.patience`), so that what a step did is not lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog

from engine.db import Row, TenantSession
from engine.definition import load
from engine.errors import Cancelled, InvalidInput
from engine.execution import Execution, Journal, RunInHand, StepResult
from engine.heartbeat import Heartbeat
from engine.patience import patiently
from engine.pipeline import Tools, execute_step
from engine.ports import Json
from engine.repository import runs
from engine.states import RunState, StepState
from engine.workflow import Step, Workflow

MAX_CRASHES = 3
MAX_PARALLEL = 8
CACHED_WORKFLOWS = 2048

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Progress:
    """What is known of the steps of a run while it is walked."""

    results: dict[str, StepResult] = field(default_factory=dict)
    """Of the steps that have finished, in this attempt or an earlier one."""
    unfinished: dict[str, int] = field(default_factory=dict)
    """Step to the last attempt that was begun, for steps that an earlier attempt of the run left behind."""
    parked: StepResult | None = None
    """The step that wakes first, of those that wait without a worker."""

    def add(self, done: Sequence[StepResult]) -> None:
        self.results.update({result.step_id: result for result in done if not result.is_parked})
        waiting = [result for result in (self.parked, *done) if result is not None and result.is_parked]
        if waiting:
            self.parked = min(waiting, key=lambda r: float("inf") if r.wake_seconds is None else r.wake_seconds)

    @property
    def failed(self) -> StepResult | None:
        return next((r for r in self.results.values() if r.status is StepState.FAILED), None)


class Executor:
    """Executes runs, one at a time per thread; threads of a process share one executor."""

    def __init__(self, tools: Tools, *, lease_seconds: float = 30.0) -> None:
        self._tools = tools
        self.heartbeat = Heartbeat(tools.database, lease_seconds=lease_seconds)
        self._workflows = lru_cache(maxsize=CACHED_WORKFLOWS)(_Cached)

    def run(self, tenant_id: str, run_id: str) -> RunState | None:
        """Execute the run as far as it goes; the state it reached, or None when it was not ours to execute."""
        began = time.perf_counter()
        with self._tools.database.tenant(tenant_id) as session:
            begun = self._begin(session, run_id)
        if begun is None:
            log.debug("run_dropped", tenant=tenant_id, run=run_id)
            return None
        run, progress = begun
        with self.heartbeat.holding(run):
            try:
                return self._walk(run, progress, began)
            except Cancelled:
                log.info("run_given_up", tenant=tenant_id, run=run_id, attempt=run.attempt)
                return None

    def _begin(self, session: TenantSession, run_id: str) -> tuple[RunInHand, Progress] | None:
        row = runs.begin(session, run_id, stale_seconds=self.heartbeat.stale_seconds)
        if row is None:
            return None
        earlier = runs.steps_so_far(session, run_id) if row["attempt"] > 1 else []
        try:
            workflow = self._workflows(session.tenant_id, row["workflow_id"], row["version"]).get(session)
        except InvalidInput as error:
            _fail(session, row, "definition_unreadable", f"The workflow cannot be read here: {error.detail}")
            return None
        if row["crashes"] >= MAX_CRASHES:
            _fail(session, row, "crashed", f"Its worker died {row['crashes']} times while it executed this run.")
            return None
        return _in_hand(session.tenant_id, row, workflow, earlier), _progress(earlier)

    def _walk(self, run: RunInHand, progress: Progress, began: float) -> RunState:
        graph = run.workflow.graph
        with _Crew(self._tools) as crew:
            while True:
                stuck = progress.failed or progress.parked
                ready = [] if stuck else graph.ready(progress.results, begun=crew.busy)
                crew.begin([self._execution(run, progress, step) for step in ready])
                done = crew.next_results()
                progress.add(done)
                if crew.busy:
                    self._save(run, RunState.RUNNING, done)
                elif progress.failed or not (progress.parked or graph.ready(progress.results)):
                    return self._end(run, progress, done, began)
                elif progress.parked:
                    return self._park(run, progress.parked, done, began)
                else:
                    self._save(run, RunState.RUNNING, done)

    @staticmethod
    def _execution(run: RunInHand, progress: Progress, step: Step) -> Execution:
        attempt = progress.unfinished.get(step.id, 0) + 1
        return Execution(run, step, run.roots(progress.results), attempt=attempt)

    def _park(self, run: RunInHand, parked: StepResult, done: Sequence[StepResult], began: float) -> RunState:
        self._save(
            run,
            RunState.WAITING,
            done,
            usage=[_execution(0, began)],
            wait_reason=parked.wait_reason,
            wake_seconds=parked.wake_seconds,
        )
        return RunState.WAITING

    def _end(self, run: RunInHand, progress: Progress, done: Sequence[StepResult], began: float) -> RunState:
        failed = progress.failed
        state = RunState.FAILED if failed else RunState.SUCCEEDED
        if failed is None:
            run.journal.add("info", "The run succeeded.")
        else:
            run.journal.add("error", f"The run failed in the step {failed.step_id}.")
        self._save(
            run,
            state,
            done,
            usage=[_execution(1, began)],
            output=None if failed else _output(run.workflow, progress.results),
            error=failed.error if failed else None,
        )
        return state

    def _save(
        self,
        run: RunInHand,
        state: RunState,
        done: Sequence[StepResult],
        *,
        usage: Sequence[Row] = (),
        output: Json = None,
        error: Json = None,
        wait_reason: str | None = None,
        wake_seconds: float | None = None,
    ) -> None:
        progress: dict[str, Any] = {
            "attempt": run.attempt,
            "checkpoint": next(run.checkpoints),
            "status": state,
            "steps": [result.row() for result in done],
            "lines": run.journal.take(),
            "usage": [row for result in done for row in result.usage()] + list(usage),
            "output": output,
            "error": error,
            "wait_reason": wait_reason,
            "wake_seconds": wake_seconds,
        }

        def save() -> bool:
            with self._tools.database.tenant(run.tenant_id) as session:
                return runs.save_progress(session, run.run_id, **progress)

        if not patiently(run.hold, save):
            run.hold.lose()
            raise Cancelled("the run is no longer this worker's")


class _Crew:
    """The steps of one run that execute now: the only ready one in this thread, several in threads of their own."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[Future[StepResult], str] = {}
        self._finished: list[StepResult] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> set[str]:
        return set(self._futures.values())

    def begin(self, executions: Sequence[Execution]) -> None:
        if len(executions) == 1 and not self._futures:
            self._finished.append(execute_step(executions[0], self._tools))
            return
        for execution in executions:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="step")
            self._futures[self._pool.submit(execute_step, execution, self._tools)] = execution.step.id

    def next_results(self) -> list[StepResult]:
        """Wait until at least one step has finished, if any executes."""
        results, self._finished = self._finished, []
        if not results and self._futures:
            done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
            for future in done:
                del self._futures[future]
                results.append(future.result())
        return results


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


def _in_hand(tenant_id: str, row: Row, workflow: Workflow, earlier: Sequence[Row]) -> RunInHand:
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
        journal=Journal(written=earlier[0]["lines"] if earlier else 0),
    )
    if row["attempt"] == 1:
        run.journal.add("info", f"The run begins (started by {run.trigger}).")
    else:
        run.journal.add("info", f"The run goes on with attempt {run.attempt}.")
    return run


def _progress(earlier: Sequence[Row]) -> Progress:
    progress = Progress()
    for row in earlier:
        if row["status"] == StepState.RUNNING:
            progress.unfinished[row["step_id"]] = row["attempt"]
        else:
            progress.results[row["step_id"]] = StepResult(
                row["step_id"], StepState(row["status"]), row["attempt"], output=row["output"], error=row["error"]
            )
    return progress


def _fail(session: TenantSession, row: Row, code: str, message: str) -> None:
    journal = Journal()
    journal.add("error", message)
    runs.save_progress(
        session,
        row["id"],
        attempt=row["attempt"],
        status=RunState.FAILED,
        lines=journal.take(),
        usage=[{"kind": "execution", "action": None, "quantity": 1, "seconds": 0.0}],
        error={"code": code, "message": message},
    )


def _execution(quantity: int, began: float) -> Row:
    """The ledger's row of this attempt: seconds of a worker, and whether an execution came to its end."""
    return {"kind": "execution", "action": None, "quantity": quantity, "seconds": time.perf_counter() - began}


def _output(workflow: Workflow, results: Mapping[str, StepResult]) -> Json:
    """The run's output is that of its last step, in the order of the document, that was not skipped."""
    finished = [results[step.id] for step in workflow.steps if step.id in results]
    return next((r.output for r in reversed(finished) if r.status is StepState.SUCCEEDED), None)
