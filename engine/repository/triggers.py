"""Triggers: one row for each workflow, with when it falls due, where a poll goes on, and why it is paused.

`config` is the trigger of the workflow's document, without its secret; a webhook's secret is the key ``sealed``, an
encrypted value that `engine.vault` opens.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert

from engine.db import Row, SystemSession, TenantSession
from engine.errors import Conflict
from engine.models import data_keys, poll_items, tenants, triggers, workflows
from engine.ports import Json

Key = tuple[str, str]
"""Of a trigger: its tenant and its workflow."""

_HAS_SECRET = triggers.c.config.has_key("sealed")
_KEY_VERSION = triggers.c.config["sealed"]["key_version"].astext.cast(sa.Integer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What becomes of a due trigger: when it falls due again (None: never), and why it is paused, if it is."""

    tenant_id: str
    workflow_id: str
    next_fire_at: datetime | None
    last_fired_at: datetime | None = None
    paused_reason: str | None = None


def due(session: SystemSession, *, limit: int, window: int) -> list[Key]:
    """What shall fire now, in the order of its turns: so many, out of the `window` longest due. Nothing is locked."""
    rows = session.query("due_triggers", limit=limit, window=window)
    return [(row["tenant_id"], row["workflow_id"]) for row in rows]


def lock_due(session: SystemSession, keys: Sequence[Key]) -> list[Row]:
    """Those of `keys` that are due still and that nobody else has locked; ``now`` of each is the database's."""
    tenant_ids, workflow_ids = zip(*keys, strict=True)
    return session.query("lock_due_triggers", tenant_ids=list(tenant_ids), workflow_ids=list(workflow_ids))


def advance(session: SystemSession, advances: Sequence[Advance]) -> None:
    session.query(
        "advance_triggers",
        tenant_ids=[item.tenant_id for item in advances],
        workflow_ids=[item.workflow_id for item in advances],
        next_fire_ats=[item.next_fire_at for item in advances],
        last_fired_ats=[item.last_fired_at for item in advances],
        paused_reasons=[item.paused_reason for item in advances],
    )


@contextlib.contextmanager
def attempt(session: TenantSession) -> Iterator[None]:
    """A savepoint that makes a Conflict ``unstorable`` of rows that the database refuses."""
    try:
        with session.savepoint():
            yield
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        raise Conflict(f"The database refuses the run: {error.diag.message_primary}.", code="unstorable") from error


def get(session: TenantSession, workflow_id: str, *, lock: bool = False) -> Row | None:
    """The trigger of a workflow; ``now`` is the database's. `lock` keeps others from changing it meanwhile."""
    statement = sa.select(triggers, sa.func.now().label("now")).where(triggers.c.workflow_id == workflow_id)
    return session.row(statement.with_for_update() if lock else statement)


def take_poll(session: TenantSession, workflow_id: str, *, lease: timedelta) -> Row | None:
    """Put off a poll that is on, for whoever looks at its source now; None when it is off, paused or gone.

    The new `next_fire_at` is unlike any other's, so it tells later whether the trigger is still the taker's.
    """
    on = (
        sa.exists().where(workflows.c.id == workflow_id, workflows.c.is_active, workflows.c.deleted_at.is_(None)),
        sa.exists().where(tenants.c.id == session.tenant_id, tenants.c.status == "active"),
    )
    statement = (
        sa.update(triggers)
        .where(triggers.c.workflow_id == workflow_id, triggers.c.type == "poll", triggers.c.next_fire_at.is_not(None))
        .where(*on)
        .values(next_fire_at=sa.func.now() + lease)
        .returning(*triggers.c)
    )
    return session.row(statement)


def put(session: TenantSession, workflow_id: str, values: Mapping[str, Any]) -> None:
    """Insert the trigger of a workflow, or change what `values` names."""
    row = {"tenant_id": session.tenant_id, "workflow_id": workflow_id, **values}
    session.execute(
        insert(triggers).values(row).on_conflict_do_update(index_elements=("tenant_id", "workflow_id"), set_=values)
    )


def change(session: TenantSession, workflow_id: str, values: Mapping[str, Any]) -> None:
    session.execute(sa.update(triggers).where(triggers.c.workflow_id == workflow_id).values(values))


def delete(session: TenantSession, workflow_id: str) -> None:
    """Forget the trigger and what its polls have seen."""
    session.execute(sa.delete(triggers).where(triggers.c.workflow_id == workflow_id))
    forget_items(session, workflow_id)


def tenant_of(session: SystemSession, workflow_id: str) -> str | None:
    """Whose workflow it is: the sender of a webhook names nothing else. None if that is deleted."""
    statement = (
        sa.select(workflows.c.tenant_id)
        .join(tenants, tenants.c.id == workflows.c.tenant_id)
        .where(workflows.c.id == workflow_id, tenants.c.status != "deleted")
    )
    row = session.row(statement)
    return None if row is None else str(row["tenant_id"])


def webhook_target(session: TenantSession, workflow_id: str) -> Row | None:
    """The workflow and its trigger; ``secret`` is a row for `Vault.open`, None when the trigger has no secret."""
    rows = session.query("webhook_target", tenant_id=session.tenant_id, workflow_id=workflow_id)
    if not rows:
        return None
    row = rows[0]
    sealed = row.pop("sealed")
    row["secret"] = None if sealed is None else _secret_row(row, sealed)
    return row


def sealed_secrets(session: TenantSession) -> list[Row]:
    """The sealed secrets of all the tenant's webhooks as rows for `Vault.open`, for rotation."""
    statement = (
        sa.select(
            triggers.c.workflow_id.label("id"),
            triggers.c.config["sealed"].label("sealed"),
            data_keys.c.master_key_id,
            data_keys.c.wrapped,
        )
        .select_from(triggers)
        .outerjoin(data_keys, (data_keys.c.tenant_id == triggers.c.tenant_id) & (data_keys.c.version == _KEY_VERSION))
        .where(_HAS_SECRET)
        .with_for_update(of=triggers)
    )
    return [_secret_row(row, row["sealed"]) | {"workflow_id": row["id"]} for row in session.rows(statement)]


def sealed_key_versions() -> sa.Select[tuple[int]]:
    """The data keys that webhook secrets are sealed under, as a subquery."""
    return sa.select(_KEY_VERSION).where(_HAS_SECRET)


def sealed(ciphertext: bytes, *, key_version: int, fingerprint: str) -> dict[str, Json]:
    """A sealed secret as `config` holds it."""
    return {
        "ciphertext": base64.b64encode(ciphertext).decode(),
        "key_version": key_version,
        "fingerprint": fingerprint,
    }


def replace_sealed(
    session: TenantSession, workflow_id: str, ciphertext: bytes, *, key_version: int, fingerprint: str
) -> None:
    value = {"sealed": sealed(ciphertext, key_version=key_version, fingerprint=fingerprint)}
    change(session, workflow_id, {"config": triggers.c.config.concat(sa.cast(value, JSONB))})


def secret_place(workflow_id: str) -> str:
    """The row that a webhook's secret is bound to: its associated data in the vault."""
    return f"trigger:{workflow_id}"


def remember_items(session: TenantSession, workflow_id: str, item_ids: Iterable[str]) -> set[str]:
    """Those of `item_ids` that this workflow has not seen before; of all of them it knows now that they are listed."""
    rows = session.query(
        "remember_items", tenant_id=session.tenant_id, workflow_id=workflow_id, item_ids=list(item_ids)
    )
    return {row["item_id"] for row in rows}


def forget_items(session: TenantSession, workflow_id: str, *, older_than: timedelta | None = None) -> None:
    statement = sa.delete(poll_items).where(poll_items.c.workflow_id == workflow_id)
    if older_than is not None:
        statement = statement.where(poll_items.c.seen_at < sa.func.now() - older_than)
    session.execute(statement)


def _secret_row(row: Mapping[str, Any], value: Mapping[str, Any]) -> Row:
    return {
        "id": secret_place(row["id"]),
        "name": f"webhook secret of {row['id']}",
        "ciphertext": base64.b64decode(value["ciphertext"]),
        "key_version": value["key_version"],
        "master_key_id": row["master_key_id"],
        "wrapped": row["wrapped"],
        "broken_reason": None,
    }
