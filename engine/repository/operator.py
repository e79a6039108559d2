"""What an operator asks across all tenants: who they are, what runs, and which keys their secrets are under.

Everything here is read for one person at a time, hence the `SystemSession`. Pages are read by key, so that a list of
any length costs no more than its page. Where every index begins with the tenant, a short list over all tenants asks
one tenant after the other, and a long one reads the table once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from engine.db import Row, SystemSession
from engine.models import credentials, data_keys, memberships, runs, tenants, workflows
from engine.states import RunState

BATCH = 1000

TENANT = (tenants.c.id, tenants.c.name, tenants.c.plan, tenants.c.status, tenants.c.created_at)

RUN = (
    runs.c.id,
    runs.c.tenant_id,
    runs.c.workflow_id,
    runs.c.version,
    runs.c.status,
    runs.c.trigger,
    runs.c.attempt,
    runs.c.priority,
    runs.c.queued_at,
    runs.c.started_at,
    runs.c.finished_at,
    runs.c.wait_reason,
    runs.c.error,
    runs.c.replay_of,
)
"""A run in a list: without its input and output, which may be large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantFilter:
    """Which organizations; None asks for all. `name` is a part of the name, in any case."""

    plan: str | None = None
    status: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs; None asks for all."""

    tenant_id: str | None = None
    workflow_id: str | None = None
    statuses: Sequence[RunState] = ()
    since: datetime | None = None


def tenants_listed(session: SystemSession, wanted: TenantFilter, *, after: str, limit: int) -> list[Row]:
    """In the order of their ids, beginning behind `after`; without those that are deleted."""
    statement = (
        sa.select(*TENANT)
        .where(tenants.c.id > after, tenants.c.status != "deleted")
        .order_by(tenants.c.id)
        .limit(limit)
    )
    if wanted.plan is not None:
        statement = statement.where(tenants.c.plan == wanted.plan)
    if wanted.status is not None:
        statement = statement.where(tenants.c.status == wanted.status)
    if wanted.name is not None:
        statement = statement.where(tenants.c.name.icontains(wanted.name, autoescape=True))
    return session.rows(statement)


def insert_tenant(session: SystemSession, *, tenant_id: str, name: str, plan: str) -> None:
    session.execute(sa.insert(tenants).values(id=tenant_id, name=name, plan=plan))


def counts(session: SystemSession, tenant_id: str) -> Row:
    """How many members, workflows and credentials it has, and how many of its runs have not ended, by their state."""
    states = [state for state in RunState if not state.is_terminal]
    row = session.row(
        sa.select(
            _count(memberships.c.tenant_id == tenant_id).label("members"),
            _count(workflows.c.tenant_id == tenant_id, workflows.c.deleted_at.is_(None)).label("workflows"),
            _count(credentials.c.tenant_id == tenant_id).label("credentials"),
            *(_unfinished(tenant_id, state).label(f"runs_{state.value}") for state in states),
        )
    )
    return row or {}


def _count(*conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).where(*conditions).scalar_subquery()


def _unfinished(tenant_id: str, state: RunState) -> sa.ScalarSelect[int]:
    return _count(runs.c.finished_at.is_(None), runs.c.status == state.value, runs.c.tenant_id == tenant_id)


def runs_listed(session: SystemSession, wanted: RunFilter, *, before: str | None, limit: int) -> list[Row]:
    """The newest first, beginning behind the run `before`.

    The newest of each tenant are read by the primary key, then merged: an index over the runs of all tenants would
    cost every insert, and only this would use it.
    """
    of_tenant = _select_runs(wanted).where(runs.c.tenant_id == tenants.c.id).limit(limit)
    if before is not None:
        of_tenant = of_tenant.where(runs.c.id < before)
    newest = of_tenant.lateral("newest")
    statement = sa.select(newest).select_from(tenants.join(newest, sa.true())).order_by(newest.c.id.desc()).limit(limit)
    if wanted.tenant_id is not None:
        statement = statement.where(tenants.c.id == wanted.tenant_id)
    return session.rows(statement)


def every_run(session: SystemSession, wanted: RunFilter, *, limit: int | None = None) -> Iterator[Row]:
    """The newest first, out of one statement, while the transaction is open; memory holds a batch of them."""
    statement = _select_runs(wanted).limit(limit).execution_options(yield_per=BATCH)
    for row in session.execute(statement).mappings():
        yield dict(row)


def _select_runs(wanted: RunFilter) -> sa.Select[Any]:
    statement = sa.select(*RUN).order_by(runs.c.id.desc())
    if wanted.workflow_id is not None:
        statement = statement.where(runs.c.workflow_id == wanted.workflow_id)
    if wanted.statuses:
        statement = statement.where(runs.c.status.in_([status.value for status in wanted.statuses]))
    if wanted.since is not None:
        statement = statement.where(runs.c.queued_at >= wanted.since)
    return statement


def tenant_of_run(session: SystemSession, run_id: str) -> str | None:
    """Whose run it is; asked of the primary key once for each tenant, as in `runs_listed`."""
    of_tenant = sa.select(runs.c.tenant_id).where(runs.c.tenant_id == tenants.c.id, runs.c.id == run_id).limit(1)
    found = of_tenant.lateral("found")
    row = session.row(sa.select(found.c.tenant_id).select_from(tenants.join(found, sa.true())).limit(1))
    return None if row is None else str(row["tenant_id"])


def master_keys(session: SystemSession) -> list[Row]:
    """For each master key that wraps any: its id, how many data keys, and of how many tenants."""
    return session.rows(
        sa.select(
            data_keys.c.master_key_id.label("id"),
            sa.func.count().label("data_keys"),
            sa.func.count(data_keys.c.tenant_id.distinct()).label("tenants"),
        )
        .group_by(data_keys.c.master_key_id)
        .order_by(data_keys.c.master_key_id)
    )


def samples_of_data_keys(session: SystemSession) -> list[Row]:
    """One data key of each master key that wraps any."""
    return session.rows(
        sa.select(data_keys).ext(distinct_on(data_keys.c.master_key_id)).order_by(data_keys.c.master_key_id)
    )


def tenants_with_keys(
    session: SystemSession, *, not_under: str | None = None, tenant_id: str | None = None
) -> Sequence[str]:
    """The tenants that have a data key, or one under another master key than `not_under`."""
    statement: sa.Select[Any] = sa.select(data_keys.c.tenant_id).distinct().order_by(data_keys.c.tenant_id)
    if not_under is not None:
        statement = statement.where(data_keys.c.master_key_id != not_under)
    if tenant_id is not None:
        statement = statement.where(data_keys.c.tenant_id == tenant_id)
    return session.execute(statement).scalars().all()
