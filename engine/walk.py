"""One attempt of a run: begins what may begin, stores what came of it, until the run ends or waits without a worker.

Independent steps run at the same time. When a step fails for good no further one starts, those running finish, and the
run fails; so it does when its deadline passes. Steps that wait hold up only those that need them: the run is put aside
when nothing else is left to do, until the first of them wakes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

from engine import checkpoints, usage
from engine.control import list_items
from engine.db import Row
from engine.errors import Cancelled, Unavailable
from engine.execution import Execution, Key, RunInHand, StepResult
from engine.outcomes import RUN_TIMEOUT, with_result
from engine.pipeline import check_condition, execute_step
from engine.ports import Json
from engine.progress import Progress
from engine.states import RunState, StepState
from engine.step import Step
from engine.tools import Tools
from engine.workflow import Workflow

MAX_PARALLEL = 8


class Walk:
    """Of `run`, from what `progress` says it has come to; `began` is when this attempt did."""

    def __init__(self, run: RunInHand, progress: Progress, tools: Tools, *, began: float) -> None:
        self._run = run
        self._progress = progress
        self._tools = tools
        self._began = began
        self._unsaved: list[StepResult] = []

    def go(self) -> RunState:
        """The state that the run has reached.

        Raises Cancelled when it is no longer this worker's, and Unavailable when a part of ours does not answer; what
        had finished by then is stored, if the run is still this worker's to put back.
        """
        crew = _Crew(self._tools)
        try:
            with crew:
                return self._walk(crew)
        except (Cancelled, Unavailable) as why:
            done = self._take() + crew.finished()
            checkpoints.put_back(self._run, self._tools, why, done, usage=[attempt_row(self._began)])

    def _walk(self, crew: _Crew) -> RunState:
        while True:
            decided = self._begin(crew)
            done = decided + crew.results(wait_for_one=not decided)
            self._progress.add(done)
            settled = self._progress.settle_items(crew.busy)
            self._unsaved += done + settled
            if not crew.busy and (self._is_stopped or not self._has_more(crew)):
                return self._leave()
            if any(result.status is not StepState.SKIPPED for result in self._unsaved):
                checkpoints.save(self._run, self._tools, RunState.RUNNING, self._take())

    def _begin(self, crew: _Crew) -> list[StepResult]:
        """Start all that may start; returns what needed no starting because it is skipped or has failed already."""
        if self._is_stopped:
            return []
        run, progress = self._run, self._progress
        decided: list[StepResult] = []
        executions: list[Execution] = []
        for step in progress.ready(run.workflow.graph, crew.busy):
            reason = run.workflow.graph.passed_over(step, progress.results)
            if reason is not None:
                decided.append(self._skipped(step, reason))
            elif step.for_each is not None:
                decided += self._open(step)
            else:
                executions.append(self._execution(step))
        executions += [self._execution(step, str(index)) for step, index in progress.next_items(crew.busy)]
        crew.begin(executions)
        return decided

    def _open(self, step: Step) -> list[StepResult]:
        """Find out for which items the step is done; its result where there is none to be done."""
        execution = check_condition(self._execution(step), self._tools)
        items = execution if execution.result is not None else list_items(execution, self._tools)
        if isinstance(items, Execution):
            return [items.result] if items.result is not None else []
        self._progress.open_items(step, items)
        return []

    def _skipped(self, step: Step, reason: str) -> StepResult:
        execution = self._execution(step)
        execution.log("info", f"Skipped: {reason}.")
        result = with_result(execution, StepState.SKIPPED).result
        assert result is not None  # noqa: S101 (it was just set)
        return result

    def _execution(self, step: Step, item: str = "") -> Execution:
        run, progress = self._run, self._progress
        left = progress.left.pop((step.id, item), None)
        roots = run.roots(progress.results)
        if item:
            roots |= {"item": progress.items[step.id].values[int(item)], "index": int(item)}
        if left is None:
            return Execution(run, step, roots, item=item)
        return Execution(run, step, roots, item=item, left=left, attempt=left.attempt + 1, started_at=left.started_at)

    @property
    def _failed(self) -> StepResult | None:
        return self._progress.failed(self._run.workflow.by_id)

    @property
    def _is_stopped(self) -> bool:
        return self._failed is not None or self._run.remaining() <= 0

    def _has_more(self, crew: _Crew) -> bool:
        progress = self._progress
        return bool(progress.ready(self._run.workflow.graph, crew.busy) or progress.next_items(crew.busy))

    def _leave(self) -> RunState:
        """End the run, or put it aside."""
        failed = self._failed
        if failed is not None:
            return self._fail(f"The run failed in the step {failed.step_id}.", failed.error)
        if self._progress.parked and self._run.remaining() > 0:
            return self._park()
        if len(self._progress.results) < len(self._run.workflow.steps):
            reason = self._run.deadline.reason
            return self._fail(reason, {"code": RUN_TIMEOUT, "message": reason})
        self._run.journal.add("info", "The run succeeded.")
        output = _output(self._run.workflow, self._progress.results)
        return self._save(RunState.SUCCEEDED, usage=[attempt_row(self._began)], output=output)

    def _fail(self, line: str, error: Json) -> RunState:
        self._run.journal.add("error", line)
        return self._save(RunState.FAILED, usage=[attempt_row(self._began)], error=error)

    def _park(self) -> RunState:
        first = self._progress.wakes_first()
        assert first is not None  # noqa: S101 (something is parked)
        wakes = [s for s in (first.wake_seconds, self._run.whole.remaining()) if s is not None and s != float("inf")]
        return self._save(
            RunState.WAITING,
            usage=[attempt_row(self._began)],
            wait_reason=first.reason,
            wake_seconds=min(wakes, default=None),
        )

    def _save(
        self,
        state: RunState,
        *,
        usage: Sequence[Row],
        output: Json = None,
        error: Json = None,
        wait_reason: str | None = None,
        wake_seconds: float | None = None,
    ) -> RunState:
        checkpoints.save(
            self._run,
            self._tools,
            state,
            self._take(),
            usage=usage,
            output=output,
            error=error,
            wait_reason=wait_reason,
            wake_seconds=wake_seconds,
        )
        return state

    def _take(self) -> list[StepResult]:
        unsaved, self._unsaved = self._unsaved, []
        return unsaved


class _Crew:
    """The steps of one run that execute now: the only ready one in this thread, several in threads of their own."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[Future[StepResult], Key] = {}
        self._finished: list[StepResult] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> set[Key]:
        return set(self._futures.values())

    def begin(self, executions: Sequence[Execution]) -> None:
        if len(executions) == 1 and not self._futures:
            self._finished.append(execute_step(executions[0], self._tools))
            return
        for execution in executions:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="step")
            key = (execution.step.id, execution.item)
            self._futures[self._pool.submit(copy_context().run, execute_step, execution, self._tools)] = key

    def results(self, *, wait_for_one: bool) -> list[StepResult]:
        """What has finished; waits until something has, if asked to and anything executes."""
        if wait_for_one and not self._finished and self._futures:
            wait(self._futures, return_when=FIRST_COMPLETED)
        for future in [future for future in self._futures if future.done()]:
            self._finished.append(future.result())
            del self._futures[future]
        results, self._finished = self._finished, []
        return results

    def finished(self) -> list[StepResult]:
        """What was finished when the run was taken away; steps that had not begun, or were cut, are not among it."""
        ended = [future for future in self._futures if not future.cancelled() and future.exception() is None]
        return self._finished + [future.result() for future in ended]


def attempt_row(began: float) -> Row:
    """The ledger's row of this attempt: seconds of a worker. The execution was entered when the run was admitted."""
    return usage.worker_seconds(time.perf_counter() - began)


def _output(workflow: Workflow, results: Mapping[str, StepResult]) -> Json:
    """The run's output is that of its last step, in the order of the document, that was not skipped."""
    finished = [results[step.id] for step in workflow.steps if step.id in results]
    return next((r.output for r in reversed(finished) if r.status is StepState.SUCCEEDED), None)
