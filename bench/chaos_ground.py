"""A whole installation of real processes on loopback, for `make chaos`: started, killed, frozen, cut off, ended.

Each worker and the API reach Postgres and Redis through a proxy of their own, so that one of them can be cut off while
the others go on. Every process leads a group and is watched by the guard: nothing outlives this program.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg

import migrations
from bench.harness import ROOT, Proxy, until
from embedded.guard import GUARD
from embedded.ports import free_port
from embedded.postgres import PostgresServer
from embedded.redis import RedisServer

WORKERS = ("worker1", "worker2", "worker3")


class Link:
    """The way of one process to its two servers."""

    def __init__(self, postgres: PostgresServer, redis: RedisServer) -> None:
        self.postgres, self.redis = Proxy(postgres.port), Proxy(redis.port)
        self.variables = {
            "FAIRLANE_DATABASE_URL": postgres.url.replace(f":{postgres.port}/", f":{self.postgres.port}/"),
            "FAIRLANE_REDIS_URL": redis.url.replace(f":{redis.port}/", f":{self.redis.port}/"),
        }

    def close(self) -> None:
        self.postgres.close()
        self.redis.close()


class Ground:
    """Servers, links and processes; `lease` in seconds. What the faults do to it is told in `disturbed`.

    Without `proxies` nothing can be cut off, and nothing is slowed down. `settings` are variables for all processes.
    """

    def __init__(self, folder: Path, lease: float, *, proxies: bool = True, **settings: str) -> None:
        self.folder, self.lease = folder, lease
        self._proxies, self._settings = proxies, settings
        self.postgres = PostgresServer(folder / "postgres", extra=("max_connections=300",))
        self.redis = RedisServer(folder / "redis", durable=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.frozen: set[str] = set()
        self.links: dict[str, Link] = {}
        self.port = free_port()
        self.disturbed: list[float] = []
        """When a server or the network was harmed: what is measured across such a moment is told apart."""
        self.thawed: list[float] = []
        """When a process came back that others had taken for dead."""

    def __enter__(self) -> Ground:
        try:
            self.postgres.start()
            self.redis.start()
            migrations.upgrade(self.postgres.url)
            if self._proxies:
                self.links = {name: Link(self.postgres, self.redis) for name in ("api", *WORKERS)}
            for name in ("api", "beat", *WORKERS):
                self.start(name)
            self.await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for name in list(self.processes):
            self.end(name)
        for link in self.links.values():
            link.close()
        self.redis.stop()
        self.postgres.stop()

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLANE_")}
        return clean | {
            "PYTHONPATH": str(ROOT),
            "FAIRLANE_DATA_DIR": str(self.folder / "data"),
            "FAIRLANE_DATABASE_URL": self.postgres.url,
            "FAIRLANE_REDIS_URL": self.redis.url,
            "FAIRLANE_SECRET_KEY": "chaos-secret-key-" + "s" * 32,
            "FAIRLANE_MASTER_KEYS": "k:" + base64.b64encode(b"chaos" * 6 + b"12").decode(),
            "FAIRLANE_ALLOWED_NETWORKS": "127.0.0.0/8",
            "FAIRLANE_LEASE_SECONDS": str(self.lease),
            **self._settings,
        }

    def start(self, name: str) -> None:
        words = _command(name, self.port)
        variables = self.links[name].variables if name in self.links else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        GUARD.watch(process.pid, signal.SIGKILL)
        self.processes[name] = process

    def end(self, name: str, sig: signal.Signals = signal.SIGKILL, *, within: float = 40.0) -> None:
        """The process and whatever it started, by `sig`; by SIGKILL what does not obey in time."""
        process = self.processes.pop(name)
        self.frozen.discard(name)
        for each in (sig, signal.SIGKILL):
            if process.poll() is None:
                (process.send_signal if each is signal.SIGTERM else _signal_group(process))(each)
                try:
                    process.wait(within)
                except subprocess.TimeoutExpired:
                    continue
        GUARD.release(process.pid)

    def restart(self, name: str, sig: signal.Signals = signal.SIGKILL) -> None:
        self.end(name, sig)
        self.start(name)

    def revive(self) -> None:
        """What should run and does not is started, as a supervisor would."""
        for name in ("api", "beat", *WORKERS):
            if name not in self.processes or self.processes[name].poll() is not None:
                self.processes.pop(name, None)
                self.start(name)

    def freeze(self, name: str) -> None:
        os.killpg(self.processes[name].pid, signal.SIGSTOP)
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        if name in self.frozen:
            os.killpg(self.processes[name].pid, signal.SIGCONT)
            self.frozen.discard(name)
            self.thawed.append(time.time())

    def disturb(self) -> None:
        self.disturbed.append(time.time())

    def empty_redis(self) -> None:
        """Redis dies, and its disk with it."""
        self.redis.kill()
        for left in self.redis.folder.glob("appendonly*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.redis.start()

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def await_ready(self, within: float = 120.0) -> None:
        until(self.ready, within=within, what="the API being ready")

    def fairlane(self, *words: str) -> None:
        """A command of the operator; raises with its words when it fails."""
        command = [sys.executable, "-c", "import cli; cli.main()", *words]
        run = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        if run.returncode != 0:
            raise RuntimeError(f"fairlane {' '.join(words)}: {run.stdout}{run.stderr}")

    def sql(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.postgres.url.replace("+psycopg", ""), autocommit=True, connect_timeout=5)


def _command(name: str, port: int) -> tuple[str, ...]:
    if name == "api":
        return ("uvicorn", "api.app:create_app", "--factory", "--port", str(port), "--log-level", "warning")
    if name.startswith("beat"):
        return ("celery", "-A", "tasks", "beat", "--pidfile=")
    options = (
        "-l",
        "INFO",
        "-P",
        "threads",
        "-c",
        "4",
        "-Q",
        "runs,system",
        "-n",
        f"{name}{time.monotonic_ns()}@chaos",
    )
    return ("celery", "-A", "tasks", "worker", *options)


def _signal_group(process: subprocess.Popen[bytes]) -> Callable[[int], None]:
    return lambda sig: os.killpg(process.pid, sig)


class Recoveries:
    """I6: from the kill of a worker until another has begun what it had in hand, by the attempt number in Postgres."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.clean: list[float] = []
        self.disturbed: list[float] = []
        self._open: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def before_kill(self) -> list[tuple[str, int]]:
        with self._ground.sql() as connection:
            rows = connection.execute("SELECT id, attempt FROM runs WHERE status = 'running'").fetchall()
        return [(str(run), int(str(attempt))) for run, attempt in rows]

    def after_kill(self, running: list[tuple[str, int]]) -> None:
        now = time.time()
        with self._lock:
            self._open.update({run: (attempt, now) for run, attempt in running})

    def look(self) -> None:
        """Closes what has gone on; a run that ended in its old attempt had not been interrupted."""
        with self._lock:
            asked = dict(self._open)
        if not asked:
            return
        with self._ground.sql() as connection:
            rows = connection.execute(
                "SELECT id, attempt, finished_at IS NOT NULL OR status = 'waiting' FROM runs WHERE id = ANY(%s)",
                [list(asked)],
            ).fetchall()
        now = time.time()
        for run, attempt, over in rows:
            before, since = asked[str(run)]
            if int(str(attempt)) > before:
                harmed = any(since <= at <= now for at in self._ground.disturbed)
                (self.disturbed if harmed else self.clean).append(now - since)
            if int(str(attempt)) > before or over:
                with self._lock:
                    self._open.pop(str(run), None)
