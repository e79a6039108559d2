"""Fires what is due: one tick of any number of schedulers, none of which is special.

A due trigger is locked with SKIP LOCKED, its runs are stored, and it is moved on, in one transaction. So two schedulers
never fire the same one, and one that dies half-way has done nothing. Besides, each run's key names its moment. Of many
that are due organizations take turns, so that one with thousands of schedules in a second does not delay another's one.

A trigger that cannot fire - unreadable, or of a workflow that is off or gone - is paused with the reason in its row,
and does not stop the others. When Postgres does not answer, the tick raises Unavailable and the next one does the work.

A due poll is handed to a worker after the commit, as a message with ids only. Should that fail, or the message be lost,
the poll falls due again after `poll.LEASE`; the message has the same id then, so that two never wait at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import structlog

from engine.db import Database, Row, SystemSession, TenantSession
from engine.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, Unavailable
from engine.ports import PollMessage, Publisher
from engine.repository import triggers as stored
from engine.repository.triggers import Advance
from engine.runs import Runs
from triggers.door import fire
from triggers.kinds import Decision, Kinds
from triggers.registry import KINDS

BATCH = 50
"""Triggers in one transaction; each is a savepoint, and Postgres remembers 64 of them cheaply."""
ROUND = 1000
"""Triggers that are put in order at once; whatever falls due meanwhile has its turn in the next round."""
MAX_ROUNDS = 20
"""After so many a tick ends, so that one which cannot keep up is seen to end and begin."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one tick did."""

    claimed: int = 0
    started: int = 0
    polls: int = 0
    missed: int = 0
    """Fires without a run, by the policy for those that passed while no scheduler ran."""
    paused: int = 0

    def __add__(self, other: Result) -> Result:
        return Result(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class _Handled:
    """One trigger after its turn."""

    advance: Advance
    started: int = 0
    missed: int = 0
    poll: PollMessage | None = None


class Scheduler:
    """See the module. Safe to run in many processes and threads at once."""

    def __init__(self, database: Database, runs: Runs, publisher: Publisher, *, kinds: Kinds = KINDS) -> None:
        self._database = database
        self._runs = runs
        self._publisher = publisher
        self._kinds = kinds

    def run_once(self) -> Result:
        """Fire everything that is due now, in batches."""
        total = Result()
        for _ in range(MAX_ROUNDS):
            with self._database.system() as session:
                keys = stored.due(session, limit=ROUND, window=ROUND * MAX_ROUNDS)
            for start in range(0, len(keys), BATCH):
                total += self._fire_batch(keys[start : start + BATCH])
            if len(keys) < ROUND:
                break
        return total

    def _fire_batch(self, keys: Sequence[stored.Key]) -> Result:
        with self._database.system() as session:
            rows = stored.lock_due(session, keys)
            handled = [done for tenant_id, own in _by_tenant(rows) for done in self._handle(session, tenant_id, own)]
            stored.advance(session, [done.advance for done in handled])
        polls = [done.poll for done in handled if done.poll is not None]
        for poll in polls:
            self._hand_over(poll)
        return Result(
            claimed=len(handled),
            started=sum(done.started for done in handled),
            polls=len(polls),
            missed=sum(done.missed for done in handled),
            paused=sum(done.advance.paused_reason is not None for done in handled),
        )

    def _handle(self, session: SystemSession, tenant_id: str, rows: Sequence[Row]) -> list[_Handled]:
        with session.acting_for(tenant_id) as own:
            return [self._handle_one(own, row) for row in rows]

    def _handle_one(self, session: TenantSession, row: Row) -> _Handled:
        try:
            decision = self._kinds.decide(row)
        except InvalidInput as error:
            return _paused(row, f"The trigger cannot be read: {error.detail}")
        started = 0
        try:
            with stored.attempt(session):
                started = sum(not fire(session, self._runs, start).existing for start in decision.starts)
        except (Conflict, NotFound) as error:
            return _left(row) if error.error_code == "tenant_suspended" else _paused(row, error.detail)
        except QuotaExceeded as error:
            log.warning("fire_refused", tenant=row["tenant_id"], workflow=row["workflow_id"], reason=error.detail)
        poll = PollMessage(row["tenant_id"], row["workflow_id"], row["lane"]) if decision.poll else None
        return _Handled(_advance(row, decision), started=started, missed=decision.missed, poll=poll)

    def _hand_over(self, poll: PollMessage) -> None:
        try:
            self._publisher.publish_poll(poll)
        except Unavailable as error:
            log.warning("poll_not_published", tenant=poll.tenant_id, workflow=poll.workflow_id, reason=error.detail)


def _by_tenant(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    ordered = sorted(rows, key=lambda row: row["tenant_id"])
    return [(tenant_id, list(own)) for tenant_id, own in groupby(ordered, key=lambda row: row["tenant_id"])]


def _advance(row: Row, decision: Decision) -> Advance:
    return Advance(
        tenant_id=row["tenant_id"],
        workflow_id=row["workflow_id"],
        next_fire_at=decision.next_fire_at,
        last_fired_at=row["next_fire_at"],
    )


def _left(row: Row) -> _Handled:
    """As it was: the organization was suspended this very moment, and what is due then is due when it comes back."""
    due_at = row["next_fire_at"]
    return _Handled(Advance(tenant_id=row["tenant_id"], workflow_id=row["workflow_id"], next_fire_at=due_at))


def _paused(row: Row, reason: str) -> _Handled:
    log.warning("trigger_paused", tenant=row["tenant_id"], workflow=row["workflow_id"], reason=reason)
    return _Handled(
        Advance(tenant_id=row["tenant_id"], workflow_id=row["workflow_id"], next_fire_at=None, paused_reason=reason)
    )
