"""Runs, steps and log lines as people look at them: newest runs first, a page at a time.

Inputs and outputs may be large. With `max_bytes` a page ends early once it holds so much of them; ``found`` of each row
then says how many rows there would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from engine.db import Row, TenantSession
from engine.models import execution_logs, runs, steps, workflows
from engine.repository.waits import UNANSWERABLE
from engine.states import RunState

Columns: TypeAlias = ReadOnlyColumnCollection[str, Any]

RUN = (
    runs.c.id,
    runs.c.workflow_id,
    runs.c.version,
    runs.c.status,
    runs.c.trigger,
    runs.c.input,
    runs.c.output,
    runs.c.error,
    runs.c.attempt,
    runs.c.priority,
    runs.c.queued_at,
    runs.c.started_at,
    runs.c.finished_at,
    runs.c.heartbeat_at,
    runs.c.wait_reason,
    runs.c.wake_at,
    runs.c.replay_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs; None asks for all."""

    workflow_id: str | None = None
    statuses: Sequence[RunState] = ()
    since: datetime | None = None


def listed(
    session: TenantSession, wanted: RunFilter, *, before: str | None, limit: int, max_bytes: int | None = None
) -> list[Row]:
    """Newest first, beginning behind the run `before`."""
    statement = sa.select(*RUN).where(runs.c.tenant_id == session.tenant_id).order_by(runs.c.id.desc()).limit(limit)
    if wanted.workflow_id is not None:
        statement = statement.where(runs.c.workflow_id == wanted.workflow_id)
    if wanted.statuses:
        statement = statement.where(runs.c.status.in_([status.value for status in wanted.statuses]))
    if wanted.since is not None:
        statement = statement.where(runs.c.queued_at >= wanted.since)
    if before is not None:
        statement = statement.where(runs.c.id < before)
    if max_bytes is not None:
        statement = _cut(statement, "input", "output", max_bytes=max_bytes, order=lambda c: (c.id.desc(),))
    return session.rows(statement)


def get(session: TenantSession, run_id: str) -> Row | None:
    return session.row(sa.select(*RUN).where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id))


def steps_of(
    session: TenantSession, run_id: str, *, after: Sequence[str] | None, limit: int, max_bytes: int | None = None
) -> list[Row]:
    """In the order of their beginning; `after` is ``(moment, id, item)`` of the step before, the moment as ISO text."""
    began = sa.func.coalesce(steps.c.started_at, steps.c.finished_at)
    statement = (
        sa.select(
            steps.c.step_id.label("id"),
            sa.func.nullif(steps.c.item, "").label("item"),
            steps.c.status,
            steps.c.attempt,
            steps.c.output,
            steps.c.error,
            steps.c.started_at,
            steps.c.finished_at,
            began.label("began"),
        )
        .where(steps.c.tenant_id == session.tenant_id, steps.c.run_id == run_id)
        .order_by(began, steps.c.step_id, steps.c.item)
        .limit(limit)
    )
    if after is not None:
        moment, step_id, item = after
        key = (sa.literal(datetime.fromisoformat(moment)), sa.literal(step_id), sa.literal(item))
        statement = statement.where(sa.tuple_(began, steps.c.step_id, steps.c.item) > sa.tuple_(*key))
    if max_bytes is not None:
        statement = _cut(
            statement, "output", max_bytes=max_bytes, order=lambda c: (c.began, c.id, sa.func.coalesce(c.item, ""))
        )
    return session.rows(statement)


def asked(session: TenantSession, run_id: str) -> list[Row]:
    """The steps that wait for somebody's answer: step, item, reason, output, expires_at."""
    return session.rows(
        sa.select(
            steps.c.step_id.label("step"),
            sa.func.nullif(steps.c.item, "").label("item"),
            steps.c.wait_reason.label("reason"),
            steps.c.output,
            steps.c.wake_at.label("expires_at"),
        )
        .join(runs, (runs.c.tenant_id == steps.c.tenant_id) & (runs.c.id == steps.c.run_id))
        .where(
            steps.c.tenant_id == session.tenant_id,
            steps.c.run_id == run_id,
            steps.c.wait_reason.is_not(None),
            steps.c.wait_reason.not_in(UNANSWERABLE),
            steps.c.signal.is_(None),
            sa.func.coalesce(steps.c.wake_at > sa.func.now(), sa.true()),
            runs.c.finished_at.is_(None),
        )
        .order_by(steps.c.step_id, steps.c.item)
    )


def workflow_name(session: TenantSession, workflow_id: str) -> str:
    """Of a workflow that may be deleted."""
    name: str = session.execute(
        sa.select(workflows.c.name).where(workflows.c.tenant_id == session.tenant_id, workflows.c.id == workflow_id)
    ).scalar_one()
    return name


def log_of(session: TenantSession, run_id: str, *, after: int | None, limit: int) -> list[Row]:
    """In the order in which the lines were written, beginning behind the line with the number `after`."""
    statement = (
        sa.select(
            execution_logs.c.seq,
            execution_logs.c.at,
            execution_logs.c.level,
            execution_logs.c.step_id.label("step"),
            execution_logs.c.message,
            execution_logs.c.data,
        )
        .where(execution_logs.c.tenant_id == session.tenant_id, execution_logs.c.run_id == run_id)
        .order_by(execution_logs.c.seq)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(execution_logs.c.seq > after)
    return session.rows(statement)


def _cut(
    statement: sa.Select[Any], *heavy: str, max_bytes: int, order: Callable[[Columns], Sequence[Any]]
) -> sa.Select[Any]:
    """The rows of a page up to the one with which its `heavy` columns reach `max_bytes`, at least one."""
    page = statement.subquery()
    size = sum(
        (sa.func.coalesce(sa.func.octet_length(sa.cast(page.c[name], sa.Text)), 0) for name in heavy), sa.literal(0)
    )
    before = sa.func.coalesce(sa.func.sum(size).over(order_by=order(page.c), rows=(None, -1)), 0)
    weighed = sa.select(page, before.label("before"), sa.func.count().over().label("found")).subquery()
    shown = [column for column in weighed.c if column.name != "before"]
    return sa.select(*shown).where(weighed.c.before < max_bytes).order_by(*order(weighed.c))
