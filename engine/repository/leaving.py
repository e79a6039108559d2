"""Everything that an organization has, for taking it away and for taking it along.

Deleting a row of `tenants` takes all the rest with it. What may be very much of, runs with their steps and logs, is
deleted in pieces before, so that no transaction is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import audit, data_keys, metadata, runs, tenants, users

ARCHIVED = (
    "tenants", "memberships", "users", "invites", "api_keys", "credentials", "workflows", "workflow_versions",
    "triggers", "poll_items", "runs", "steps", "execution_logs", "usage", "decryptions", "logs",
    "usage_hourly", "usage_monthly", "quota_counters", "quota_notices", "notice_deliveries", "notice_targets",
    "plan_terms", "invoices", "billing_accounts", "meter_exports",
)  # fmt: skip
"""The tables of an archive; the audit is in it too, in its own form."""

SECRET = {
    "users": {"password_hash", "token_version"},
    "invites": {"token_hash"},
    "api_keys": {"secret_hash"},
    "credentials": {"ciphertext", "encrypted_key", "key_version"},
    "notice_targets": {"salt"},
}
"""Columns that are in no archive: of no use elsewhere, and dangerous."""


def mark_deleted(session: SystemSession, tenant_id: str, *, grace: timedelta) -> Row | None:
    """From now on nobody finds it; None when nobody did. With ``name`` and ``erase_after``."""
    statement = (
        sa.update(tenants)
        .where(tenants.c.id == tenant_id, tenants.c.status != "deleted")
        .values(status="deleted", deleted_at=sa.func.now(), erase_after=sa.func.now() + grace)
        .returning(tenants.c.id, tenants.c.name, tenants.c.erase_after)
    )
    return session.row(statement)


def restore(session: SystemSession, tenant_id: str) -> Row | None:
    """Undo `mark_deleted`: it is active, also when it was suspended before. None when it is too late for that."""
    statement = (
        sa.update(tenants)
        .where(tenants.c.id == tenant_id, tenants.c.status == "deleted", tenants.c.erase_after > sa.func.now())
        .values(status="active", deleted_at=None, erase_after=None)
        .returning(tenants.c.id, tenants.c.name)
    )
    return session.row(statement)


def due_for_erasure(session: SystemSession, *, now: datetime | None = None) -> Sequence[str]:
    """Organizations whose grace period is over: all, as some of them may not let themselves be erased."""
    moment = sa.func.now() if now is None else sa.literal(now)
    statement = sa.select(tenants.c.id).where(tenants.c.erase_after <= moment).order_by(tenants.c.erase_after)
    return session.execute(statement).scalars().all()


def take_for_erasure(session: SystemSession, tenant_id: str, *, now: datetime | None = None) -> bool:
    """From now on it cannot be restored; False when it was restored meanwhile. Holds the row until the commit."""
    moment = sa.func.now() if now is None else sa.literal(now)
    statement = (
        sa.update(tenants)
        .where(tenants.c.id == tenant_id, tenants.c.status == "deleted", tenants.c.erase_after <= moment)
        .values(erase_after=sa.func.least(tenants.c.erase_after, sa.func.now()))
        .returning(tenants.c.id)
    )
    return session.row(statement) is not None


def shred_keys(session: TenantSession) -> int:
    """Delete the data keys: no secret of the tenant can be read from now on. How many there were."""
    return session.execute(sa.delete(data_keys)).rowcount


def delete_runs(session: TenantSession, *, limit: int) -> int:
    """Delete some runs with their steps and logs; how many."""
    some = sa.select(runs.c.id).limit(limit).with_for_update(skip_locked=True)
    return session.execute(sa.delete(runs).where(runs.c.id.in_(some))).rowcount


def erase_legacy(session: SystemSession, tenant_id: str) -> bool:
    """Delete what is kept of it for the way back to the multi-user system. False when there is something we may not."""
    there = session.row(
        sa.text(
            "SELECT n.oid, p.oid AS eraser FROM pg_namespace n LEFT JOIN pg_proc p"
            " ON p.pronamespace = n.oid AND p.proname = 'erase' WHERE n.nspname = 'fairlane_legacy'"
        )
    )
    if there is None or there["eraser"] is None:
        return there is None
    session.execute(sa.text("SET LOCAL statement_timeout = 0"))
    session.execute(sa.text("SELECT fairlane_legacy.erase(:tenant)").bindparams(tenant=tenant_id))
    return True


def delete_tenant(session: SystemSession, tenant_id: str) -> Row | None:
    """Delete it with all that is left; the end of its audit, for the log. None when somebody else did."""
    session.execute(sa.text("SET LOCAL statement_timeout = 0"))
    last = sa.select(audit.c.id, audit.c.hash).where(audit.c.tenant_id == tenant_id).order_by(audit.c.id.desc())
    head = session.row(last.limit(1)) or {"id": 0, "hash": b""}
    session.execute(sa.update(users).where(users.c.tenant_id == tenant_id).values(tenant_id=None))
    gone = session.row(sa.delete(tenants).where(tenants.c.id == tenant_id).returning(tenants.c.id))
    return None if gone is None else head


def rows_of(session: TenantSession, table_name: str, *, page: int) -> Iterator[Row]:
    """Every row of a table that the tenant has, without `SECRET`, in the order of its key; read in pages."""
    table = metadata.tables[table_name]
    key = list(table.primary_key.columns)
    columns = [column for column in table.c if column.name not in SECRET.get(table_name, ())]
    statement = sa.select(*columns).order_by(*key).limit(page)
    last: Sequence[Any] | None = None
    while True:
        behind = statement if last is None else statement.where(sa.tuple_(*key) > sa.tuple_(*last))
        rows = session.rows(behind)
        yield from rows
        if len(rows) < page:
            return
        last = [sa.literal(rows[-1][column.name], column.type) for column in key]
