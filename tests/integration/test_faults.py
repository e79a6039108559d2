"""Faults in the middle: a reply lost after COMMIT, a read-only Postgres, edits while a run is running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from bench.harness import Proxy
from engine.db import Database
from engine.errors import RetryLater, Unavailable
from engine.ports import Json, StepContext
from engine.repository import credentials
from engine.runs import Start, Started
from tests.engine_parts import Parts, parts_for
from tests.scripted import call, echo, scripted

KEYED = Start(workflow_id="wf_1", trigger="api", input={"input": {}}, idempotency_key="order-1")


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def start(parts: Parts, database: Database) -> Started:
    with database.tenant("acme") as session:
        return parts.runs.start(session, KEYED)


def test_f12_a_start_whose_commit_was_not_answered_is_the_same_run_when_it_is_repeated(parts: Parts) -> None:
    parts.workflow(echo())
    url = sa.make_url(parts.url)
    proxy = Proxy(url.port or 5432)
    database = Database(url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False))
    try:
        with database.tenant("acme"):
            pass  # connecting commits something of its own
        proxy.cut_after(b"COMMIT")
        with pytest.raises(Unavailable):
            start(parts, database)
        assert proxy.triggered.is_set()
        again = start(parts, database)
        assert again.existing, "the first one was stored, though nobody was told"
        assert [row["id"] for row in parts.rows("SELECT id FROM runs")] == [again.run["id"]]
    finally:
        database.close()
        proxy.close()


def test_f13_a_read_only_postgres_accepts_nothing_and_afterwards_all_goes_on(parts: Parts) -> None:
    parts.workflow(echo())
    name = sa.make_url(parts.url).database
    parts.fill(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    database = Database(parts.url)
    with pytest.raises(Unavailable, match="takes no writes"):
        start(parts, database)
    database.close()
    assert parts.rows("SELECT id FROM runs") == []
    parts.fill(f'BEGIN READ WRITE; ALTER DATABASE "{name}" RESET default_transaction_read_only; COMMIT')
    assert not start(parts, parts.database).existing


def test_a_workflow_that_is_edited_in_mid_run_is_finished_as_it_was(parts: Parts, script: SimpleNamespace) -> None:
    def edit(_context: StepContext, _parameters: Any) -> Json:
        parts.fill(
            "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
            " SELECT tenant_id, workflow_id, 2, definition || '{\"steps\": []}', 'h2' FROM workflow_versions"
        )
        parts.fill("UPDATE workflows SET version = 2")
        return "edited"

    script.body = edit
    run = parts.execute(call(), echo("two"))
    assert (run["status"], run["version"], run["output"]) == ("succeeded", 1, {"at": "two"})


def test_f25_a_credential_that_is_deleted_in_mid_run_ends_the_step_that_needs_it_with_its_name(
    parts: Parts, script: SimpleNamespace
) -> None:
    script.action.service = "shop"
    script.action.credential_required = True
    parts.credential("shop", {"token": "canary-1"})
    script.body = lambda _context, _parameters: parts.fill("DELETE FROM credentials")
    run = parts.execute(call(), call("two"))
    assert (run["status"], run["error"]["code"]) == ("failed", "credential_missing")
    assert len(script.action.contexts) == 1
    assert all("canary-1" not in line["message"] for line in parts.lines_of(run["id"]))


def test_f25_a_credential_that_is_deleted_between_two_attempts_ends_the_step_and_is_not_used_again(
    parts: Parts, script: SimpleNamespace
) -> None:
    def body(_context: StepContext, _parameters: Any) -> Json:
        parts.fill("DELETE FROM credentials")
        raise RetryLater("canary-1 was refused", after=timedelta(0))

    script.action.service, script.action.credential_required, script.body = "shop", True, body
    parts.credential("shop", {"token": "canary-1"})
    run = parts.execute(call(retry={"attempts": 5}))
    assert (run["error"]["code"], len(script.action.contexts)) == ("credential_missing", 1)
    step = parts.steps_of(run["id"])["one"]
    assert (step["status"], step["attempt"]) == ("failed", 1)
    assert "canary" not in str([run, step, parts.lines_of(run["id"])])


def test_f25_a_credential_that_is_rotated_in_mid_run_is_the_new_one_when_it_goes_on_and_shows_nowhere(
    parts: Parts, script: SimpleNamespace
) -> None:
    """For an attempt that follows at once, for one that the run waits for, and for the next step."""
    seen: list[str] = []
    pauses = [timedelta(0), timedelta(minutes=10)]

    def body(context: StepContext, _parameters: Any) -> Json:
        assert context.credential is not None
        seen.append(context.credential.get_secret_value()["token"])
        rotate(parts, f"canary-{len(seen) + 1}")
        if len(seen) <= len(pauses):
            raise RetryLater(f"{seen} were refused", after=pauses[len(seen) - 1])
        return seen[-1]

    script.action.service, script.action.credential_required, script.body = "shop", True, body
    parts.credential("shop", {"token": "canary-1"})
    run_id = parts.execute(call(retry={"attempts": 3}), call("two"))["id"]
    parts.let_pass(minutes=10)
    parts.sweep_and_run()
    run = parts.run_row(run_id)
    assert (run["status"], seen) == ("succeeded", [f"canary-{number}" for number in range(1, 5)])
    assert run["output"] == "[redacted]"
    assert "canary" not in str([run, parts.steps_of(run_id), parts.lines_of(run_id)])


def rotate(parts: Parts, token: str) -> None:
    with parts.database.tenant("acme") as session:
        sealed = parts.vault.seal(session, "cred_shop", {"token": token})
        credentials.replace_secret(
            session, "cred_shop", sealed.ciphertext, key_version=sealed.key_version, fingerprint=sealed.fingerprint
        )


def test_f16_no_clock_of_a_worker_decides_who_has_a_run(
    parts: Parts, script: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes fast or slow: a run in hand is not taken over, and a silent one is, by the clock of Postgres."""
    true, inside, go_on = time.time, threading.Event(), threading.Event()

    def body(_context: StepContext, _parameters: Any) -> Json:
        inside.set()
        return go_on.wait(60)

    script.body = body
    run_id = parts.start(parts.workflow(call()))
    worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
    worker.start()
    assert inside.wait(20)
    for off in (600, -600):
        monkeypatch.setattr(time, "time", lambda off=off: true() + off)
        assert parts.another_worker().run("acme", run_id) is None
    go_on.set()
    worker.join(20)
    assert (parts.run_row(run_id)["status"], parts.run_row(run_id)["attempt"]) == ("succeeded", 1)
