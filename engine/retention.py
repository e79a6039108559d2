"""How long runs are kept: those that ended more than `log_retention_days` ago are deleted, with their steps and logs.

What is under way stays, however old, and so does what a run that is under way still reads: the runs that it started.
Runs that were imported from the older system stay for good, as do the ledger (and with it the bill), the audit, and
the decryptions that the audit vouches for. An idempotency key is known as long as its run is kept.

Deleted are the oldest first, a batch in each transaction, so a pass that dies has lost nothing and the next one begins
where it stopped. A batch that takes Postgres too long is tried again with fewer runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import structlog

from engine.db import Database
from engine.errors import StatementTimeout, Unavailable
from engine.repository import retention as stored

BATCH = 200
MAX_BATCHES = 50
"""Of one tenant in one pass: others wait, too."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one pass did."""

    runs: int = 0
    failed: int = 0
    """Tenants of which something could not be deleted; each is logged with its reason."""


class Retention:
    """Deletes what is past its time. Any number may run: each passes over what another has in hand."""

    def __init__(self, database: Database, *, batch: int = BATCH) -> None:
        self._database = database
        self._batch = batch

    def run_once(self, now: datetime | None = None) -> Result:
        """As of `now`, which is the database's own unless given."""
        with self._database.system() as session:
            tenants = stored.tenants_with_expired(session, now)
        runs = failed = 0
        for tenant_id in tenants:
            deleted = 0
            try:
                for batch in self._batches(tenant_id, now):
                    deleted += batch
            except Exception as error:
                if isinstance(error, Unavailable) and not isinstance(error, StatementTimeout):
                    raise
                failed += 1
                log.exception("retention_failed", tenant=tenant_id)
            runs += deleted
            if deleted:
                log.info("runs_expired", tenant=tenant_id, count=deleted)
        return Result(runs, failed)

    def _batches(self, tenant_id: str, now: datetime | None) -> Iterator[int]:
        """How many runs each transaction deleted."""
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
            yield deleted
            if deleted < size:
                return
