"""A step for tests of actions: the twin of what the executor hands to an action, on real time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from pydantic import Secret

from engine.errors import Cancelled
from engine.ports import Action, Json


@dataclass
class Step:
    """`seconds` is the step's timeout from now; `cancel()` makes the next `wait` raise `Cancelled`."""

    secret: dict[str, Any] | None = None
    seconds: float = 10.0
    attempt: int = 1
    tenant_id: str = "tenant_a"
    workflow_id: str = "wf_a"
    run_id: str = "run_a"
    step_id: str = "call"
    lines: list[tuple[str, str]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds
        self.idempotency_key = f"{self.run_id}:{self.step_id}"
        self.credential: Secret[dict[str, Any]] | None = None if self.secret is None else Secret(self.secret)

    def remaining(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def wait(self, seconds: float) -> None:
        if self.cancelled.wait(seconds) or self.cancelled.is_set():
            raise Cancelled("the run was cancelled")

    def log(self, level: str, message: str, **data: Json) -> None:
        self.lines.append((level, message))


def run(action: Action, step: Step, **parameters: Any) -> Any:
    """Validate `parameters` as the executor does, and run."""
    return action.run(step, action.input_model.model_validate(parameters))
