"""The load of `make chaos`: several organizations that start runs all the time, and a receiver that sees the effects.

A client keeps every answer. One that got none, or an error of the server, asks again with the same key until it has
one, as a good client would; so what is accepted is known exactly.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

THREADS = 3
"""Of each organization: one that waits for an answer does not end the load."""
PATIENCE = 90.0
"""Seconds that a client asks again before it gives up; a request without an answer is not accepted."""


@dataclass(frozen=True)
class Seen:
    """One request as the receiver saw it."""

    at: float
    key: str
    tenant: str
    secret: str


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was killed is what this is about; anything else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Receiver:
    """A real HTTP server on loopback. It answers with all headers that came, secrets too, to tempt the redactor."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.open: Counter[str] = Counter()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
                outer.take(body, self.headers)
                time.sleep(body.get("takes", 0.05))
                answer = json.dumps({"ok": True, "headers": dict(self.headers.items())}).encode()
                with outer.lock:
                    outer.open[body["tenant"]] -= 1
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    self.close_connection = True  # the caller was killed while it waited

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, body: dict[str, Any], headers: Any) -> None:
        with self.lock:
            self.open[body["tenant"]] += 1
            self.seen.append(
                Seen(time.time(), headers["idempotency-key"], body["tenant"], headers.get("x-secret", "none"))
            )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Tenant:
    """One organization: its client, its workflows by kind, and the secrets that its credential has had."""

    number: int
    id: str
    client: httpx.Client
    receiver: str
    workflows: dict[str, str] = field(default_factory=dict)
    credential: str = ""
    secrets: list[str] = field(default_factory=list)
    suspended: bool = False

    @property
    def marker(self) -> str:
        """A word that only this organization's data hold."""
        return f"marker{self.number}x{self.id}"

    def call(self, step: str, takes: float = 0.05, **keys: Any) -> dict[str, Any]:
        body = {"tenant": self.id, "marker": self.marker, "takes": takes}
        return {
            "id": step,
            "action": "http.request",
            "credential": "sink",
            "with": {"method": "POST", "url": self.receiver, "json": body},
            **keys,
        }

    def new_secret(self) -> dict[str, Any]:
        self.secrets.append(f"canary{self.number}x{uuid.uuid4().hex}")
        return {"service": "http", "name": "sink", "data": {"headers": {"X-Secret": self.secrets[-1]}}}

    def documents(self) -> dict[str, dict[str, Any]]:
        hook, manual = {"type": "webhook"}, {"type": "manual"}
        fails = {"action": "debug.fail", "with": {"message": "twice", "times": 2}}
        retry = {"retry": {"attempts": 4, "initial": "200ms", "max": "1s"}}
        return {
            "child": {"trigger": manual, "steps": [self.call("inner")]},
            "two": {"trigger": hook, "steps": [self.call("first", 0.3), self.call("second", 0.3)]},
            "slow": {"trigger": hook, "steps": [self.call("first"), self.call("long", 2.0), self.call("last")]},
            "retry": {
                "trigger": manual,
                "steps": [self.call("first"), {"id": "shaky", **fails, **retry}, self.call("last")],
            },
            "list": {
                "trigger": hook,
                "steps": [self.call("each", 0.1, for_each={"items": "[1, 2, 3]", "parallel": 1})],
            },
            "wait": {
                "trigger": manual,
                "steps": [self.call("first"), {"id": "rest", "wait": {"for": "2s"}}, self.call("last")],
            },
            "clock": {"trigger": {"type": "schedule", "every": "3s", "missed": "all"}, "steps": [self.call("tick")]},
        }

    def set_up(self) -> None:
        made = self.client.post("/api/credentials", json=self.new_secret())
        made.raise_for_status()
        self.credential = made.json()["id"]
        for kind, document in self.documents().items():
            self.add(kind, document)
        call = {"id": "call", "action": "workflow.run", "with": {"workflow": self.workflows["child"], "input": {}}}
        self.add("parent", {"trigger": {"type": "manual"}, "steps": [call, self.call("last")]})

    def add(self, kind: str, document: dict[str, Any]) -> None:
        answer = self.client.post("/api/workflows", json={"name": kind, "definition": {"name": kind, **document}})
        if answer.status_code != 201:
            raise RuntimeError(f"workflow {kind}: {answer.text}")
        self.workflows[kind] = answer.json()["id"]

    def start(self, kind: str, key: str) -> httpx.Response:
        """One request to start a run; `key` makes it one run however often it is sent."""
        workflow = self.workflows[kind]
        if kind in ("two", "slow", "list"):
            return self.client.post(f"/api/webhooks/{workflow}", json={"m": self.marker}, headers={"webhook-id": key})
        path = f"/api/workflows/{workflow}/runs"
        return self.client.post(path, json={"input": {"m": self.marker}}, headers={"Idempotency-Key": key})


def run_of(answer: httpx.Response) -> str:
    body = answer.json()
    return str(body["run_id"] if "run_id" in body else body["run"]["id"])


KINDS = ("two", "two", "slow", "slow", "retry", "list", "wait", "parent")


class Load:
    """Threads that start runs until they are told to stop."""

    def __init__(self, port: int, tenants: int, rate: float, seed: int) -> None:
        self.receiver = Receiver()
        self._base = f"http://127.0.0.1:{port}"
        self.pause = tenants * THREADS / rate
        self.accepted: dict[str, Tenant] = {}
        self.answers: Counter[str] = Counter()
        self.broken: list[str] = []
        """Answers that no client may get: another run for the same key, or a run of somebody else."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.tenants = [self._tenant(number) for number in range(tenants)]
        self._threads = [
            threading.Thread(
                target=self._drive, args=(tenant, random.Random(seed * 1000 + tenant.number * THREADS + n)), daemon=True
            )
            for tenant in self.tenants
            for n in range(THREADS)
        ]

    def _tenant(self, number: int) -> Tenant:
        client = httpx.Client(base_url=self._base, timeout=15)
        account = {"email": f"chaos{number}@example.com", "password": "correct horse battery"}
        answer = client.post("/api/auth/register", json=account)
        answer.raise_for_status()
        client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        return Tenant(number, answer.json()["tenant"]["id"], client, self.receiver.url)

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE + 30)

    def close(self) -> None:
        self._stop.set()
        for tenant in self.tenants:
            tenant.client.close()
        self.receiver.close()

    def _drive(self, tenant: Tenant, rng: random.Random) -> None:
        while not self._stop.wait(rng.expovariate(1 / self.pause)):
            kind, key = rng.choice(KINDS), uuid.UUID(int=rng.getrandbits(128)).hex
            first = self.ask(tenant, kind, key)
            if first and rng.random() < 0.1:
                self.same_again(tenant, kind, key, first)

    def ask(self, tenant: Tenant, kind: str, key: str) -> str | None:
        """The run that was accepted; None when nobody answered with one in all that time."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                answer = tenant.start(kind, key)
            except httpx.HTTPError as error:
                self._note(type(error).__name__)
            else:
                self._note(str(answer.status_code))
                if answer.status_code == 202:
                    with self._lock:
                        self.accepted[run_of(answer)] = tenant
                    return run_of(answer)
                if answer.status_code < 500 and answer.status_code != 429:
                    return None  # suspended: refused, and so not accepted
            if self._stop.wait(0.5) and time.monotonic() > end - PATIENCE + 20:
                return None
        return None

    def same_again(self, tenant: Tenant, kind: str, key: str, first: str) -> None:
        again = self.ask(tenant, kind, key)
        if again not in (None, first):
            self.broken.append(f"the key {key} made {first} and {again}")

    def _note(self, what: str) -> None:
        with self._lock:
            self.answers[what] += 1
