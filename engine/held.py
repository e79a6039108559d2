"""Lets go of what is held over a quota: the oldest first, exactly as many as the limits admit.

There is room again when a month begins, when a plan or a limit is changed, or when the queue gets shorter; nothing has
to be told of it, since `Held.run_once` looks. While nothing is held that is one look at an index, and so it is for an
organization whose month is used up. What is released goes through the fair queue like all else. One that dies half-way
has done nothing or everything of a batch; should the publishing fail, the sweeper publishes.

What fails for one organization is logged and stops no other. Each time another one comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import structlog

from engine.db import Database
from engine.repository import quotas as stored
from engine.runs import RELEASED_AT_ONCE, Runs
from engine.turns import Turns

MAX_BATCHES = 20
"""Of one tenant in one tick: another waits, too."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """How many runs were let go."""

    released: int = 0


class Held:
    """See the module. Any number may run; each tenant is one's at a time."""

    def __init__(self, database: Database, runs: Runs) -> None:
        self._database = database
        self._runs = runs
        self._turns = Turns()

    def run_once(self, now: datetime | None = None) -> Result:
        """As of `now`, which is the database's own unless given."""
        with self._database.system() as session:
            tenants = stored.with_held(session, now)
        return Result(sum(self._release(tenant_id, now) for tenant_id in self._turns.order(tenants)))

    def _release(self, tenant_id: str, now: datetime | None) -> int:
        released = 0
        try:
            with self._database.tenant(tenant_id) as alone:
                if not stored.alone(alone):
                    return 0
                for _ in range(MAX_BATCHES):
                    with self._database.tenant(tenant_id) as session:
                        batch = self._runs.release_over_quota(session, now)
                    released += batch
                    if batch < RELEASED_AT_ONCE:
                        break
        except Exception:  # whatever it is: others wait behind this tenant
            log.exception("held_runs_not_released", tenant=tenant_id)
        if released:
            log.info("held_runs_released", tenant=tenant_id, count=released)
        return released
