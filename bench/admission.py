"""What admission costs: starts per second with all limits on against the same with none, in one run.

    python -m bench.admission

Runs are started as the API does it, one transaction each, by 8 threads on a Postgres of their own; publishing is left
out, so that nothing hides what the limits cost. `hot` is one tenant that starts everything, `many` a thousand tenants
in turn, each of which has started one before: the first of a month makes the counter. The sides alternate; each figure
is the median of three rounds. The ratio is that of the worse of the two.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa

import migrations
from embedded.postgres import PostgresServer
from engine.db import Database
from engine.ports import PollMessage, RunMessage
from engine.runs import Runs, Start

ROUNDS, THREADS, SECONDS = 3, 8, 2.5
TENANTS = 1000
LIMITS = '{"max_executions_per_month": 100000000, "max_queued_runs": 100000000}'
NONE = '{"max_executions_per_month": null, "max_queued_runs": null}'
SEED = f"""
INSERT INTO tenants (id, name, plan, limits)
    SELECT side || n, 'T', 'free', CASE side WHEN 'on' THEN '{LIMITS}'::jsonb ELSE '{NONE}'::jsonb END
    FROM generate_series(0, {TENANTS}) n, (VALUES ('on'), ('off')) sides (side);
INSERT INTO workflows (id, tenant_id, name, trigger_type, version) SELECT 'wf_' || id, id, 'W', '', 1 FROM tenants;
INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)
    SELECT id, 'wf_' || id, 1, '{{}}', 'h' FROM tenants;
ANALYZE tenants; ANALYZE workflows; ANALYZE workflow_versions;
"""


class Nowhere:
    """A publisher of which nobody hears."""

    def publish(self, messages: Iterable[RunMessage]) -> None: ...

    def publish_poll(self, message: PollMessage) -> None: ...

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        return set(message_ids)


def start(database: Database, tenant: str) -> None:
    with database.tenant(tenant) as session:
        Runs(Nowhere()).start(session, Start(workflow_id=f"wf_{tenant}", trigger="api", input={"input": {}}))


def rate(database: Database, tenants: Sequence[str]) -> float:
    """Starts per second of all threads together."""
    ends = time.perf_counter() + SECONDS

    def work(thread: int) -> int:
        count = 0
        while time.perf_counter() < ends:
            start(database, tenants[(thread + count * THREADS) % len(tenants)])
            count += 1
        return count

    with ThreadPoolExecutor(THREADS) as crew:
        return sum(crew.map(work, range(THREADS))) / SECONDS


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        postgres = PostgresServer(Path(folder)).start()
        try:
            migrations.upgrade(postgres.url)
            owner = sa.create_engine(postgres.url)
            with owner.begin() as connection:
                connection.exec_driver_sql(SEED)
            owner.dispose()
            _compare(Database(postgres.url, pool_size=THREADS))
        finally:
            postgres.stop()


def _compare(database: Database) -> None:
    ratios = []
    print(f"{'':6} {'off /s':>8} {'on /s':>8} {'ratio':>6}")
    for name, numbers in (("hot", range(1)), ("many", range(1, TENANTS + 1))):
        sides: dict[str, list[float]] = {"off": [], "on": []}
        with ThreadPoolExecutor(THREADS) as crew:
            list(crew.map(lambda tenant: start(database, tenant), [f"{side}{n}" for n in numbers for side in sides]))
        for turn in range(ROUNDS + 1):
            for side in ("off", "on") if turn % 2 else ("on", "off"):
                measured = rate(database, [f"{side}{n}" for n in numbers])
                if turn:  # the first only warms up
                    sides[side].append(measured)
        off, on = (statistics.median(sides[side]) for side in ("off", "on"))
        ratios.append(on / off)
        print(f"{name:6} {off:8.0f} {on:8.0f} {on / off:6.2f}")
    database.close()
    print(f"RESULT admission ratio={min(ratios):.3f}")


if __name__ == "__main__":
    main()
