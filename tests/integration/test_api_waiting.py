"""Why a run waits, asked over the real API of a real queue."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from redis import ConnectionPool

from embedded.redis import RedisServer
from engine.errors import Suspend
from engine.executor import Executor
from engine.fairshare.hands import Hands
from engine.fairshare.scripts import Keys
from engine.pipeline import Tools
from engine.ports import Action, Json, StepContext
from engine.repository import runs as stored_runs
from engine.runs import FLOODED, Start
from tests.api_server import Api, Person, Queue, running_api, services_for, settings_for

QUEUE = Keys.of("runs")


@pytest.fixture
def api(database_url: str, redis_url: str) -> Iterator[Api]:
    queue = Queue(redis_url)
    with running_api(services_for(settings_for(database_url, redis_url), queue)) as running:
        yield running
    queue.close()


@pytest.fixture
def person(api: Api) -> Person:
    return api.person()


@pytest.fixture
def hands(redis_url: str) -> Iterator[Hands]:
    """A worker's hands in the queue: it is known to be there, and claims when a test says so."""
    pool = ConnectionPool.from_url(redis_url)
    hands = Hands(pool)
    hands.queues.add(QUEUE)
    hands.run_once()
    yield hands
    hands.close()
    pool.disconnect()


def claim(hands: Hands) -> str:
    (message,) = hands.exchange(QUEUE, 1).messages
    return message.id


def waiting(person: Person, run_id: str) -> dict[str, Any]:
    answer = person.http.get(f"/api/runs/{run_id}/waiting")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["since"])) < timedelta(minutes=1)
    assert found["detail"].endswith(".")
    return found


def test_without_a_worker_it_says_so_and_what_is_ahead(person: Person) -> None:
    workflow_id = person.workflow()
    run_ids = [person.run(workflow_id) for _ in range(3)]
    found = [waiting(person, run_id) for run_id in run_ids]
    assert [(one["reason"], one["position"]) for one in found] == [("no_worker", 0), ("no_worker", 1), ("no_worker", 2)]
    assert found[0]["since"] == person.http.get(f"/api/runs/{run_ids[0]}").json()["queued_at"]


@pytest.mark.usefixtures("hands")
def test_a_turn_comes_behind_the_runs_of_its_workflow_by_priority(person: Person) -> None:
    workflow_id = person.workflow()
    late = person.run(workflow_id, priority=9)
    early = person.run(workflow_id, priority=0)
    found = [waiting(person, run_id) for run_id in (early, late)]
    assert [(one["reason"], one["position"]) for one in found] == [("fair_turn", 0), ("fair_turn", 1)]
    assert "next" in found[0]["detail"]
    assert "at least 1 other" in found[1]["detail"]


def test_a_tenant_whose_turn_comes_later_is_behind_the_others(api: Api, person: Person, hands: Hands) -> None:
    mine = person.workflow()
    first, second = person.run(mine), person.run(mine)
    other = api.person()
    theirs = other.run(other.workflow())
    assert claim(hands) == first
    assert (waiting(other, theirs)["position"], waiting(person, second)["position"]) == (0, 1)


def test_a_run_in_a_workers_hand_is_about_to_begin(person: Person, hands: Hands) -> None:
    run_id = person.run(person.workflow())
    claim(hands)
    found = waiting(person, run_id)
    assert (found["reason"], found["position"]) == ("fair_turn", 0)
    assert "about to begin" in found["detail"]


def test_a_tenant_at_its_cap_waits_for_one_of_its_own(api: Api, person: Person, hands: Hands) -> None:
    workflow_id = person.workflow()
    first, second = person.run(workflow_id), person.run(workflow_id)
    api.services.lanes.configure(person.tenant_id, cap=1)
    assert claim(hands) == first
    found = waiting(person, second)
    assert (found["reason"], found["position"]) == ("tenant_concurrency", 0)
    assert "(1)" in found["detail"]


def test_a_tenant_at_its_rate_waits_for_the_next_moment(api: Api, person: Person, hands: Hands) -> None:
    workflow_id = person.workflow()
    first, second = person.run(workflow_id), person.run(workflow_id)
    api.services.lanes.configure(person.tenant_id, rate=0.01, burst=1)
    assert claim(hands) == first
    found = waiting(person, second)
    assert (found["reason"], found["position"]) == ("rate", 0)
    assert "100 s" in found["detail"] or "99 s" in found["detail"]


@pytest.mark.usefixtures("hands")
def test_a_paused_tenant_is_told_and_goes_on_when_resumed(api: Api, person: Person) -> None:
    run_id = person.run(person.workflow())
    api.services.lanes.pause(person.tenant_id)
    assert waiting(person, run_id)["reason"] == "paused"
    api.services.lanes.resume(person.tenant_id)
    assert waiting(person, run_id)["reason"] == "fair_turn"


@pytest.mark.usefixtures("hands")
def test_a_run_that_redis_lost_is_on_its_way_again(api: Api, person: Person) -> None:
    run_id = person.run(person.workflow())
    assert api.services.lanes.cancel(run_id)
    found = waiting(person, run_id)
    assert (found["reason"], found.get("position")) == ("fair_turn", None)
    assert "stored" in found["detail"]


@pytest.mark.parametrize(
    ("cause", "says"),
    [("max_executions_per_month", "next month"), (FLOODED, "releases"), ("something new", "something new")],
)
def test_a_held_run_names_its_quota(api: Api, person: Person, cause: str, says: str) -> None:
    request = Start(workflow_id=person.workflow(), trigger="api", input={}, hold=cause)
    with api.services.database.tenant(person.tenant_id) as session:
        run = api.services.runs.start(session, request).run
    found = waiting(person, run["id"])
    assert (found["reason"], found.get("position")) == ("quota", None)
    assert says in found["detail"]


class Anything(BaseModel):
    text: str = ""


class Suspending(Action):
    """Leaves the worker instead of doing anything."""

    name = "debug.echo"
    summary = "Suspends."
    service = None
    credential_required = False
    has_effects = False
    honours_deadline = True
    input_model = Anything
    output_schema = {}  # noqa: RUF012

    def __init__(self, reason: str, wake_at: datetime | None) -> None:
        self._suspension = (reason, wake_at)

    def run(self, context: StepContext, parameters: Anything) -> Json:
        reason, wake_at = self._suspension
        raise Suspend(reason, wake_at=wake_at)


def execute(api: Api, person: Person, run_id: str, *others: Action) -> None:
    parts = api.services
    registry = {**parts.actions, **{action.name: action for action in others}}
    Executor(Tools(parts.database, parts.vault, registry, parts.evaluator, parts.runs)).run(person.tenant_id, run_id)


TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize(
    ("cause", "wake_at", "reason", "says"),
    [
        ("sleeping", TOMORROW, "sleeping", "A step sleeps until 20"),
        ("approval", None, "approval", "A step waits for an approval."),
        ("approval", TOMORROW, "approval", "A step waits for an approval until 20"),
        ("until the market opens", TOMORROW, "sleeping", "A step sleeps (until the market opens) until 20"),
        ("somebody must sign", None, "approval", "A step waits for an approval (somebody must sign)."),
        ("concurrency", None, "tenant_concurrency", "the workflow's own limit (its `concurrency`)"),
        ("workflow", None, "sleeping", "A step waits for the end of the workflow's run that it started."),
        ("outcome_unknown", None, "approval", "outcome_unknown"),
    ],
)
def test_a_parked_run_says_what_it_waits_for(
    api: Api, person: Person, cause: str, wake_at: datetime | None, reason: str, says: str
) -> None:
    run_id = person.run(person.workflow())
    execute(api, person, run_id, Suspending(cause, wake_at))
    found = waiting(person, run_id)
    assert found["reason"] == reason
    assert "position" not in found
    assert says in found["detail"]
    assert (f"{TOMORROW:%Y-%m-%d}" in found["detail"]) == (wake_at is not None)
    assert ("wake_at" in person.http.get(f"/api/runs/{run_id}").json()) == (wake_at is not None)


def test_a_run_between_two_attempts_says_when_the_next_one_comes(api: Api, person: Person) -> None:
    step = {
        "id": "bad",
        "action": "debug.fail",
        "with": {"message": "no"},
        "retry": {"attempts": 5, "initial": "20m", "max": "1h"},
    }
    run_id = person.run(person.workflow(step))
    execute(api, person, run_id)
    found = waiting(person, run_id)
    assert found["reason"] == "retry_backoff"
    assert "tried again at 20" in found["detail"]


def test_a_run_that_runs_or_has_ended_does_not_wait(api: Api, person: Person) -> None:
    workflow_id = person.workflow()
    running, cancelled, done = (person.run(workflow_id) for _ in range(3))
    with api.services.database.tenant(person.tenant_id) as session:
        stored_runs.begin(session, running, stale_seconds=15)
    person.http.post(f"/api/runs/{cancelled}/cancel")
    execute(api, person, done)
    for run_id, says in ((running, "is running"), (cancelled, "was cancelled"), (done, "has succeeded")):
        answer = person.http.get(f"/api/runs/{run_id}/waiting")
        assert (answer.status_code, answer.json()["code"]) == (409, "run_not_waiting")
        assert says in answer.json()["detail"]


def test_while_redis_is_down_nobody_knows_and_what_postgres_knows_is_told(database_url: str, tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    try:
        with running_api(services_for(settings_for(database_url, server.url))) as api:
            person = api.person()
            workflow_id = person.workflow()
            queued = person.run(workflow_id)
            parked = person.run(workflow_id)
            execute(api, person, parked, Suspending("sleeping", TOMORROW))
            server.kill()
            answer = person.http.get(f"/api/runs/{queued}/waiting")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert "stored" in answer.json()["detail"]
            assert waiting(person, parked)["reason"] == "sleeping"
    finally:
        server.stop()
