"""When which step of which run had a credential decrypted.

The rows are written by the statement that fetches the ciphertext (``credential_for_step``), so that recording one costs
a run no round trip and no lock. Nobody may change what they say; only the mark `sealed_by` is set once, by the row of
the audit that vouches for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from engine.db import Row, SystemSession, TenantSession
from engine.models import decryptions

COLUMNS = (
    decryptions.c.id,
    decryptions.c.at,
    decryptions.c.credential_id,
    decryptions.c.run_id,
    decryptions.c.step_id,
    decryptions.c.attempt,
)


def listed(session: TenantSession, credential_id: str, *, before: int | None, limit: int) -> list[Row]:
    """Of one credential, the newest first, beginning below the id `before`."""
    statement = (
        sa.select(*COLUMNS, decryptions.c.sealed_by.is_not(None).label("sealed"))
        .where(decryptions.c.credential_id == credential_id)
        .order_by(decryptions.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        statement = statement.where(decryptions.c.id < sa.literal(before, sa.BigInteger))
    return session.rows(statement)


def tenants_with_unsealed(session: SystemSession, *, limit: int) -> Sequence[str]:
    statement = sa.select(decryptions.c.tenant_id).where(decryptions.c.sealed_by.is_(None)).distinct().limit(limit)
    return session.execute(statement).scalars().all()


def take_unsealed(session: SystemSession, tenant_id: str, *, limit: int) -> list[Row]:
    """Those that no row of the audit vouches for and that nobody else seals now, in the order of their ids."""
    statement = (
        sa.select(*COLUMNS)
        .where(decryptions.c.tenant_id == tenant_id, decryptions.c.sealed_by.is_(None))
        .order_by(decryptions.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.rows(statement)


def mark_sealed(session: SystemSession, tenant_id: str, numbers: Sequence[int], *, by: int) -> None:
    session.execute(
        sa.update(decryptions)
        .where(decryptions.c.tenant_id == tenant_id, decryptions.c.id.in_(numbers))
        .values(sealed_by=by)
    )


def sealed(session: TenantSession, by: int) -> Iterator[Row]:
    """Those that the row `by` of the audit vouches for, in the order of their ids."""
    yield from session.rows(sa.select(*COLUMNS).where(decryptions.c.sealed_by == by).order_by(decryptions.c.id))
