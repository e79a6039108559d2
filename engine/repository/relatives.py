"""Runs that wait for other runs: children and their parents, and those that share a workflow's limit."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from engine.db import Row, SystemSession, TenantSession
from engine.models import runs, tenants
from engine.ports import Json
from engine.repository.workflows import cancel_pending_runs
from engine.states import RunState

CHILD = (runs.c.id, runs.c.idempotency_key, runs.c.parent_run_id, runs.c.status, runs.c.output, runs.c.error)


def still_holds(session: TenantSession, run_id: str, attempt: int) -> bool:
    """Whether the attempt has the run, of an active tenant; nobody can end it before this transaction has ended."""
    active = sa.exists().where(tenants.c.id == session.tenant_id, tenants.c.status == "active")
    statement = (
        sa.select(runs.c.id)
        .where(
            runs.c.tenant_id == session.tenant_id,
            runs.c.id == run_id,
            runs.c.attempt == attempt,
            runs.c.status == "running",
            active,
        )
        .with_for_update(read=True)
    )
    return session.row(statement) is not None


def child(session: TenantSession, run_id: str) -> Row:
    row = session.row(sa.select(*CHILD).where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id))
    assert row is not None, "it was stored in this transaction, or found by its key"  # noqa: S101
    return row


def children(session: TenantSession, parent_run_id: str) -> dict[str, Row]:
    """The children of a run by their idempotency keys, which are those of its steps."""
    statement = sa.select(*CHILD).where(runs.c.tenant_id == session.tenant_id, runs.c.parent_run_id == parent_run_id)
    return {row["idempotency_key"]: row for row in session.rows(statement)}


def ancestors(session: TenantSession, run_id: str) -> list[str]:
    """The runs that wait for this one, directly or not."""
    above = (
        sa.select(runs.c.parent_run_id)
        .where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id)
        .cte("above", recursive=True)
    )
    above = above.union(
        sa.select(runs.c.parent_run_id).where(runs.c.tenant_id == session.tenant_id, runs.c.id == above.c.parent_run_id)
    )
    rows = session.rows(sa.select(above.c.parent_run_id).where(above.c.parent_run_id.is_not(None)))
    return [row["parent_run_id"] for row in rows]


def live_children(session: TenantSession, parent_run_id: str) -> list[str]:
    """Ids, in order."""
    statement = (
        sa.select(runs.c.id)
        .where(
            runs.c.tenant_id == session.tenant_id,
            runs.c.parent_run_id == parent_run_id,
            runs.c.finished_at.is_(None),
        )
        .order_by(runs.c.id)
    )
    return [row["id"] for row in session.rows(statement)]


def cancel_pending(session: TenantSession, workflow_id: str) -> int:
    """End the runs of a workflow that no worker has in hand, and what they waited for; how many of the first.

    Whoever waits for one of them is queued, for the sweeper to publish.
    """
    _lock_parents(session, workflow_id)  # before their children, as whoever ends a run does
    count = cancel_pending_runs(session, workflow_id)
    _tell_of_cancelled(session, workflow_id)
    return count


def keys_below(session: TenantSession, run_id: str) -> set[tuple[str, str]]:
    """Workflow and key of every limit that the live runs below this one have a part in."""
    columns = (runs.c.id, runs.c.workflow_id, runs.c.concurrency_key)
    live = (runs.c.tenant_id == session.tenant_id, runs.c.finished_at.is_(None))
    below = sa.select(*columns).where(*live, runs.c.parent_run_id == run_id).cte("below", recursive=True)
    below = below.union(sa.select(*columns).where(*live, runs.c.parent_run_id == below.c.id))
    statement = sa.select(below.c.workflow_id, below.c.concurrency_key).where(below.c.concurrency_key.is_not(None))
    return {(row["workflow_id"], row["concurrency_key"]) for row in session.rows(statement)}


def _lock_parents(session: TenantSession, workflow_id: str) -> None:
    """Hold the runs that wait for pending runs of the workflow, until the transaction ends."""
    parents = (
        sa.select(runs.c.parent_run_id)
        .where(
            runs.c.tenant_id == session.tenant_id,
            runs.c.workflow_id == workflow_id,
            runs.c.parent_run_id.is_not(None),
            runs.c.finished_at.is_(None),
        )
        .scalar_subquery()
    )
    session.execute(
        sa.select(runs.c.id)
        .where(runs.c.tenant_id == session.tenant_id, runs.c.id.in_(parents))
        .order_by(runs.c.id)
        .with_for_update()
    )


def _tell_of_cancelled(session: TenantSession, workflow_id: str) -> None:
    """After runs of a workflow were cancelled in this transaction: signal who waits for them, cancel what they did."""
    cancelled = sa.select(runs.c.id).where(
        runs.c.tenant_id == session.tenant_id,
        runs.c.workflow_id == workflow_id,
        runs.c.status == RunState.CANCELLED.value,
        runs.c.finished_at == sa.func.now(),
    )
    parents = session.rows(
        sa.select(runs.c.parent_run_id.label("id"))
        .where(runs.c.parent_run_id.is_not(None), runs.c.tenant_id == session.tenant_id, runs.c.id.in_(cancelled))
        .distinct()
    )
    for parent in sorted(row["id"] for row in parents):
        signal(session, parent)
    while rows := session.rows(_cancel_children(session, cancelled)):
        cancelled = sa.select(sa.func.unnest(sa.cast([row["id"] for row in rows], ARRAY(sa.Text))).label("id"))


def _cancel_children(session: TenantSession, parents: sa.Select[tuple[str]]) -> sa.sql.dml.ReturningUpdate[tuple[str]]:
    return (
        sa.update(runs)
        .where(
            runs.c.tenant_id == session.tenant_id,
            runs.c.parent_run_id.is_not(None),
            runs.c.parent_run_id.in_(parents),
            runs.c.finished_at.is_(None),
        )
        .values(status=RunState.CANCELLED.value, finished_at=sa.func.now(), wait_reason=None, wake_at=None)
        .returning(runs.c.id)
    )


def ties(session: TenantSession, run_id: str) -> Row | None:
    """Of a run that has not ended: its workflow, its parent and its concurrency key. None when it has."""
    return session.row(
        sa.select(runs.c.workflow_id, runs.c.parent_run_id, runs.c.concurrency_key).where(
            runs.c.tenant_id == session.tenant_id, runs.c.id == run_id, runs.c.finished_at.is_(None)
        )
    )


def signal(session: TenantSession, run_id: str) -> Row | None:
    """Something came that the run may wait for: queue it, or let it wake as soon as it is put aside.

    None when it does not wait; the row says whether it is queued now.
    """
    rows = session.query("signal_run", tenant_id=session.tenant_id, run_id=run_id)
    return rows[0] if rows else None


def lock_key(session: TenantSession, workflow_id: str, key: str) -> None:
    """Until the transaction ends nobody else counts or changes who has a place under this key."""
    name = f"concurrency:{session.tenant_id}:{workflow_id}:{key}"
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))


def join_key(session: TenantSession, run_id: str, *, attempt: int, key: str, limit: int) -> bool:
    """Write down what the run shares a limit by; False when the attempt no longer has it."""
    statement = (
        sa.update(runs)
        .where(
            runs.c.tenant_id == session.tenant_id,
            runs.c.id == run_id,
            runs.c.attempt == attempt,
            runs.c.status == "running",
        )
        .values(concurrency_key=key, concurrency_limit=limit)
        .returning(runs.c.id)
    )
    return session.row(statement) is not None


def under_way(session: TenantSession, workflow_id: str, key: str, *, but: str) -> tuple[list[str], int]:
    """Ids of the other runs that have a place under the key, oldest first; and how many wait for one, up to 1,000."""
    rows = session.query("places", tenant_id=session.tenant_id, workflow_id=workflow_id, key=key, but=but)
    return [row["id"] for row in rows[:-1]], rows[-1]["waiting"]


def hand_over(session: TenantSession, workflow_id: str, key: str, *, ending: str = "") -> list[Row]:
    """Queue the runs that have a place now, `ending` not counted. Under the lock of the key."""
    return session.query("hand_over", tenant_id=session.tenant_id, workflow_id=workflow_id, key=key, ending=ending)


def stranded(session: SystemSession, *, after: str, limit: int) -> Sequence[Row]:
    """A piece of the runs that wait for other runs, behind the id `after`; `stranded` says that those have ended."""
    return session.query("stranded_runs", after=after, limit=limit)


def failed_run(session: TenantSession, run_id: str) -> Json:
    """A run as the workflow that deals with its failure gets it, before its end is stored."""
    columns = (
        runs.c.id,
        runs.c.workflow_id,
        runs.c.version,
        runs.c.trigger,
        runs.c.input,
        runs.c.attempt,
        runs.c.queued_at,
        runs.c.started_at,
    )
    return session.row(sa.select(*columns).where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id))
