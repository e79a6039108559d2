"""Counters of admitted runs, and who is held over a quota. The counters are in slots; see the migration's `admit`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import plans, quota_counters, runs, tenants
from engine.states import RunState

_LIMITS = plans.c.limits.concat(tenants.c.limits)


def hold(session: TenantSession, run_id: str, moment: datetime | None, *, verdict: str) -> Row:
    """Hold a run that was stored in this transaction and is not admitted; `verdict` says why."""
    (row,) = session.query("hold_run", tenant_id=session.tenant_id, run_id=run_id, at=moment, verdict=verdict)
    return row


def with_held(session: SystemSession, moment: datetime | None) -> Sequence[str]:
    """The tenants with held runs, but for those whose month is known to be used up."""
    return [row["tenant_id"] for row in session.query("tenants_with_held", at=moment)]


def alone(session: TenantSession) -> bool:
    """Whether nobody else lets this tenant's runs go until this transaction ends: so they go in their order."""
    key = sa.func.hashtextextended("held:" + session.tenant_id, 0)
    return bool(session.execute(sa.select(sa.func.pg_try_advisory_xact_lock(key))).scalar_one())


def release(session: TenantSession, moment: datetime | None, *, limit: int) -> list[Row]:
    """Queue the oldest held runs, as many as the limits admit; in the order of their ids."""
    rows = session.query("release_held", tenant_id=session.tenant_id, at=moment, limit=limit)
    return sorted(rows, key=lambda row: str(row["id"]))


def into_line(session: TenantSession, workflow_id: str, *, reason: str, quota: str) -> int:
    """Let runs that are held for `reason` wait among those over a quota; how many."""
    statement = (
        sa.update(runs)
        .where(runs.c.workflow_id == workflow_id, runs.c.status == RunState.HELD.value, runs.c.wait_reason == reason)
        .values(wait_reason=quota)
    )
    return session.execute(statement).rowcount


def counted_tenants(session: SystemSession, period: date) -> list[str]:
    """Those whose counter of the month belongs to the limit that they have now; others are counted anew anyway."""
    statement = (
        sa.select(tenants.c.id)
        .join(plans, plans.c.name == tenants.c.plan)
        .join(quota_counters, quota_counters.c.tenant_id == tenants.c.id)
        .where(
            quota_counters.c.period == period,
            quota_counters.c.slot == 0,
            quota_counters.c.monthly.is_not_distinct_from(_number("max_executions_per_month")),
            quota_counters.c.queued.is_not_distinct_from(_number("max_queued_runs")),
            quota_counters.c.version == sa.func.greatest(plans.c.limits_version, tenants.c.limits_version),
            sa.or_(quota_counters.c.monthly.is_not(None), quota_counters.c.queued.is_not(None)),
        )
        .order_by(tenants.c.id)
    )
    return list(session.execute(statement).scalars())


def _number(name: str) -> sa.ColumnElement[Any]:
    return sa.cast(_LIMITS[name].astext, sa.BigInteger)


def stale(session: SystemSession, period: date, *, start: datetime, end: datetime, limit: int) -> list[str]:
    """Tenants with a monthly limit whose counter of the month belongs to other limits, or is missing."""
    rows = session.query("stale_counters", period=period, start=start, end=end, limit=limit)
    return [row["tenant_id"] for row in rows]


def recount(session: TenantSession, moment: datetime) -> bool:
    """Count the month anew from the ledger, for the limits of now; False while others start or count."""
    rows = session.query("recount", tenant_id=session.tenant_id, at=moment)
    return bool(rows) and rows[0]["taken"] >= 0


def lock_counter(session: TenantSession, period: date) -> int:
    """What a month's counter says; until the transaction ends nobody is admitted by it."""
    gate = sa.func.hashtextextended("quota:" + session.tenant_id, 0)
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(gate)))
    mine = sa.select(quota_counters.c.used).where(quota_counters.c.period == period)
    return sum(session.execute(mine.order_by(quota_counters.c.slot).with_for_update()).scalars())


def mend_counter(session: TenantSession, period: date, used: int) -> None:
    """Nothing is given out from it until somebody has counted."""
    session.execute(
        sa.update(quota_counters)
        .where(quota_counters.c.period == period)
        .values(used=sa.case((quota_counters.c.slot == 0, used), else_=0), room=0, monthly=-1)
    )


def forget_before(session: SystemSession, period: date) -> None:
    """Counters of earlier months admit nothing any more; the ledger knows what they knew."""
    session.execute(sa.delete(quota_counters).where(quota_counters.c.period < period))
