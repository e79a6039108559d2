"""What is to be reported to a payment provider, what became of it, and whom it is reported for.

All of it is the operator's business and looks across organizations; hence the `SystemSession`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession
from engine.models import billing_accounts, meter_exports, usage_hourly

_PLANNED = meter_exports.c.state == "planned"


def lock(session: SystemSession, tenant_id: str) -> None:
    """Until the transaction ends nobody else plans for the organization."""
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"metering:{tenant_id}", 0))))


def customers(session: SystemSession, *, after: str, limit: int) -> list[Row]:
    """Organizations that the provider knows: tenant_id, customer, export_from; in the order of their ids."""
    statement = sa.select(billing_accounts).where(billing_accounts.c.tenant_id > after)
    return session.rows(statement.order_by(billing_accounts.c.tenant_id).limit(limit))


def missing(session: SystemSession, tenant_id: str, since: datetime, until: datetime) -> list[Row]:
    """Hours with more executions than there are rows for: hour, quantity that is missing, seq of the next row."""
    used = (
        sa.select(usage_hourly.c.hour, sa.func.sum(usage_hourly.c.quantity).label("number"))
        .where(
            usage_hourly.c.tenant_id == tenant_id,
            usage_hourly.c.kind == "execution",
            usage_hourly.c.hour >= since,
            usage_hourly.c.hour < until,
        )
        .group_by(usage_hourly.c.hour)
        .subquery()
    )
    there = (
        sa.select(
            meter_exports.c.hour,
            sa.func.sum(meter_exports.c.quantity).label("number"),
            sa.func.max(meter_exports.c.seq).label("seq"),
        )
        .where(meter_exports.c.tenant_id == tenant_id, meter_exports.c.hour >= since)
        .group_by(meter_exports.c.hour)
        .subquery()
    )
    lacking = sa.cast(used.c.number - sa.func.coalesce(there.c.number, 0), sa.BigInteger)
    statement = (
        sa.select(used.c.hour, lacking.label("quantity"), (sa.func.coalesce(there.c.seq, 0) + 1).label("seq"))
        .outerjoin(there, there.c.hour == used.c.hour)
        .where(lacking > 0)
        .order_by(used.c.hour)
    )
    return session.rows(statement)


def insert(session: SystemSession, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        session.execute(sa.insert(meter_exports), list(rows))


def claim(session: SystemSession, *, now: datetime, until: datetime, limit: int) -> list[Row]:
    """Some rows to be sent, the oldest hours first; nobody else gets them before `until`."""
    free = sa.or_(meter_exports.c.claimed_until.is_(None), meter_exports.c.claimed_until <= now)
    some = (
        sa.select(meter_exports.c.identifier)
        .where(_PLANNED, free)
        .order_by(meter_exports.c.hour, meter_exports.c.tenant_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        sa.update(meter_exports)
        .where(meter_exports.c.identifier.in_(some))
        .values(claimed_until=until)
        .returning(meter_exports)
    )
    return sorted(session.rows(statement), key=lambda row: (row["hour"], row["tenant_id"]))


def begin(session: SystemSession, identifier: str, *, now: datetime) -> None:
    """From now on the provider may have it."""
    first = sa.func.coalesce(meter_exports.c.sent_first_at, now)
    mark(session, identifier, {"sent_first_at": first, "attempts": meter_exports.c.attempts + 1})


def mark(session: SystemSession, identifier: str, values: Mapping[str, Any]) -> None:
    """Note what became of a row that is planned."""
    statement = sa.update(meter_exports).where(meter_exports.c.identifier == identifier, _PLANNED)
    session.execute(statement.values(**values))


def release(session: SystemSession, identifiers: Sequence[str]) -> None:
    """Let others have rows that were claimed and not begun."""
    statement = sa.update(meter_exports).where(meter_exports.c.identifier.in_(identifiers), _PLANNED)
    session.execute(statement.values(claimed_until=None))


def give_up(session: SystemSession, *, before: datetime) -> int:
    """Rows that were sent first before then, with no answer, are unknown; how many."""
    old = meter_exports.c.sent_first_at < before
    return session.execute(sa.update(meter_exports).where(_PLANNED, old).values(state="unknown")).rowcount


def settle(session: SystemSession, identifier: str, outcome: str, *, now: datetime) -> bool:
    """False when the row is neither unknown nor refused."""
    values: dict[str, Any] = {"state": outcome, "sent_first_at": None, "claimed_until": None, "attempts": 0}
    if outcome == "sent":
        values["sent_at"] = now
    statement = sa.update(meter_exports).where(
        meter_exports.c.identifier == identifier, meter_exports.c.state.in_(("unknown", "refused"))
    )
    return session.execute(statement.values(**values)).rowcount > 0


def without_customer(session: SystemSession, since: datetime, until: datetime) -> list[Row]:
    """Organizations that the provider does not know, and their executions in these hours."""
    number = sa.cast(sa.func.sum(usage_hourly.c.quantity), sa.BigInteger).label("executions")
    known = sa.exists().where(billing_accounts.c.tenant_id == usage_hourly.c.tenant_id)
    statement = (
        sa.select(usage_hourly.c.tenant_id, number)
        .where(usage_hourly.c.kind == "execution", usage_hourly.c.hour >= since, usage_hourly.c.hour < until, ~known)
        .group_by(usage_hourly.c.tenant_id)
        .order_by(usage_hourly.c.tenant_id)
    )
    return session.rows(statement)


def listed(session: SystemSession, *, state: str | None, after: str, limit: int) -> list[Row]:
    """Rows in the order of their identifiers, beginning behind `after`."""
    statement = sa.select(meter_exports).where(meter_exports.c.identifier > after)
    if state is not None:
        statement = statement.where(meter_exports.c.state == state)
    return session.rows(statement.order_by(meter_exports.c.identifier).limit(limit))
