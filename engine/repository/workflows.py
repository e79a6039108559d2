"""Workflows and their versions. A deleted workflow keeps its row for its runs' sake, and is found no more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from engine.db import Row, TenantSession
from engine.models import runs, triggers, workflow_versions, workflows
from engine.states import RunState, sources

PUBLIC = (
    workflows.c.id,
    workflows.c.name,
    workflows.c.trigger_type,
    workflows.c.action_type,
    workflows.c.config_json,
    workflows.c.is_active,
    workflows.c.inactive_reason,
    workflows.c.version,
    workflows.c.user_id.label("created_by"),
    workflows.c.created_at,
    workflows.c.updated_at,
    workflows.c.last_executed_at,
    triggers.c.next_fire_at,
    triggers.c.last_fired_at,
    sa.func.coalesce(triggers.c.failures, 0).label("failures"),
    triggers.c.last_error,
    triggers.c.paused_reason,
)
"""A workflow as its owner sees it, with the state of its trigger."""

_HERE = workflows.c.deleted_at.is_(None)
_SELECT = (
    sa.select(*PUBLIC)
    .select_from(workflows)
    .outerjoin(triggers, (triggers.c.tenant_id == workflows.c.tenant_id) & (triggers.c.workflow_id == workflows.c.id))
    .where(_HERE)
)
_CANCELLABLE = [state.value for state in sources(RunState.CANCELLED) - {RunState.RUNNING}]


def now(session: TenantSession) -> datetime:
    """When the transaction began, by the database's clock."""
    moment: datetime = session.execute(sa.select(sa.func.now())).scalar_one()
    return moment


def get(session: TenantSession, workflow_id: str) -> Row | None:
    return session.row(_SELECT.where(workflows.c.id == workflow_id))


def lock(session: TenantSession, workflow_id: str) -> Row | None:
    """The id, version and is_active of a workflow that is about to change; whoever else would change it waits."""
    statement = (
        sa.select(workflows.c.id, workflows.c.version, workflows.c.is_active)
        .where(_HERE, workflows.c.id == workflow_id)
        .with_for_update(key_share=True)
    )
    return session.row(statement)


def version_hash(session: TenantSession, workflow_id: str, version: int) -> str | None:
    """The hash of one version; None when there is no such version."""
    row = session.row(
        sa.select(workflow_versions.c.hash).where(
            workflow_versions.c.workflow_id == workflow_id, workflow_versions.c.version == version
        )
    )
    return None if row is None else str(row["hash"])


def existing(session: TenantSession, workflow_ids: Collection[str]) -> set[str]:
    """Those that are there."""
    statement = sa.select(workflows.c.id).where(_HERE, workflows.c.id.in_(workflow_ids))
    return {row["id"] for row in session.rows(statement)}


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """In the order of their ids, beginning behind `after`."""
    statement = _SELECT.order_by(workflows.c.id).limit(limit)
    if after is not None:
        statement = statement.where(workflows.c.id > after)
    return session.rows(statement)


def insert_workflow(session: TenantSession, values: Mapping[str, Any]) -> bool:
    """False when a workflow of that id exists."""
    statement = insert(workflows).values({**values, "tenant_id": session.tenant_id})
    return session.row(statement.on_conflict_do_nothing().returning(workflows.c.id)) is not None


def change(session: TenantSession, workflow_id: str, values: Mapping[str, Any]) -> bool:
    """False when there is no such workflow."""
    statement = (
        sa.update(workflows)
        .where(_HERE, workflows.c.id == workflow_id)
        .values({**values, "updated_at": sa.func.now()})
        .returning(workflows.c.id)
    )
    return session.row(statement) is not None


def insert_version(session: TenantSession, workflow_id: str, version: int, values: Mapping[str, Any]) -> bool:
    """False when somebody else made that version."""
    row = {"tenant_id": session.tenant_id, "workflow_id": workflow_id, "version": version, **values}
    statement = insert(workflow_versions).values(row).on_conflict_do_nothing()
    return session.row(statement.returning(workflow_versions.c.version)) is not None


def definition(session: TenantSession, workflow_id: str, version: int | None) -> Row | None:
    """One version, the current one by default: version, definition, created_at, created_by."""
    current = sa.select(workflows.c.version).where(workflows.c.id == workflow_id).scalar_subquery()
    return session.row(
        sa.select(
            workflow_versions.c.version,
            workflow_versions.c.definition,
            workflow_versions.c.created_at,
            workflow_versions.c.created_by,
        ).where(
            workflow_versions.c.workflow_id == workflow_id,
            workflow_versions.c.version == (current if version is None else version),
            sa.exists().where(_HERE, workflows.c.id == workflow_id),
        )
    )


def versions(session: TenantSession, workflow_id: str, *, before: int | None, limit: int) -> list[Row]:
    """The newest first, beginning below `before`."""
    statement = (
        sa.select(workflow_versions.c.version, workflow_versions.c.created_at, workflow_versions.c.created_by)
        .where(workflow_versions.c.workflow_id == workflow_id)
        .order_by(workflow_versions.c.version.desc())
        .limit(limit)
    )
    if before is not None:
        statement = statement.where(workflow_versions.c.version < sa.literal(before, sa.BigInteger))
    return session.rows(statement)


def cancel_pending_runs(session: TenantSession, workflow_id: str) -> int:
    """End the runs that no worker has in hand; how many they were."""
    statement = (
        sa.update(runs)
        .where(runs.c.workflow_id == workflow_id, runs.c.status.in_(_CANCELLABLE))
        .values(status=RunState.CANCELLED.value, finished_at=sa.func.now(), wait_reason=None, wake_at=None)
    )
    return session.execute(statement).rowcount
