"""Workflows and credentials move between organizations whole, with their ids and their history, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from engine import audit, connections
from engine.audit import Actor
from engine.definition import parse
from engine.errors import Conflict, FairlaneError, NotFound, Unauthenticated
from engine.moving import Cargo, Moved, Mover
from engine.repository import credentials, runs
from engine.sweeper import Sweeper
from tests.integration.test_webhook_intake import SECRET, post
from tests.integration.test_webhook_intake import signed as signature
from tests.trigger_parts import AUTHOR, Parts, parts_for
from triggers import Receiver

BY = Actor("operator:test")
CALL = {"id": "call", "action": "http.request", "credential": "shop", "with": {"url": "https://example.com"}}


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        yield parts


@pytest.fixture
def receiver(parts: Parts) -> Receiver:
    return Receiver(parts.database, parts.runs, parts.vault, max_bytes=100_000)


def credential(parts: Parts, tenant: str, name: str = "shop", secret: str = "hush") -> str:
    with parts.database.tenant(tenant) as session:
        row = connections.create(session, parts.vault, service="http", name=name, data={"bearer": secret}, user_id=None)
    return str(row["id"])


def workflow(parts: Parts, tenant: str, step: Mapping[str, Any] = CALL, **trigger: str) -> str:
    document = {"name": "W", "trigger": {"type": "webhook", **trigger}, "steps": [step]}
    parsed = parse(document, actions=parts.registry, sources=parts.sources)
    with parts.database.tenant(tenant) as session:
        return str(parts.workflows.create(session, parsed, author=AUTHOR)["id"])


def move(parts: Parts, cargo: Cargo) -> Moved:
    with parts.database.system() as session:
        return Mover(parts.vault, parts.workflows).move(session, BY, cargo, source="a", target="b")


def opened(parts: Parts, tenant: str, name: str) -> Any:
    with parts.database.tenant(tenant) as session:
        (row,) = credentials.for_step(session, name=name, service="http", run_id="r", step_id="s", attempt=1)
        return parts.vault.open(session, row).get_secret_value()


def signed(message_id: str) -> dict[str, Any]:
    return dict(signature(SECRET, b"{}", message_id))


def everything(parts: Parts) -> list[Any]:
    tables = ("workflows", "workflow_versions", "triggers", "runs", "credentials", "audit", "data_keys")
    return [parts.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


def test_a_workflow_moves_with_its_id_versions_runs_and_credential(parts: Parts, receiver: Receiver) -> None:
    secret_id = credential(parts, "a")
    workflow_id = workflow(parts, "a")
    run_id = post(receiver, workflow_id).run["id"]

    moved = move(parts, Cargo(workflows=[workflow_id], credentials=[secret_id]))

    assert moved == Moved([workflow_id], [secret_id])
    for table in ("workflows", "workflow_versions", "triggers", "runs", "credentials"):
        assert {row["tenant_id"] for row in parts.rows(f"SELECT tenant_id FROM {table}")} == {"b"}, table
    assert [run["id"] for run in parts.runs_of(workflow_id)] == [run_id]
    assert opened(parts, "b", "shop") == {"bearer": "hush"}


def test_its_webhook_goes_on_working_also_where_the_old_owner_is_remembered(parts: Parts, receiver: Receiver) -> None:
    workflow_id = workflow(parts, "a", {"id": "e", "action": "debug.echo"}, secret=SECRET)
    post(receiver, workflow_id, **signed("msg_1"))

    move(parts, Cargo(workflows=[workflow_id]))

    started = post(receiver, workflow_id, **signed("msg_2"))
    assert [run["tenant_id"] for run in parts.runs_of(workflow_id)] == ["b", "b"]
    assert post(receiver, workflow_id, **signed("msg_1")).existing
    assert started.run["id"] in parts.broker.runs
    with pytest.raises(Unauthenticated):
        post(receiver, workflow_id, webhook_id="x")


def test_a_run_that_waits_in_the_old_lane_goes_on_in_the_new_one(parts: Parts, receiver: Receiver) -> None:
    workflow_id = workflow(parts, "a", {"id": "e", "action": "debug.echo"})
    run_id = post(receiver, workflow_id).run["id"]
    assert parts.broker.runs[run_id].tenant_id == "a"
    move(parts, Cargo(workflows=[workflow_id]))
    with parts.database.tenant("a") as session:
        assert runs.begin(session, run_id, stale_seconds=15) is None
    parts.broker.runs.clear()  # so its worker has dropped the message
    Sweeper(parts.database, parts.broker, runs=parts.runs, queued_seconds=0).run_once()
    assert parts.broker.runs[run_id].tenant_id == "b"


def test_everything_of_a_personal_organization_moves_at_once(parts: Parts) -> None:
    secrets = [credential(parts, "a", name) for name in ("shop", "other")]
    workflows = [workflow(parts, "a") for _ in range(3)]
    with parts.database.tenant("a") as session:
        parts.workflows.delete(session, workflows[2])
    assert move(parts, Cargo(workflows=None, credentials=None)) == Moved(workflows, secrets)
    assert parts.rows("SELECT id FROM workflows WHERE tenant_id = 'a'") == []


def test_a_secret_is_encrypted_under_the_new_key_and_the_old_one_opens_it_no_more(parts: Parts) -> None:
    secret_id = credential(parts, "a")
    before = parts.rows("SELECT ciphertext, fingerprint FROM credentials")[0]
    move(parts, Cargo(credentials=[secret_id]))
    after = parts.rows("SELECT ciphertext, fingerprint FROM credentials")[0]
    assert before["ciphertext"] != after["ciphertext"]
    assert before["fingerprint"] != after["fingerprint"]
    parts.change("DELETE FROM data_keys WHERE tenant_id = 'a'")
    assert opened(parts, "b", "shop") == {"bearer": "hush"}


def test_both_organizations_have_it_in_their_audit(parts: Parts) -> None:
    workflow_id = workflow(parts, "a", {"id": "e", "action": "debug.echo"})
    move(parts, Cargo(workflows=[workflow_id]))
    rows = parts.rows("SELECT tenant_id, actor, action, object, data FROM audit ORDER BY tenant_id")
    moved = {"workflows": [workflow_id], "credentials": []}
    assert [tuple(row.values()) for row in rows] == [
        ("a", BY.id, "workflows.moved_out", "b", moved),
        ("b", BY.id, "workflows.moved_in", "a", moved),
    ]
    for tenant in "ab":
        with parts.database.tenant(tenant) as session:
            assert audit.verify(audit.entries(session)).fault is None


def leaves_a_workflow_without_credential(parts: Parts) -> Cargo:
    secret_id = credential(parts, "a")
    workflow(parts, "a")
    return Cargo(credentials=[secret_id])


def takes_a_workflow_without_its_credential(parts: Parts) -> Cargo:
    credential(parts, "a")
    return Cargo(workflows=[workflow(parts, "a")])


def brings_a_name_that_is_taken(parts: Parts) -> Cargo:
    credential(parts, "b")
    return Cargo(credentials=[credential(parts, "a")])


def brings_a_second_credential_where_one_was_meant(parts: Parts) -> Cargo:
    credential(parts, "b", "theirs")
    step = {"id": "s", "action": "slack.message", "with": {"text": "x"}}
    for tenant, name in (("b", "slack"), ("a", "another")):
        with parts.database.tenant(tenant) as session:
            data = {"webhook_url": "https://hooks.slack.com/services/x"}
            row = connections.create(session, parts.vault, service="slack", name=name, data=data, user_id=None)
    workflow(parts, "b", step)
    return Cargo(credentials=[row["id"]])


def moves_what_runs(parts: Parts) -> Cargo:
    workflow_id = workflow(parts, "a", {"id": "e", "action": "debug.echo"})
    post(Receiver(parts.database, parts.runs, parts.vault, max_bytes=10), workflow_id)
    parts.change("UPDATE runs SET status = 'running', attempt = 1, started_at = now(), heartbeat_at = now()")
    return Cargo(workflows=[workflow_id])


def moves_what_is_not_there(parts: Parts) -> Cargo:
    return Cargo(workflows=[workflow(parts, "b", {"id": "e", "action": "debug.echo"})])


@pytest.mark.parametrize(
    ("situation", "error", "sentence"),
    [
        (leaves_a_workflow_without_credential, Conflict, "'W' of a .* there is no credential 'shop'"),
        (takes_a_workflow_without_its_credential, Conflict, "'W' of b .* there is no credential 'shop'"),
        (brings_a_name_that_is_taken, Conflict, "of the same name already: shop"),
        (brings_a_second_credential_where_one_was_meant, Conflict, "'W' of b .* want one of 'another', 'slack'"),
        (moves_what_runs, Conflict, "1 of the runs"),
        (moves_what_is_not_there, NotFound, "no workflow wf_"),
    ],
)
def test_nothing_moves_when(parts: Parts, situation: Any, error: type[FairlaneError], sentence: str) -> None:
    cargo = situation(parts)
    before = everything(parts)
    with pytest.raises(error, match=sentence):
        move(parts, cargo)
    assert everything(parts) == before


def test_a_workflow_that_was_broken_before_is_in_nobodys_way(parts: Parts) -> None:
    broken_secret = credential(parts, "a")
    workflow(parts, "a")
    with parts.database.tenant("a") as session:
        connections.delete(session, broken_secret, actions=["http.request"], force=True)
    workflow_id = workflow(parts, "a", {"id": "e", "action": "debug.echo"})
    assert move(parts, Cargo(workflows=[workflow_id])).workflows == [workflow_id]


@pytest.mark.parametrize(("source", "target"), [("a", "a"), ("a", "nowhere"), ("nowhere", "b")])
def test_there_must_be_two_organizations(parts: Parts, source: str, target: str) -> None:
    with pytest.raises((NotFound, Conflict)), parts.database.system() as session:
        Mover(parts.vault, parts.workflows).move(session, BY, Cargo(), source=source, target=target)
