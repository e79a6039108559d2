"""The audit: rows that are only ever added. Number, time and hashes are the database's; see migration 0008."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from engine.db import Row, TenantSession
from engine.models import audit
from engine.ports import Json

PUBLIC = (audit.c.id, audit.c.at, audit.c.actor, audit.c.action, audit.c.object, audit.c.ip, audit.c.data)
CHAINED = (*PUBLIC, audit.c.previous_hash, audit.c.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which rows; None asks for all."""

    action: str | None = None
    actor: str | None = None
    object: str | None = None
    since: datetime | None = None


def append(
    session: TenantSession,
    *,
    actor: str,
    action: str,
    object: str | None = None,  # noqa: A002 - the column's name
    ip: str | None = None,
    data: Mapping[str, Json] | None = None,
) -> int:
    """Add a row to the tenant's chain; its number. Until the transaction ends, others who would add one wait."""
    values: dict[str, Any] = {"actor": actor, "action": action, "object": object, "ip": ip}
    statement = (
        sa.insert(audit)
        .values(tenant_id=session.tenant_id, id=0, data=dict(data) if data else sa.null(), **values)
        .returning(audit.c.id)
    )
    number: int = session.execute(statement).scalar_one()
    return number


def listed(session: TenantSession, wanted: AuditFilter, *, before: int | None, limit: int) -> list[Row]:
    """The newest first, beginning below the number `before`."""
    statement = sa.select(*PUBLIC).order_by(audit.c.id.desc()).limit(limit)
    for column, value in {
        audit.c.action: wanted.action,
        audit.c.actor: wanted.actor,
        audit.c.object: wanted.object,
    }.items():
        if value is not None:
            statement = statement.where(column == value)
    if wanted.since is not None:
        statement = statement.where(audit.c.at >= wanted.since)
    if before is not None:
        statement = statement.where(audit.c.id < sa.literal(before, sa.BigInteger))
    return session.rows(statement)


def chain(session: TenantSession, *, after: int, limit: int) -> list[Row]:
    """With their hashes, in the order of the chain, beginning behind the number `after`."""
    return session.rows(sa.select(*CHAINED).where(audit.c.id > after).order_by(audit.c.id).limit(limit))
