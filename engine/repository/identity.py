"""Users and organizations: who somebody is, and where they belong.

Most of this looks across tenants, because finding out who is calling comes before there is a tenant; hence the
`SystemSession`.
"""

from __future__ import annotations

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import memberships, tenants, users

TENANT = (
    tenants.c.id,
    tenants.c.name,
    tenants.c.plan,
    tenants.c.status,
    tenants.c.created_at,
    tenants.c.organizations,
)


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
    """The user of that email: spelled exactly so, else the only one in any case; with the password's hash.

    Of two accounts of the multi-user system whose emails differ by case only, a third spelling means neither.
    """
    statement = (
        sa.select(users.c.id, users.c.email, users.c.password_hash, users.c.tenant_id, users.c.token_version)
        .where(sa.func.lower(users.c.email) == sa.func.lower(email))
        .order_by((users.c.email == email).desc(), users.c.created_at, users.c.id)
        .limit(2)
    )
    rows = session.rows(statement)
    if not rows or (len(rows) > 1 and rows[0]["email"] != email):
        return None
    return rows[0]


def is_taken(session: SystemSession, email: str) -> bool:
    """Whether somebody has that email, in whatever case."""
    return (
        session.row(sa.select(users.c.id).where(sa.func.lower(users.c.email) == sa.func.lower(email)).limit(1))
        is not None
    )


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


def tenant_by_id(session: SystemSession, tenant_id: str) -> Row | None:
    """Any organization that is not deleted."""
    return session.row(sa.select(*TENANT).where(tenants.c.id == tenant_id, tenants.c.status != "deleted"))


def rename_tenant(session: TenantSession, name: str) -> Row | None:
    statement = sa.update(tenants).where(tenants.c.id == session.tenant_id).values(name=name).returning(*TENANT)
    return session.row(statement)


def set_organizations(session: SystemSession, tenant_id: str, on: bool) -> bool:
    """Whether the organization has the features of `engine.rollout`; False when there is no such organization."""
    statement = (
        sa.update(tenants)
        .where(tenants.c.id == tenant_id, tenants.c.status != "deleted")
        .values(organizations=on)
        .returning(tenants.c.id)
    )
    return session.row(statement) is not None


def forget_home(session: SystemSession, user_id: str, tenant_id: str) -> None:
    """The user has left: logins no longer lead there."""
    session.execute(
        sa.update(users).where(users.c.id == user_id, users.c.tenant_id == tenant_id).values(tenant_id=None)
    )


def token_version(session: SystemSession, user_id: str) -> int | None:
    """Which login tokens of the user hold: those of this version. None when there is no such user."""
    row = session.row(sa.select(users.c.token_version).where(users.c.id == user_id))
    return None if row is None else int(row["token_version"])


def revoke_tokens(session: SystemSession, user_id: str) -> int:
    """No login token that the user has holds any more; the version of those that are issued from now on."""
    statement = (
        sa.update(users)
        .where(users.c.id == user_id)
        .values(token_version=users.c.token_version + 1)
        .returning(users.c.token_version)
    )
    version: int = session.execute(statement).scalar_one()
    return version
