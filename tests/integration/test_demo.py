"""The demo of ``fairlane up``: made once, the same at every start, and its workflows do what they say."""

from __future__ import annotations

import base64
import json
import re
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import actions
import triggers
from cli import demo
from cli.demo import Demo
from engine import passwords, tenancy
from engine.definition import parse
from engine.permissions import Scope
from engine.repository import identity
from engine.settings import Settings
from engine.workflows import Author, Workflows
from tests.engine_parts import Parts, parts_for
from tests.installation import Receiver

RECEIVER = "http://127.0.0.1:9"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings.load(
        database_url=database_url,
        redis_url="redis://127.0.0.1:1/0",
        secret_key="s" * 40,
        master_keys="k:" + base64.b64encode(b"1" * 32).decode(),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "demo"


@pytest.fixture
def parts(settings: Settings) -> Iterator[Parts]:
    """The engine over the same database; of the demo's organization once `at_home` was called."""
    with parts_for(settings.database_url) as made:
        yield made


def at_home(parts: Parts, made: Demo) -> Parts:
    with parts.database.system() as session:
        parts.tenant = tenancy.caller_by_key(session, made.api_key).tenant_id
    return parts


def service(parts: Parts) -> Workflows:
    return Workflows(parts.registry, triggers.KINDS, parts.vault)


def test_a_second_start_finds_everything_as_it_was(settings: Settings, file: Path) -> None:
    first = demo.ensure(settings, file, receiver=RECEIVER)
    assert demo.ensure(settings, file, receiver=RECEIVER) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first.described("http://x") == demo.ensure(settings, file, receiver=RECEIVER).described("http://x")


def test_login_and_key_open_the_organization(settings: Settings, file: Path, parts: Parts) -> None:
    made = demo.ensure(settings, file, receiver=RECEIVER)
    with parts.database.system() as session:
        account = identity.account(session, demo.EMAIL)
        assert account is not None
        caller = tenancy.caller_by_key(session, made.api_key)
        owned = tenancy.organizations(session, account)
    assert passwords.verify(made.password, account["password_hash"]).right
    assert [(tenant["id"], tenant["name"], tenant["role"]) for tenant in owned] == [(caller.tenant_id, "Demo", "owner")]
    assert set(caller.scopes) == set(Scope) - {Scope.ADMIN}


def test_when_the_file_is_lost_there_is_another_password_and_key_for_the_same_organization(
    settings: Settings, file: Path, parts: Parts
) -> None:
    before = demo.ensure(settings, file, receiver=RECEIVER)
    file.unlink()
    after = demo.ensure(settings, file, receiver=RECEIVER)
    with parts.database.system() as session:
        account = identity.account(session, demo.EMAIL)
        tenants = {tenancy.caller_by_key(session, made.api_key).tenant_id for made in (before, after)}
    assert account is not None
    assert passwords.verify(after.password, account["password_hash"]).right
    assert len(tenants) == 1


def test_it_is_made_unasked_where_there_is_no_organization_or_where_it_was_before(
    settings: Settings, file: Path, parts: Parts
) -> None:
    parts.fill("DELETE FROM tenants")
    assert demo.is_expected(settings, file)
    with parts.database.system() as session:  # as an import brings them, also one with the demo's own email
        for email in ("ada@example.com", demo.EMAIL):
            tenancy.register(session, email=email, password_hash="x", organization=f"{email}'s Organization")
    file.write_text('{"password": "of an earlier database", "api_key": "fl_unknown"}')
    assert not demo.is_expected(settings, file)
    parts.fill("UPDATE users SET tenant_id = NULL; DELETE FROM tenants; DELETE FROM users")
    demo.ensure(settings, file, receiver=RECEIVER)
    parts.fill("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
    assert demo.is_expected(settings, file)
    parts.fill("UPDATE tenants SET name = 'Mine' WHERE name = 'Demo'")
    assert demo.is_expected(settings, file)
    parts.fill("UPDATE tenants SET name = 'Demo' WHERE name = 'Mine'")
    file.unlink()
    assert demo.is_expected(settings, file)


def test_a_torn_file_and_another_database_are_no_obstacle(settings: Settings, file: Path) -> None:
    file.write_text('{"password": "of an earlier database", "api_key": "fl_unknown", "orders": "wf_unknown"}')
    kept = demo.ensure(settings, file, receiver=RECEIVER)
    assert kept.password == "of an earlier database"
    assert (kept.api_key, kept.orders) != ("fl_unknown", "wf_unknown")
    file.write_text('{"pass')
    assert demo.ensure(settings, file, receiver=RECEIVER).password != kept.password


def test_what_a_person_changed_stays_and_only_the_receivers_address_follows(
    settings: Settings, file: Path, parts: Parts
) -> None:
    made = demo.ensure(settings, file, receiver=RECEIVER)
    at_home(parts, made)
    text = (demo.EXAMPLES / f"{demo.ORDERS}.yaml").read_text().replace("/reviews", "/approvals")
    changed = parse(text.replace(demo.EXAMPLE_RECEIVER, RECEIVER), actions=parts.registry)
    with parts.database.tenant(parts.tenant) as session:
        service(parts).update(session, made.orders, changed, author=Author("user_x"))
        service(parts).set_active(session, made.heartbeat, False, reason="too loud")
    moved = demo.ensure(settings, file, receiver="http://127.0.0.1:10")
    with parts.database.tenant(parts.tenant) as session:
        orders = json.dumps(service(parts).definition(session, made.orders)["definition"])
        heartbeat = service(parts).get(session, made.heartbeat)
    assert (moved.orders, moved.heartbeat) == (made.orders, made.heartbeat)
    assert re.findall(r"http://[^\"]+", orders) == [
        f"http://127.0.0.1:10/{place}" for place in ("orders", "approvals", "thanks")
    ]
    assert (heartbeat["is_active"], heartbeat["inactive_reason"]) == (False, "too loud")


def test_a_deleted_workflow_is_made_anew(settings: Settings, file: Path, parts: Parts) -> None:
    made = demo.ensure(settings, file, receiver=RECEIVER)
    at_home(parts, made)
    with parts.database.tenant(parts.tenant) as session:
        service(parts).delete(session, made.orders)
    again = demo.ensure(settings, file, receiver=RECEIVER)
    assert again.orders != made.orders
    assert again.heartbeat == made.heartbeat


@pytest.mark.parametrize(
    ("amount", "said"), [(120, "Ada wants to spend 120"), (99.5, "Thank you, Ada"), (100, "Ada wants to spend 100")]
)
def test_an_order_reaches_the_receiver_with_the_shared_credential_and_takes_its_branch(
    settings: Settings, file: Path, parts: Parts, amount: float, said: str
) -> None:
    with closing(Receiver()) as receiver:
        made = demo.ensure(settings, file, receiver=receiver.url)
        at_home(parts, made)
        order: dict[str, Any] = {"customer": "Ada", "amount": amount}
        run_id = parts.start(made.orders, trigger="webhook", input={"body": order, "headers": {}, "query": {}})
        parts.executor.run(parts.tenant, run_id)
    assert parts.run_row(run_id)["status"] == "succeeded", parts.run_row(run_id)
    assert [body for _, body in receiver.requests] == [order, {"text": said}]
    authorizations = {headers["authorization"] for headers, _ in receiver.requests}
    assert len(authorizations) == 1
    assert re.fullmatch(r"Bearer [\w-]{32}", authorizations.pop())
    assert [step["status"] for step in parts.steps_of(run_id).values()].count("skipped") == 1
    assert len(parts.lines_of(run_id)) >= 4


@pytest.mark.parametrize("example", sorted(path.stem for path in demo.EXAMPLES.iterdir()))
def test_the_examples_are_without_fault_as_they_stand(example: str, parts: Parts) -> None:
    text = (demo.EXAMPLES / f"{example}.yaml").read_text()
    with closing(actions.build()) as registry:
        parse(text, actions=registry, evaluator=parts.evaluator)
    assert demo.EXAMPLE_RECEIVER in text


def test_what_is_printed_holds_every_secret_whole_and_commands_for_the_given_address() -> None:
    made = Demo(password="the-password", api_key="fl_key", orders="wf_orders", heartbeat="wf_heartbeat")
    said = made.described("http://127.0.0.1:8010")
    assert "demo@example.com, password the-password" in said
    assert """curl http://127.0.0.1:8010/api/webhooks/wf_orders -d '{"customer": "Ada", "amount": 120}'""" in said
    assert "curl 'http://127.0.0.1:8010/api/runs?limit=1' -H 'Authorization: Bearer fl_key'" in said
