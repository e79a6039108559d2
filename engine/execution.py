"""The values that the executor works on: a run in a worker's hands, one step of it, and what came of that step.

All frozen: a step of the pipeline takes an `Execution` and returns the next. What several threads of one run share,
the log lines and the sign that the run was lost, is in `Journal` and `Hold`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import Secret

from engine.db import Row, dump_json
from engine.errors import Cancelled
from engine.ports import Json
from engine.redaction import NOTHING_SECRET, Redactor
from engine.states import StepState
from engine.workflow import Step, Workflow

MAX_OUTPUT_BYTES = 256 * 1024
MAX_LINE_BYTES = 8 * 1024
MAX_LINES = 1000


class Hold:
    """Whether the run is still this worker's. Lost when it was cancelled, or taken over after a silence."""

    def __init__(self) -> None:
        self._lost = threading.Event()

    def lose(self) -> None:
        self._lost.set()

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    def check(self) -> None:
        if self._lost.is_set():
            raise Cancelled("the run is no longer this worker's")

    def wait(self, seconds: float) -> None:
        """Sleep; raises Cancelled as soon as the run is lost."""
        if self._lost.wait(seconds):
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
    journal: Journal = field(default_factory=Journal)
    hold: Hold = field(default_factory=Hold)
    checkpoints: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def roots(self, results: Mapping[str, StepResult]) -> dict[str, Json]:
        """What expressions see."""
        return {
            "trigger": self.input,
            "steps": {step: {"output": r.output, "status": r.status.value} for step, r in results.items()},
            "run": {"id": self.run_id, "attempt": self.attempt, "queued_at": self.queued_at.isoformat()},
            "workflow": {"id": self.workflow_id, "name": self.workflow.name, "version": self.version},
        }


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
    wait_reason: str | None = None
    wake_seconds: float | None = None

    @property
    def is_parked(self) -> bool:
        return self.wait_reason is not None

    def row(self) -> Row:
        """As `repository.runs.save_progress` stores it."""
        return {
            "step_id": self.step_id,
            "item": "",
            "status": self.status.value,
            "attempt": self.attempt,
            "output": self.output,
            "error": self.error,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
        }

    def usage(self) -> Sequence[Row]:
        """Its rows in the ledger: every call of the action, finished or not."""
        if not self.calls:
            return ()
        return ({"kind": "action_call", "action": self.action, "quantity": self.calls, "seconds": self.seconds},)


@dataclass(frozen=True, slots=True)
class Execution:
    """One step on its way through the pipeline. The pipeline ends as soon as `result` is set."""

    run: RunInHand
    step: Step
    roots: Mapping[str, Json]
    attempt: int = 1
    """The attempt of this step that comes next; more than 1 after a crash or a long backoff."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    parameters: Any = None
    credential: Secret[dict[str, Any]] | None = None
    redact: Redactor = NOTHING_SECRET
    result: StepResult | None = None

    def log(self, level: str, message: str, data: Json = None) -> None:
        self.run.journal.add(level, self.redact(message), step=self.step.id, data=self.redact(data))


def bounded(output: Json) -> Json:
    """The output as it is stored: cut to `MAX_OUTPUT_BYTES` of JSON, and marked."""
    text = dump_json(output)
    size = len(text.encode()) if len(text) * 4 > MAX_OUTPUT_BYTES else len(text)
    if size <= MAX_OUTPUT_BYTES:
        return output
    return {"cut": True, "bytes": size, "head": text[: MAX_OUTPUT_BYTES // 8]}
