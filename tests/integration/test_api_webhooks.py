"""Webhooks over the real API: stored before the answer, once for each id, and only for who may send them."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from tests.api_server import Api, Collector, Person, running_api, services_for, settings_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LIMIT = 200_000


@pytest.fixture(scope="module")
def broker() -> Collector:
    return Collector()


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any, broker: Collector) -> Iterator[Api]:
    settings = settings_for(module_database_url, redis_server.url, webhook_max_bytes=LIMIT)
    with running_api(services_for(settings, broker)) as running:
        yield running


@pytest.fixture
def person(api: Api) -> Person:
    return api.person()


@pytest.fixture
def sender(api: Api) -> httpx.Client:
    """Somebody without a token."""
    return api.client()


@pytest.fixture
def crowd(api: Api) -> Iterator[httpx.Client]:
    """Many senders at once, each on a connection of its own."""
    with httpx.Client(base_url=api.url, timeout=30, limits=httpx.Limits(max_connections=200)) as client:
        yield client


def runs_of(person: Person, workflow_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        query: dict[str, Any] = {"workflow_id": workflow_id, "limit": 100, "cursor": cursor}
        page = person.http.get("/api/runs", params=query).json()
        items += page["items"]
        cursor = page["next_cursor"]
    return items


def signed(body: bytes, message_id: str = "msg_1", *, at: datetime | None = None) -> dict[str, str]:
    at = at or datetime.now(UTC)
    signature = Webhook(SECRET).sign(message_id, at, body.decode())
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}


def test_a_request_becomes_a_run_that_is_stored_and_published(
    person: Person, sender: httpx.Client, broker: Collector
) -> None:
    workflow_id = person.workflow()
    answer = sender.post(
        f"/api/webhooks/{workflow_id}?q=1&tag=x&tag=y",
        json={"city": "Rome"},
        headers=[("X-Event", "a"), ("X-Event", "b"), ("Cookie", "c=1"), ("X-Api-Key", "k")],
    )
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["idempotent"]) == ("triggered", False)
    assert answer.json()["message"]
    run = person.http.get(f"/api/runs/{answer.json()['run_id']}").json()
    assert (run["workflow_id"], run["trigger"], run["status"]) == (workflow_id, "webhook", "queued")
    assert run["input"]["body"] == {"city": "Rome"}
    assert run["input"]["query"] == {"q": "1", "tag": ["x", "y"]}
    assert run["input"]["headers"]["x-event"] == "a, b"
    assert {"cookie", "x-api-key"}.isdisjoint(run["input"]["headers"])
    assert broker.holds([run["id"]]) == {run["id"]}


@pytest.mark.parametrize(
    ("content", "kind", "body"),
    [
        (b"", None, None),
        (b'{"a": 1}', None, {"a": 1}),
        (b"a=1&b=2", "application/x-www-form-urlencoded", "a=1&b=2"),
        ("grüße".encode(), "text/plain", "grüße"),
        (b"\xff\x00", "application/octet-stream", {"encoding": "base64", "data": "/wA="}),
        (b'{"a": "\\u0000"}', "application/json", {"a": "\ufffd"}),
    ],
)
def test_any_body_is_taken(person: Person, sender: httpx.Client, content: bytes, kind: str | None, body: Any) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = sender.post(f"/api/webhooks/{person.workflow()}", content=content, headers=headers)
    assert answer.status_code == 202
    assert person.http.get(f"/api/runs/{answer.json()['run_id']}").json()["input"]["body"] == body


def test_two_hundred_posts_of_ten_kilobytes_at_once_are_each_exactly_one_run(
    crowd: httpx.Client, person: Person, broker: Collector
) -> None:
    workflow_id = person.workflow()

    def post(number: int) -> httpx.Response:
        return crowd.post(f"/api/webhooks/{workflow_id}", json={"n": number, "padding": "x" * 10_000})

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(post, range(200)))
    assert {answer.status_code for answer in answers} == {202}
    runs = runs_of(person, workflow_id)
    assert {run["id"] for run in runs} == {answer.json()["run_id"] for answer in answers}
    assert sorted(run["input"]["body"]["n"] for run in runs) == list(range(200))
    published = [message.id for message in broker.messages if message.flow == workflow_id]
    assert sorted(published) == sorted(run["id"] for run in runs)


def test_the_same_id_from_fifty_sides_at_once_is_one_run(crowd: httpx.Client, person: Person) -> None:
    workflow_id = person.workflow()

    def post(number: int) -> httpx.Response:
        return crowd.post(f"/api/webhooks/{workflow_id}", json={"n": number}, headers={"webhook-id": "evt_1"})

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    (run,) = runs_of(person, workflow_id)
    assert {answer.json()["run_id"] for answer in answers} == {run["id"]}
    assert [answer.json()["idempotent"] for answer in answers].count(False) == 1


def test_the_same_id_at_two_workflows_is_two_runs(person: Person, sender: httpx.Client) -> None:
    first, second = person.workflow(), person.workflow()
    ids = {
        sender.post(f"/api/webhooks/{workflow_id}", headers={"webhook-id": "evt"}).json()["run_id"]
        for workflow_id in (first, second)
    }
    assert len(ids) == 2


def test_a_workflow_with_a_secret_takes_only_what_is_signed(person: Person, sender: httpx.Client) -> None:
    workflow_id = person.workflow(trigger={"type": "webhook", "secret": SECRET})
    url, body = f"/api/webhooks/{workflow_id}", b'{"paid": true}'
    first = sender.post(url, content=body, headers=signed(body))
    assert first.status_code == 202
    again = sender.post(url, content=body, headers=signed(body))
    assert (again.status_code, again.json()["run_id"]) == (202, first.json()["run_id"])
    hub = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert sender.post(url, content=body, headers={"X-Hub-Signature-256": f"sha256={hub}"}).status_code == 202
    late = datetime.now(UTC) - timedelta(minutes=6)
    for headers in (
        {},
        signed(b'{"paid": false}'),
        {**signed(body), "webhook-id": "msg_2"},
        signed(body, "msg_3", at=late),
        {"X-Hub-Signature-256": f"sha256={hub[:-1]}0" if hub[-1] != "0" else f"sha256={hub[:-1]}1"},
        {**signed(body), "webhook-signature": "v1,x"},
    ):
        refused = sender.post(url, content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "bad_signature")
        assert refused.headers["content-type"] == "application/problem+json"
    assert len(runs_of(person, workflow_id)) == 2
    assert "signature" not in json.dumps(runs_of(person, workflow_id))


def test_every_refusal_has_its_code_and_stores_nothing(person: Person, sender: httpx.Client) -> None:
    webhook, inactive, deleted = (person.workflow() for _ in range(3))
    manual = person.workflow(trigger={"type": "manual"})
    person.http.patch(f"/api/workflows/{inactive}", json={"is_active": False})
    person.http.delete(f"/api/workflows/{deleted}")
    json_type = {"Content-Type": "application/json"}
    cases: list[tuple[str, dict[str, Any], int, str]] = [
        ("wf_unknown", {}, 404, "not_found"),
        (deleted, {}, 404, "not_found"),
        (manual, {}, 400, "not_a_webhook"),
        (inactive, {}, 409, "workflow_inactive"),
        (webhook, {"content": b"{", "headers": json_type}, 400, "invalid_body"),
        (webhook, {"content": b"[" * 100 + b"]" * 100}, 400, "invalid_body"),
        (webhook, {"content": b"x" * (LIMIT + 1)}, 413, "too_large"),
        (webhook, {"content": iter([b"x" * LIMIT, b"x"])}, 413, "too_large"),
    ]
    for workflow_id, request, status, code in cases:
        answer = sender.post(f"/api/webhooks/{workflow_id}", **request)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.json()["status"] == status
    assert sender.get(f"/api/webhooks/{webhook}").json()["code"] == "method_not_allowed"
    assert person.http.get("/api/runs").json()["items"] == []


def test_a_body_as_large_as_allowed_is_taken(person: Person, sender: httpx.Client) -> None:
    assert sender.post(f"/api/webhooks/{person.workflow()}", content=b"x" * LIMIT).status_code == 202
