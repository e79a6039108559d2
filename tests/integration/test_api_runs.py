"""Runs over the real API: started once for each key, listed, shown with steps and log, ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.paging import PAGE_BYTES
from engine.executor import Executor
from engine.held import Held
from engine.pipeline import Tools
from engine.runs import FLOODED, Start
from tests.api_server import ECHO, Api, Collector, Person, places, running_api, services_for, settings_for


@pytest.fixture(scope="module")
def broker() -> Collector:
    return Collector()


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any, broker: Collector) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url), broker)) as running:
        yield running


@pytest.fixture
def person(api: Api) -> Person:
    return api.person()


def execute(api: Api, person: Person, run_id: str) -> None:
    """What a worker does with the run."""
    parts = api.services
    tools = Tools(parts.database, parts.vault, parts.actions, parts.evaluator, parts.runs)
    Executor(tools).run(person.tenant_id, run_id)


def start(person: Person, workflow_id: str, body: Any = None, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return person.http.post(f"/api/workflows/{workflow_id}/runs", json=body, headers=headers)


def test_a_started_run_is_stored_published_and_shown(person: Person, broker: Collector) -> None:
    workflow_id = person.workflow(trigger={"type": "manual"})
    answer = start(person, workflow_id, {"input": {"city": "Rome"}, "priority": 2})
    assert answer.status_code == 202
    assert answer.json()["idempotent"] is False
    run = answer.json()["run"]
    assert run["id"].startswith("run_")
    assert run["queued_at"].endswith("Z")
    assert run == {
        "id": run["id"],
        "workflow_id": workflow_id,
        "version": 1,
        "status": "queued",
        "trigger": "api",
        "input": {"input": {"city": "Rome"}},
        "output": None,
        "error": None,
        "attempt": 0,
        "queued_at": run["queued_at"],
        "started_at": None,
        "finished_at": None,
    }
    (message,) = [message for message in broker.messages if message.run_id == run["id"]]
    assert (message.tenant_id, message.flow, message.priority) == (person.tenant_id, workflow_id, 2)
    assert person.http.get(f"/api/runs/{run['id']}").json() == run


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, {}),
        ({"json": {}}, {}),
        ({"json": {"input": None}}, {}),
        ({"json": {"input": [1, "x"]}}, [1, "x"]),
        ({"json": {"input": {"deep": [[[[]]]], "large": 2**70}}}, {"deep": [[[[]]]], "large": 2**70}),
        ({"content": b'{"input": ' + b"[" * 150 + b"]" * 150 + b"}", "headers": {"Content-Type": "application/json"}},
         json.loads("[" * 150 + "]" * 150)),
    ],
)  # fmt: skip
def test_the_input_may_be_anything_or_nothing(person: Person, request_: dict[str, Any], expected: Any) -> None:
    answer = person.http.post(f"/api/workflows/{person.workflow()}/runs", **request_)
    assert answer.status_code == 202
    assert answer.json()["run"]["input"] == {"input": expected}


def test_the_same_key_is_the_same_run_also_from_many_sides_at_once(person: Person) -> None:
    workflow_id = person.workflow()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: start(person, workflow_id, {"input": {"n": n}}, "key"), range(40)))
    assert {answer.status_code for answer in answers} == {202}
    bodies = [answer.json() for answer in answers]
    assert [body["idempotent"] for body in bodies].count(False) == 1
    assert len({body["run"]["id"] for body in bodies}) == 1
    assert len({body["run"]["input"]["input"]["n"] for body in bodies}) == 1
    assert len(person.http.get("/api/runs").json()["items"]) == 1


def test_a_key_counts_within_its_workflow_and_outlives_its_switch(api: Api, person: Person) -> None:
    first, second = person.workflow(), person.workflow()
    other = api.person()
    runs = {
        start(who, workflow_id, key="k").json()["run"]["id"]
        for who, workflow_id in ((person, first), (person, second), (other, other.workflow()))
    }
    assert len(runs) == 3
    person.http.patch(f"/api/workflows/{first}", json={"is_active": False})
    again = start(person, first, key="k")
    assert (again.status_code, again.json()["idempotent"]) == (202, True)
    assert start(person, first, key="new").json()["code"] == "workflow_inactive"


@pytest.mark.parametrize(
    ("body", "key", "pointer"),
    [
        ({"priority": 10}, None, "/priority"),
        ({"priority": -1}, None, "/priority"),
        ({"inputs": {}}, None, "/inputs"),
        ([], None, ""),
        ({}, "", "/Idempotency-Key"),
        ({}, "k" * 256, "/Idempotency-Key"),
    ],
)
def test_a_faulty_start_is_refused_with_the_place(person: Person, body: Any, key: str | None, pointer: str) -> None:
    assert list(places(start(person, person.workflow(), body, key))) == [pointer]


def test_a_number_that_no_computer_holds_is_refused(person: Person) -> None:
    headers = {"Content-Type": "application/json"}
    answer = person.http.post(f"/api/workflows/{person.workflow()}/runs", content=b'{"input": 1e999}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")
    assert "too large" in answer.json()["detail"]


def test_an_executed_run_shows_output_steps_and_log(api: Api, person: Person) -> None:
    greet = {**ECHO, "with": {"text": "Hello {{ trigger.input.name }}"}}
    skipped = {"id": "skipped", "if": "false", "action": "debug.echo"}
    run_id = person.run(person.workflow(greet, skipped), input={"name": "Ann"})
    execute(api, person, run_id)
    run = person.http.get(f"/api/runs/{run_id}").json()
    assert (run["status"], run["attempt"]) == ("succeeded", 1)
    assert run["finished_at"] >= run["started_at"] >= run["queued_at"]
    steps = person.http.get(f"/api/runs/{run_id}/steps").json()["items"]
    assert [(step["id"], step["status"]) for step in steps] == [("echo", "succeeded"), ("skipped", "skipped")]
    assert steps[0]["output"] == {"text": "Hello Ann"}
    assert set(steps[0]) == {"id", "item", "status", "attempt", "output", "error", "started_at", "finished_at"}
    log = person.http.get(f"/api/runs/{run_id}/logs").json()["items"]
    assert {"at", "level", "step", "message", "data"} == set(log[0])
    assert ("echo", "info") in [(line["step"], line["level"]) for line in log]


def test_a_failed_run_says_which_step_and_why(api: Api, person: Person) -> None:
    run_id = person.run(person.workflow({"id": "bad", "action": "debug.fail", "with": {"message": "no more bread"}}))
    execute(api, person, run_id)
    run = person.http.get(f"/api/runs/{run_id}").json()
    assert (run["status"], run["error"]["step"]) == ("failed", "bad")
    assert "no more bread" in run["error"]["message"]


def test_steps_and_log_come_in_pages(api: Api, person: Person) -> None:
    run_id = person.run(person.workflow(*({**ECHO, "id": f"s{n}"} for n in range(5))))
    execute(api, person, run_id)
    for kind, name in (("steps", "id"), ("logs", "message")):
        whole = person.http.get(f"/api/runs/{run_id}/{kind}").json()["items"]
        found: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = person.http.get(f"/api/runs/{run_id}/{kind}", params={"limit": 2, "cursor": cursor}).json()
            assert len(page["items"]) <= 2
            found += page["items"]
            cursor = page["next_cursor"]
        assert found == whole
        assert len({item[name] for item in whole}) >= 1


def test_runs_are_listed_newest_first_and_filtered(api: Api, person: Person) -> None:
    first, second = person.workflow(), person.workflow()
    ids = [person.run(workflow_id) for workflow_id in (first, second, first)]
    execute(api, person, ids[0])

    def listed(**query: Any) -> list[str]:
        return [run["id"] for run in person.http.get("/api/runs", params=query).json()["items"]]

    hour = timedelta(hours=1)
    assert listed() == ids[::-1]
    assert listed(workflow_id=first) == [ids[2], ids[0]]
    assert listed(status="succeeded") == [ids[0]]
    assert listed(status=["succeeded", "queued"], workflow_id=second) == [ids[1]]
    assert listed(since=(datetime.now(UTC) - hour).isoformat()) == ids[::-1]
    assert listed(since=(datetime.now(UTC) + hour).isoformat()) == []
    page = person.http.get("/api/runs", params={"limit": 2}).json()
    assert [run["id"] for run in page["items"]] == [ids[2], ids[1]]
    assert listed(limit=2, cursor=page["next_cursor"]) == [ids[0]]
    for query, pointer in (({"status": "done"}, "/status/0"), ({"since": "x"}, "/since"), ({"limit": 0}, "/limit")):
        assert list(places(person.http.get("/api/runs", params=query))) == [pointer]


@pytest.mark.parametrize("since", ["2026", "1767323045", "2026-01-02T03:04:05 00:00", "2026-13-01T00:00:00Z", ""])
@pytest.mark.parametrize("path", ["/api/runs", "/api/audit"])
def test_since_is_a_moment_of_rfc_3339_and_no_number(person: Person, path: str, since: str) -> None:
    assert list(places(person.http.get(path, params={"since": since}))) == ["/since"]


@pytest.mark.parametrize(
    "since", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5+02:00", "2026-01-02T03:04", "2026-01-02"]
)
def test_since_may_leave_out_what_is_plain(person: Person, since: str) -> None:
    assert person.http.get("/api/runs", params={"since": since}).status_code == 200


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/api/runs", "cursor, limit, since, status, workflow_id"),
        ("/api/audit", "action, actor, cursor, limit, object, since"),
        ("/api/workflows", "cursor, limit"),
        ("/api/credentials", "cursor, limit"),
        ("/api/keys", "cursor, limit"),
        ("/api/tenants", "cursor, limit"),
    ],
)
def test_an_unknown_query_parameter_is_refused_with_those_that_there_are(person: Person, path: str, known: str) -> None:
    answer = person.http.get(path, params={"workflow": "x", "a/b": "y", "limit": 1})
    assert answer.status_code == 422
    sentence = f"is not a parameter here; known are {known}"
    assert places(answer) == {"/workflow": sentence, "/a~1b": sentence}


def test_runs_that_a_flood_held_back_go_on_when_they_are_released(api: Api, person: Person, broker: Collector) -> None:
    workflow_id = person.workflow()
    with api.services.database.tenant(person.tenant_id) as session:
        held, over_quota = (
            api.services.runs.start(session, Start(workflow_id=workflow_id, trigger="poll", input={}, hold=hold)).run
            for hold in (FLOODED, "max_executions_per_month")
        )
    assert person.http.post(f"/api/workflows/{workflow_id}/release").json() == {"released": 1}
    Held(api.services.database, api.services.runs).run_once()
    assert person.http.get(f"/api/runs/{held['id']}").json()["status"] == "queued"
    assert person.http.get(f"/api/runs/{over_quota['id']}").json()["status"] == "held"
    assert broker.holds([held["id"], over_quota["id"]]) == {held["id"]}
    assert person.http.post(f"/api/workflows/{workflow_id}/release").json() == {"released": 0}


def test_a_run_is_cancelled_once_and_a_finished_one_is_not(api: Api, person: Person) -> None:
    workflow_id = person.workflow()
    run_id = person.run(workflow_id)
    for _ in range(2):
        answer = person.http.post(f"/api/runs/{run_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    done = person.run(workflow_id)
    execute(api, person, done)
    refused = person.http.post(f"/api/runs/{done}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "run_finished")


def test_a_page_of_large_runs_ends_early_and_the_next_one_goes_on(person: Person) -> None:
    workflow_id = person.workflow()
    ids = [person.run(workflow_id, input="x" * 1_500_000) for _ in range(8)]
    found: list[str] = []
    sizes: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = person.http.get("/api/runs", params={"cursor": cursor})
        sizes.append(len(answer.content))
        found += [run["id"] for run in answer.json()["items"]]
        cursor = answer.json()["next_cursor"]
    assert found == ids[::-1]
    assert len(sizes) == 2
    assert max(sizes) < PAGE_BYTES + 2_000_000
