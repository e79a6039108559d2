"""How much of each countable limit an organization uses, in one statement, and who counts alone."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from engine.db import Row, TenantSession
from engine.models import credentials, invites, memberships, plans, runs, tenants, workflows
from engine.states import RunState


def _count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Of the session's tenant: row-level security, and the condition for the index."""
    mine = table.c.tenant_id == sa.func.current_setting("app.tenant_id")
    return sa.select(sa.func.count()).select_from(table).where(mine, *conditions).scalar_subquery()


_MEMBERS = _count(memberships)
_PENDING = _count(
    invites, invites.c.accepted_at.is_(None), invites.c.revoked_at.is_(None), invites.c.expires_at > sa.func.now()
)
_LIMITS = plans.c.limits.concat(tenants.c.limits)

# As the partial index has it, which knows who waits for nothing, and not who has a worker.
_BACKLOG = (runs.c.finished_at.is_(None), runs.c.wait_reason.is_(None), runs.c.priority >= 0)
USED: dict[str, sa.ColumnElement[Any]] = {
    "max_workflows": _count(workflows, workflows.c.deleted_at.is_(None)),
    "max_members": _MEMBERS,
    "max_credentials": _count(credentials),
    "max_queued_runs": _count(runs, *_BACKLOG, runs.c.status == RunState.QUEUED.value),
    "max_concurrent_runs": _count(runs, *_BACKLOG, runs.c.status == RunState.RUNNING.value),
}
SEATS: sa.ColumnElement[Any] = sa.type_coerce(_MEMBERS + _PENDING, sa.Integer)
"""Members, and those who may become one by an invitation that is pending."""


def limits(session: TenantSession) -> dict[str, Any]:
    """What the plan says, overlaid by the tenant's own; as stored."""
    statement = sa.select(_LIMITS.label("limits")).join(plans, plans.c.name == tenants.c.plan)
    row = session.row(statement.where(tenants.c.id == session.tenant_id))
    return {} if row is None else dict(row["limits"])


def lock(session: TenantSession, name: str) -> None:
    """Until the transaction ends nobody else of the tenant counts this limit."""
    key = sa.func.hashtextextended(f"{name}:{session.tenant_id}", 0)
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def count(session: TenantSession, used: sa.ColumnElement[Any]) -> int:
    return int(session.execute(sa.select(used)).scalar_one())


def all_used(session: TenantSession) -> Row:
    """Limits (``limits``) and what is used of each of `USED`, pending invitations among the members."""
    used = USED | {"max_members": SEATS}
    columns = (column.label(name) for name, column in used.items())
    statement = sa.select(_LIMITS.label("limits"), *columns).join(plans, plans.c.name == tenants.c.plan)
    row = session.row(statement.where(tenants.c.id == session.tenant_id))
    if row is None:
        raise LookupError(session.tenant_id)
    return row
