"""How an organization leaves: deleted with a grace period in which it can be restored, then erased.

From the moment it is deleted nobody gets in, nothing starts and its lane rests; nothing is lost yet. When the grace
period is over the `Eraser` first shreds the data keys, so that its secrets are unreadable whatever happens next, then
deletes runs in pieces, and at last the organization itself with all that is left: credentials, workflows, members,
usage, audit, and what an adoption of the multi-user system kept of it for the way back. Accounts of people stay: they
are people's, not the organization's. The log says that it was erased, and where its audit ended.

What fails for one organization is logged, stops no other, and is tried again at the next pass.

A backup that was made before still holds the ciphertexts. It cannot be read when it was made without the table
``data_keys``, or when the master key that wrapped them is gone; docs/organizations.md says how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError

from engine import audit
from engine.audit import Actor
from engine.db import Database, Row, SystemSession
from engine.errors import NotFound, is_outage
from engine.repository import leaving as stored

GRACE = timedelta(days=30)
BATCH = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Erased:
    """What one pass did."""

    tenants: int = 0
    runs: int = 0
    failed: int = 0
    """Organizations that could not be erased; each is logged with its reason."""


def delete(session: SystemSession, by: Actor, tenant_id: str, *, grace: timedelta = GRACE) -> Row:
    """Let nobody find it any more, and erase it after `grace`; with ``erase_after``. Raises NotFound."""
    row = stored.mark_deleted(session, tenant_id, grace=grace)
    if row is None:
        raise NotFound(f"There is no organization {tenant_id!r}.")
    audit.record_for(session, tenant_id, by, "tenant.deleted", tenant_id, grace_days=grace.days)
    return row


def restore(session: SystemSession, by: Actor, tenant_id: str) -> Row:
    """Undo `delete` in the grace period. Raises NotFound."""
    row = stored.restore(session, tenant_id)
    if row is None:
        raise NotFound(f"There is no deleted organization {tenant_id!r} that could be restored.")
    audit.record_for(session, tenant_id, by, "tenant.restored", tenant_id)
    return row


class Eraser:
    """Erases what is deleted and past its grace period. Any number may run; one that dies is gone on with.

    `forget_lane` is told the tenant at the end, when all is done: what still waits in the queue would find nothing.
    """

    def __init__(self, database: Database, *, forget_lane: Callable[[str], object] = lambda _tenant: None) -> None:
        self._database = database
        self._forget_lane = forget_lane

    def run_once(self, *, now: datetime | None = None) -> Erased:
        """Erase what is due, by the database's clock unless `now` is given."""
        with self._database.system() as session:
            due = stored.due_for_erasure(session, now=now)
        erased, failed = list[int](), 0
        for tenant_id in due:
            try:
                runs = self._erase(tenant_id, now)
            except Exception as error:
                if is_outage(error):
                    raise
                failed += 1
                log.exception("erasure_failed", tenant=tenant_id)
            else:
                erased += [] if runs is None else [runs]
        return Erased(tenants=len(erased), runs=sum(erased), failed=failed)

    def _erase(self, tenant_id: str, now: datetime | None) -> int | None:
        """How many runs it had; None when it was restored since it was found due."""
        with self._database.system() as session:
            if not stored.take_for_erasure(session, tenant_id, now=now):
                return None
            with session.acting_for(tenant_id) as own:
                keys = stored.shred_keys(own)
        erased = deleted = self._delete_some_runs(tenant_id)
        while deleted:
            deleted = self._delete_some_runs(tenant_id)
            erased += deleted
        with self._database.system() as session:
            self._erase_legacy(session, tenant_id)
            head = stored.delete_tenant(session, tenant_id)
        if head is not None:
            ended = f"{head['id']}:{bytes(head['hash']).hex()}"
            log.warning("tenant_erased", tenant=tenant_id, data_keys=keys, runs=erased, audit_head=ended)
        self._forget_lane(tenant_id)
        return erased

    @staticmethod
    def _erase_legacy(session: SystemSession, tenant_id: str) -> None:
        """What is kept for the way back and cannot be erased keeps nothing else: the log says how it goes, too."""
        reason = "the function that erases them is missing"
        try:
            with session.savepoint():
                if stored.erase_legacy(session, tenant_id):
                    return
        except DBAPIError as error:
            if isinstance(error, OperationalError):  # a lock, or the server: it can be had later
                raise
            reason = str(error.orig)
        log.warning("legacy_rows_kept", tenant=tenant_id, reason=reason, remedy="fairlane migrate --forget-legacy")

    def _delete_some_runs(self, tenant_id: str) -> int:
        with self._database.tenant(tenant_id) as session:
            return stored.delete_runs(session, limit=BATCH)
