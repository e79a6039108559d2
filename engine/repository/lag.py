"""How late the triggers are that beat fires."""

from __future__ import annotations

import sqlalchemy as sa

from engine.db import SystemSession
from engine.models import triggers


def schedule_lag(session: SystemSession) -> float:
    """Seconds since the earliest moment that should have been fired and was not; 0 when none is due."""
    late = sa.func.extract("epoch", sa.func.now() - sa.func.min(triggers.c.next_fire_at))
    statement = sa.select(sa.func.greatest(0, sa.func.coalesce(late, 0)))
    return float(session.execute(statement.where(triggers.c.next_fire_at.is_not(None))).scalar_one())
