"""Prices, plans over time, invoices, and the executions of the ledger by day.

What one organization may read of itself takes its `TenantSession`; whatever looks across organizations, and every
writing, the `SystemSession`: an organization writes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from engine.db import Row, Session, SystemSession, TenantSession
from engine.models import billing_accounts, invoices, plan_prices, plan_terms, plans, tenants, usage

PRICE = (plan_prices.c.currency, plan_prices.c.base, plan_prices.c.included, plan_prices.c.per_thousand)


def lock(session: SystemSession, tenant_id: str) -> None:
    """Until the transaction ends nobody else closes a month of the organization."""
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"billing:{tenant_id}", 0))))


def lock_prices(session: SystemSession, *, closing: bool) -> None:
    """Until the transaction ends no price changes while a month is closed, and the other way round."""
    name = "pg_advisory_xact_lock_shared" if closing else "pg_advisory_xact_lock"
    session.execute(sa.select(getattr(sa.func, name)(sa.func.hashtextextended("billing prices", 0))))


def prices(session: Session, *, at: date) -> dict[str, Row]:
    """What each plan costs in the month that begins `at`; a plan that nobody priced is not there."""
    statement = (
        sa.select(plan_prices.c.plan, plan_prices.c.starts, *PRICE)
        .ext(distinct_on(plan_prices.c.plan))
        .where(plan_prices.c.starts <= at)
        .order_by(plan_prices.c.plan, plan_prices.c.starts.desc(), plan_prices.c.id.desc())
    )
    return {row.pop("plan"): row for row in session.rows(statement)}


def price_history(session: SystemSession) -> list[Row]:
    """Every price that was ever set, the newest of each month and plan marked by being the last."""
    return session.rows(
        sa.select(plan_prices.c.plan, plan_prices.c.starts, *PRICE, plan_prices.c.created_at).order_by(
            plan_prices.c.plan, plan_prices.c.starts, plan_prices.c.id
        )
    )


def insert_price(session: SystemSession, plan: str, starts: date, values: Mapping[str, Any]) -> None:
    session.execute(sa.insert(plan_prices).values(plan=plan, starts=starts, **values))


def newest_closed(session: SystemSession) -> str | None:
    """The newest month that any organization has an invoice for."""
    found: str | None = session.execute(sa.select(sa.func.max(invoices.c.period))).scalar()
    return found


def first_price_set(session: Session) -> datetime | None:
    """Since when there are prices: since billing was there."""
    found: datetime | None = session.execute(sa.select(sa.func.min(plan_prices.c.created_at))).scalar()
    return found


def tenant(session: TenantSession) -> Row:
    """The organization itself: id, name, plan, created_at, deleted_at."""
    columns = (tenants.c.id, tenants.c.name, tenants.c.plan, tenants.c.created_at, tenants.c.deleted_at)
    row = session.row(sa.select(*columns).where(tenants.c.id == session.tenant_id))
    assert row is not None  # noqa: S101 - whoever has the session belongs to it
    return row


def plan_changes(session: TenantSession) -> list[Row]:
    """Plans and since when they held, in order; none while the plan never changed."""
    return session.rows(sa.select(plan_terms.c.since, plan_terms.c.plan).order_by(plan_terms.c.since, plan_terms.c.id))


def executions_by_day(session: TenantSession, since: datetime, until: datetime) -> dict[date, int]:
    """Executions in the ledger, by day of UTC."""
    day = sa.cast(sa.func.timezone("UTC", usage.c.at), sa.Date).label("day")
    statement = (
        sa.select(day, sa.func.sum(usage.c.quantity).label("number"))
        .where(usage.c.kind == "execution", usage.c.at >= since, usage.c.at < until)
        .group_by(day)
    )
    return {row["day"]: int(row["number"]) for row in session.rows(statement)}


def ledger_position(session: TenantSession) -> int:
    """The newest row of the ledger; 0 without any."""
    return int(session.execute(sa.select(sa.func.coalesce(sa.func.max(usage.c.id), 0))).scalar_one())


def invoice(session: TenantSession, period: str) -> Row | None:
    """The document of a closed month."""
    found = session.row(sa.select(invoices.c.document).where(invoices.c.period == period))
    return None if found is None else found["document"]


def invoices_since(session: TenantSession, period: str) -> list[Row]:
    """The documents of the closed months from this one on, in order."""
    statement = sa.select(invoices.c.document).where(invoices.c.period >= period).order_by(invoices.c.period)
    return [row["document"] for row in session.rows(statement)]


def insert_invoice(
    session: SystemSession, tenant_id: str, period: str, *, document: Mapping[str, Any], position: int, at: datetime
) -> None:
    values = {"id": document["id"], "document": dict(document), "position": position, "closed_at": at}
    session.execute(sa.insert(invoices).values(tenant_id=tenant_id, period=period, **values))


def without_invoice(
    session: SystemSession, period: str, *, since: datetime, until: datetime, only: str | None, limit: int
) -> list[str]:
    """Organizations that lived in the month and have no invoice for it, or `only` this, in the order of their ids."""
    statement = (
        sa.select(tenants.c.id)
        .where(
            tenants.c.created_at < until,
            sa.or_(tenants.c.deleted_at.is_(None), tenants.c.deleted_at >= since),
            ~sa.exists().where(invoices.c.tenant_id == tenants.c.id, invoices.c.period == period),
        )
        .order_by(tenants.c.id)
        .limit(limit)
    )
    if only is not None:
        statement = statement.where(tenants.c.id == only)
    return list(session.execute(statement).scalars())


def exists(session: SystemSession, tenant_id: str) -> bool:
    """Also for a deleted organization, until it is erased."""
    return session.row(sa.select(tenants.c.id).where(tenants.c.id == tenant_id)) is not None


def has_plan(session: SystemSession, name: str) -> bool:
    return session.row(sa.select(plans.c.name).where(plans.c.name == name)) is not None


def set_customer(session: SystemSession, tenant_id: str, customer: str, *, since: datetime) -> None:
    """Who the organization is for the provider; what was planned for another customer stays theirs."""
    statement = insert(billing_accounts).values(tenant_id=tenant_id, customer=customer, export_from=since)
    session.execute(statement.on_conflict_do_update(index_elements=["tenant_id"], set_={"customer": customer}))


def customer(session: TenantSession) -> str | None:
    statement = sa.select(billing_accounts.c.customer).where(billing_accounts.c.tenant_id == session.tenant_id)
    row = session.row(statement)
    return None if row is None else row["customer"]
