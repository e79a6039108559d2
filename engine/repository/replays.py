"""What a replay reads of the run that it repeats, and what it carries over into the new one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import execution_logs, runs, steps, workflows
from engine.states import RunState

COPIED = (
    steps.c.step_id,
    steps.c.item,
    steps.c.status,
    steps.c.attempt,
    steps.c.output,
    steps.c.error,
    steps.c.started_at,
    steps.c.finished_at,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Which ended runs; None asks for all."""

    tenant_id: str | None = None
    workflow_id: str | None = None
    statuses: Sequence[RunState] = ()
    since: datetime | None = None


def key(run_id: str, batch: str) -> str:
    """The idempotency key of the replay of that run in that batch."""
    return f"replay:{run_id}:{batch}"


def original(session: TenantSession, run_id: str) -> Row | None:
    """The run; `newest` is the current version of its workflow. It is not deleted before the transaction ends."""
    return session.row(
        sa.select(
            runs.c.id,
            runs.c.workflow_id,
            runs.c.version,
            runs.c.status,
            runs.c.input,
            runs.c.depth,
            workflows.c.version.label("newest"),
        )
        .join(workflows, (workflows.c.tenant_id == runs.c.tenant_id) & (workflows.c.id == runs.c.workflow_id))
        .where(runs.c.tenant_id == session.tenant_id, runs.c.id == run_id)
        .with_for_update(read=True, key_share=True, of=runs)
    )


def steps_of(session: TenantSession, run_id: str) -> list[Row]:
    """What became of each step and item: step_id, item, status. Outputs stay where they are."""
    return session.rows(
        sa.select(steps.c.step_id, steps.c.item, steps.c.status).where(
            steps.c.tenant_id == session.tenant_id, steps.c.run_id == run_id
        )
    )


def carry_over(
    session: TenantSession, *, source: str, target: str, whole: Collection[str], items: Collection[str]
) -> None:
    """Copy finished steps into a new run: `whole` ones, and of `items` those items that succeeded."""
    copied = sa.select(steps.c.tenant_id, sa.literal(target), *COPIED).where(
        steps.c.tenant_id == session.tenant_id,
        steps.c.run_id == source,
        steps.c.finished_at.is_not(None),
        sa.or_(
            steps.c.step_id.in_(whole),
            sa.and_(steps.c.step_id.in_(items), steps.c.item != "", steps.c.status == "succeeded"),
        ),
    )
    names = ["tenant_id", "run_id", *(column.name for column in COPIED)]
    session.execute(sa.insert(steps).from_select(names, copied))


def note(session: TenantSession, run_id: str, message: str) -> None:
    """The first line of a replay's log."""
    session.execute(
        sa.insert(execution_logs).values(tenant_id=session.tenant_id, run_id=run_id, level="info", message=message)
    )


def made(session: TenantSession, run_id: str, batch: str) -> bool:
    """Whether the batch has replayed the run."""
    statement = sa.select(runs.c.id).where(
        runs.c.tenant_id == session.tenant_id, runs.c.idempotency_key == key(run_id, batch)
    )
    return session.row(statement) is not None


def count(session: SystemSession, wanted: Ended, *, batch: str) -> int:
    """How many runs a batch is about."""
    found: int = session.execute(_chosen(wanted, batch, sa.func.count())).scalar_one()
    return found


def page(session: SystemSession, wanted: Ended, *, batch: str, after: str, limit: int) -> list[Row]:
    """A piece of them, the oldest first, behind the run `after`: id, tenant_id."""
    statement = _chosen(wanted, batch, runs.c.id, runs.c.tenant_id)
    return session.rows(statement.where(runs.c.id > after).order_by(runs.c.id).limit(limit))


def _chosen(wanted: Ended, batch: str, *columns: Any) -> sa.Select[Any]:
    """Without the replays that the batch has made itself: those that failed again would be replayed for ever."""
    made_by_it = runs.c.idempotency_key == sa.func.concat("replay:", runs.c.replay_of, ":", batch)
    statement = sa.select(*columns).where(
        runs.c.finished_at.is_not(None),
        runs.c.status.in_([status.value for status in wanted.statuses]),
        sa.or_(runs.c.replay_of.is_(None), sa.func.coalesce(~made_by_it, sa.true())),
    )
    if wanted.tenant_id is not None:
        statement = statement.where(runs.c.tenant_id == wanted.tenant_id)
    if wanted.workflow_id is not None:
        statement = statement.where(runs.c.workflow_id == wanted.workflow_id)
    if wanted.since is not None:
        statement = statement.where(runs.c.queued_at >= wanted.since)
    return statement
