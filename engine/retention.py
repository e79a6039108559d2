"""How long runs are kept: those that ended more than `log_retention_days` ago are deleted, with their steps and logs.

What is under way stays, however old, and so does what a run that is under way still reads: the runs that it started.
Runs that were imported from the older system stay for good, as do the ledger (and with it the bill), the audit, and
the decryptions that the audit vouches for. An idempotency key is known as long as its run is kept.

Deleted are the oldest first, a batch in each transaction, so a pass that dies has lost nothing and the next one begins
where it stopped. A batch that takes Postgres too long is tried again with fewer runs. Everybody gets some batches, and
whoever needs more gets as many again, round after round, until the time of the pass is over. Each time another one
comes first, and what fails for one organization stops no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from engine.db import Database
from engine.errors import StatementTimeout, is_outage
from engine.repository import retention as stored
from engine.turns import Turns

BATCH = 200
MAX_BATCHES = 10
"""Of one tenant in one round: others wait, too."""
PASS = timedelta(seconds=30)
"""When it is over no further round is begun, nor gone on with; the first one is always made."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one pass did."""

    runs: int = 0
    failed: int = 0
    """Tenants of which something could not be deleted; each is logged with its reason."""


@dataclass(slots=True)
class _Visit:
    """What became of one tenant in one round."""

    deleted: int = 0
    more: bool = False
    failed: bool = False


class Retention:
    """Deletes what is past its time. Any number may run: each passes over what another has in hand.

    `clock` tells the seconds of a pass.
    """

    def __init__(self, database: Database, *, batch: int = BATCH, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._batch = batch
        self._clock = clock
        self._turns = Turns()

    def run_once(self, now: datetime | None = None) -> Result:
        """As of `now`, which is the database's own unless given."""
        over = self._clock() + PASS.total_seconds()
        with self._database.system() as session:
            tenants = self._turns.order(stored.tenants_with_expired(session, now))
        visits = {tenant_id: self._visit(tenant_id, now) for tenant_id in tenants}
        done = list(visits.values())
        while behind := [tenant_id for tenant_id, visit in visits.items() if visit.more]:
            for tenant_id in behind:
                if self._clock() >= over:
                    return _result(done)
                visits[tenant_id] = self._visit(tenant_id, now)
                done.append(visits[tenant_id])
        return _result(done)

    def _visit(self, tenant_id: str, now: datetime | None) -> _Visit:
        visit = _Visit()
        try:
            self._delete_some(tenant_id, now, visit)
        except Exception as error:
            if is_outage(error):
                raise
            visit.failed = True
            log.exception("retention_failed", tenant=tenant_id)
        if visit.deleted:
            log.info("runs_expired", tenant=tenant_id, count=visit.deleted)
        return visit

    def _delete_some(self, tenant_id: str, now: datetime | None, visit: _Visit) -> None:
        size = self._batch
        for _ in range(MAX_BATCHES):
            try:
                with self._database.tenant(tenant_id) as session:
                    deleted = stored.delete_expired(session, now, limit=size)
            except StatementTimeout:
                if size == 1:
                    raise
                size = max(1, size // 8)
                continue
            visit.deleted += deleted
            if deleted < size:
                return
        visit.more = True


def _result(visits: list[_Visit]) -> Result:
    return Result(sum(visit.deleted for visit in visits), sum(visit.failed for visit in visits))
