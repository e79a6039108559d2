"""Quotas on a running installation: fifty clients by API and webhook beside a schedule; API and worker are killed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.installation import Installation, Tenant, installed, wait_for

LIMIT, CALLS, CLIENTS = 50, 200, 50
ECHO = {"id": "echo", "action": "debug.echo", "with": {"text": "x"}}


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        installation.start_beat()
        installation.start_worker()
        yield installation


def set_limit(installation: Installation, tenant: str, limit: int) -> None:
    """As `fairlane tenants set-limit` does."""
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        connection.execute(
            "UPDATE tenants SET limits = limits || jsonb_build_object('max_executions_per_month', %s::int),"
            " limits_version = nextval('limits_version') WHERE id = %s",
            [limit, tenant],
        )


def count(installation: Installation, statement: str) -> int:
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return int(row[0]) if row else 0


def now(installation: Installation) -> datetime:
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT now()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def let_go_and_overtaken(installation: Installation, since: datetime) -> tuple[int, int]:
    """How many runs were let go since a moment, and how many of them before an older one."""
    statement = (
        "SELECT count(*), count(*) FILTER (WHERE queued_at < before) FROM ("
        " SELECT queued_at, lag(queued_at) OVER (ORDER BY id) AS before FROM runs WHERE queued_at > %s) AS released"
    )
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(statement, [since]).fetchone()
    assert row is not None
    return row[0], row[1]


def executions(tenant: Tenant) -> int:
    return int(tenant.client.get("/api/usage").json()["executions"])


def answered(tenant: Tenant, address: str, number: int) -> httpx.Response | None:
    """None when nobody answered: then it is sent again, under the same key."""
    key = {"Idempotency-Key": f"call-{number}", "webhook-id": f"call-{number}"}
    try:
        answer = tenant.client.post(address, json={"input": {"n": number}}, headers=key)
    except httpx.TransportError:
        return None
    return None if answer.status_code >= 500 else answer


def test_mixed_starts_are_admitted_exactly_while_processes_die_and_the_held_run_once_the_limit_is_raised(
    installation: Installation,
) -> None:
    tenant = installation.tenant()
    hooked = tenant.workflow(ECHO, trigger={"type": "webhook"}, name="hooked")
    set_limit(installation, tenant.id, LIMIT)
    tenant.workflow(ECHO, trigger={"type": "schedule", "every": "1h"}, name="timed")
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE triggers SET next_fire_at = now() WHERE type = 'schedule'")

    def start(number: int) -> str:
        if number == CALLS // 4:
            installation.kill("api")
            installation.start_api()
        if number == CALLS // 2:
            installation.kill("worker")
        address = f"/api/webhooks/{hooked}" if number % 2 else f"/api/workflows/{hooked}/runs"
        answer = wait_for(lambda: answered(tenant, address, number), "an answer of the API")
        assert answer.status_code == 202, answer.text
        found = answer.json()
        return str(found["run_id"] if "run_id" in found else found["run"]["id"])

    with ThreadPoolExecutor(CLIENTS) as crew:
        made = list(crew.map(start, range(CALLS)))
    assert len(set(made)) == CALLS
    wait_for(lambda: count(installation, "SELECT count(*) FROM runs WHERE trigger = 'schedule'") > 0, "the schedule")
    wait_for(lambda: executions(tenant) == LIMIT or None, "the whole limit to be admitted")
    installation.start_worker("another")
    wait_for(
        lambda: count(installation, "SELECT count(*) FROM runs WHERE status = 'succeeded'") == LIMIT or None,
        "what was admitted to run, also what the dead worker had",
        seconds=90,
    )
    total = count(installation, "SELECT count(*) FROM runs")
    assert total == CALLS + count(installation, "SELECT count(*) FROM runs WHERE trigger = 'schedule'")
    assert count(installation, "SELECT count(*) FROM runs WHERE wait_reason = 'quota'") == total - LIMIT
    held = next(run for run in tenant.runs(limit=1, status="held"))
    waiting = tenant.client.get(f"/api/runs/{held['id']}/waiting").json()
    assert (waiting["reason"], "quota" in waiting["detail"]) == ("quota", True)

    raised = now(installation)
    set_limit(installation, tenant.id, 10 * CALLS)
    wait_for(
        lambda: count(installation, "SELECT count(*) FROM runs WHERE status <> 'succeeded'") == 0 or None,
        "all that was held to run",
        seconds=90,
    )
    assert let_go_and_overtaken(installation, raised) == (total - LIMIT, 0)
    report = tenant.client.get("/api/usage").json()
    assert report["executions"] == count(installation, "SELECT count(*) FROM runs")
    assert report["executions"] == report["action_calls"] == report["by_action"][0]["calls"]
    assert tenant.client.get("/api/usage", params={"period": "2026-13"}).status_code == httpx.codes.UNPROCESSABLE_ENTITY
