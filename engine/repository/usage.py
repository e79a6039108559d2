"""The ledger and its roll-ups: what is written there, summed up, and read."""

from __future__ import annotations

from datetime import date
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import usage, usage_monthly


def insert(session: TenantSession, rows: list[dict[str, Any]]) -> None:
    session.execute(sa.insert(usage), [{"tenant_id": session.tenant_id, **row} for row in rows])


def executions(
    session: TenantSession | SystemSession, tenant_id: str, start: sa.ColumnElement[Any] | Any, end: Any
) -> int:
    """How many the ledger has from `start` to before `end`, without any roll-up."""
    statement = sa.select(sa.func.coalesce(sa.func.sum(usage.c.quantity), 0)).where(
        usage.c.tenant_id == tenant_id, usage.c.kind == "execution", usage.c.at >= start, usage.c.at < end
    )
    return int(session.execute(statement).scalar_one())


def report(session: TenantSession, period: date) -> list[Row]:
    """Sums of one month up to now, by kind, workflow and action: what is rolled up, and what came since."""
    return session.query("usage_of_month", tenant_id=session.tenant_id, period=period)


def roll_up(session: SystemSession) -> Row | None:
    """Add what finished transactions wrote since the last time; None while another does the same.

    With the number of `rows`, and that they are of transactions from `low` to before `high`, behind the row `from_id`.
    When it is `elsewhere` nothing was added: the mark is another cluster's, see `restart`.
    """
    session.execute(sa.text("SET LOCAL statement_timeout = 0"))
    rows = session.query("roll_up_usage")
    return rows[0] if rows else None


def restart(session: SystemSession) -> int | None:
    """Empty the roll-ups when their mark is another cluster's: the next time all is added anew, from the ledger.

    The newest row that was there; None when the mark is this cluster's. Writers of the ledger wait for the commit.
    """
    session.execute(sa.text("SET LOCAL statement_timeout = 0"))
    rows = session.query("restart_rollups")
    return int(rows[0]["from_id"]) if rows else None


def months(session: TenantSession) -> list[date]:
    """The months of which something is rolled up, the newest first."""
    statement = sa.select(usage_monthly.c.period).distinct().order_by(usage_monthly.c.period.desc())
    return list(session.execute(statement).scalars())
