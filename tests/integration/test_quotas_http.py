"""Quotas over HTTP: fifty clients by API and webhook beside a schedule, and what is refused with which answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from engine.held import Held
from engine.usage import Period
from tests.api_server import Api, Collector, Person, running_api, services_for, settings_for
from triggers import Scheduler

LIMIT, STARTS, SCHEDULES = 100, 400, 20


@pytest.fixture(scope="module")
def broker() -> Collector:
    return Collector()


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any, broker: Collector) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url), broker)) as running:
        yield running


def change(api: Api, statement: str, **parameters: object) -> None:
    with api.services.database.system() as session:
        session.execute(sa.text(statement), parameters)


def limit(api: Api, person: Person, **limits: object) -> None:
    """As `fairlane tenants set-limit` and `over-quota` do."""
    for name, value in limits.items():
        change(
            api,
            "UPDATE tenants SET limits = limits || jsonb_build_object(CAST(:name AS text), CAST(:value AS text)),"
            " limits_version = nextval('limits_version') WHERE id = :id",
            id=person.tenant_id,
            name=name,
            value=str(value),
        )


def runs(api: Api, person: Person) -> list[dict[str, Any]]:
    with api.services.database.tenant(person.tenant_id) as session:
        return session.rows(sa.text("SELECT id, status, wait_reason, trigger FROM runs ORDER BY id"))


def test_of_four_hundred_mixed_starts_a_hundred_are_admitted_and_the_others_go_in_their_order(
    api: Api, broker: Collector
) -> None:
    person = api.person()
    limit(api, person, max_executions_per_month=LIMIT)
    hooked = person.workflow()
    for number in range(SCHEDULES):
        person.workflow(trigger={"type": "schedule", "every": "1h"}, name=f"timed {number}")
    change(api, "UPDATE triggers SET next_fire_at = now() WHERE type = 'schedule'")
    broker.messages.clear()

    def start(number: int) -> str:
        key = {"Idempotency-Key": f"start-{number}"}
        if number % 2:
            answer = person.http.post(
                f"/api/webhooks/{hooked}", json={"n": number}, headers={"webhook-id": str(number)}
            )
            return str(answer.json()["run_id"])
        answer = person.http.post(f"/api/workflows/{hooked}/runs", json={"input": {}}, headers=key)
        return str(answer.json()["run"]["id"])

    with ThreadPoolExecutor(51) as crew:
        timed = crew.submit(Scheduler(api.services.database, api.services.runs, broker).run_once)
        asked = list(crew.map(start, range(STARTS - SCHEDULES)))
        timed.result()
        assert list(crew.map(start, range(0, STARTS - SCHEDULES, 19))) == asked[::19], (
            "a repeated request is the same run"
        )

    made = runs(api, person)
    assert set(asked) <= {run["id"] for run in made}
    assert len(made) == STARTS == len(set(asked)) + SCHEDULES
    held = Held(api.services.database, api.services.runs)
    held.run_once()  # what a schedule could not wait to have counted
    assert (_count(api, person, "queued"), _count(api, person, "held")) == (LIMIT, STARTS - LIMIT)
    assert {run["wait_reason"] for run in runs(api, person) if run["status"] == "held"} == {"quota"}
    assert person.http.get("/api/usage").json()["executions"] == LIMIT == len(broker.messages)

    waiting = [run["id"] for run in runs(api, person) if run["status"] == "held"]
    limit(api, person, max_executions_per_month=STARTS)
    broker.messages.clear()
    assert held.run_once().released == STARTS - LIMIT
    assert [message.run_id for message in broker.messages] == waiting
    usage = person.http.get("/api/usage").json()
    assert (usage["executions"], _count(api, person, "queued")) == (STARTS, STARTS)
    assert usage["rejected"] == 0


def _count(api: Api, person: Person, status: str) -> int:
    return sum(run["status"] == status for run in runs(api, person))


def _refusal(answer: httpx.Response) -> tuple[int, str, int]:
    """Status, code, and the seconds until one should try again."""
    return answer.status_code, answer.json()["code"], int(answer.headers["retry-after"])


def test_over_the_month_a_start_from_outside_is_refused_until_the_next_where_that_is_the_policy(api: Api) -> None:
    person = api.person()
    hooked = person.workflow()
    limit(api, person, max_executions_per_month=1, over_quota="reject")
    person.run(hooked)
    for address in (f"/api/workflows/{hooked}/runs", f"/api/webhooks/{hooked}"):
        status, code, seconds = _refusal(person.http.post(address, json={}))
        assert (status, code) == (429, "quota_executions")
        left = (Period.of(datetime.now(UTC)).end - datetime.now(UTC)).total_seconds()
        assert left - 5 < seconds < left + 5
    assert "max_executions_per_month" in person.http.post(f"/api/webhooks/{hooked}", json={}).json()["detail"]
    usage = person.http.get("/api/usage").json()
    assert (usage["executions"], usage["rejected"], usage["held"]) == (1, 3, 0)
    assert len(runs(api, person)) == 1


def test_a_full_queue_refuses_what_comes_from_outside_and_says_when_to_try_again(api: Api) -> None:
    person = api.person()
    hooked = person.workflow()
    limit(api, person, max_queued_runs=2)
    for _ in range(2):
        person.run(hooked)
    for address in (f"/api/workflows/{hooked}/runs", f"/api/webhooks/{hooked}"):
        assert _refusal(person.http.post(address, json={})) == (429, "quota_queue", 10)
    change(
        api,
        "UPDATE runs SET status = 'cancelled', finished_at = now()"
        " WHERE id = (SELECT max(id) FROM runs WHERE tenant_id = :t)",
        t=person.tenant_id,
    )
    assert person.http.post(f"/api/webhooks/{hooked}", json={}).status_code == 202
    assert person.http.get("/api/usage").json()["rejected"] == 2
