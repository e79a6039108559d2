"""Repairs what a crash left behind, from Postgres, which is the truth.

`Sweeper.run_once` wakes runs whose time has come, the longest waiting first, and publishes again what the broker does
not hold: runs whose publishing failed or never happened, that Redis lost, or whose worker fell silent. About once a
minute it looks whether a run waits for others that are gone. Publishing is idempotent, so a repair too many harms
nothing, and any number of sweepers may run. Every repair is counted by kind and logged.

A backlog of a million runs is looked through in pieces: each sweep goes on where the last one of this sweeper ended.
While there is nothing to do a sweep is two statements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from engine import metrics
from engine.db import Database, Row, SystemSession
from engine.ports import Publisher, RunMessage
from engine.repository import relatives, runs
from engine.runs import Runs
from engine.states import RunState

BATCH = 500
MAX_BATCHES = 20
"""Of one sweep: so that it ends, and waking is never far away."""
LOOK_SECONDS = 60.0
"""Between two looks at the runs that wait for other runs."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one sweep repaired."""

    woken: int = 0
    unpublished: int = 0
    silent: int = 0
    stranded: int = 0
    """They waited for runs that had ended or were gone."""


class Sweeper:
    """`queued_seconds`: how long a queued run may be missing from the broker; `silent_seconds`: a running one mute."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        *,
        runs: Runs,
        queued_seconds: float = 5.0,
        silent_seconds: float = 20.0,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._runs = runs
        self._queued_seconds = queued_seconds
        self._silent_seconds = silent_seconds
        self._after = ""
        self._after_relative = ""
        self._look_again_at = 0.0

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
        result = Result(woken=woken, unpublished=unpublished, silent=silent, stranded=self._free_stranded())
        _report(result)
        return result

    def look_again(self) -> None:
        """Let the next sweep look at the runs that wait for others, however short ago that was done."""
        self._look_again_at = 0.0

    def _wake(self) -> int:
        """A batch at a time, each published before the next is taken."""
        count = 0
        for _ in range(MAX_BATCHES):
            with self._database.system() as session:
                woken = runs.wake(session, limit=BATCH)
            self._publisher.publish(map(_message, woken))
            count += len(woken)
            if len(woken) < BATCH:
                break
        return count

    def _free_stranded(self) -> int:
        """The transaction that ends a run wakes whoever waits for it; this is for what no transaction of ours did."""
        if not self._after_relative and time.monotonic() < self._look_again_at:
            return 0
        with self._database.system() as session:
            piece = relatives.stranded(session, after=self._after_relative, limit=BATCH)
            free = [row for row in piece if row["stranded"]]
            count = sum(self._free(session, row) for row in free)
        self._after_relative = piece[-1]["id"] if len(piece) == BATCH else ""
        self._look_again_at = time.monotonic() + LOOK_SECONDS
        return count

    def _free(self, session: SystemSession, row: Row) -> int:
        with session.acting_for(row["tenant_id"]) as tenant:
            if row["wait_reason"] == "concurrency":
                return self._runs.hand_over(tenant, row["workflow_id"], row["concurrency_key"])
            self._runs.signal(tenant, row["id"])
            return 1

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
    for kind in ("woken", "unpublished", "silent", "stranded"):
        if count := getattr(result, kind):
            metrics.SWEEPER_REPAIRS.inc(count, kind=kind)
            log.info("sweeper_repaired", kind=kind, count=count)
