"""The states of a run and of a step, and every legal way between them.

The table is the law: the database's CHECK constraints are written from it, every UPDATE names the states that it
starts from, and ``docs/states.md`` is compared with it by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RunState(StrEnum):
    """Where a run is in its life."""

    def __new__(cls, value: str, _meaning: str = "") -> RunState:
        member = str.__new__(cls, value)
        member._value_ = value
        return member

    def __init__(self, _value: str, meaning: str = "") -> None:
        self.meaning = meaning

    HELD = (
        "held",
        "Accepted and stored: over a quota, until there is room again, or one of a flood, until somebody releases it.",
    )
    QUEUED = "queued", "Ready to run; waiting for its tenant's turn on a worker."
    RUNNING = "running", "A worker executes its steps; the attempt number fences off any earlier worker."
    WAITING = (
        "waiting",
        "Parked without a worker: asleep, backing off, or waiting for an answer, another run or a place.",
    )
    SUCCEEDED = "succeeded", "Every step that had to run has finished."
    FAILED = "failed", "A step failed for good, or the run could not be executed."
    CANCELLED = "cancelled", "Somebody ended it; no further step begins."

    @property
    def is_terminal(self) -> bool:
        return not RUN_EDGES[self]


class StepState(StrEnum):
    """Where one step of a run is."""

    def __new__(cls, value: str, _meaning: str = "") -> StepState:
        member = str.__new__(cls, value)
        member._value_ = value
        return member

    def __init__(self, _value: str, meaning: str = "") -> None:
        self.meaning = meaning

    RUNNING = "running", "Begun: its effect may or may not have happened yet, or it waits without a worker."
    SUCCEEDED = "succeeded", "Finished; its output is stored and it is never run again for this run."
    FAILED = "failed", "Failed for good after its retries, or was in hand when its run was cancelled."
    SKIPPED = "skipped", "Its condition was not true."


RUN_EDGES: Mapping[RunState, frozenset[RunState]] = {
    RunState.HELD: frozenset({RunState.QUEUED, RunState.CANCELLED}),
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.FAILED, RunState.CANCELLED}),
    RunState.RUNNING: frozenset(
        {
            RunState.RUNNING,  # taken over from a dead worker, with the next attempt number
            RunState.QUEUED,  # put back for no fault of its own: its organization is suspended, a part of ours away
            RunState.WAITING,
            RunState.SUCCEEDED,
            RunState.FAILED,
            RunState.CANCELLED,
        }
    ),
    RunState.WAITING: frozenset({RunState.QUEUED, RunState.FAILED, RunState.CANCELLED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}
"""From each state, the states that may follow. A state without an edge is terminal and never changes."""

STEP_EDGES: Mapping[StepState, frozenset[StepState]] = {
    StepState.RUNNING: frozenset({StepState.RUNNING, StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED}),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.SKIPPED: frozenset(),
}


def sources(target: RunState) -> frozenset[RunState]:
    """The states from which a run may enter `target`: what an UPDATE to it must name."""
    return frozenset(state for state, targets in RUN_EDGES.items() if target in targets)
