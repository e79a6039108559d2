"""Webhooks become runs that are stored before the answer, once for each id, and only for who may send them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from engine.errors import BadRequest, Conflict, FairlaneError, NotFound, TooLarge, Unauthenticated
from engine.runs import Started
from tests.trigger_parts import Parts, parts_for
from triggers import Delivery, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        yield parts


@pytest.fixture
def receiver(parts: Parts) -> Receiver:
    return Receiver(parts.database, parts.runs, parts.vault, max_bytes=100_000)


def post(receiver: Receiver, workflow_id: str, body: bytes = b"{}", **headers: str) -> Started:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return receiver.receive(Delivery(workflow_id=workflow_id, body=body, headers=named))


def signed(secret: str, body: bytes, message_id: str = "msg_1") -> Mapping[str, str]:
    at = datetime.now(UTC)
    signature = Webhook(secret).sign(message_id, at, body.decode())
    return {"webhook_id": message_id, "webhook_timestamp": str(int(at.timestamp())), "webhook_signature": signature}


def test_a_request_is_stored_and_then_published(parts: Parts, receiver: Receiver) -> None:
    workflow_id = parts.save({"type": "webhook"})
    delivery = Delivery(
        workflow_id=workflow_id,
        body=b'{"city": "Berlin"}',
        headers=[("Content-Type", "application/json"), ("X-Event", "a"), ("x-event", "b"), ("Cookie", "c=1"),
                 ("Authorization", "Bearer x"), ("X-Hub-Signature-256", "sha256=0"), ("X-Gitlab-Token", "t")],
        query=[("q", "1"), ("tag", "x"), ("tag", "y"), ("tag", "z")],
    )  # fmt: skip
    started = receiver.receive(delivery)
    (run,) = parts.runs_of(workflow_id)
    assert (run["id"], run["tenant_id"], run["trigger"], run["status"]) == (started.run["id"], "a", "webhook", "queued")
    assert run["input"] == {
        "body": {"city": "Berlin"},
        "headers": {"content-type": "application/json", "x-event": "a, b"},
        "query": {"q": "1", "tag": ["x", "y", "z"]},
    }
    assert list(parts.broker.runs) == [run["id"]]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("authorization", False),
        ("cookie", False),
        ("apikey", False),
        ("api-key", False),
        ("x_api_key", False),
        ("x-auth-key", False),
        ("x-auth", False),
        ("x-functions-key", False),
        ("ocp-apim-subscription-key", False),
        ("x-gitlab-token", False),
        ("x-author", True),
        ("idempotency-key", True),
        ("x-github-event", True),
    ],
)
def test_a_run_keeps_no_header_that_proves_who_sent_it(parts: Parts, receiver: Receiver, name: str, kept: bool) -> None:
    workflow_id = parts.save({"type": "webhook"})
    receiver.receive(Delivery(workflow_id=workflow_id, body=b"{}", headers=[(name.title(), "hidden")]))
    (run,) = parts.runs_of(workflow_id)
    assert run["input"]["headers"] == ({name: "hidden"} if kept else {})


def test_with_the_broker_down_the_run_is_stored_all_the_same(parts: Parts, receiver: Receiver) -> None:
    workflow_id = parts.save({"type": "webhook"})
    parts.broker.down = True
    started = post(receiver, workflow_id)
    assert [run["id"] for run in parts.runs_of(workflow_id)] == [started.run["id"]]


def test_two_hundred_posts_at_once_are_two_hundred_runs(parts: Parts, receiver: Receiver) -> None:
    workflow_id = parts.save({"type": "webhook"})
    bodies = [json.dumps({"n": n, "padding": "x" * 10_000}).encode() for n in range(200)]
    with ThreadPoolExecutor(20) as pool:
        started = list(pool.map(lambda body: post(receiver, workflow_id, body), bodies))
    stored = parts.runs_of(workflow_id)
    assert {run["id"] for run in stored} == {one.run["id"] for one in started}
    assert sorted(run["input"]["body"]["n"] for run in stored) == list(range(200))


def test_the_same_id_from_fifty_sides_at_once_is_one_run(parts: Parts, receiver: Receiver) -> None:
    workflow_id = parts.save({"type": "webhook"})
    with ThreadPoolExecutor(20) as pool:
        started = list(pool.map(lambda _: post(receiver, workflow_id, webhook_id="evt_1"), range(50)))
    (run,) = parts.runs_of(workflow_id)
    assert {one.run["id"] for one in started} == {run["id"]}
    assert sum(not one.existing for one in started) == 1
    assert list(parts.broker.runs) == [run["id"]]


@pytest.mark.parametrize("message_id", ["x" * 5000, "tab\tinside", "é" * 300])
def test_an_odd_id_deduplicates_like_any_other(parts: Parts, receiver: Receiver, message_id: str) -> None:
    workflow_id = parts.save({"type": "webhook"})
    first, second = (post(receiver, workflow_id, webhook_id=message_id) for _ in range(2))
    other = post(receiver, workflow_id, webhook_id=message_id + "x")
    assert second.run["id"] == first.run["id"] != other.run["id"]


def test_ids_of_different_workflows_do_not_meet(parts: Parts, receiver: Receiver) -> None:
    mine, yours = parts.save({"type": "webhook"}), parts.save({"type": "webhook"}, tenant="b")
    assert not post(receiver, mine, webhook_id="evt_1").existing
    assert not post(receiver, yours, webhook_id="evt_1").existing
    assert [run["tenant_id"] for run in parts.runs_of(yours)] == ["b"]


def test_only_signed_requests_start_a_workflow_with_a_secret(parts: Parts, receiver: Receiver) -> None:
    workflow_id = parts.save({"type": "webhook", "secret": SECRET})
    body = b'{"paid": true}'
    headers = signed(SECRET, body)
    started = post(receiver, workflow_id, body, **headers)
    assert "webhook-signature" not in parts.runs_of(workflow_id)[0]["input"]["headers"]
    again = post(receiver, workflow_id, body, **headers)
    assert (again.existing, again.run["id"]) == (True, started.run["id"])
    for forged in ({}, {**headers, "webhook_id": "msg_2"}, signed("whsec_" + "A" * 32, body)):
        with pytest.raises(Unauthenticated):
            post(receiver, workflow_id, body, **forged)
    assert len(parts.runs_of(workflow_id)) == 1


def test_a_changed_secret_and_rotated_keys_count_from_the_next_request_on(parts: Parts, receiver: Receiver) -> None:
    workflow_id = parts.save({"type": "webhook", "secret": SECRET})
    post(receiver, workflow_id, b"{}", **signed(SECRET, b"{}", "one"))
    with parts.database.tenant("a") as session:
        parts.vault.rotate(session)
    post(receiver, workflow_id, b"{}", **signed(SECRET, b"{}", "two"))
    other = "whsec_" + "QUJD" * 8
    parts.save({"type": "webhook", "secret": other}, workflow_id=workflow_id)
    post(receiver, workflow_id, b"{}", **signed(other, b"{}", "three"))
    with pytest.raises(Unauthenticated):
        post(receiver, workflow_id, b"{}", **signed(SECRET, b"{}", "four"))


def test_every_refusal_says_why_and_stores_nothing(parts: Parts, receiver: Receiver) -> None:
    webhook, manual, inactive, deleted = (
        parts.save({"type": kind}) for kind in ("webhook", "manual", "webhook", "webhook")
    )
    post(receiver, deleted)
    with parts.database.tenant("a") as session:
        parts.workflows.set_active(session, inactive, False, reason="out of use")
        parts.workflows.delete(session, deleted)
    before = parts.rows("SELECT count(*) AS n FROM runs")
    cases: list[tuple[str, bytes, type[FairlaneError], int, str]] = [
        ("wf_unknown", b"{}", NotFound, 404, "no workflow"),
        ("wf_\0", b"{}", NotFound, 404, "no workflow"),
        (deleted, b"{}", NotFound, 404, "no workflow"),
        (manual, b"{}", BadRequest, 400, "not started by webhooks but by manual"),
        (inactive, b"{}", Conflict, 409, "out of use"),
        (webhook, b"x" * 100_001, TooLarge, 413, "at most 100000"),
        (webhook, b"[" * 5000, BadRequest, 400, "deeper"),
    ]
    for workflow_id, body, kind, status, says in cases:
        with pytest.raises(kind, match=says) as caught:
            post(receiver, workflow_id, body)
        assert caught.value.status == status
    assert parts.rows("SELECT count(*) AS n FROM runs") == before


def test_a_suspended_organization_takes_nothing_and_then_takes_the_same_request(
    parts: Parts, receiver: Receiver
) -> None:
    workflow_id = parts.save({"type": "webhook"})
    parts.change("UPDATE tenants SET status = 'suspended' WHERE id = 'a'")
    with pytest.raises(Conflict, match="suspended"):
        post(receiver, workflow_id, webhook_id="evt_1")
    assert parts.runs_of(workflow_id) == []
    parts.change("UPDATE tenants SET status = 'active' WHERE id = 'a'")
    assert not post(receiver, workflow_id, webhook_id="evt_1").existing


@pytest.mark.parametrize("was_known", [True, False])
def test_a_workflow_of_a_deleted_organization_is_unknown_until_that_is_restored(
    parts: Parts, receiver: Receiver, was_known: bool
) -> None:
    workflow_id = parts.save({"type": "webhook"})
    if was_known:
        post(receiver, workflow_id)
    parts.change("UPDATE tenants SET status = 'deleted', deleted_at = now() WHERE id = 'a'")
    with pytest.raises(NotFound, match="There is no workflow"):
        post(receiver, workflow_id)
    parts.change("UPDATE tenants SET status = 'active', deleted_at = NULL WHERE id = 'a'")
    assert not post(receiver, workflow_id).existing
