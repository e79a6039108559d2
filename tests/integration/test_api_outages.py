"""The API while Postgres or Redis is gone: what it still does, what it says, and that it recovers by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

import migrations
from embedded.postgres import PostgresServer
from tests.api_server import ECHO, Api, Person, running_api, services_for, settings_for
from tests.installation import Installation, Tenant, installed, wait_for


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of this test alone, to be killed."""
    server = PostgresServer(tmp_path / "postgres", fast=True).start()
    migrations.upgrade(server.url)
    yield server
    server.stop()


def unavailable(answer: httpx.Response) -> bool:
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert "again" in answer.json()["detail"]
    assert "port" not in answer.json()["detail"], "callers need not know where our servers are"
    return True


def test_while_postgres_is_down_everything_says_so_and_afterwards_everything_works(
    postgres: PostgresServer, redis_url: str
) -> None:
    with running_api(services_for(settings_for(postgres.url, redis_url))) as api:
        person = api.person()
        workflow_id = person.workflow()
        run_id = person.run(workflow_id)
        postgres.kill()
        assert all(map(unavailable, _calls(api, person, workflow_id, run_id)))
        assert api.client().get("/healthz").status_code == 200
        not_ready = api.client().get("/readyz")
        assert (not_ready.status_code, not_ready.json()["code"]) == (503, "not_ready")
        assert "Postgres" in not_ready.json()["detail"]
        postgres.start()
        answers = list(_calls(api, person, workflow_id, run_id))
        assert [answer.status_code for answer in answers] == [200, 201, 202, 202, 200, 200, 200, 401]
        assert len(person.http.get("/api/runs").json()["items"]) == 3


def _calls(api: Api, person: Person, workflow_id: str, run_id: str) -> Iterator[httpx.Response]:
    document = {"name": "W", "definition": {"trigger": {"type": "manual"}, "steps": [ECHO]}}
    yield person.http.get("/api/workflows")
    yield person.http.post("/api/workflows", json=document)
    yield person.http.post(f"/api/workflows/{workflow_id}/runs")
    yield api.client().post(f"/api/webhooks/{workflow_id}", json={})
    yield person.http.get(f"/api/runs/{run_id}")
    yield person.http.get(f"/api/runs/{run_id}/waiting")
    yield person.http.get("/api/me")
    yield api.client().post("/api/auth/login", json={"email": "nobody@example.com", "password": "not the password"})


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    """The API as a process of its own, with the publisher that it really has."""
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        yield installation


def start(tenant: Tenant, workflow_id: str, **headers: str) -> httpx.Response:
    return tenant.client.post(f"/api/workflows/{workflow_id}/runs", json={"input": {}}, headers=headers)


def test_while_redis_is_down_runs_and_webhooks_are_accepted_once_for_each_key(installation: Installation) -> None:
    tenant = installation.tenant()
    workflow_id = tenant.workflow(ECHO)
    installation.redis.kill()
    began = time.monotonic()
    started = [start(tenant, workflow_id, **{"Idempotency-Key": "k"}) for _ in range(2)]
    hooked = [tenant.hook(workflow_id, {"n": n}, **{"webhook-id": "e"}) for n in range(2)]
    assert {answer.status_code for answer in [*started, *hooked]} == {202}
    assert len({answer.json()["run"]["id"] for answer in started}) == 1
    assert len({answer.json()["run_id"] for answer in hooked}) == 1
    assert time.monotonic() - began < 5
    assert {run["status"] for run in tenant.runs()} == {"queued"}
    assert unavailable_or_waiting(tenant, started[0].json()["run"]["id"]) == 503
    installation.redis.start()
    wait_for(lambda: unavailable_or_waiting(tenant, started[0].json()["run"]["id"]) == 200, "the queue to be known")
    installation.start_worker()
    installation.start_beat()
    for answer in (started[0].json()["run"]["id"], hooked[0].json()["run_id"]):
        assert tenant.finished(answer)["status"] == "succeeded"


def unavailable_or_waiting(tenant: Tenant, run_id: str) -> int:
    return tenant.client.get(f"/api/runs/{run_id}/waiting").status_code


@contextmanager
def frozen(installation: Installation) -> Iterator[None]:
    """Redis keeps its connections and answers nothing."""
    process = installation.redis.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def timed(tenant: Tenant, workflow_id: str) -> tuple[float, str]:
    """A start, its seconds, and the run."""
    began = time.monotonic()
    answer = start(tenant, workflow_id)
    assert answer.status_code == 202, answer.text
    return time.monotonic() - began, answer.json()["run"]["id"]


def test_a_redis_that_hangs_holds_up_only_those_who_find_out(installation: Installation) -> None:
    tenant = installation.tenant()
    workflow_id = tenant.workflow(ECHO)
    with ThreadPoolExecutor(16) as callers:
        one = partial(timed, tenant, workflow_id)
        before = [call.result() for call in [callers.submit(one) for _ in range(16)]]
        with frozen(installation):
            first = [call.result() for call in [callers.submit(one) for _ in range(16)]]
            began = time.monotonic()
            later = []
            while time.monotonic() - began < 6:  # longer than any timeout: nobody is sent ahead to try again
                later += [call.result() for call in [callers.submit(one) for _ in range(16)]]
    seconds = sorted(took for took, _ in later)
    assert max(took for took, _ in first) < 3
    assert seconds[int(len(seconds) * 0.99)] < 1
    installation.start_worker()
    installation.start_beat()
    runs = [run for _, run in before + first + later[:: len(later) // 20]]
    assert {tenant.finished(run)["status"] for run in runs} == {"succeeded"}
