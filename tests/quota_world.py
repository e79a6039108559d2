"""A tenant whose runs are admitted, held and let go, on a real Postgres, with a clock that stands still."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import sqlalchemy as sa

from engine import usage
from engine.audit import Actor
from engine.db import Database, Row
from engine.held import Held
from engine.plans import Plans
from engine.runs import Runs, Start
from engine.usage import Period
from tests.engine_parts import ListPublisher

NOW = datetime(2027, 3, 31, 23, 59, 30, tzinfo=UTC)
MARCH = Period.of(NOW)


class NoLanes:
    """An installation without lanes: nothing to tell."""

    def configure_many(self, configurations: object, *, only_known: bool = False) -> int:
        return 0


class World:
    """A tenant ``acme`` with one workflow, and a clock that stands still."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url, pool_size=30)
        self.broker = ListPublisher()
        self.now = NOW
        self.runs = Runs(self.broker, clock=lambda: self.now)
        self.held = Held(self.database, self.runs)
        with self.database.system() as session:
            session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')"))
            session.execute(
                sa.text(
                    "INSERT INTO workflows (id, tenant_id, name, trigger_type, version)"
                    " VALUES ('wf_1', 'acme', 'W', 'manual', 1)"
                )
            )
            session.execute(
                sa.text(
                    "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
                    " VALUES ('acme', 'wf_1', 1, '{}', 'h')"
                )
            )

    def limit(self, **values: int | None) -> None:
        with self.database.system() as session:
            Plans(self.database, NoLanes(), by=Actor("operator")).set_limits(session, "acme", values)

    def start(self, trigger: str = "api", key: str | None = None, hold: str | None = None) -> Row:
        with self.database.tenant("acme") as session:
            request = Start(workflow_id="wf_1", trigger=trigger, input={}, idempotency_key=key, hold=hold)
            return self.runs.start(session, request).run

    def many(self, count: int, *triggers: str) -> list[Row]:
        """So many starts by 50 threads at once."""
        with ThreadPoolExecutor(50) as crew:
            return list(crew.map(self.start, [triggers[n % len(triggers)] for n in range(count)]))

    def release(self) -> int:
        return self.held.run_once(self.now).released

    def rows(self, statement: str) -> list[Row]:
        with self.database.system() as session:
            return session.rows(sa.text(statement))

    def states(self) -> Counter[str]:
        return Counter(row["status"] for row in self.rows("SELECT status FROM runs"))

    def ledger(self, period: Period = MARCH) -> int:
        with self.database.tenant("acme") as session:
            return usage.executions(session, "acme", period)

    def counter(self) -> int:
        return int(self.rows("SELECT coalesce(sum(used), 0) AS n FROM quota_counters")[0]["n"])

    def end_queued(self) -> None:
        with self.database.system() as session:
            session.execute(
                sa.text("UPDATE runs SET status = 'cancelled', finished_at = now() WHERE status = 'queued'")
            )

    def report(self, period: Period = MARCH) -> usage.Report:
        with self.database.tenant("acme") as session:
            return usage.report(session, period)
