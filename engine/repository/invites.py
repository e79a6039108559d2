"""Invitations into an organization. Of a token only the SHA-256 is stored; an email has one pending at most."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import invites, tenants

PUBLIC = (
    invites.c.id,
    invites.c.email,
    invites.c.role,
    invites.c.created_by,
    invites.c.created_at,
    invites.c.expires_at,
)
"""Nothing of the token."""

_PENDING = invites.c.accepted_at.is_(None) & invites.c.revoked_at.is_(None)


def lock_email(session: TenantSession, email: str) -> None:
    """Until the transaction ends, nobody else invites this email here."""
    key = sa.func.concat("invite:", session.tenant_id, ":", sa.func.lower(email))
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(key, 0))))


def insert(session: TenantSession, values: Mapping[str, Any], *, lasts: timedelta) -> Row:
    """The invitation as it may be shown."""
    row = {"tenant_id": session.tenant_id, "expires_at": sa.func.now() + lasts, **values}
    return dict(session.execute(sa.insert(invites).values(row).returning(*PUBLIC)).mappings().one())


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """Those that are neither accepted nor revoked, expired ones too; in the order of their ids, behind `after`."""
    statement = sa.select(*PUBLIC).where(_PENDING).order_by(invites.c.id).limit(limit)
    if after is not None:
        statement = statement.where(invites.c.id > after)
    return session.rows(statement)


def pending(session: TenantSession, invite_id: str) -> Row | None:
    return session.row(sa.select(*PUBLIC).where(_PENDING, invites.c.id == invite_id).with_for_update())


def revoke(session: TenantSession, *, invite_id: str | None = None, email: str | None = None) -> Row | None:
    """End the pending invitation of that id or email; None when there is none."""
    which = invites.c.id == invite_id if email is None else sa.func.lower(invites.c.email) == sa.func.lower(email)
    statement = sa.update(invites).where(_PENDING, which).values(revoked_at=sa.func.now()).returning(*PUBLIC)
    return session.row(statement)


def replace_token(session: TenantSession, invite_id: str, token_hash: bytes, *, lasts: timedelta) -> Row | None:
    """Let another token count, for the whole time anew; None when it is no longer pending."""
    statement = (
        sa.update(invites)
        .where(_PENDING, invites.c.id == invite_id)
        .values(token_hash=token_hash, expires_at=sa.func.now() + lasts)
        .returning(*PUBLIC)
    )
    return session.row(statement)


def take(session: SystemSession, token_hash: bytes) -> Row | None:
    """The pending invitation of a token, locked, with its organization; whoever else has the token waits."""
    statement = (
        sa.select(
            invites.c.id,
            invites.c.tenant_id,
            invites.c.email,
            invites.c.role,
            (invites.c.expires_at <= sa.func.now()).label("expired"),
            tenants.c.name.label("tenant_name"),
            tenants.c.status.label("tenant_status"),
        )
        .join(tenants, tenants.c.id == invites.c.tenant_id)
        .where(_PENDING, invites.c.token_hash == token_hash, tenants.c.status != "deleted")
        .with_for_update(of=invites)
    )
    return session.row(statement)


def accept(session: TenantSession, invite_id: str, user_id: str) -> None:
    session.execute(
        sa.update(invites).where(invites.c.id == invite_id).values(accepted_at=sa.func.now(), accepted_by=user_id)
    )
