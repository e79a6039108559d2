"""A run's life in the database: start, begin, checkpoint, heartbeat, wake, and what the sweeper asks about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession, dump_json
from engine.models import runs, tenants, workflows
from engine.ports import Json
from engine.states import RunState

SUMMARY = (
    runs.c.id,
    runs.c.workflow_id,
    runs.c.version,
    runs.c.status,
    runs.c.trigger,
    runs.c.priority,
    runs.c.attempt,
    runs.c.replay_of,
    runs.c.queued_at,
    runs.c.wait_reason,
)


def insert(session: TenantSession, values: dict[str, Any]) -> Row | None:
    """The new run's summary; None when the workflow cannot start one, or the idempotency key exists."""
    rows = session.query("start_run", tenant_id=session.tenant_id, **values)
    return rows[0] if rows else None


def by_idempotency_key(session: TenantSession, key: str) -> Row | None:
    return session.row(sa.select(*SUMMARY).where(runs.c.idempotency_key == key))


def why_not_started(session: TenantSession, workflow_id: str) -> Row | None:
    """Whether the workflow is active, and why not; whether its tenant is; None when it does not exist."""
    return session.row(
        sa.select(workflows.c.is_active, workflows.c.inactive_reason, tenants.c.status.label("tenant_status"))
        .join(tenants, tenants.c.id == workflows.c.tenant_id)
        .where(workflows.c.id == workflow_id, workflows.c.deleted_at.is_(None))
    )


def begin(session: TenantSession, run_id: str, *, stale_seconds: float) -> Row | None:
    """Take the run for this worker; None when it is finished, held, waiting, or in a living worker's hands."""
    rows = session.query("begin_run", tenant_id=session.tenant_id, run_id=run_id, stale_seconds=stale_seconds)
    return rows[0] if rows else None


def steps_so_far(session: TenantSession, run_id: str) -> list[Row]:
    """The steps that earlier attempts touched; `lines` of each row is the number of log lines of the whole run."""
    return session.query("finished_steps", tenant_id=session.tenant_id, run_id=run_id)


def save_progress(
    session: TenantSession,
    run_id: str,
    *,
    attempt: int,
    checkpoint: int | None = None,
    status: RunState = RunState.RUNNING,
    steps: Sequence[Row] = (),
    lines: Sequence[Row] = (),
    usage: Sequence[Row] = (),
    output: Json = None,
    error: Json = None,
    wait_reason: str | None = None,
    wake_seconds: float | None = None,
    begins: bool = False,
) -> bool:
    """Checkpoint: all of it in one statement. False, and nothing written, when the attempt no longer holds the run.

    With `begins`, an effect is about to be tried: then the tenant must not be suspended either.

    A `checkpoint` with its number, counted from 1 in each attempt, is stored once, however often it is sent: when it is
    there already, this is True and nothing is written.
    """
    saved = session.query(
        "save_progress",
        tenant_id=session.tenant_id,
        run_id=run_id,
        attempt=attempt,
        checkpoint=checkpoint,
        status=status.value,
        terminal=status.is_terminal,
        steps=dump_json(steps),
        lines=dump_json(lines),
        usage=dump_json(usage),
        output=None if output is None else dump_json(output),
        error=None if error is None else dump_json(error),
        wait_reason=wait_reason,
        wake_seconds=wake_seconds,
        begins=begins,
    )
    return bool(saved) or (checkpoint is not None and _is_saved(session, run_id, attempt, checkpoint))


def _is_saved(session: TenantSession, run_id: str, attempt: int, checkpoint: int) -> bool:
    """Whether the attempt's last checkpoint is this one: then an answer was lost, not the run."""
    statement = sa.select(runs.c.id).where(
        runs.c.id == run_id, runs.c.attempt == attempt, runs.c.checkpoint == checkpoint
    )
    return session.row(statement) is not None


def cancel(session: TenantSession, run_id: str, *, why: str) -> str | None:
    """End it and its steps wherever they are, and log `why`; the state that it had, None when it had ended."""
    before = (
        sa.select(runs.c.id, runs.c.status)
        .where(runs.c.id == run_id, runs.c.finished_at.is_(None))
        .with_for_update()
        .cte("before")
    )
    statement = (
        sa.update(runs)
        .where(runs.c.id == before.c.id, runs.c.tenant_id == session.tenant_id)
        .values(status=RunState.CANCELLED.value, finished_at=sa.func.now(), wait_reason=None, wake_at=None)
        .returning(before.c.status)
    )
    row = session.row(statement)
    if row is None:
        return None
    session.query("cancel_steps", tenant_id=session.tenant_id, run_id=run_id, why=why)
    return str(row["status"])


def heartbeat(session: SystemSession, held: Sequence[tuple[str, str, int]]) -> set[str]:
    """Say that (tenant, run, attempt) are alive; the ids of those that still are this worker's."""
    tenants, ids, attempts = ([item[n] for item in held] for n in range(3))
    rows = session.query("heartbeat", tenant_ids=tenants, run_ids=ids, attempts=attempts)
    return {row["id"] for row in rows}


def lost(session: SystemSession, held: Sequence[tuple[str, str, int]]) -> set[str]:
    """Of (tenant, run, attempt), the ids of those that are no longer this worker's."""
    tenants, ids, attempts = ([item[n] for item in held] for n in range(3))
    rows = session.query("lost_runs", tenant_ids=tenants, run_ids=ids, attempts=attempts)
    return {row["id"] for row in rows}


def overdue(
    session: SystemSession, *, queued_seconds: float, silent_seconds: float, after: str, limit: int
) -> list[Row]:
    """Runs that no worker seems to have: queued long ago, or running without a heartbeat. In the order of their ids."""
    return session.query(
        "overdue_runs", queued_seconds=queued_seconds, silent_seconds=silent_seconds, after=after, limit=limit
    )


def wake(session: SystemSession, *, limit: int) -> list[Row]:
    """Queue the waiting runs whose time has come; those that waited longest first."""
    return sorted(session.query("wake_runs", limit=limit), key=lambda row: (row["due_at"], row["id"]))


def workflow_version(session: TenantSession, workflow_id: str, version: int) -> Row | None:
    """Name and stored definition of one version."""
    rows = session.query("workflow_version", tenant_id=session.tenant_id, workflow_id=workflow_id, version=version)
    return rows[0] if rows else None
