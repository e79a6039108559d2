"""The plans that a personal organization may begin on, and what each admits.

They are those of the database. An old one has none yet: then they are those that the migrations seed. An import makes
the schema anew; what its operator did to plans and prices before is kept over that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, text

import migrations
from engine.db import SYSTEM_ROLE, dump_json
from engine.errors import BadRequest

FREE = "free"
Admitted: TypeAlias = Mapping[str, int | None]
"""Runs a month by the name of the plan; None is no limit."""
SEEDED: Admitted = {FREE: 10_000, "team": 250_000, "enterprise": None}


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of ``plans`` and ``plan_prices``, the latter in the order in which they were made."""

    plans: list[dict[str, Any]]
    prices: list[dict[str, Any]]


def offered(connection: Connection) -> Admitted:
    """The plans that there are, or will be, the narrowest first."""
    if connection.execute(text("SELECT to_regclass('public.plans')")).scalar_one() is None:
        return SEEDED
    query = "SELECT name, (limits->>'max_executions_per_month')::bigint FROM plans ORDER BY 2 NULLS LAST, name"
    return dict(_as_system(connection, query))


def require_known(name: str, offered: Admitted) -> None:
    """Raises BadRequest ``unknown_plan`` for a plan that there will not be."""
    if name not in offered:
        raise BadRequest(f"There is no plan {name!r}; there will be {', '.join(offered)}.", code="unknown_plan")


def said_of(plan: str, runs: int, offered: Admitted) -> str | None:
    """What to say of schedules that start so many runs a month; None when the plan admits them."""
    if _admits(offered[plan], runs):
        return None
    said = (
        f"its schedules start about {runs:,} runs a month, and the plan {plan} admits {offered[plan]:,};"
        " what comes over that is held"
    )
    wider = next((name for name, limit in offered.items() if _admits(limit, runs)), None)
    if wider is None:
        return f"{said}, and so it is on every plan that there is"
    limit = offered[wider]
    return f"{said}. --plan {wider} admits {'any number' if limit is None else f'{limit:,}'}"


def _admits(limit: int | None, runs: int) -> bool:
    return limit is None or runs <= limit


def keep(connection: Connection) -> Kept:
    """Remember them from a database without organizations, whose schema is brought to the newest for it."""
    migrations.upgrade(connection)
    plans = _as_system(connection, "SELECT to_jsonb(p) FROM plans p")
    prices = _as_system(connection, "SELECT to_jsonb(p) FROM plan_prices p ORDER BY id")
    return Kept([plan for (plan,) in plans], [price for (price,) in prices])


def restore(connection: Connection, kept: Kept) -> None:
    """Put them into a new schema. The prices that it begins with are the first that were ever kept, too."""
    [(seeded,)] = _as_system(connection, "SELECT count(*) FROM plan_prices")
    _as_system(connection, _PLANS, rows=dump_json(kept.plans))
    _as_system(connection, _PRICES, rows=dump_json(kept.prices[seeded:]))


_PLANS = """
WITH put AS (INSERT INTO plans (name, limits, limits_version)
    SELECT name, limits, nextval('limits_version') FROM jsonb_populate_recordset(NULL::plans, CAST(:rows AS jsonb))
    ON CONFLICT (name) DO UPDATE SET limits = excluded.limits, limits_version = excluded.limits_version
    RETURNING name)
SELECT name FROM put
"""
_PRICES = """
WITH put AS (INSERT INTO plan_prices (plan, starts, currency, base, included, per_thousand, created_at)
    SELECT plan, starts, currency, base, included, per_thousand, created_at
    FROM jsonb_populate_recordset(NULL::plan_prices, CAST(:rows AS jsonb)) WITH ORDINALITY ORDER BY ordinality
    RETURNING id)
SELECT id FROM put
"""


def _as_system(connection: Connection, query: str, **values: Any) -> list[Any]:
    """The rows of a query that the owner of the tables must not ask: its policies hold for it too."""
    act = text("SELECT set_config('role', :role, true)")
    connection.execute(act, {"role": SYSTEM_ROLE})
    rows = list(connection.execute(text(query), values))
    connection.execute(act, {"role": "none"})
    return rows
