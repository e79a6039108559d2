"""Repairs what a crash left behind, from Postgres, which is the truth.

`Sweeper.run_once` wakes runs whose time has come, and publishes again what the broker does not hold: runs whose
publishing failed or never happened, that Redis lost, or whose worker fell silent. Publishing is idempotent, so a repair
too many harms nothing, and any number of sweepers may run. Every repair is counted by kind and logged.

A backlog of a million runs is looked through in pieces: each sweep goes on where the last one of this sweeper ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from engine import metrics
from engine.db import Database, Row
from engine.ports import Publisher, RunMessage
from engine.repository import runs
from engine.states import RunState

BATCH = 500
MAX_BATCHES = 20
"""Of one sweep: so that it ends, and waking is never far away."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one sweep repaired."""

    woken: int = 0
    unpublished: int = 0
    silent: int = 0


class Sweeper:
    """`queued_seconds`: how long a queued run may be missing from the broker; `silent_seconds`: a running one mute."""

    def __init__(
        self, database: Database, publisher: Publisher, *, queued_seconds: float = 5.0, silent_seconds: float = 20.0
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._queued_seconds = queued_seconds
        self._silent_seconds = silent_seconds
        self._after = ""

    def run_once(self) -> Result:
        """Raises Unavailable when Postgres or the broker does not answer; the next sweep repeats what is missing."""
        woken = self._wake()
        unpublished = silent = 0
        for batch in self._overdue():
            held = self._publisher.holds([message_id for row in batch for message_id in _message_ids(row)])
            missing = [row for row in batch if held.isdisjoint(_message_ids(row))]
            self._publisher.publish(map(_message, missing))
            lost = [row for row in missing if row["status"] == RunState.RUNNING]
            silent += len(lost)
            unpublished += len(missing) - len(lost)
        result = Result(woken=woken, unpublished=unpublished, silent=silent)
        _report(result)
        return result

    def _wake(self) -> int:
        with self._database.system() as session:
            woken = runs.wake(session, limit=BATCH)
        self._publisher.publish(map(_message, woken))
        return len(woken)

    def _overdue(self) -> Iterator[Sequence[Row]]:
        for _ in range(MAX_BATCHES):
            with self._database.system() as session:
                batch = runs.overdue(
                    session,
                    queued_seconds=self._queued_seconds,
                    silent_seconds=self._silent_seconds,
                    after=self._after,
                    limit=BATCH,
                )
            if batch:
                yield batch
            self._after = batch[-1]["id"] if len(batch) == BATCH else ""
            if not self._after:
                return


def _message(row: Row) -> RunMessage:
    return RunMessage(row["id"], row["tenant_id"], row["workflow_id"], row["priority"], row["attempt"], row["lane"])


def _message_ids(row: Row) -> tuple[str, ...]:
    """Under which ids the broker may hold the run: the next attempt's, and for a running one the present one's."""
    message = _message(row)
    if row["status"] != RunState.RUNNING:
        return (message.id,)
    return message.id, replace(message, attempt=message.attempt - 1).id


def _report(result: Result) -> None:
    for kind in ("woken", "unpublished", "silent"):
        if count := getattr(result, kind):
            metrics.SWEEPER_REPAIRS.labels(kind=kind).inc(count)
            log.info("sweeper_repaired", kind=kind, count=count)
