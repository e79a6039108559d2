"""Runs per second from enqueue to `succeeded`, beside the plain thing that one would write instead.

    python -m bench.end_to_end [--runs 5000] [--rounds 3] [--quick]

Both sides use the same Postgres (durable: fsync on) and the same Redis, started for this run alone; the enqueueing
process works at the same time as the workers. Ours writes, for each run, the run, its step, three log lines and two
ledger rows; the baseline one row (`bench/baseline_app.py`). Idle latency is `started_at - queued_at` of single runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

import migrations
from bench import baseline_app
from embedded.postgres import PostgresServer
from embedded.redis import RedisServer

ROOT = Path(__file__).parents[1]
DEADLINE = 180.0
TENANTS = 10
DOCUMENT = {
    "name": "One step",
    "trigger": {"type": "manual"},
    "steps": [{"id": "say", "action": "debug.echo", "with": {"text": "hello"}}],
}


@dataclass(frozen=True)
class Round:
    """One measurement: runs per second, and CPU seconds per 1,000 runs by process."""

    rate: float
    cpu: dict[str, float]


@dataclass(frozen=True)
class Bench:
    postgres: PostgresServer
    redis: RedisServer
    environment: dict[str, str]

    def cpu(self, workers: list[psutil.Process]) -> dict[str, float]:
        groups = {
            "workers": workers,
            "postgres": [psutil.Process(self.postgres.process.pid)] if self.postgres.process else [],
            "redis": [psutil.Process(self.redis.process.pid)] if self.redis.process else [],
        }
        used = {name: sum(map(_cpu_of_tree, processes)) for name, processes in groups.items()}
        return {"client": time.process_time(), **used}


def _cpu_of_tree(process: psutil.Process) -> float:
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def celery_workers(
    app: str, *options: str, processes: int, environment: dict[str, str]
) -> Iterator[list[psutil.Process]]:
    """Real `celery worker` processes, stopped at the end."""
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "ERROR", *options]
    popens = [
        subprocess.Popen([*command, "-n", f"{app}{n}@bench"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        for n in range(processes)
    ]
    try:
        yield [psutil.Process(popen.pid) for popen in popens]
    finally:
        for popen in popens:
            popen.terminate()
        for popen in popens:
            popen.wait(30)


def wait_until(count: Callable[[], int], target: int) -> None:
    end = time.monotonic() + DEADLINE
    while count() < target:
        if time.monotonic() > end:
            raise SystemExit(f"only {count()} of {target} runs finished within {DEADLINE:.0f} s")
        time.sleep(0.02)


def measure(bench: Bench, enqueue: Callable[[int], None], done: Callable[[], int], runs: int, workers: Any) -> Round:
    """Enqueue `runs` while the workers work; from the first enqueue to the last finished run."""
    before, cpu = done(), bench.cpu(workers)
    began = time.perf_counter()
    for n in range(runs):
        enqueue(n)
    wait_until(done, before + runs)
    seconds = time.perf_counter() - began
    used = {name: (value - cpu[name]) / runs * 1000 for name, value in bench.cpu(workers).items()}
    return Round(runs / seconds, used)


class Ours:
    """Fairlane, through its own front door: `Runs.start`, and workers as an operator starts them."""

    def __init__(self, bench: Bench) -> None:
        os.environ.update(bench.environment)
        import tasks
        from engine.db import dump_json
        from engine.definition import canonical, load

        migrations.upgrade(bench.environment["FAIRLANE_DATABASE_URL"])
        self._parts = tasks.services()
        with self._parts.database.system() as session:
            for n in range(TENANTS):
                session.execute(
                    sa.text("INSERT INTO tenants (id, name, plan) VALUES (:t, :t, 'enterprise')"), {"t": f"t{n}"}
                )
                session.execute(
                    sa.text(
                        "INSERT INTO workflows (id, tenant_id, name, trigger_type, version)"
                        " VALUES ('wf_' || :t, :t, 'One step', 'manual', 1)"
                    ),
                    {"t": f"t{n}"},
                )
                session.execute(
                    sa.text(
                        "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
                        " VALUES (:t, 'wf_' || :t, 1, cast(:d AS jsonb), 'h')"
                    ),
                    {"t": f"t{n}", "d": dump_json(canonical(load(DOCUMENT)))},
                )

    def enqueue(self, n: int) -> None:
        from engine.runs import Start

        tenant = f"t{n % TENANTS}"
        with self._parts.database.tenant(tenant) as session:
            self._parts.runs.start(session, Start(workflow_id=f"wf_{tenant}", trigger="api", input={"input": {}}))

    def done(self) -> int:
        with self._parts.database.system() as session:
            return int(session.execute(sa.text("SELECT count(*) FROM runs WHERE status = 'succeeded'")).scalar_one())

    def idle_latencies(self, runs: int) -> list[float]:
        """Milliseconds from enqueue to start of single runs on idle workers."""
        for n in range(runs):
            before = self.done()
            self.enqueue(n)
            wait_until(self.done, before + 1)
        with self._parts.database.system() as session:
            rows = session.rows(
                sa.text(
                    "SELECT extract(epoch FROM started_at - queued_at) * 1000 AS ms FROM runs"
                    " ORDER BY queued_at DESC LIMIT :n"
                ).bindparams(n=runs)
            )
        return [float(row["ms"]) for row in rows]


class Baseline:
    def __init__(self, bench: Bench) -> None:
        os.environ.update(bench.environment)
        baseline_app.app.conf.broker_url = bench.environment["BASELINE_REDIS_URL"]
        baseline_app.metadata.create_all(baseline_app.engine())

    def enqueue(self, n: int) -> None:
        baseline_app.enqueue(f"hello {n}")

    def done(self) -> int:
        with baseline_app.engine().connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM runs WHERE status = 'succeeded'")).scalar_one())


@contextlib.contextmanager
def servers() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="fairlane-bench-") as folder:
        postgres = PostgresServer(Path(folder) / "postgres").start()
        redis = RedisServer(Path(folder) / "redis").start()
        try:
            with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as admin:
                admin.execute("CREATE DATABASE baseline")
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "BASELINE_DATABASE_URL": postgres.url.rpartition("/")[0] + "/baseline",
                "BASELINE_REDIS_URL": redis.url.replace("/0", "/1"),
                "FAIRLANE_DATABASE_URL": postgres.url,
                "FAIRLANE_REDIS_URL": redis.url,
                "FAIRLANE_SECRET_KEY": secrets.token_hex(32),
                "FAIRLANE_MASTER_KEYS": "bench:" + b64encode(secrets.token_bytes(32)).decode(),
            }
            yield Bench(postgres, redis, environment)
        finally:
            redis.stop()
            postgres.stop()


def report(ours: list[Round], baseline: list[Round], idle: list[float]) -> None:
    ratio = statistics.median(o.rate / b.rate for o, b in zip(ours, baseline, strict=True))
    table = Table(title="End to end: enqueue to succeeded (medians)")
    for column in ("", "runs/s", "CPU s per 1,000 runs", *ours[0].cpu):
        table.add_column(column, justify="right")
    for name, rounds in (("fairlane", ours), ("baseline", baseline)):
        cpu = {part: statistics.median(r.cpu[part] for r in rounds) for part in rounds[0].cpu}
        rate = statistics.median(r.rate for r in rounds)
        table.add_row(name, f"{rate:.0f}", f"{sum(cpu.values()):.2f}", *(f"{value:.2f}" for value in cpu.values()))
    Console(width=120).print(table)
    idle = sorted(idle)
    print(f"idle, enqueue to start: p50 {statistics.median(idle):.1f} ms, p99 {idle[int(len(idle) * 0.99)]:.1f} ms")
    print(
        f"RESULT end-to-end ratio={ratio:.2f} ours={statistics.median(r.rate for r in ours):.0f}"
        f" baseline={statistics.median(r.rate for r in baseline):.0f} idle_p50_ms={statistics.median(idle):.1f}"
        f" idle_p99_ms={idle[int(len(idle) * 0.99)]:.1f}"
        f" cpu_s_per_1000={statistics.median(sum(r.cpu.values()) for r in ours):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="500 runs, one round")
    parser.add_argument("--concurrency", type=int, default=4, help="threads in each of our two worker processes")
    arguments = parser.parse_args()
    runs, rounds = (500, 1) if arguments.quick else (arguments.runs, arguments.rounds)
    ours_rounds, baseline_rounds = [], []
    with servers() as bench:
        ours, baseline = Ours(bench), Baseline(bench)
        threads = ("-P", "threads", "-c", str(arguments.concurrency), "-Q", "runs,system")
        for _ in range(rounds):  # alternating, so that a slow minute of the machine meets both
            with celery_workers("bench.baseline_app", "-c", "2", processes=1, environment=bench.environment) as workers:
                measure(bench, baseline.enqueue, baseline.done, 50, workers)
                baseline_rounds.append(measure(bench, baseline.enqueue, baseline.done, runs, workers))
            with celery_workers("tasks", *threads, processes=2, environment=bench.environment) as workers:
                measure(bench, ours.enqueue, ours.done, 50, workers)
                ours_rounds.append(measure(bench, ours.enqueue, ours.done, runs, workers))
                idle = ours.idle_latencies(200)
    report(ours_rounds, baseline_rounds, idle)


if __name__ == "__main__":
    main()
