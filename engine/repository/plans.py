"""Plans, what differs from them for a tenant, and what follows for the tenants' lanes.

All of it is the operator's business and looks across tenants; hence the `SystemSession`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from engine.db import Row, SystemSession
from engine.models import limits_version, plans, tenants
from engine.ports import Lane

TENANTS = sa.select(sa.func.count()).where(tenants.c.plan == plans.c.name, tenants.c.status != "deleted")
PLAN = (plans.c.name, plans.c.limits, TENANTS.scalar_subquery().label("tenants"))

PAUSED = {"paused": True}
"""Beside the limits of a tenant: its lane starts nothing, because an operator said so."""

_STOPPED = sa.case((tenants.c.status != "active", sa.cast(PAUSED, JSONB)), else_=sa.cast({}, JSONB))
_LANE = sa.func.lane_config(
    plans.c.limits.concat(tenants.c.limits).concat(_STOPPED),
    sa.func.greatest(plans.c.limits_version, tenants.c.limits_version),
)


def lock(session: SystemSession) -> None:
    """Until the transaction ends nobody else changes a limit: so versions are drawn in the order of the commits."""
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended("limits", 0))))


def listed(session: SystemSession) -> list[Row]:
    """Every plan with its limits and how many organizations have it, in the order of the names."""
    return session.rows(sa.select(*PLAN).order_by(plans.c.name))


def get(session: SystemSession, name: str) -> Row | None:
    return session.row(sa.select(*PLAN).where(plans.c.name == name))


def insert(session: SystemSession, name: str, limits: Mapping[str, Any]) -> None:
    session.execute(sa.insert(plans).values(name=name, limits=dict(limits), limits_version=limits_version.next_value()))


def change(session: SystemSession, name: str, limits: Mapping[str, Any]) -> bool:
    """Replace the limits that are given; False when there is no such plan."""
    statement = (
        sa.update(plans)
        .where(plans.c.name == name)
        .values(limits=plans.c.limits.concat(sa.cast(dict(limits), JSONB)), limits_version=limits_version.next_value())
        .returning(plans.c.name)
    )
    return session.row(statement) is not None


def of_tenant(session: SystemSession, tenant_id: str) -> Row | None:
    """The organization with ``plan_limits`` and ``overrides``; a deleted one is not found."""
    statement = (
        sa.select(
            tenants.c.id,
            tenants.c.name,
            tenants.c.plan,
            tenants.c.status,
            tenants.c.created_at,
            plans.c.limits.label("plan_limits"),
            tenants.c.limits.label("overrides"),
        )
        .join(plans, plans.c.name == tenants.c.plan)
        .where(tenants.c.id == tenant_id, tenants.c.status != "deleted")
    )
    return session.row(statement)


def change_tenant(
    session: SystemSession,
    tenant_id: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    **columns: Any,
) -> bool:
    """Set what differs from the plan, drop what does so no more, and set other columns; False for no such tenant."""
    kept = tenants.c.limits.op("-", precedence=100)(sa.cast(list(without), ARRAY(sa.Text)))
    limits = kept.concat(sa.cast(dict(overrides or {}), JSONB))
    statement = (
        sa.update(tenants)
        .where(tenants.c.id == tenant_id, tenants.c.status != "deleted")
        .values(limits=limits, limits_version=limits_version.next_value(), **columns)
        .returning(tenants.c.id)
    )
    return session.row(statement) is not None


def lanes(session: SystemSession, tenant_ids: Sequence[str]) -> dict[str, Lane]:
    """How the lanes of these tenants should be configured."""
    return _lanes(session, _select_lanes().where(tenants.c.id.in_(tenant_ids)))


def lanes_of_plan(session: SystemSession, name: str, *, after: str, limit: int) -> dict[str, Lane]:
    """The same for the tenants of a plan, in the order of their ids, beginning behind `after`."""
    return _lanes(
        session,
        _select_lanes().where(tenants.c.plan == name, tenants.c.id > after).order_by(tenants.c.id).limit(limit),
    )


def _select_lanes() -> sa.Select[Any]:
    return sa.select(tenants.c.id, _LANE.label("lane")).join(plans, plans.c.name == tenants.c.plan)


def _lanes(session: SystemSession, statement: sa.Select[Any]) -> dict[str, Lane]:
    return {row["id"]: row["lane"] for row in session.rows(statement)}
