"""Quotas on a running installation: API, webhooks and a schedule at once, and a worker that is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.installation import Installation, Tenant, installed, wait_for

LIMIT, CALLS = 40, 100
ECHO = {"id": "echo", "action": "debug.echo", "with": {"text": "x"}}


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        installation.start_beat()
        installation.start_worker()
        yield installation


def set_limit(installation: Installation, tenant: str, limit: int) -> None:
    """As another operator's transaction would."""
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        connection.execute(
            "UPDATE tenants SET limits = limits || jsonb_build_object('max_executions_per_month', %s::int)"
            " WHERE id = %s",
            [limit, tenant],
        )


def count(installation: Installation, statement: str) -> int:
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return int(row[0]) if row else 0


def executions(tenant: Tenant) -> int:
    return int(tenant.client.get("/api/usage").json()["executions"])


def test_mixed_starts_are_admitted_exactly_and_the_held_run_once_the_limit_is_raised(
    installation: Installation,
) -> None:
    tenant = installation.tenant()
    hooked = tenant.workflow(ECHO, trigger={"type": "webhook"}, name="hooked")
    set_limit(installation, tenant.id, LIMIT)
    tenant.workflow(ECHO, trigger={"type": "schedule", "every": "1h"}, name="timed")
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE triggers SET next_fire_at = now() WHERE type = 'schedule'")

    def start(number: int) -> str:
        if number == CALLS // 2:
            installation.kill("worker")
        if number % 2:
            answer = tenant.hook(hooked, {"n": number})
        else:
            answer = tenant.client.post(f"/api/workflows/{hooked}/runs", json={"input": {"n": number}})
        assert answer.status_code == 202, answer.text
        found = answer.json()
        return str(found["run_id"] if "run_id" in found else found["run"]["id"])

    with ThreadPoolExecutor(20) as crew:
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
    assert count(installation, "SELECT count(*) FROM runs WHERE wait_reason = 'quota'") == total - LIMIT
    held = next(run for run in tenant.runs() if run["status"] == "held")
    waiting = tenant.client.get(f"/api/runs/{held['id']}/waiting").json()
    assert (waiting["reason"], "quota" in waiting["detail"]) == ("quota", True)

    set_limit(installation, tenant.id, 10 * CALLS)
    wait_for(
        lambda: count(installation, "SELECT count(*) FROM runs WHERE status <> 'succeeded'") == 0 or None,
        "all that was held to run",
        seconds=90,
    )
    report = tenant.client.get("/api/usage").json()
    assert report["executions"] == count(installation, "SELECT count(*) FROM runs")
    assert report["executions"] == report["action_calls"] == report["by_action"][0]["calls"]
    assert tenant.client.get("/api/usage", params={"period": "2026-13"}).status_code == httpx.codes.UNPROCESSABLE_ENTITY
