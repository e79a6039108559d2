"""Who belongs to an organization, and as what."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert

from engine.db import Row, TenantSession
from engine.models import memberships, users
from engine.permissions import Role

MEMBER = (memberships.c.user_id, users.c.email, memberships.c.role, memberships.c.joined_at)

_SELECT = sa.select(*MEMBER).join(users, users.c.id == memberships.c.user_id)


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """In the order of the users' ids, beginning behind `after`."""
    statement = _SELECT.where(memberships.c.tenant_id == session.tenant_id).order_by(memberships.c.user_id).limit(limit)
    if after is not None:
        statement = statement.where(memberships.c.user_id > after)
    return session.rows(statement)


def get(session: TenantSession, user_id: str) -> Row | None:
    return session.row(_SELECT.where(memberships.c.user_id == user_id))


def by_email(session: TenantSession, email: str) -> Row | None:
    """A member with that email, in any case."""
    return session.row(_SELECT.where(sa.func.lower(users.c.email) == sa.func.lower(email)).limit(1))


def lock_owners(session: TenantSession) -> Sequence[str]:
    """Ids of the owners. Until the transaction ends, nobody else makes one of them something less."""
    statement = (
        sa.select(memberships.c.user_id)
        .where(memberships.c.role == Role.OWNER.value)
        .order_by(memberships.c.user_id)
        .with_for_update()
    )
    return session.execute(statement).scalars().all()


def insert(session: TenantSession, user_id: str, role: str) -> bool:
    """False when the user is a member already; their role stays."""
    row = {"tenant_id": session.tenant_id, "user_id": user_id, "role": role}
    statement = upsert(memberships).values(row).on_conflict_do_nothing()
    return session.row(statement.returning(memberships.c.user_id)) is not None


def set_role(session: TenantSession, user_id: str, role: str) -> None:
    session.execute(sa.update(memberships).where(memberships.c.user_id == user_id).values(role=role))


def delete(session: TenantSession, user_id: str) -> bool:
    """False when there is no such member."""
    statement = sa.delete(memberships).where(memberships.c.user_id == user_id).returning(memberships.c.user_id)
    return session.row(statement) is not None
