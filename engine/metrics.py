"""Every Prometheus series: its name, its labels and what it means; and the tallies of this process.

Nearly everything is counted in Postgres (`engine.repository.metrics`). What no row tells of is tallied in the memory of
the process in which it happens, and flushed from there (`engine.tallies`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "fairlane_"
TENANT: Final = "tenant"
OTHER: Final = "other"
"""The label of all tenants that have none of their own."""

Key = tuple[str, tuple[str, ...]]
"""A series and the values of its labels."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series. Without `buckets` it is a counter; `name` is without the prefix and ``_total``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    """Besides `tenant`."""
    by_tenant: bool = False
    buckets: tuple[float, ...] = ()
    always: tuple[tuple[str, ...], ...] = ()
    """The values of labels that are shown with 0 before anything has been counted."""

    def inc(self, amount: float = 1, **labels: str) -> None:
        """Tally in this process."""
        TALLIES.add((self.name, tuple(labels[name] for name in self.labels)), amount)


class Tallies:
    """What this process has counted and not flushed yet. Threads may share it; a forked child begins with nothing."""

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Key, float] = {}
        self.some = threading.Event()
        """Set while there is something to flush."""
        self.ever = False
        """Whether there was anything in this process."""

    def add(self, key: Key, amount: float) -> None:
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount
            self.ever = True
        self.some.set()

    def take(self) -> Mapping[Key, float]:
        """All of it; whoever cannot flush it gives it back by `add`."""
        with self._lock:
            taken, self._counts = self._counts, {}
            self.some.clear()
        return taken


TALLIES = Tallies()

WEBHOOK_OUTCOMES: Final = (
    "accepted", "duplicate", "not_found", "not_a_webhook", "invalid_body", "bad_signature", "workflow_inactive",
    "tenant_suspended", "too_large", "quota_payload", "quota_executions", "quota_queue", "bad_request", "unavailable",
    "failed",
)  # fmt: skip
"""Stored and new, stored before under the same ``webhook-id``, the code of the refusal, or what nobody foresaw.

``bad_request`` stands for all else that is wrong with a request, and for callers that hang up.
"""

RUNS = Series("runs", "Runs that ended, by state and by what started them.", ("status", "trigger"), by_tenant=True)
RUN_SECONDS = Series(
    "run_seconds",
    "Seconds from queueing a run to its end, waits included.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400),
)
QUEUE_WAIT = Series(
    "queue_wait_seconds",
    "Seconds from queueing a run to its first begin on a worker.",
    by_tenant=True,
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
WORKER_SECONDS = Series("worker_seconds", "Seconds that runs had a worker.", by_tenant=True)
QUOTA_HELD = Series("quota_held", "Runs that were held over a limit.", ("quota",), by_tenant=True)
ACTION_CALLS = Series("action_calls", "Calls of actions, by the state that their step came to.", ("action", "outcome"))
SWEEPER_REPAIRS = Series(
    "sweeper_repairs",
    "What the sweeper repaired, by kind.",
    ("kind",),
    always=(("woken",), ("unpublished",), ("silent",), ("stranded",)),
)
WEBHOOKS = Series(
    "webhooks", "Webhook requests, by what became of them.", ("outcome",), always=tuple((o,) for o in WEBHOOK_OUTCOMES)
)
HANDED_BACK = Series(
    "handed_back",
    "Messages that a worker put back in line, by reason: unavailable, newer (a newer Fairlane wrote what it names).",
    ("reason",),
    always=(("unavailable",), ("newer",)),
)
QUOTA_DRIFT = Series(
    "quota_drift",
    "Executions by which counters of admitted runs differed from the ledger, when mended.",
    always=((),),
)

COUNTED: Final = (
    RUNS, RUN_SECONDS, QUEUE_WAIT, WORKER_SECONDS, QUOTA_HELD, ACTION_CALLS, SWEEPER_REPAIRS, WEBHOOKS, HANDED_BACK,
    QUOTA_DRIFT,
)  # fmt: skip
