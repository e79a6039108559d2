"""The real API on a real socket for tests: uvicorn in a thread, over a database and a Redis of the test's own."""

# Celery has no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import base64
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import uvicorn
from celery import Celery

import actions
from api.app import create_app
from api.auth import issue_token
from api.throttle import Throttle
from embedded.ports import free_port
from engine import api_keys, fairshare, passwords, tenancy
from engine.db import Database
from engine.executor import Executor
from engine.expressions import Evaluator
from engine.pipeline import Tools
from engine.ports import PollMessage, Publisher, RunMessage
from engine.repository import identity
from engine.resume_links import ResumeLinks
from engine.runs import Runs
from engine.settings import Settings
from engine.vault import MasterKeyRing, Vault
from engine.workflows import Workflows
from triggers import KINDS, Receiver

PASSWORD = "correct horse battery"
ECHO = {"id": "echo", "action": "debug.echo", "with": {"text": "hello"}}
_people = itertools.count(1)


@cache
def _password_hash() -> str:
    return passwords.hash_password(PASSWORD)


@dataclass(frozen=True)
class ApiServices:
    """The parts that the API needs, over the test's servers."""

    settings: Settings
    database: Database
    vault: Vault
    actions: actions.Registry
    evaluator: Evaluator
    lanes: fairshare.Lanes
    runs: Runs
    links: ResumeLinks
    workflows: Workflows
    receiver: Receiver


class Collector:
    """A publisher that keeps what it is given, for tests in which no worker runs."""

    def __init__(self) -> None:
        self.messages: list[RunMessage] = []

    def publish(self, messages: Iterable[RunMessage]) -> None:
        self.messages.extend(messages)

    def publish_poll(self, message: PollMessage) -> None:
        raise AssertionError(f"the API polls nothing, not even {message.workflow_id}")

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        return {message.id for message in self.messages} & set(message_ids)


class Queue:
    """A publisher into the fair queue of a Redis, for tests that look at it."""

    def __init__(self, redis_url: str) -> None:
        fairshare.register()
        self._app = Celery(broker=f"fair{redis_url}", set_as_current=False)
        self._app.conf.broker_transport_options = {"fair_queues": ["runs"]}
        self._lanes = fairshare.Lanes(redis_url)

    def publish(self, messages: Iterable[RunMessage]) -> None:
        for message in messages:
            self._app.send_task(
                "fairlane.run",
                args=(message.tenant_id, message.run_id),
                task_id=message.id,
                queue="runs",
                priority=message.priority,
                headers={"tenant_id": message.tenant_id, "flow": message.flow, "lane": message.lane},
            )

    def publish_poll(self, message: PollMessage) -> None:
        raise AssertionError(f"the API polls nothing, not even {message.workflow_id}")

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        return self._lanes.holds(message_ids)

    def close(self) -> None:
        self._app.close()


def settings_for(database_url: str, redis_url: str, **more: Any) -> Settings:
    """Settings with generated keys, whatever the environment says."""
    return Settings.load(
        database_url=database_url,
        redis_url=redis_url,
        secret_key="a key of the tests, which signs nothing else, and is long enough for every algorithm",
        master_keys=f"test:{base64.b64encode(bytes(range(32))).decode()}",
        **more,
    )


def services_for(settings: Settings, publisher: Publisher | None = None) -> ApiServices:
    """Parts like those of `tasks.services`; without a `publisher` no run reaches the queue."""
    database = Database(settings.database_url, pool_size=settings.database_pool_size)
    vault = Vault(MasterKeyRing(settings.master_key_ring))
    registry = actions.build(allowed_networks=settings.allowed_networks, service_urls=settings.service_urls)
    runs = Runs(publisher or Collector())
    return ApiServices(
        settings=settings,
        database=database,
        vault=vault,
        actions=registry,
        evaluator=Evaluator(),
        lanes=fairshare.Lanes(settings.redis_url, queue="runs"),
        runs=runs,
        links=ResumeLinks(settings.secret_key.get_secret_value(), settings.public_url),
        workflows=Workflows(registry, KINDS, vault),
        receiver=Receiver(database, runs, vault, max_bytes=settings.webhook_max_bytes),
    )


@dataclass(frozen=True)
class Person:
    """Somebody who has registered; `http` sends their token."""

    http: httpx.Client
    email: str
    user_id: str
    tenant_id: str
    token: str

    def workflow(self, *steps: Mapping[str, Any], trigger: Mapping[str, Any] | None = None, name: str = "W") -> str:
        """A new workflow, of one step unless given; its id."""
        definition = {"trigger": trigger or {"type": "webhook"}, "steps": steps or [ECHO]}
        answer = self.http.post("/api/workflows", json={"name": name, "definition": definition})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def run(self, workflow_id: str, **body: Any) -> str:
        """A new run of it; its id."""
        answer = self.http.post(f"/api/workflows/{workflow_id}/runs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run"]["id"])


def places(answer: httpx.Response) -> dict[str, str]:
    """The faults of an input that was refused: pointer to sentence."""
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


@dataclass
class Api:
    """A running API."""

    url: str
    services: ApiServices
    _clients: list[httpx.Client] = field(default_factory=list)

    def client(self, token: str | None = None, **headers: str) -> httpx.Client:
        """A client that sends the token."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        client = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self._clients.append(client)
        return client

    def person(self, email: str | None = None, organization: str | None = None) -> Person:
        """Somebody who has registered; without the route, which takes a tenth of a second for the password."""
        email = email or f"person{next(_people)}@example.com"
        with self.services.database.system() as session:
            made = tenancy.register(session, email=email, password_hash=_password_hash(), organization=organization)
        user_id, tenant_id = made.user["id"], made.tenant["id"]
        token = issue_token(self.services.settings, user_id=user_id, tenant_id=tenant_id)
        return Person(http=self.client(token), email=email, user_id=user_id, tenant_id=tenant_id, token=token)

    def work(self, tenant_id: str, run_id: str) -> None:
        """What a worker does that gets the run's message."""
        parts = self.services
        tools = Tools(parts.database, parts.vault, parts.actions, parts.evaluator, parts.runs, parts.links)
        Executor(tools).run(tenant_id, run_id)

    def member(self, tenant_id: str, role: str) -> httpx.Client:
        """Somebody new with that role in the organization, calling into it."""
        person = self.person()
        with self.services.database.system() as session:
            identity.insert_member(session, tenant_id=tenant_id, user_id=person.user_id, role=role)
        return self.client(person.token, **{"X-Tenant-ID": tenant_id})

    def key(self, tenant_id: str, *scopes: str, **more: Any) -> httpx.Client:
        """Calls with a new API key of the organization."""
        with self.services.database.tenant(tenant_id) as session:
            _, secret = api_keys.create(session, name="a key", scopes=scopes, **more)
        return self.client(secret)


@contextmanager
def running_api(services: ApiServices) -> Iterator[Api]:
    """The API on a free port of loopback until the block ends. Its throttle's time stands: no window ends in a test."""
    app, began = create_app(services), time.time()
    app.state.throttle = Throttle(services.settings.redis_url, clock=lambda: began)
    config = uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="error", lifespan="on", backlog=512)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    api = Api(f"http://127.0.0.1:{config.port}", services)
    try:
        _wait_until_started(server, thread)
        yield api
    finally:
        for client in api._clients:
            client.close()
        server.should_exit = True
        thread.join(10)
        services.evaluator.close()
        services.actions.close()
        services.database.close()


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    waiting = threading.Event()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the API did not start; its log says why")
        waiting.wait(0.01)
