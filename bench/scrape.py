"""What a scrape of `/metrics` costs with 10,000 tenants, beside the same with 100, in one run.

    python -m bench.scrape

Two API processes as an operator starts them, each over a database and a queue of its own on the same Postgres and
Redis. Every tenant has a lane with work in it, limits with something used of each, and totals of many series, as if
each had been among the first once. The sides alternate; milliseconds are the median of the rounds, CPU is
that of the API, Postgres and Redis together, which tells more where other programs want the processor too.
"""

# kombu has no annotations.
# mypy: disable-error-code="no-untyped-call,attr-defined"

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import sqlalchemy as sa
from kombu import Connection, Producer
from rich.console import Console
from rich.table import Table

import migrations
from bench.harness import until
from embedded.ports import free_port
from embedded.postgres import DATABASE, PostgresServer
from embedded.redis import RedisServer
from engine.fairshare import register

FEW, MANY, ROUNDS = 100, 10_000, 15
WARM_UP = 6
"""Rounds in which statements are planned and scripts loaded."""
ROOT = Path(__file__).parents[1]
SEED = """
INSERT INTO tenants (id, name, plan) SELECT 'tenant_' || n, 'T', 'team' FROM generate_series(1, {tenants}) n;
INSERT INTO workflows (id, tenant_id, name, trigger_type, version)
    SELECT 'wf_' || t.id || n, t.id, 'W', 'schedule', 1 FROM tenants t, generate_series(1, 5) n;
INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)
    SELECT tenant_id, id, 1, '{{}}', 'h' FROM workflows;
INSERT INTO triggers (tenant_id, workflow_id, type, config, next_fire_at)
    SELECT tenant_id, id, 'schedule', '{{}}', now() + interval '1 day' FROM workflows;
INSERT INTO users (id, email, password_hash) SELECT 'user_' || id || n, id || n || '@example.com', 'x'
    FROM tenants, generate_series(1, 3) n;
INSERT INTO memberships (tenant_id, user_id, role)
    SELECT id, 'user_' || id || n, 'member' FROM tenants, generate_series(1, 3) n;
INSERT INTO credentials (id, tenant_id, service_name, name, ciphertext, key_version)
    SELECT 'cred_' || id || n, id, 'http', 'c' || n, '\\x00', 1 FROM tenants, generate_series(1, 3) n;
INSERT INTO quota_counters (tenant_id, period, slot, used, room)
    SELECT id, date_trunc('month', now() AT TIME ZONE 'UTC'), n, 10, 0 FROM tenants, generate_series(0, 7) n;
INSERT INTO metric_tenants (tenant, score, shown)
    SELECT id, row_number() OVER (), row_number() OVER () <= 50 FROM tenants;
INSERT INTO metric_totals (tenant, series, labels, value)
    SELECT id, 'runs', ARRAY[s, t], 7 FROM (SELECT id FROM tenants UNION ALL SELECT NULL) owners (id),
        unnest(ARRAY['succeeded', 'failed', 'cancelled']) s, unnest(ARRAY['api', 'webhook', 'schedule', 'poll']) t (t)
    UNION ALL
    SELECT id, 'queue_wait_seconds', ARRAY[b], 7 FROM (SELECT id FROM tenants UNION ALL SELECT NULL) owners (id),
        unnest(ARRAY['0.01', '0.025', '0.05', '0.1', '0.25', '0.5', '1', '2.5', '5', '10', '30', '60']) b
    UNION ALL
    SELECT id, s, '{{}}', 7 FROM (SELECT id FROM tenants UNION ALL SELECT NULL) owners (id),
        unnest(ARRAY['worker_seconds', 'queue_wait_seconds_sum']) s;
ANALYZE;
"""


@dataclass
class Side:
    """An API over so many tenants, and what its scrapes took."""

    http: httpx.Client
    programs: list[psutil.Process]
    milliseconds: list[float] = field(default_factory=list)
    cpu: float = 0
    shown: str = ""

    def scrape(self, *, measured: bool) -> None:
        before, began = self._cpu(), time.perf_counter()
        self.shown = self.http.get("/metrics").raise_for_status().text
        took = (time.perf_counter() - began) * 1000
        if measured:
            self.milliseconds.append(took)
            self.cpu += self._cpu() - before

    def _cpu(self) -> float:
        return sum(map(cpu_of_tree, self.programs))


def cpu_of_tree(program: psutil.Process) -> float:
    """Seconds."""
    total = 0.0
    for member in (program, *program.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


@contextmanager
def side(postgres: PostgresServer, redis: RedisServer, number: int, tenants: int) -> Iterator[Side]:
    assert postgres.process is not None
    assert redis.process is not None
    url = postgres.url.removesuffix(DATABASE) + f"side_{number}"
    admin = sa.create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE side_{number}")
    admin.dispose()
    migrations.upgrade(url)
    owner = sa.create_engine(url)
    with owner.begin() as connection:
        connection.exec_driver_sql(SEED.format(tenants=tenants))
    owner.dispose()
    queue = f"{redis.url[:-1]}{number}"
    fill_lanes(queue, tenants)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port)]
    environment = {
        **os.environ,
        "FAIRLANE_DATABASE_URL": url,
        "FAIRLANE_REDIS_URL": queue,
        "FAIRLANE_SECRET_KEY": "s" * 40,
        "FAIRLANE_MASTER_KEYS": f"k:{b64encode(b'1' * 32).decode()}",
    }
    process = subprocess.Popen([*command, "--log-level", "error"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            until(lambda: answers(http), within=60, what="the API's start")
            yield Side(http, [psutil.Process(p.pid) for p in (process, postgres.process, redis.process)])
    finally:
        process.terminate()
        process.wait(30)


def fill_lanes(url: str, tenants: int) -> None:
    register()
    with Connection(f"fair{url}", transport_options={"fair_queues": ["runs"]}) as connection:
        producer = Producer(connection.channel())
        for n in range(1, tenants + 1):
            headers = {"id": f"run_{n}", "tenant_id": f"tenant_{n}", "flow": "wf"}
            producer.publish({}, routing_key="runs", headers=headers)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="scrape-") as folder, ExitStack() as stack:
        postgres = PostgresServer(Path(folder, "postgres"), fast=True).start()
        stack.callback(postgres.stop)
        redis = RedisServer(Path(folder, "redis")).start()
        stack.callback(redis.stop)
        sides = {
            tenants: stack.enter_context(side(postgres, redis, number, tenants))
            for number, tenants in enumerate((FEW, MANY))
        }
        for turn in range(ROUNDS + WARM_UP):
            for each in sides.values():
                each.scrape(measured=turn >= WARM_UP)
    _report(sides)


def _report(sides: dict[int, Side]) -> None:
    table = Table("tenants", "median ms", "worst ms", "CPU ms", "lines", "bytes", title="A scrape of /metrics")
    for tenants, each in sides.items():
        times, cpu = each.milliseconds, each.cpu / ROUNDS * 1000
        figures = (statistics.median(times), max(times), cpu, each.shown.count("\n"), len(each.shown))
        table.add_row(f"{tenants:,}", *(f"{figure:,.0f}" for figure in figures))
    Console(width=100).print(table)
    few, many = (statistics.median(sides[tenants].milliseconds) for tenants in (FEW, MANY))
    print(f"RESULT scrape ratio={many / few:.2f} few_ms={few:.0f} many_ms={many:.0f}")


if __name__ == "__main__":
    main()
