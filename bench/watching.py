"""What watching runs costs: workers for numbering the changes of steps, and Postgres for each look of an API process.

    python -m bench.watching

`checkpoint` stores a step as a worker does; `number` is the part of it that is there for watchers; `publish` is the
round trip that Redis pub/sub would add to it, on a channel that nobody listens to. `look` is the statement by which a
process of the API finds out which of the runs that are watched there have changed. Medians, because others work on the
machine too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis
import sqlalchemy as sa

import migrations
from embedded.postgres import PostgresServer
from embedded.redis import RedisServer
from engine.db import Database
from engine.repository import live, runs

TIMES = 500
NUMBERS = 100_000
SEED = """
INSERT INTO tenants (id, name) VALUES ('acme', 'Acme');
INSERT INTO workflows (id, tenant_id, name, trigger_type, version) VALUES ('wf', 'acme', 'W', '', 1);
INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash) VALUES ('acme', 'wf', 1, '{}', 'h');
INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, attempt, started_at, heartbeat_at)
SELECT 'acme', 'run_' || n, 'wf', 1, 'running', 'api', '{}', 1, now(), now() FROM generate_series(1, 100000) n;
"""


def milliseconds(work: Callable[[], object], times: int = TIMES) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        postgres = PostgresServer(Path(folder) / "postgres").start()
        broker = RedisServer(Path(folder) / "redis").start()
        try:
            migrations.upgrade(postgres.url)
            _run(postgres.url, broker.url)
        finally:
            broker.stop()
            postgres.stop()


def _run(url: str, redis_url: str) -> None:
    database, client = Database(url), redis.Redis.from_url(redis_url)
    owner = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        for statement in (*SEED.split(";\n"), "ANALYZE"):
            connection.exec_driver_sql(statement or "SELECT 1")
        numbers = f"SELECT count(nextval('step_changes')) FROM generate_series(1, {NUMBERS})"
        number = milliseconds(lambda: connection.exec_driver_sql(numbers), 10) / NUMBERS
    steps = iter(range(10 * TIMES))

    def checkpoint() -> None:
        row = {"step_id": f"s{next(steps)}", "item": "", "status": "running", "attempt": 1}
        with database.tenant("acme") as session:
            assert runs.save_progress(session, "run_1", attempt=1, steps=[row])

    print(f"checkpoint {milliseconds(checkpoint):.3f} ms   of which number {number * 1000:.2f} us")
    print(f"publish    {milliseconds(lambda: client.publish('run:run_1', '')):.3f} ms")
    for watched in (1, 100, 1000):
        wanted = [("acme", f"run_{n}") for n in range(1, watched + 1)]

        def look(wanted: list[tuple[str, str]] = wanted) -> None:
            with database.system() as session:
                assert len(live.marks(session, wanted)) == len(wanted)

        print(f"look       {milliseconds(look, 100):.2f} ms for {watched:,} of 100,000 runs")
    owner.dispose()
    database.close()


if __name__ == "__main__":
    main()
