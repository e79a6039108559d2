"""Notices that a monthly limit is near: which are due, to whom they go, and what became of sending them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from engine.db import Row, SystemSession, TenantSession
from engine.models import memberships, notice_deliveries, notice_targets, quota_notices, tenants, users

_KEY = tuple(notice_deliveries.primary_key.columns)
_PENDING = notice_deliveries.c.state == "pending"
TARGET = (notice_targets.c.url, notice_targets.c.updated_at)


def passed(session: SystemSession | TenantSession, period: date, *, first: int, last: int) -> list[Row]:
    """Tenants that passed a mark (percent) of their limit and have no notice of it: tenant_id, used, monthly."""
    return session.query("passed_marks", period=period, first=first, last=last)


def insert(session: TenantSession, *, period: date, percent: int, used: int, monthly: int, at: datetime) -> bool:
    """False when there is one of that mark already."""
    values = {"tenant_id": session.tenant_id, "period": period, "percent": percent, "used": used, "monthly": monthly}
    statement = postgresql.insert(quota_notices).values(**values, at=at).on_conflict_do_nothing()
    return session.row(statement.returning(quota_notices.c.percent)) is not None


def insert_deliveries(
    session: TenantSession, *, period: date, percent: int, places: Sequence[tuple[str, str]], at: datetime
) -> None:
    """To be sent from `at` on; `places` are channel and target."""
    notice = {"tenant_id": session.tenant_id, "period": period, "percent": percent, "due_at": at}
    if places:
        rows = [{**notice, "channel": channel, "target": target} for channel, target in places]
        session.execute(sa.insert(notice_deliveries), rows)


def owners(session: TenantSession) -> Sequence[str]:
    """The ids of their accounts."""
    return session.execute(sa.select(memberships.c.user_id).where(memberships.c.role == "owner")).scalars().all()


def listed(session: TenantSession, *, after: tuple[date, int] | None, limit: int) -> list[Row]:
    """The newest first, each with its `deliveries`, beginning behind the period and percent `after`."""
    shown = quota_notices.c
    statement = sa.select(shown.period, shown.percent, shown.used, shown.monthly.label("limit"), shown.at)
    if after is not None:
        statement = statement.where(sa.tuple_(shown.period, shown.percent) < sa.tuple_(*map(sa.literal, after)))
    rows = session.rows(statement.order_by(shown.period.desc(), shown.percent.desc()).limit(limit))
    if not rows:
        return []
    theirs = notice_deliveries.c
    sent = session.rows(sa.select(notice_deliveries).where(theirs.period >= rows[-1]["period"]).order_by(*_KEY))
    return [
        {**row, "deliveries": [d for d in sent if (d["period"], d["percent"]) == (row["period"], row["percent"])]}
        for row in rows
    ]


def target(session: TenantSession) -> Row | None:
    """Where the organization wants to be told: url, updated_at."""
    return session.row(sa.select(*TARGET))


def set_target(session: TenantSession, *, url: str, salt: str) -> Row:
    statement = postgresql.insert(notice_targets).values(tenant_id=session.tenant_id, url=url, salt=salt)
    changed = {"url": url, "salt": salt, "updated_at": sa.func.now()}
    statement = statement.on_conflict_do_update(index_elements=[notice_targets.c.tenant_id], set_=changed)
    return dict(session.execute(statement.returning(*TARGET)).mappings().one())


def delete_target(session: TenantSession) -> str | None:
    """The URL that it was; None when there was none."""
    return session.execute(sa.delete(notice_targets).returning(notice_targets.c.url)).scalar()


def claim(session: SystemSession, *, now: datetime, until: datetime, limit: int) -> list[Row]:
    """Some deliveries that are due, each counted as an attempt; nobody else gets them before `until`."""
    some = (
        sa.select(*_KEY)
        .join(tenants, tenants.c.id == notice_deliveries.c.tenant_id)
        .where(_PENDING, notice_deliveries.c.due_at <= now, tenants.c.status == "active")
        .order_by(notice_deliveries.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=notice_deliveries)
    )
    statement = (
        sa.update(notice_deliveries)
        .where(sa.tuple_(*_KEY).in_(some))
        .values(due_at=until, attempts=notice_deliveries.c.attempts + 1)
        .returning(*_KEY, notice_deliveries.c.attempts)
    )
    return [_whole(session, row) for row in session.rows(statement)]


def _whole(session: SystemSession, row: Row) -> Row:
    """With what there is to be said, and where: url and salt of a webhook, email of somebody who is still an owner."""
    owner = sa.and_(
        memberships.c.tenant_id == row["tenant_id"],
        memberships.c.user_id == row["target"],
        memberships.c.role == "owner",
    )
    statement = (
        sa.select(
            quota_notices.c.used,
            quota_notices.c.monthly,
            quota_notices.c.at,
            tenants.c.name,
            notice_targets.c.url,
            notice_targets.c.salt,
            users.c.email,
        )
        .join(tenants, tenants.c.id == quota_notices.c.tenant_id)
        .outerjoin(notice_targets, notice_targets.c.tenant_id == quota_notices.c.tenant_id)
        .outerjoin(memberships, owner)
        .outerjoin(users, users.c.id == memberships.c.user_id)
        .where(
            quota_notices.c.tenant_id == row["tenant_id"],
            quota_notices.c.period == row["period"],
            quota_notices.c.percent == row["percent"],
        )
    )
    return {**row, **(session.row(statement) or {})}


def mark(session: SystemSession, row: Mapping[str, Any], **values: object) -> bool:
    """Note what became of an attempt; False when a later one has begun."""
    same = [column == row[column.name] for column in _KEY]
    statement = sa.update(notice_deliveries).where(*same, _PENDING, notice_deliveries.c.attempts == row["attempts"])
    return session.execute(statement.values(**values)).rowcount > 0
