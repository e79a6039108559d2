"""How late the triggers are that beat fires."""

from __future__ import annotations

import sqlalchemy as sa

from engine.db import SystemSession
from engine.models import tenants, triggers


def schedule_lag(session: SystemSession) -> float:
    """Seconds since the earliest moment that should have been fired and was not; 0 when none is due.

    Those of organizations that are suspended or deleted should not.
    """
    late = sa.func.extract("epoch", sa.func.now() - sa.func.min(triggers.c.next_fire_at))
    statement = (
        sa.select(sa.func.coalesce(late, 0))
        .join(tenants, tenants.c.id == triggers.c.tenant_id)
        .where(triggers.c.next_fire_at <= sa.func.now(), tenants.c.status == "active")
    )
    return float(session.execute(statement).scalar_one())
