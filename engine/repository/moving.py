"""Letting workflows and credentials belong to another tenant, with their ids.

One UPDATE moves a workflow: versions, trigger, runs, steps and logs follow by their foreign keys (migration 0008).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import credentials, runs, workflow_versions, workflows

_HERE = workflows.c.deleted_at.is_(None)


def workflow_ids(session: TenantSession, wanted: Sequence[str] | None) -> Sequence[str]:
    """Those of `wanted` that exist, all without it, locked; deleted ones count when all are meant."""
    statement = sa.select(workflows.c.id).order_by(workflows.c.id).with_for_update()
    if wanted is not None:
        statement = statement.where(_HERE, workflows.c.id.in_(wanted))
    return session.execute(statement).scalars().all()


def credential_rows(session: TenantSession, wanted: Sequence[str] | None) -> list[Row]:
    """Id, name and service of those of `wanted` that exist, all without it, locked."""
    columns = (credentials.c.id, credentials.c.name, credentials.c.service_name.label("service"))
    statement = sa.select(*columns).order_by(credentials.c.id).with_for_update()
    if wanted is not None:
        statement = statement.where(credentials.c.id.in_(wanted))
    return session.rows(statement)


def running(session: TenantSession, ids: Sequence[str]) -> int:
    """How many runs of these workflows are in a worker's hands."""
    statement = sa.select(sa.func.count()).where(runs.c.workflow_id.in_(ids), runs.c.status == "running")
    number: int = session.execute(statement).scalar_one()
    return number


def taken_keys(session: SystemSession, source: str, target: str, ids: Sequence[str]) -> Sequence[str]:
    """Idempotency keys of runs that would move and that the target has already; a few of them."""
    theirs = runs.alias("theirs")
    statement = (
        sa.select(runs.c.idempotency_key)
        .join(theirs, theirs.c.idempotency_key == runs.c.idempotency_key)
        .where(runs.c.tenant_id == source, runs.c.workflow_id.in_(ids), theirs.c.tenant_id == target)
        .limit(5)
    )
    return session.execute(statement).scalars().all()


def move_workflows(session: SystemSession, source: str, target: str, ids: Sequence[str]) -> None:
    """However many runs follow (ADR 8 says how fast), the statement may take its time."""
    session.execute(sa.text("SET LOCAL statement_timeout = 0"))
    session.execute(
        sa.update(workflows).where(workflows.c.tenant_id == source, workflows.c.id.in_(ids)).values(tenant_id=target)
    )


def move_credentials(session: SystemSession, source: str, target: str, ids: Sequence[str]) -> None:
    """They are still encrypted for the old tenant, and must be sealed anew in the same transaction."""
    session.execute(
        sa.update(credentials)
        .where(credentials.c.tenant_id == source, credentials.c.id.in_(ids))
        .values(tenant_id=target)
    )


def current_documents(session: TenantSession) -> list[Row]:
    """id, name, definition of every workflow that is not deleted and has a version."""
    return session.rows(
        sa.select(workflows.c.id, workflows.c.name, workflow_versions.c.definition)
        .join(
            workflow_versions,
            (workflow_versions.c.tenant_id == workflows.c.tenant_id)
            & (workflow_versions.c.workflow_id == workflows.c.id)
            & (workflow_versions.c.version == workflows.c.version),
        )
        .where(_HERE)
        .order_by(workflows.c.id)
    )
