"""A Postgres of one's own, as docs/operations.md tells to set it up: no superuser, and processes that own nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

import actions
import migrations
from embedded.postgres import DATABASE, PostgresServer
from engine import audit, leaving
from engine.audit import Actor
from engine.db import Database
from engine.errors import Conflict
from engine.moving import Cargo, Mover
from engine.runs import Start
from engine.vault import MasterKeyRing, Vault
from migrations.legacy import adopt, checking
from migrations.legacy.findings import TABLES
from migrations.legacy.road import Parts
from tests import trigger_parts
from tests.engine_parts import parts_for
from tests.legacy_database import KEY, clean, dump
from triggers import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def server(tmp_path: Path) -> PostgresServer:
    """A server of this test alone: roles belong to a whole server."""
    return PostgresServer(tmp_path / "postgres", fast=True)


def url_of(server: PostgresServer, user: str, password: str) -> str:
    return f"postgresql+psycopg://{user}:{password}@127.0.0.1:{server.port}/fairlane"


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in filter(str.strip, statements.split(";")):
            connection.execute(statement.encode())


@contextmanager
def as_the_page_says(
    server: PostgresServer, migrate: Callable[[str], object] = migrations.upgrade
) -> Iterator[tuple[str, str]]:
    """A migrated database: the URL of who owns it, and that of our processes."""
    make_owner, make_app = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    server.start()
    try:
        superuser = server.url.removesuffix(DATABASE) + "postgres"
        execute(superuser, f"DROP DATABASE {DATABASE}")
        execute(superuser, make_owner)
        owner, app = (
            url_of(server, user, password.replace(" ", "%20"))
            for user, password in re.findall(r"ROLE (\w+) LOGIN.* PASSWORD '(.*?)'", make_owner + make_app)
        )
        migrate(owner)
        execute(owner, make_app)
        yield owner, app
    finally:
        server.stop()


def test_what_the_page_says_is_enough_to_migrate_and_to_run(server: PostgresServer) -> None:
    with as_the_page_says(server) as (owner, app):
        for url in (owner, app):
            with closing(Database(url, pool_size=1)) as database:
                database.verify()
        with parts_for(app) as parts:
            run = parts.execute({"id": "echo", "action": "debug.echo", "with": {"text": "hello"}})
        assert (run["status"], run["output"]) == ("succeeded", {"text": "hello"})


def test_who_owns_an_old_database_can_adopt_it_and_go_back_and_our_processes_erase_in_it(
    server: PostgresServer,
) -> None:
    legacy = clean()
    leaver = legacy.rows["users"][0]["id"]
    parts = Parts(Vault(MasterKeyRing({"k": b"1" * 32})), actions.build(), KINDS, KEY)

    def adopted(owner: str) -> None:
        legacy.write(owner)
        assert checking.preview(owner, parts).counts == adopt.adopt(owner, parts, lambda *_: None).counts

    with as_the_page_says(server, adopted) as (owner, app):
        with closing(Database(app, pool_size=1)) as database:
            with database.system() as session:
                leaving.delete(session, Actor("operator:test"), f"tenant_{leaver}", grace=timedelta(0))
            assert leaving.Eraser(database).run_once().tenants == 1
        with pytest.raises(Conflict, match="1 account that the multi-user system does not have"):
            adopt.take_back(owner, discard_new=False, progress=lambda *_: None)
        adopt.take_back(owner, discard_new=True, progress=lambda *_: None)
        rows = dump(owner)
    assert {table: len(rows[table]) for table in TABLES} == {"users": 2, "credentials": 4, "workflows": 4, "logs": 16}
    assert not any(leaver in str(rows[table]) for table in TABLES)


def test_what_owns_nothing_can_move_audit_and_erase_organizations(server: PostgresServer) -> None:
    """What follows a workflow, and what goes with a tenant, is the owner's work, who is no superuser here."""
    by = Actor("operator:test")
    with as_the_page_says(server) as (owner, app), trigger_parts.two_tenants(app) as database:
        parts = trigger_parts.Parts(database, actions.build())
        workflow_id = parts.save({"type": "webhook", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
        with database.tenant("a") as own:
            start = Start(workflow_id=workflow_id, trigger="api", input={})
            run_id = parts.runs.start(own, start).run["id"]
        with database.system() as session:
            cargo = Cargo(workflows=[workflow_id])
            Mover(parts.vault, parts.workflows).move(session, by, cargo, source="a", target="b")
        assert [row["tenant_id"] for row in parts.rows("SELECT tenant_id FROM runs WHERE id = :id", id=run_id)] == ["b"]
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            execute(owner, "UPDATE audit SET actor = 'nobody'")
        with database.system() as session:
            leaving.delete(session, by, "b", grace=timedelta(0))
        assert leaving.Eraser(database).run_once() == leaving.Erased(tenants=1, runs=1)
        assert parts.rows("SELECT tenant_id FROM audit") == [{"tenant_id": "a"}]
        with database.tenant("a") as session:
            assert audit.verify(audit.entries(session)).fault is None
