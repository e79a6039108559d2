"""What a run waits for that somebody can answer."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from engine.db import Row, TenantSession
from engine.models import runs, steps
from engine.ports import Json

UNANSWERABLE = ("sleeping", "retry_backoff", "workflow")
"""What goes on by itself."""


def lock_and_list(session: TenantSession, run_id: str) -> list[Row] | None:
    """The run's steps that wait for an answer: step_id, item, expired. None when there is no such run.

    The run is held until the transaction ends: an answer comes before or after anything else that happens to it.
    """
    run = session.row(
        sa.select(runs.c.finished_at)
        .where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id)
        .with_for_update()
    )
    if run is None:
        return None
    if run["finished_at"] is not None:
        return []
    return session.rows(
        sa.select(
            steps.c.step_id,
            steps.c.item,
            sa.func.coalesce(steps.c.wake_at <= sa.func.now(), sa.false()).label("expired"),
        )
        .where(
            steps.c.tenant_id == session.tenant_id,
            steps.c.run_id == run_id,
            steps.c.wait_reason.is_not(None),
            steps.c.wait_reason.not_in(UNANSWERABLE),
            steps.c.signal.is_(None),
        )
        .order_by(steps.c.step_id, steps.c.item)
    )


def answer(session: TenantSession, run_id: str, step_id: str, item: str, signal: Mapping[str, Json]) -> None:
    """Store the answer with the step that waits for it."""
    session.execute(
        sa.update(steps)
        .where(
            steps.c.tenant_id == session.tenant_id,
            steps.c.run_id == run_id,
            steps.c.step_id == step_id,
            steps.c.item == item,
        )
        .values(signal=signal)
    )
