"""A whole installation for acceptance tests: API, workers and beat as processes of their own, to be killed at will.

Its lease is short (3 s), so that what an operator waits half a minute for takes a moment here. Everything is driven
through the HTTP API, as an outsider would.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import httpx

from embedded.ports import free_port
from embedded.redis import RedisServer

ROOT = Path(__file__).parents[1]
LEASE_SECONDS = 3
_people = itertools.count(1)
T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, *, seconds: float = 40.0) -> T:
    """The first true value of `condition`; fails with `what` when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        threading.Event().wait(0.05)


class Receiver:
    """A real HTTP receiver on loopback. It keeps what arrives, and answers only while its gate is open."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((headers, json.loads(body) if body else None))
                outer.gate.wait(60)
                try:
                    self.send_response(200)
                    self.send_header("content-length", "0")
                    self.end_headers()
                except OSError:
                    pass  # the caller was killed while it waited

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def keys(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.requests]

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Installation:
    """Processes over one database and one Redis."""

    folder: Path
    database_url: str
    redis: RedisServer
    receiver: Receiver = field(default_factory=Receiver)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    clients: list[httpx.Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "FAIRLANE_DATA_DIR": str(self.folder),
            "FAIRLANE_DATABASE_URL": self.database_url,
            "FAIRLANE_REDIS_URL": self.redis.url,
            "FAIRLANE_SECRET_KEY": "s" * 40,
            "FAIRLANE_MASTER_KEYS": "k:" + base64.b64encode(b"1" * 32).decode(),
            "FAIRLANE_ALLOWED_NETWORKS": "127.0.0.0/8",
            "FAIRLANE_LEASE_SECONDS": str(LEASE_SECONDS),
        }

    def start(self, name: str, *words: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        """A process of our Python; `variables` are added to its environment."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_api(self) -> None:
        self.start("api", "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(self.port))
        wait_for(self.answers, "the API to be ready")

    def start_worker(
        self,
        name: str = "worker",
        *,
        pool: str = "threads",
        level: str = "INFO",
        program: tuple[str, ...] = ("-m", "celery"),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        options = ("-l", level, "-P", pool, "-c", "4", "-Q", "runs,system", "-n", f"{name}@test")
        self.start(name, *program, "-A", "tasks", "worker", *options, variables=variables)
        wait_for(lambda: b" ready." in (self.folder / f"{name}.log").read_bytes(), f"{name} to be ready")

    def start_beat(self, name: str = "beat", *, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        self.start(name, "-m", "celery", "-A", "tasks", "beat", "--pidfile=", variables=variables)

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """End the process and whatever it started."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, sig)
        process.wait(30)

    def answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.receiver.close()
        for name in list(self.processes):
            self.kill(name)

    def tenant(self) -> Tenant:
        """A new organization with an owner, logged in."""
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.clients.append(client)
        email = f"owner{next(_people)}@example.com"
        answer = client.post("/api/auth/register", json={"email": email, "password": "correct horse battery"})
        assert answer.status_code == 201, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        return Tenant(client, answer.json()["tenant"]["id"])


@dataclass
class Tenant:
    """One organization, through the API."""

    client: httpx.Client
    id: str

    def workflow(self, *steps: dict[str, Any], trigger: dict[str, Any] | None = None, name: str = "W") -> str:
        document = {"name": name, "trigger": trigger or {"type": "webhook"}, "steps": list(steps)}
        answer = self.client.post("/api/workflows", json={"name": name, "definition": document})
        assert answer.status_code == 201, answer.text
        workflow_id: str = answer.json()["id"]
        return workflow_id

    def hook(self, workflow_id: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.client.post(f"/api/webhooks/{workflow_id}", json=body or {}, headers=headers)

    def run(self, run_id: str) -> dict[str, Any]:
        row: dict[str, Any] = self.client.get(f"/api/runs/{run_id}").json()
        return row

    def runs(self, **query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            more = {"cursor": cursor} if cursor else {}
            page = self.client.get("/api/runs", params={"limit": 200, **query, **more}).json()
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    def finished(self, run_id: str, *, seconds: float = 40.0) -> dict[str, Any]:
        """The run once it has ended."""

        def ended() -> dict[str, Any] | None:
            row = self.run(run_id)
            return row if row["status"] in ("succeeded", "failed", "cancelled") else None

        return wait_for(ended, f"the run {run_id} to end", seconds=seconds)

    def succeeded(self, workflow_id: str, count: int) -> list[dict[str, Any]]:
        """The workflow's succeeded runs once there are at least so many."""

        def enough() -> list[dict[str, Any]] | None:
            rows = self.runs(workflow_id=workflow_id, status="succeeded")
            return rows if len(rows) >= count else None

        return wait_for(enough, f"{count} runs to succeed")


@contextmanager
def installed(folder: Path, database_url: str) -> Iterator[Installation]:
    """An installation with its own Redis; nothing is started yet but that."""
    installation = Installation(folder, database_url, RedisServer(folder / "redis").start())
    try:
        yield installation
    finally:
        installation.close()
        installation.redis.stop()
