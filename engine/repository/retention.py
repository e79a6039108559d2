"""Runs that ended longer ago than their organization keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from engine.db import SystemSession, TenantSession


def tenants_with_expired(session: SystemSession, moment: datetime | None) -> Sequence[str]:
    """Ids of the tenants that have such runs, in order."""
    return [row["id"] for row in session.query("tenants_with_expired_runs", at=moment)]


def delete_expired(session: TenantSession, moment: datetime | None, *, limit: int) -> int:
    """Delete the oldest of them with their steps and logs, as far as nobody else has them in hand; how many."""
    (row,) = session.query("delete_expired_runs", tenant_id=session.tenant_id, at=moment, limit=limit)
    return int(row["count"])
