"""What is known of a run's steps while it is walked: finished, left behind, put aside, done for each item.

No input or output here: the walk asks what may begin, and tells what came of it. The same answers come out for a worker
that takes the run over, because everything is worked out from finished steps and from what was left behind.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from engine.db import dump_json
from engine.execution import MAX_OUTPUT_BYTES, Key, LeftBehind, StepResult, bounded
from engine.graph import Graph
from engine.ports import Json
from engine.states import StepState
from engine.step import Step

MAX_KEPT_BYTES = 4 * MAX_OUTPUT_BYTES
"""Outputs of a step's items that are kept in memory, as JSON. Its own output is cut long before, so no more are needed;
each item's row has its own in full."""


@dataclass(slots=True)
class Items:
    """A step that is done for each item of a list, under way."""

    step: Step
    values: Sequence[Json]
    done: dict[int, StepResult] = field(default_factory=dict)
    failures: dict[int, StepResult] = field(default_factory=dict)
    """Those of `done` that failed."""
    kept_bytes: int = 0

    def finish(self, result: StepResult) -> None:
        """One item has come to its end."""
        result = self._lightened(result)
        self.done[int(result.item)] = result
        if result.status is StepState.FAILED:
            self.failures[int(result.item)] = result

    @property
    def stops(self) -> bool:
        """Whether an item has failed so that no further one begins."""
        return bool(self.failures) and self.step.on_error != "continue"

    def next(self, in_hand: Collection[int]) -> list[int]:
        """The items to begin, in order: as many as are missing in the hand, where executing and waiting ones are."""
        assert self.step.for_each is not None  # noqa: S101 (only such steps have items)
        if self.stops:
            return []
        free = self.step.for_each.parallel - len(in_hand)
        rest = (index for index in range(len(self.values)) if index not in self.done and index not in in_hand)
        return [index for _, index in zip(range(free), rest, strict=False)]

    def result(self, in_hand: Collection[int]) -> StepResult | None:
        """What the step came to, with the items' outputs in order; None while there is more to do."""
        if in_hand or not (self.stops or len(self.done) == len(self.values)):
            return None
        failures = dict(sorted(self.failures.items()))
        began = [r.started_at for r in self.done.values() if r.started_at is not None]
        return StepResult(
            self.step.id,
            StepState.FAILED if failures else StepState.SUCCEEDED,
            attempt=max((r.attempt for r in self.done.values()), default=1),
            output=bounded([self._output(index) for index in range(len(self.values))]),
            error=_of_items(self.step.id, failures, len(self.values)) if failures else None,
            started_at=min(began, default=datetime.now(UTC)),
            finished_at=datetime.now(UTC),
            action=self.step.action,
        )

    def _lightened(self, result: StepResult) -> StepResult:
        size = 0 if result.output is None else len(dump_json(result.output))
        if self.kept_bytes + size > MAX_KEPT_BYTES:
            return replace(result, output={"cut": True, "bytes": size})
        self.kept_bytes += size
        return result

    def _output(self, index: int) -> Json:
        result = self.done.get(index)
        return result.output if result is not None and result.status is StepState.SUCCEEDED else None


def _of_items(step_id: str, failures: Mapping[int, StepResult], count: int) -> dict[str, Json]:
    index, first = next(iter(failures.items()))
    error = dict(first.error or {})
    others = "" if len(failures) == 1 else f" ({len(failures)} of {count} failed)"
    return {**error, "step": step_id, "item": index, "message": f"Item {index}: {error.get('message')}{others}"}


@dataclass(frozen=True, slots=True)
class Parked:
    """A step, or one item of it, that waits without a worker; `until` is on this process's monotonic clock."""

    reason: str
    until: float

    @property
    def wake_seconds(self) -> float | None:
        """From now on; None when only an answer or another run wakes it."""
        return None if self.until == float("inf") else max(0.0, self.until - time.monotonic())


@dataclass(slots=True)
class Progress:
    """The steps of one run in one worker's hands."""

    results: dict[str, StepResult] = field(default_factory=dict)
    """Of the steps that have finished, in this attempt or an earlier one."""
    left: dict[Key, LeftBehind] = field(default_factory=dict)
    """What an earlier attempt began and nobody has taken up yet."""
    parked: dict[Key, Parked] = field(default_factory=dict)
    """What waits without a worker."""
    items: dict[str, Items] = field(default_factory=dict)
    """Steps that are done for each item, as far as they were begun by this attempt."""
    done_items: dict[str, dict[int, StepResult]] = field(default_factory=dict)
    """Items that earlier attempts finished, of steps that have not."""

    def add(self, done: Sequence[StepResult]) -> None:
        """Take note of what has finished or was put aside."""
        for result in done:
            if result.is_parked:
                self.wait(result.key, str(result.wait_reason), result.wake_seconds)
            elif result.item:
                self.items[result.step_id].finish(result)
            else:
                self.results[result.step_id] = result

    def wait(self, key: Key, reason: str, wake_seconds: float | None) -> None:
        """A step waits without a worker, for so long or until something wakes it."""
        seconds = float("inf") if wake_seconds is None else wake_seconds
        self.parked[key] = Parked(reason, time.monotonic() + seconds)

    def settle_items(self, busy: Collection[Key]) -> list[StepResult]:
        """The steps whose items have all come to an end; they are finished by that."""
        settled = []
        for step_id, items in list(self.items.items()):
            result = items.result(self._in_hand(step_id, busy))
            if result is not None:
                del self.items[step_id]
                self.results[step_id] = result
                settled.append(result)
        return settled

    def open_items(self, step: Step, values: Sequence[Json]) -> None:
        """The step is done for each of `values`; what earlier attempts finished of it counts."""
        self.items[step.id] = items = Items(step, values)
        for index, result in self.done_items.pop(step.id, {}).items():
            if index < len(values):
                items.finish(result)

    def next_items(self, busy: Collection[Key]) -> list[tuple[Step, int]]:
        """The items that may begin now."""
        return [
            (items.step, index)
            for step_id, items in self.items.items()
            for index in items.next(self._in_hand(step_id, busy))
        ]

    def ready(self, graph: Graph, busy: Collection[Key]) -> list[Step]:
        """The steps that may begin now; those done for each item are opened first."""
        begun = {step_id for step_id, _ in busy} | {step_id for step_id, item in self.parked if not item}
        return graph.ready(self.results, begun=begun | self.items.keys())

    def failed(self, steps: Mapping[str, Step]) -> StepResult | None:
        """The first step whose failure ends the run."""
        return next(
            (
                result
                for result in self.results.values()
                if result.status is StepState.FAILED and steps[result.step_id].on_error == "fail"
            ),
            None,
        )

    def wakes_first(self) -> Parked | None:
        """Of what waits, that which goes on by itself first; something else if nothing does."""
        return min(self.parked.values(), key=lambda parked: parked.until, default=None)

    def _in_hand(self, step_id: str, busy: Collection[Key]) -> set[int]:
        return {int(item) for name, item in (*busy, *self.parked) if name == step_id and item}
