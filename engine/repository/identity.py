"""Users, organizations, memberships and API keys: who somebody is, and where they belong.

Most of this looks across tenants, because finding out who is calling comes before there is a tenant; hence the
`SystemSession`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import api_keys, memberships, tenants, users

TENANT = (tenants.c.id, tenants.c.name, tenants.c.plan, tenants.c.status, tenants.c.created_at)

KEY = (
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
"""What may be shown of a key: nothing of its secret but the first characters."""


def caller_by_user(session: SystemSession, user_id: str, tenant_id: str) -> Row | None:
    """The user, and what they are in that tenant (role None: no member); None when there is no such user."""
    rows = session.query("caller_by_user", user_id=user_id, tenant_id=tenant_id)
    return rows[0] if rows else None


def caller_by_key(session: SystemSession, secret_hash: bytes) -> Row | None:
    """The key of that hash with its tenant, noting at most once a minute that it was used."""
    rows = session.query("caller_by_key", secret_hash=secret_hash)
    return rows[0] if rows else None


def lock_email(session: SystemSession, email: str) -> None:
    """Until the transaction ends, nobody else registers an email that differs from this one by case only."""
    key = sa.func.hashtextextended(sa.func.concat("email:", sa.func.lower(email)), 0)
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def account(session: SystemSession, email: str) -> Row | None:
    """The user of that email: spelled exactly so, else in any case; with the password's hash."""
    statement = (
        sa.select(users.c.id, users.c.email, users.c.password_hash, users.c.tenant_id)
        .where(sa.func.lower(users.c.email) == sa.func.lower(email))
        .order_by((users.c.email == email).desc(), users.c.created_at, users.c.id)
        .limit(1)
    )
    return session.row(statement)


def insert_user(session: SystemSession, *, user_id: str, email: str, password_hash: str) -> None:
    session.execute(sa.insert(users).values(id=user_id, email=email, password_hash=password_hash))


def set_home(session: SystemSession, user_id: str, tenant_id: str) -> None:
    """The organization that a login leads to."""
    session.execute(sa.update(users).where(users.c.id == user_id).values(tenant_id=tenant_id))


def set_password_hash(session: SystemSession, user_id: str, password_hash: str, *, instead_of: str) -> None:
    """Replace the hash unless it was changed meanwhile."""
    session.execute(
        sa.update(users)
        .where(users.c.id == user_id, users.c.password_hash == instead_of)
        .values(password_hash=password_hash)
    )


def insert_tenant(session: SystemSession, *, tenant_id: str, name: str) -> Row:
    return dict(session.execute(sa.insert(tenants).values(id=tenant_id, name=name).returning(*TENANT)).mappings().one())


def insert_member(session: SystemSession, *, tenant_id: str, user_id: str, role: str) -> None:
    session.execute(sa.insert(memberships).values(tenant_id=tenant_id, user_id=user_id, role=role))


def tenants_of(
    session: SystemSession, user_id: str, *, after: str | None = None, limit: int | None = None
) -> list[Row]:
    """The organizations of a user with their role, in the order of the ids, beginning behind `after`."""
    statement = (
        sa.select(*TENANT, memberships.c.role)
        .join(memberships, memberships.c.tenant_id == tenants.c.id)
        .where(memberships.c.user_id == user_id, tenants.c.status != "deleted")
        .order_by(tenants.c.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(tenants.c.id > after)
    return session.rows(statement)


def tenant(session: TenantSession) -> Row | None:
    """The session's own organization."""
    return session.row(sa.select(*TENANT).where(tenants.c.id == session.tenant_id))


def rename_tenant(session: TenantSession, name: str) -> Row | None:
    statement = sa.update(tenants).where(tenants.c.id == session.tenant_id).values(name=name).returning(*TENANT)
    return session.row(statement)


def insert_key(
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
        .returning(*KEY)
    )
    return dict(session.execute(statement).mappings().one())


def revoke_key(session: TenantSession, key_id: str) -> bool:
    """From now on it opens nothing; False when there is no such key that still does."""
    statement = (
        sa.update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=sa.func.now())
        .returning(api_keys.c.id)
    )
    return session.row(statement) is not None
