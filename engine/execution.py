"""The values that the executor works on: a run in a worker's hands, one step of it, and what came of that step.

All frozen: a step of the pipeline takes an `Execution` and returns the next. What several threads of one run share,
the log lines and the sign that the run was lost, is in `Journal` and `Hold`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from pydantic import Secret
from pydantic_core import PydanticSerializationError, to_json

from engine.db import Row, dump_json
from engine.errors import Cancelled
from engine.ports import Json
from engine.redaction import NOTHING_SECRET, Redactor
from engine.resume_links import ResumeLinks
from engine.states import RunState, StepState
from engine.workflow import Step, Workflow

MAX_OUTPUT_BYTES = 256 * 1024
MAX_LINE_BYTES = 8 * 1024
MAX_LINES = 1000
MAX_DEPTH = 8
"""Runs that may lead to one another; a workflow that starts itself ends here."""

SLEEPING, APPROVAL, BACKOFF, WORKFLOW, UNKNOWN = "sleeping", "approval", "retry_backoff", "workflow", "outcome_unknown"
"""Why a step waits without a worker; an action that suspends itself may have another reason."""


class Hold:
    """Whether the run is still this worker's. Lost when it was cancelled, or taken over after a silence."""

    def __init__(self) -> None:
        self._lost = threading.Event()

    def lose(self) -> None:
        self._lost.set()

    def check(self) -> None:
        if self._lost.is_set():
            raise Cancelled("the run is no longer this worker's")

    def wait(self, seconds: float) -> None:
        """Sleep, not at all when `seconds` is not above 0; raises Cancelled as soon as the run is lost."""
        if self._lost.wait(max(0.0, seconds)):
            raise Cancelled("the run is no longer this worker's")


class Journal:
    """The log lines of a run that are not stored yet; bounded over all its attempts, cut and marked, never an error."""

    def __init__(self, written: int = 0) -> None:
        self._count = written
        self._lines: list[Row] = []
        self._lock = threading.Lock()

    def add(self, level: str, message: str, *, step: str | None = None, data: Json = None) -> None:
        with self._lock:
            self._count += 1
            if self._count < MAX_LINES:
                self._lines.append(_line(level, message, step, data))
            elif self._count == MAX_LINES:
                self._lines.append(
                    _line("warning", f"The log is full at {MAX_LINES} lines; the rest is cut.", step, None)
                )

    def take(self) -> list[Row]:
        """Those not taken before."""
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def put_back(self, lines: Sequence[Row]) -> None:
        """They were taken, and not stored."""
        with self._lock:
            self._lines[:0] = lines


def _line(level: str, message: str, step: str | None, data: Json) -> Row:
    if data is not None and len(dump_json(data)) > MAX_LINE_BYTES:
        data = {"cut": True, "head": dump_json(data)[: MAX_LINE_BYTES // 2]}
    if len(message) > MAX_LINE_BYTES // 2:
        message = f"{message[: MAX_LINE_BYTES // 2]} [cut]"
    return {"step_id": step, "level": level, "message": message, "data": data, "at": datetime.now(UTC)}


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a run must have ended, on this process's monotonic clock, and the sentence that says why."""

    at: float = float("inf")
    reason: str = ""

    def remaining(self) -> float:
        return self.at - time.monotonic()

    @classmethod
    def after(cls, seconds: float, reason: str) -> Deadline:
        return cls(time.monotonic() + seconds, reason)


NEVER = Deadline()


@dataclass(frozen=True, slots=True)
class Clock:
    """The time by the clock of Postgres, whatever that of this machine says: `at` was the time at `since`."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    since: float = field(default_factory=time.monotonic)

    def now(self) -> datetime:
        return self.at + timedelta(seconds=time.monotonic() - self.since)


@dataclass(frozen=True, slots=True, eq=False)
class RunInHand:
    """One attempt of one run: what it is, what it does, and what its threads share."""

    tenant_id: str
    run_id: str
    workflow_id: str
    version: int
    attempt: int
    crashes: int
    trigger: str
    input: Json
    queued_at: datetime
    workflow: Workflow
    priority: int = 5
    depth: int = 0
    parent_run_id: str | None = None
    concurrency_key: str | None = None
    most_output: int = MAX_OUTPUT_BYTES
    """Bytes of JSON that a step may answer; more is cut."""
    working: Deadline = NEVER
    """Of the time in the hands of workers, which the plan limits."""
    whole: Deadline = NEVER
    """Of all the time since it began, waits included, which the document limits."""
    clock: Clock = field(default_factory=Clock)
    links: ResumeLinks | None = None
    journal: Journal = field(default_factory=Journal)
    hold: Hold = field(default_factory=Hold)
    checkpoints: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    unanswered: list[Row] = field(default_factory=list)
    """What a checkpoint held of which nobody knows whether it was stored; as a rule nothing."""

    @property
    def deadline(self) -> Deadline:
        """The one that passes first."""
        return min(self.working, self.whole, key=lambda deadline: deadline.at)

    def remaining(self) -> float:
        """Seconds until the first deadline; not above 0 when it has passed."""
        return self.deadline.remaining()

    def roots(self, results: Mapping[str, StepResult]) -> dict[str, Json]:
        """What expressions see."""
        run: dict[str, Json] = {"id": self.run_id, "attempt": self.attempt, "queued_at": self.queued_at.isoformat()}
        if self.links is not None and self.workflow.asks:
            run["resume_url"] = self.links.url(self.tenant_id, self.run_id)
        return {
            "trigger": self.input,
            "steps": {step: result.root() for step, result in results.items()},
            "run": run,
            "workflow": {"id": self.workflow_id, "name": self.workflow.name, "version": self.version},
        }


Key: TypeAlias = tuple[str, str]
"""A step and its item; the item is empty for a step that is done once."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step. `running` with `wake_seconds` means: parked, another attempt after that long."""

    step_id: str
    status: StepState
    attempt: int
    output: Json = None
    error: Mapping[str, Json] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    action: str | None = None
    seconds: float = 0.0
    calls: int = 0
    given_bytes: int = 0
    """Of the parameters of one call, as JSON."""
    wait_reason: str | None = None
    wake_seconds: float | None = None
    item: str = ""
    """Which item of a step that is done for each; its place in the list as text."""

    @property
    def key(self) -> Key:
        return self.step_id, self.item

    def root(self) -> dict[str, Json]:
        """What expressions see of it."""
        seen = {"output": self.output, "status": self.status.value}
        return seen if self.error is None else {**seen, "error": self.error}

    @property
    def is_parked(self) -> bool:
        return self.wait_reason is not None

    def row(self) -> Row:
        """As `repository.runs.save_progress` stores it."""
        return {
            "step_id": self.step_id,
            "item": self.item,
            "status": self.status.value,
            "attempt": self.attempt,
            "output": self.output,
            "error": self.error,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "wait_reason": self.wait_reason,
            "wake_seconds": self.wake_seconds,
        }

    def usage(self) -> Sequence[Row]:
        """Its rows in the ledger: every call of the action, finished or not."""
        if not self.calls:
            return ()
        row = {
            "kind": "action_call",
            "action": self.action,
            "quantity": self.calls,
            "seconds": self.seconds,
            "outcome": "parked" if self.is_parked else self.status.value,
            "bytes_in": json_bytes(self.output),
            "bytes_out": self.given_bytes * self.calls,
        }
        return (row,)


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A step, or one item of it, that an earlier attempt of the run began and did not finish."""

    attempt: int
    started_at: datetime
    wait_reason: str | None = None
    """Why it was put aside; None when its worker died with it in hand."""
    wake_seconds: float | None = None
    """Until it goes on by itself, by the clock of Postgres; negative once that has passed."""
    signal: Mapping[str, Json] | None = None
    """The answer that it waited for, see `engine.answers`."""
    child: Mapping[str, Any] | None = None
    """The run that it waits for: id, status, output, error; None when it is none of those or is gone."""

    @property
    def is_due(self) -> bool:
        """Whether there is something to do about it now."""
        if self.wait_reason is None or self.signal is not None:
            return True
        if self.wait_reason == WORKFLOW:
            return self.child is None or RunState(self.child["status"]).is_terminal
        return self.wake_seconds is not None and self.wake_seconds <= 0


@dataclass(frozen=True, slots=True)
class Execution:
    """One step on its way through the pipeline. The pipeline ends as soon as `result` is set."""

    run: RunInHand
    step: Step
    roots: Mapping[str, Json]
    item: str = ""
    left: LeftBehind | None = None
    attempt: int = 1
    """The attempt of this step that comes next; more than 1 after a crash or a long backoff."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    parameters: Any = None
    credential: Secret[dict[str, Any]] | None = None
    redact: Redactor = NOTHING_SECRET
    result: StepResult | None = None

    def log(self, level: str, message: str, data: Json = None) -> None:
        if self.item:
            message = f"Item {self.item}: {message}"
        self.run.journal.add(level, self.redact(message), step=self.step.id, data=self.masked(data))

    def masked(self, data: Json) -> Json:
        """The data without secrets; a mark in its place when it is no JSON, for which no step shall fail."""
        try:
            return storable(self.redact, data)
        except Unstorable as error:
            return {"cut": True, "reason": str(error)}

    @property
    def idempotency_key(self) -> str:
        """``run:step[:item]``: the same over all attempts."""
        return ":".join(filter(None, (self.run.run_id, self.step.id, self.item)))


def json_bytes(value: Any) -> int:
    """How long it is as JSON, for the ledger; nothing for None."""
    return 0 if value is None else len(to_json(value, inf_nan_mode="null", serialize_unknown=True))


class Unstorable(Exception):
    """The value is no JSON that could be stored, such as one that is nested hundreds of levels deep."""


def storable(redact: Redactor, value: Json, *, most: int = MAX_OUTPUT_BYTES) -> Json:
    """The value without secrets, at most so many bytes of JSON. Raises Unstorable."""
    if value is None:
        return None
    try:
        return bounded(redact(value), most=most)
    except (PydanticSerializationError, RecursionError, TypeError, ValueError) as error:
        raise Unstorable(f"it is no JSON that can be stored ({type(error).__name__})") from error


def bounded(output: Json, *, most: int = MAX_OUTPUT_BYTES) -> Json:
    """The output as it is stored: cut to so many bytes of JSON, and marked."""
    text = dump_json(output)
    size = len(text.encode()) if len(text) * 4 > most else len(text)
    if size <= most:
        return output
    return {"cut": True, "bytes": size, "head": text[: most // 8]}
