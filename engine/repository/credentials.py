"""Credentials and the data keys that they are encrypted under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from engine.db import Row, TenantSession
from engine.models import credentials, data_keys
from engine.repository.triggers import sealed_key_versions

PUBLIC = (
    credentials.c.id,
    credentials.c.service_name.label("service"),
    credentials.c.name,
    credentials.c.fingerprint,
    credentials.c.broken_reason,
    credentials.c.user_id.label("created_by"),
    credentials.c.created_at,
    credentials.c.updated_at,
)
"""What may leave the system: nothing of the secret."""

_WITH_KEY = (
    sa.select(
        credentials.c.id,
        credentials.c.name,
        credentials.c.service_name.label("service"),
        credentials.c.ciphertext,
        credentials.c.key_version,
        credentials.c.broken_reason,
        data_keys.c.master_key_id,
        data_keys.c.wrapped,
    )
    .select_from(credentials)
    .outerjoin(
        data_keys,
        (data_keys.c.tenant_id == credentials.c.tenant_id) & (data_keys.c.version == credentials.c.key_version),
    )
)


def lock_keys(session: TenantSession, *, exclusive: bool) -> None:
    """Until the transaction ends, keep rotation (exclusive) and sealing (shared) of this tenant apart."""
    function = sa.func.pg_advisory_xact_lock if exclusive else sa.func.pg_advisory_xact_lock_shared
    session.execute(sa.select(function(sa.func.hashtextextended(f"vault:{session.tenant_id}", 0))))


def wrapped_keys(session: TenantSession) -> list[Row]:
    return session.rows(sa.select(data_keys).order_by(data_keys.c.version))


def newest_key_version(session: TenantSession) -> int:
    """0 when the tenant has no data key yet."""
    newest: int = session.execute(sa.select(sa.func.coalesce(sa.func.max(data_keys.c.version), 0))).scalar_one()
    return newest


def insert_key(session: TenantSession, version: int, *, master_key_id: str, wrapped: bytes) -> bool:
    """False when that version exists already."""
    row = {"tenant_id": session.tenant_id, "version": version, "master_key_id": master_key_id, "wrapped": wrapped}
    statement = insert(data_keys).values(row).on_conflict_do_nothing().returning(data_keys.c.version)
    return session.row(statement) is not None


def replace_wrapping(session: TenantSession, version: int, *, master_key_id: str, wrapped: bytes) -> None:
    session.execute(
        sa.update(data_keys).where(data_keys.c.version == version).values(master_key_id=master_key_id, wrapped=wrapped)
    )


def delete_unused_keys(session: TenantSession, *, keep: int) -> None:
    """Shred the keys that no credential and no webhook secret needs any more."""
    needed = sa.select(credentials.c.key_version).where(credentials.c.key_version.is_not(None))
    session.execute(
        sa.delete(data_keys).where(
            data_keys.c.version != keep,
            data_keys.c.version.not_in(needed),
            data_keys.c.version.not_in(sealed_key_versions()),
        )
    )


def insert_credential(session: TenantSession, values: Mapping[str, Any]) -> Row | None:
    """The public row; None when the tenant has one of that name."""
    statement = (
        insert(credentials)
        .values({**values, "tenant_id": session.tenant_id})
        .on_conflict_do_nothing(index_elements=("tenant_id", "name"))
        .returning(*PUBLIC)
    )
    return session.row(statement)


def get(session: TenantSession, credential_id: str) -> Row | None:
    return session.row(sa.select(*PUBLIC).where(credentials.c.id == credential_id))


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """In the order of their ids, beginning behind `after`."""
    statement = sa.select(*PUBLIC).order_by(credentials.c.id).limit(limit)
    if after is not None:
        statement = statement.where(credentials.c.id > after)
    return session.rows(statement)


def replace_secret(
    session: TenantSession, credential_id: str, ciphertext: bytes, *, key_version: int, fingerprint: str
) -> None:
    session.execute(
        sa.update(credentials)
        .where(credentials.c.id == credential_id)
        .values(
            ciphertext=ciphertext,
            key_version=key_version,
            fingerprint=fingerprint,
            broken_reason=None,
            encrypted_key=None,
            updated_at=sa.func.now(),
        )
    )


def rename(session: TenantSession, credential_id: str, name: str) -> None:
    session.execute(sa.update(credentials).where(credentials.c.id == credential_id).values(name=name))


def delete(session: TenantSession, credential_id: str) -> bool:
    statement = sa.delete(credentials).where(credentials.c.id == credential_id).returning(credentials.c.id)
    return session.row(statement) is not None


def all_with_keys(session: TenantSession) -> list[Row]:
    """Every credential with its ciphertext and wrapped key, for rotation."""
    return session.rows(_WITH_KEY.where(credentials.c.ciphertext.is_not(None)))


def for_step(
    session: TenantSession, *, name: str | None, service: str | None, run_id: str, step_id: str, attempt: int
) -> list[Row]:
    """The credentials that a step may mean: by its name, or those of its service (at most two: more is ambiguous).

    When it is one, and of the service, it is recorded that this attempt of the step has it decrypted.
    """
    return session.query(
        "credential_for_step",
        tenant_id=session.tenant_id,
        name=name,
        service=service,
        run_id=run_id,
        step_id=step_id,
        attempt=attempt,
    )


def names(session: TenantSession) -> Mapping[str, str]:
    """Name to service of all the tenant's credentials, for checking a workflow when it is saved."""
    rows = session.execute(sa.select(credentials.c.name, credentials.c.service_name))
    return {row.name: row.service_name for row in rows}
