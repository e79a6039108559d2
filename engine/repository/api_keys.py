"""API keys of an organization: what may be shown of them, and the hash by which one is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from engine.db import Row, TenantSession
from engine.models import api_keys

PUBLIC = (
    api_keys.c.id,
    api_keys.c.name,
    api_keys.c.prefix,
    api_keys.c.scopes,
    api_keys.c.created_by,
    api_keys.c.created_at,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    api_keys.c.revoked_at,
)
"""Nothing of the secret but its first characters."""


def insert(
    session: TenantSession,
    *,
    key_id: str,
    name: str,
    prefix: str,
    secret_hash: bytes,
    scopes: Sequence[str],
    created_by: str | None,
    expires_at: datetime | None,
) -> Row:
    """The key as it may be shown."""
    statement = (
        sa.insert(api_keys)
        .values(
            tenant_id=session.tenant_id,
            id=key_id,
            name=name,
            prefix=prefix,
            secret_hash=secret_hash,
            scopes=list(scopes),
            created_by=created_by,
            expires_at=expires_at,
        )
        .returning(*PUBLIC)
    )
    return dict(session.execute(statement).mappings().one())


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """Also those that are revoked or expired; in the order of their ids, beginning behind `after`."""
    statement = sa.select(*PUBLIC).order_by(api_keys.c.id).limit(limit)
    if after is not None:
        statement = statement.where(api_keys.c.id > after)
    return session.rows(statement)


def now(session: TenantSession) -> datetime:
    """When the transaction began, by the database's clock."""
    moment: datetime = session.execute(sa.select(sa.func.now())).scalar_one()
    return moment


def revoke(session: TenantSession, key_id: str) -> Row | None:
    """From now on it opens nothing; None when there is no such key that still does."""
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=sa.func.now())
        .returning(*PUBLIC)
    )
    return session.row(statement)
