"""A run as somebody watches it: what is new in it behind a cursor, and whether anything is.

Log lines and steps have numbers that grow in the order in which they become visible: whoever writes them holds the
run's row until the end of the transaction, and takes the numbers after that row.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import execution_logs, runs, steps

Watched: TypeAlias = tuple[str, str]
"""(tenant, run)."""
Mark: TypeAlias = tuple[str, int, int]
"""What changes whenever a run does: its status, attempt and checkpoint."""


def marks(session: SystemSession, watched: Collection[Watched]) -> dict[Watched, Mark]:
    """Of each run that there is; one statement over primary keys, however many are watched."""
    rows = session.query(
        "watched_runs", tenant_ids=[tenant for tenant, _ in watched], run_ids=[run for _, run in watched]
    )
    return {(row["tenant_id"], row["id"]): (row["status"], row["attempt"], row["checkpoint"]) for row in rows}


def status_of(session: TenantSession, run_id: str) -> Row | None:
    return session.row(
        sa.select(
            runs.c.id,
            runs.c.status,
            runs.c.attempt,
            runs.c.wait_reason,
            runs.c.wake_at,
            runs.c.started_at,
            runs.c.finished_at,
            runs.c.error,
        ).where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id)
    )


def lines_after(session: TenantSession, run_id: str, after: int, *, limit: int) -> list[Row]:
    return session.rows(
        sa.select(
            execution_logs.c.seq,
            execution_logs.c.at,
            execution_logs.c.level,
            execution_logs.c.step_id.label("step"),
            execution_logs.c.message,
            execution_logs.c.data,
        )
        .where(
            execution_logs.c.tenant_id == session.tenant_id,
            execution_logs.c.run_id == run_id,
            execution_logs.c.seq > after,
        )
        .order_by(execution_logs.c.seq)
        .limit(limit)
    )


def steps_after(session: TenantSession, run_id: str, after: int, *, limit: int) -> list[Row]:
    """As they are now, in the order in which they became so; more than `limit` where the last have no number of
    their own, because they were stored before steps had any."""
    seq = sa.func.coalesce(steps.c.seq, 0)
    return session.rows(
        sa.select(
            seq.label("seq"),
            steps.c.step_id.label("id"),
            sa.func.nullif(steps.c.item, "").label("item"),
            steps.c.status,
            steps.c.attempt,
            steps.c.output,
            steps.c.error,
            steps.c.wait_reason,
            steps.c.started_at,
            steps.c.finished_at,
        )
        .where(steps.c.tenant_id == session.tenant_id, steps.c.run_id == run_id, seq > after)
        .order_by(seq)
        .fetch(limit, with_ties=True)
    )
