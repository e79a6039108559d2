"""Workflows over the real API: saved, changed, shown, switched, tried without effect, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.api_server import ECHO, Api, Person, places, running_api, services_for, settings_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
YAML = """
name: Morning report
trigger: {type: schedule, cron: "0 9 * * MON-FRI", timezone: Europe/Berlin}
steps:
  - id: report
    action: debug.echo
    with: {at: "{{ trigger.scheduled_at }}"}
"""


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    settings = settings_for(module_database_url, redis_server.url, public_url="https://flows.example.com/")
    with running_api(services_for(settings)) as running:
        yield running


@pytest.fixture
def person(api: Api) -> Person:
    return api.person()


def document(*steps: Any, trigger: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": "W", "trigger": trigger or {"type": "manual"}, "steps": list(steps) or [ECHO], **more}


def rows_of(api: Api, table: str, tenant_id: str) -> list[dict[str, Any]]:
    with api.services.database.system() as session:
        return session.rows(sa.text(f"SELECT * FROM {table} WHERE tenant_id = :id").bindparams(id=tenant_id))


def test_a_saved_workflow_is_active_and_shows_itself(person: Person) -> None:
    answer = person.http.post(
        "/api/workflows", json={"name": "First", "definition": document(trigger={"type": "webhook"})}
    )
    assert answer.status_code == 201
    made = answer.json()
    assert made["id"].startswith("wf_")
    assert (made["name"], made["is_active"], made["inactive_reason"], made["version"]) == ("First", True, None, 1)
    assert made["webhook_url"] == f"https://flows.example.com/api/webhooks/{made['id']}"
    assert (made["next_fire_at"], made["paused_reason"], made["created_by"]) == (None, None, person.user_id)
    assert list(made["definition"]) == ["name", "trigger", "steps"]
    assert made["definition"] == {"name": "First", "trigger": {"type": "webhook"}, "steps": [ECHO]}
    assert datetime.fromisoformat(made["created_at"]).tzinfo is not None
    assert person.http.get(f"/api/workflows/{made['id']}").json() == made


def test_yaml_is_taken_as_the_whole_body_and_as_text_in_json(person: Person) -> None:
    whole = person.http.post("/api/workflows", content=YAML, headers={"Content-Type": "application/yaml"})
    inside = person.http.post("/api/workflows", json={"definition": YAML, "name": "Renamed"})
    assert (whole.status_code, inside.status_code) == (201, 201)
    assert whole.json()["name"] == "Morning report"
    assert inside.json()["definition"] == {**whole.json()["definition"], "name": "Renamed"}
    assert datetime.fromisoformat(whole.json()["next_fire_at"]) > datetime.now(UTC)
    assert whole.json()["webhook_url"] is None


FAULTY: list[tuple[dict[str, Any], str, str]] = [
    ({"definition": document({**ECHO, "action": "debug.ehco"})}, "/definition/steps/0/action", "mean 'debug.echo'"),
    ({"definition": document({**ECHO, "actoin": 1})}, "/definition/steps/0/actoin", "mean 'action'"),
    ({"definition": document({**ECHO, "if": "trigger.n >"})}, "/definition/steps/0/if", "column"),
    ({"definition": document({**ECHO, "with": {"a/b": "{{ steps.x }}"}})}, "/definition/steps/0/with/a~1b", "'x'"),
    ({"definition": document(ECHO, ECHO)}, "/definition/steps/1/id", "unique"),
    ({"definition": document(trigger={"type": "hook"})}, "/definition/trigger", "trigger type"),
    ({"definition": document(trigger={"type": "schedule", "cron": "0 9 * *"})}, "/definition/trigger/cron", "five"),
    ({"definition": document(trigger={"type": "webhook", "secret": "whsec_%"})}, "/definition/trigger/secret", "64"),
    ({"definition": {"trigger": {"type": "manual"}, "steps": [ECHO]}}, "/definition/name", "missing"),
    ({"definition": document(name=" ")}, "/definition/name", "at least 1"),
    ({"definition": document(name="a\0b")}, "/definition/name", "NUL"),
    ({"definition": document(), "name": "a\nb"}, "/name", "character"),
    ({"definition": "name: [}"}, "/definition", "not YAML: line 1"),
    ({"definition": "{]"}, "/definition", "not JSON"),
    ({"definition": "x" * 300_000}, "/definition", "256 KiB"),
    ({"definition": []}, "/definition", "object, or text"),
    ({"name": "W"}, "/definition", "required"),
    ({"definition": document(), "colour": "red"}, "/colour", "not known"),
    ({"definition": document(), "action_type": "slack_message"}, "/definition", "or trigger_type"),
    (document(), "", '{"definition": {...}}'),
    ({"definition": document({"id": "x", "action": "slack.message", "with": {"text": "a"}})},
     "/definition/steps/0/credential", "add one for slack"),
    ({"definition": document({"id": "x", "action": "http.request", "credential": "shop", "with": {"url": "http://a.de"}})},
     "/definition/steps/0/credential", "no credential 'shop'"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "pointer", "says"), FAULTY, ids=[f"{pointer} {says}" for _, pointer, says in FAULTY])
def test_a_fault_is_told_at_its_place_and_nothing_is_saved(
    api: Api, person: Person, body: dict[str, Any], pointer: str, says: str
) -> None:
    answer = person.http.post("/api/workflows", json=body)
    found = places(answer)
    assert answer.json()["code"] == "invalid_input"
    assert answer.headers["content-type"] == "application/problem+json"
    assert any(says in sentence for place, sentence in found.items() if place.split(".")[0] == pointer), found
    assert rows_of(api, "workflows", person.tenant_id) == []


def test_all_faults_are_told_at_once(person: Person) -> None:
    steps = [{**ECHO, "action": "nope"}, {"id": "B", "action": "debug.echo"}, {"id": "c", "action": "debug.sleep"}]
    found = places(person.http.post("/api/workflows", json={"name": "W", "definition": document(*steps)}))
    assert set(found) == {
        "/definition/steps/0/action",
        "/definition/steps/1/id",
        "/definition/steps/2/with/seconds",
    }


def test_the_faults_of_a_yaml_body_are_places_in_it(person: Person) -> None:
    faulty = YAML.replace("debug.echo", "debug.ehco").replace("Europe/Berlin", "Berlin")
    answer = person.http.post("/api/workflows", content=faulty, headers={"Content-Type": "application/yaml"})
    assert set(places(answer)) == {"/steps/0/action", "/trigger/timezone"}


def test_a_body_that_is_neither_json_nor_yaml_is_refused(person: Person) -> None:
    def answer(content: bytes, kind: str | None) -> tuple[int, str]:
        headers = {} if kind is None else {"Content-Type": kind}
        problem = person.http.post("/api/workflows", content=content, headers=headers)
        return problem.status_code, problem.json()["code"]

    assert answer(b"{'name': 1}", "application/json") == (400, "malformed_json")
    assert answer(b'{"name": NaN}', "application/json") == (400, "malformed_json")
    assert answer(b"\xff", "application/yaml") == (400, "malformed_json")
    assert answer(b"{}", "text/plain") == (415, "unsupported_media_type")
    assert answer(b"{}", None) == (415, "unsupported_media_type")
    assert answer(b"", "application/json") == (422, "invalid_input")
    assert answer(b'"' + b"x" * (3 << 20) + b'"', "application/json") == (413, "too_large")


def test_the_older_form_becomes_a_document_and_is_still_shown(person: Person) -> None:
    person.http.post("/api/credentials", json={"service": "openweather", "data": {"api_key": "k" * 32}})
    body = {"name": "Old", "trigger_type": "schedule", "action_type": "weather_check", "config_json": '{"interval": 5}'}
    made = person.http.post("/api/workflows", json=body).json()
    assert made["definition"]["trigger"] == {"type": "schedule", "every": "5m"}
    assert made["definition"]["steps"][0]["with"] == {"city": "London"}
    assert {key: made[key] for key in body} == body
    there = {**body, "trigger_type": "webhook", "config_json": {"city": "{{where}}"}}
    changed = person.http.put(f"/api/workflows/{made['id']}", json=there).json()
    assert (changed["version"], changed["config_json"]) == (2, '{"city": "{{where}}"}')
    assert changed["webhook_url"].endswith(made["id"])
    modern = person.http.put(f"/api/workflows/{made['id']}", json={"definition": document()}).json()
    assert (modern["action_type"], modern["config_json"]) == (None, None)


LEGACY = {"name": "Old", "trigger_type": "webhook", "action_type": "slack_message", "config_json": "{}"}


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"trigger_type": "hourly", "config_json": '{"slack_message": "x"}'}, "/trigger_type", "invalid_input"),
        ({"action_type": "twilio_sms"}, "/action_type", "unknown_action"),
        ({"config_json": "{"}, "/config_json", "invalid_input"),
        ({"config_json": "[]"}, "/config_json", "invalid_input"),
        ({"config_json": {}}, "/config_json/slack_message", "invalid_input"),
        ({"config_json": {"slack_message": {"a": 1}}}, "/config_json", "invalid_input"),
        ({"config_json": {"slack_message": "x"}}, "/action_type", "invalid_input"),
        ({"name": None}, "/name", "invalid_input"),
        ({"trigger_type": None}, "/trigger_type", "invalid_input"),
        ({"action_type": None}, "/action_type", "invalid_input"),
    ],
)
def test_a_fault_of_the_older_form_is_told_at_its_field(
    person: Person, changes: dict[str, Any], pointer: str, code: str
) -> None:
    answer = person.http.post("/api/workflows", json={**LEGACY, **changes})
    assert list(places(answer)) == [pointer]
    assert answer.json()["code"] == code


def test_putting_makes_a_version_only_when_the_meaning_changes(person: Person) -> None:
    workflow_id = person.workflow()
    at = f"/api/workflows/{workflow_id}"
    read = person.http.get(at).json()
    same = person.http.put(at, json={"definition": read["definition"], "version": read["version"]}).json()
    assert same["version"] == 1
    other = person.http.put(at, json={"definition": {**read["definition"], "trigger": {"type": "manual"}}}).json()
    assert (other["version"], other["trigger_type"], other["webhook_url"]) == (2, "manual", None)
    versions = person.http.get(f"{at}/versions").json()
    assert [(row["version"], row["created_by"]) for row in versions["items"]] == [
        (2, person.user_id),
        (1, person.user_id),
    ]
    assert person.http.get(f"{at}/versions/1").json()["definition"] == read["definition"]
    assert person.http.get(f"{at}/versions/2").json()["definition"] == other["definition"]
    for number, status in (("3", 404), ("0", 422), ("x", 422), ("99999999999", 422)):
        assert person.http.get(f"{at}/versions/{number}").status_code == status


def test_whoever_changes_an_outdated_version_is_told(person: Person) -> None:
    at = f"/api/workflows/{person.workflow()}"
    read = person.http.get(at).json()
    first = {"version": 1, "definition": {**read["definition"], "trigger": {"type": "manual"}}}
    assert person.http.put(at, json=first).status_code == 200
    answer = person.http.put(at, json=first)
    assert (answer.status_code, answer.json()["code"]) == (409, "version_conflict")


def test_versions_and_workflows_come_in_pages(person: Person) -> None:
    ids = [person.workflow(name=f"W{n}") for n in range(5)]
    at = f"/api/workflows/{ids[0]}"
    for n in range(4):
        person.http.put(at, json={"definition": document(name=f"W0.{n}")})

    def pages(path: str) -> list[list[dict[str, Any]]]:
        found: list[list[dict[str, Any]]] = []
        cursor: str | None = ""
        while cursor is not None:
            answer = person.http.get(path, params={"limit": 2, "cursor": cursor}).json()
            found.append(answer["items"])
            cursor = answer["next_cursor"]
        return found

    assert [[row["version"] for row in page] for page in pages(f"{at}/versions")] == [[5, 4], [3, 2], [1]]
    listed = pages("/api/workflows")
    assert [[row["id"] for row in page] for page in listed] == [ids[:2], ids[2:4], ids[4:]]
    assert listed[0][0]["name"] == "W0.3"
    assert "definition" not in listed[0][0]


@pytest.mark.parametrize(
    "cursor",
    ["x", "bnVsbA==", "WyJhXHUwMDAwIl0=", "WzFlOTk5XQ==", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5XQ==", "WyJcdWQ4MDAiXQ=="],
)
def test_a_forged_cursor_is_a_fault_and_nothing_worse(person: Person, cursor: str) -> None:
    workflow_id, run_id = person.workflow(), None
    run_id = person.run(workflow_id)
    for path in (
        "/api/workflows",
        f"/api/workflows/{workflow_id}/versions",
        "/api/runs",
        f"/api/runs/{run_id}/steps",
        f"/api/runs/{run_id}/logs",
        "/api/credentials",
        "/api/tenants",
    ):
        assert list(places(person.http.get(path, params={"cursor": cursor}))) == ["/cursor"]


def test_switching_off_and_on(person: Person) -> None:
    workflow_id = person.workflow(trigger={"type": "schedule", "every": "10m"})
    at = f"/api/workflows/{workflow_id}"
    off = person.http.patch(at, json={"is_active": False}).json()
    assert (off["is_active"], off["next_fire_at"], off["version"]) == (False, None, 1)
    refused = person.http.post(f"{at}/runs")
    assert (refused.status_code, refused.json()["code"]) == (409, "workflow_inactive")
    on = person.http.patch(at, json={"is_active": True, "name": " Other "}).json()
    assert (on["is_active"], on["name"], on["definition"]["name"]) == (True, "Other", "Other")
    ahead = datetime.fromisoformat(on["next_fire_at"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < ahead <= timedelta(minutes=10)
    assert person.http.post(f"{at}/runs").status_code == 202
    assert person.http.patch(at, json={}).json()["name"] == "Other"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"is_active": "yes"}, "/is_active"), ({"name": ""}, "/name"), ({"definition": {}}, "/definition"), ([], "")],
)
def test_a_faulty_patch_changes_nothing(person: Person, body: Any, pointer: str) -> None:
    at = f"/api/workflows/{person.workflow()}"
    before = person.http.get(at).json()
    assert list(places(person.http.patch(at, json=body))) == [pointer]
    assert person.http.get(at).json() == before


def test_a_deleted_workflow_is_gone_and_its_runs_stay(person: Person) -> None:
    workflow_id = person.workflow()
    run_id = person.run(workflow_id)
    answer = person.http.delete(f"/api/workflows/{workflow_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert person.http.get("/api/workflows").json()["items"] == []
    for method, path in (("GET", ""), ("GET", "/versions"), ("DELETE", ""), ("POST", "/runs"), ("POST", "/dry-run")):
        assert person.http.request(method, f"/api/workflows/{workflow_id}{path}").status_code == 404
    assert person.http.get(f"/api/runs/{run_id}").json()["status"] == "cancelled"


def test_a_webhooks_secret_is_masked_and_survives_saving_what_was_read(api: Api, person: Person) -> None:
    workflow_id = person.workflow(trigger={"type": "webhook", "secret": SECRET})
    at = f"/api/workflows/{workflow_id}"
    read = person.http.get(at)
    assert SECRET not in read.text + person.http.get(f"{at}/versions/1").text
    assert read.json()["definition"]["trigger"]["secret"] == "*" * 10
    sealed = rows_of(api, "triggers", person.tenant_id)[0]["config"]["sealed"]
    assert person.http.put(at, json={"definition": read.json()["definition"]}).status_code == 200
    assert rows_of(api, "triggers", person.tenant_id)[0]["config"]["sealed"] == sealed
    fresh = person.http.post("/api/workflows", json={"definition": read.json()["definition"]})
    assert list(places(fresh)) == ["/definition/trigger/secret"]


def test_of_people_who_save_at_once_nobody_is_lost(person: Person) -> None:
    at = f"/api/workflows/{person.workflow()}"

    def save(number: int) -> int:
        return person.http.put(at, json={"definition": document(name=f"W{number}")}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(save, range(16))) == {200}
    items = person.http.get(f"{at}/versions").json()["items"]
    assert [row["version"] for row in items] == list(range(17, 0, -1))


def dry(person: Person, workflow_id: str, given: Any = None) -> dict[str, Any]:
    answer = person.http.post(f"/api/workflows/{workflow_id}/dry-run", json={"input": given})
    assert answer.status_code == 200, answer.text
    return {step["id"]: step["would"] for step in answer.json()["steps"]}


def test_a_dry_run_shows_what_would_happen_and_does_nothing(api: Api, person: Person) -> None:
    secret = {"bearer": "very-secret-token"}
    person.http.post("/api/credentials", json={"service": "http", "name": "shop", "data": secret})
    call = {
        "id": "call",
        "action": "http.request",
        "credential": "shop",
        "with": {
            "method": "POST",
            "url": "https://shop.example.com/orders?api_key=abc123&n={{ trigger.body.n }}",
            "headers": {"X-Token": "abc123", "X-Note": "Bearer abc123"},
            "json": {"n": "{{ trigger.body.n }}", "password": "abc123"},
        },
    }
    after = {"id": "after", "if": "steps.call.output.status == 201", **{k: ECHO[k] for k in ("action", "with")}}
    never = {"id": "never", "if": "trigger.body.n > 10", "needs": [], "action": "debug.fail", "with": {"message": "x"}}
    workflow_id = person.workflow(call, after, never)
    answer = person.http.post(f"/api/workflows/{workflow_id}/dry-run", json={"input": {"n": 7}})
    would = {step["id"]: step["would"] for step in answer.json()["steps"]}
    assert would["call"]["with"] == {
        "method": "POST",
        "url": "https://shop.example.com/orders?api_key=**********&n=7",
        "headers": {"X-Token": "**********", "X-Note": "Bearer **********"},
        "json": {"n": 7, "password": "**********"},
    }
    assert (would["call"]["credential"], would["call"]["has_effects"]) == ("shop", True)
    assert would["after"]["unknown"] == [{"pointer": "/if", "needs": ["call"]}]
    assert would["never"] == {"skip": "Its condition is not true."}
    assert "abc123" not in answer.text
    assert "very-secret" not in answer.text
    for table in ("runs", "steps", "execution_logs", "usage"):
        assert rows_of(api, table, person.tenant_id) == []


@pytest.mark.parametrize(
    ("trigger", "given", "expression", "value"),
    [
        ({"type": "webhook"}, {"city": "Rome"}, "trigger.body.city", "Rome"),
        ({"type": "webhook"}, {"body": {"city": "Rome"}}, "trigger.body.city", "Rome"),
        ({"type": "webhook"}, {"headers": {"x-a": "b"}}, "trigger.headers['x-a']", "b"),
        ({"type": "webhook"}, [1, 2], "trigger.body[1]", 2),
        ({"type": "manual"}, {"city": "Rome"}, "trigger.input.city", "Rome"),
        ({"type": "manual"}, None, "size(trigger.input)", 0),
        ({"type": "schedule", "every": "1h"}, None, "timestamp(trigger.scheduled_at).getFullYear() > 2000", True),
    ],
)
def test_a_dry_run_takes_what_its_trigger_would_bring(
    person: Person, trigger: Any, given: Any, expression: str, value: Any
) -> None:
    workflow_id = person.workflow({**ECHO, "with": {"x": f"{{{{ {expression} }}}}"}}, trigger=trigger)
    assert dry(person, workflow_id, given)["echo"]["with"] == {"x": value}


def test_a_dry_run_stops_where_the_run_would_fail(person: Person) -> None:
    first = {**ECHO, "id": "first", "with": {"x": "{{ trigger.body.city }}"}}
    second = {**ECHO, "id": "second"}
    would = dry(person, person.workflow(first, second), {"town": "Rome"})
    assert "no such key 'city'" in would["first"]["fail"]
    assert would["second"] == {"skip": "The step first would have failed."}


def test_a_dry_run_needs_no_body_and_no_active_workflow(person: Person) -> None:
    workflow_id = person.workflow()
    person.http.patch(f"/api/workflows/{workflow_id}", json={"is_active": False})
    answer = person.http.post(f"/api/workflows/{workflow_id}/dry-run")
    assert [step["id"] for step in answer.json()["steps"]] == ["echo"]
