"""The audit is a chain that nobody can fork, change or cut unseen, and it knows of every decryption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import errors as pg

from engine import audit
from engine.audit import Actor, Head, Sealer
from engine.db import Database
from engine.errors import RetryLater
from engine.ports import StepContext
from engine.repository import audit as stored
from engine.repository import decryptions
from engine.repository.audit import AuditFilter
from tests.engine_parts import Parts, parts_for
from tests.scripted import Scripted

ANN = Actor("user_ann", "192.0.2.7")
AWKWARD: dict[str, Any] = {
    "bb": 'ü\n"quoted"\t\u2028',
    "a": [1, -2, None, True, {"": "x"}],
    "é": {},
    "z" * 70: "\x01\x7f/",
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=12)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme'), ('beta', 'Beta')"))
    yield database
    database.close()


def write(database: Database, tenant: str = "acme", count: int = 3, **data: Any) -> None:
    for number in range(count):
        with database.tenant(tenant) as session:
            audit.record(session, ANN, "credential.created", f"cred_{number}", **data)


def verdict(database: Database, tenant: str = "acme", known: Head | None = None) -> audit.Verdict:
    with database.tenant(tenant) as session:
        return audit.verify(audit.entries(session), known=known)


def owner(url: str) -> psycopg.Connection[Any]:
    """Who owns the tables, and in these tests is a superuser: the strongest there is."""
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def test_a_row_says_who_did_what_to_what_when_and_from_where(database: Database) -> None:
    before = datetime.now(UTC)
    write(database, count=1, service="slack")
    with database.tenant("acme") as session:
        (row,) = stored.listed(session, AuditFilter(), before=None, limit=10)
    assert before <= row.pop("at") <= datetime.now(UTC)
    assert row == {
        "id": 1,
        "actor": "user_ann",
        "action": "credential.created",
        "object": "cred_0",
        "ip": "192.0.2.7",
        "data": {"service": "slack"},
    }


def test_what_the_database_chains_is_what_is_computed_here(database: Database) -> None:
    write(database, count=2, **AWKWARD)
    with database.tenant("acme") as session:
        audit.record(session, Actor("operator"), "tenant.suspended")
    found = verdict(database)
    assert (found.rows, found.head.number, found.fault) == (3, 3, None)


def test_each_tenant_has_a_chain_of_its_own(database: Database) -> None:
    write(database, "acme", 2)
    write(database, "beta", 1)
    assert [verdict(database, tenant).head.number for tenant in ("acme", "beta")] == [2, 1]
    with database.tenant("beta") as session:
        assert len(stored.listed(session, AuditFilter(), before=None, limit=10)) == 1


def test_writers_at_the_same_moment_do_not_fork_the_chain(database: Database) -> None:
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: write(database, count=5), range(10)))
    found = verdict(database)
    assert (found.rows, found.head.number, found.fault) == (50, 50, None)


def test_a_change_that_is_rolled_back_leaves_no_row_and_no_gap(database: Database) -> None:
    write(database, count=1)

    def fail() -> None:
        with database.tenant("acme") as session:
            audit.record(session, ANN, "credential.deleted")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    write(database, count=1)
    assert verdict(database) == audit.Verdict(2, verdict(database).head, None)


def test_a_statement_cannot_choose_number_time_or_hash(database: Database) -> None:
    write(database, count=1)
    with database.tenant("acme") as session:
        session.execute(
            sa.text(
                "INSERT INTO audit (tenant_id, id, at, actor, action, previous_hash, hash)"
                " VALUES ('acme', 900, '1999-01-01', 'mallory', 'x.y', '\\x00', '\\x00'),"
                " ('acme', 900, '1999-01-01', 'mallory', 'x.z', '\\x00', '\\x00')"
            )
        )
        rows = stored.listed(session, AuditFilter(), before=None, limit=10)
    assert [row["id"] for row in rows] == [3, 2, 1]
    assert rows[0]["at"].year > 2000
    assert verdict(database).fault is None


@pytest.mark.parametrize("verb", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
def test_not_even_the_owner_changes_a_row_by_the_way(database: Database, database_url: str, verb: str) -> None:
    write(database)
    with owner(database_url) as admin, pytest.raises(pg.RaiseException, match="append-only"):
        admin.execute(verb)


@pytest.mark.parametrize(
    ("tampering", "sentence"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE id = 2", "row 2 is not what was written"),
        ('UPDATE audit SET data = \'{"service": "http"}\' WHERE id = 3', "row 3 is not what was written"),
        ("UPDATE audit SET at = at - interval '1 day' WHERE id = 1", "row 1 is not what was written"),
        ("DELETE FROM audit WHERE id = 2", "row 2 is missing"),
        ("DELETE FROM audit WHERE id = 1", "row 1 is missing"),
        ("DELETE FROM audit WHERE id = 5", "its end is gone"),
        ("UPDATE audit SET hash = sha256('x') WHERE id = 4", "row 4 is not what was written"),
        ("UPDATE audit SET previous_hash = sha256('x') WHERE id = 4", "row 4 does not follow"),
    ],
)
def test_who_forces_a_change_is_found_out(database: Database, database_url: str, tampering: str, sentence: str) -> None:
    write(database, count=5, service="slack")
    known = verdict(database).head
    with owner(database_url) as admin:
        admin.execute(f"SET session_replication_role = replica; {tampering}")
    assert sentence in str(verdict(database, known=known).fault)


def test_a_chain_that_was_written_anew_is_found_out_by_a_head_that_was_kept(
    database: Database, database_url: str
) -> None:
    write(database)
    known = verdict(database).head
    with owner(database_url) as admin:
        admin.execute("SET session_replication_role = replica; DELETE FROM audit")
    write(database, count=5)
    assert verdict(database).fault is None
    assert "another hash" in str(verdict(database, known=known).fault)


def test_an_export_can_be_verified_without_the_database(database: Database) -> None:
    write(database, count=3, **AWKWARD)
    with database.tenant("acme") as session:
        lines = list(audit.exported(session))
    assert audit.verify(audit.imported(lines)) == verdict(database)
    changed = [*lines[:1], lines[1].replace("cred_1", "cred_9"), *lines[2:]]
    assert audit.verify(audit.imported(changed)).fault == "row 2 is not what was written"
    with pytest.raises(ValueError, match="Line 1 is not"):
        list(audit.imported(["{}"]))


def test_rows_are_found_by_who_what_and_when(database: Database) -> None:
    write(database, count=3)
    with database.tenant("acme") as session:
        audit.record(session, Actor("user_bob"), "member.removed", "user_x")
        every = stored.listed(session, AuditFilter(), before=None, limit=10)

        def numbers(**wanted: Any) -> list[int]:
            return [row["id"] for row in stored.listed(session, AuditFilter(**wanted), before=None, limit=10)]

        assert numbers(actor="user_bob") == [4]
        assert numbers(action="credential.created", object="cred_1") == [2]
        assert numbers(since=every[1]["at"]) == [4, 3]
        assert [row["id"] for row in stored.listed(session, AuditFilter(), before=3, limit=1)] == [2]


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    action = Scripted("test.call", lambda context, _: context.credential is not None)
    action.service, action.credential_required = "http", True
    with parts_for(database_url, script=action) as parts:
        yield parts


def test_each_decryption_is_recorded_with_its_run_and_step(parts: Parts) -> None:
    parts.credential("http", {"bearer": "abcdef"}, name="shared")
    step = {"action": "test.call", "credential": "shared"}
    run = parts.execute({"id": "a", **step}, {"id": "b", **step})
    assert run["status"] == "succeeded"
    with parts.database.tenant("acme") as session:
        uses = decryptions.listed(session, "cred_shared", before=None, limit=10)
    assert [(use["run_id"], use["step_id"], use["attempt"]) for use in uses] == [
        (run["id"], "b", 1),
        (run["id"], "a", 1),
    ]


def test_an_attempt_that_follows_at_once_is_recorded_as_itself(database_url: str) -> None:
    def body(context: StepContext, _parameters: Any) -> bool:
        if context.attempt < 3:
            raise RetryLater("not yet", after=timedelta(0))
        return True

    action = Scripted("test.call", body)
    action.service, action.credential_required = "http", True
    with parts_for(database_url, script=action) as parts:
        parts.credential("http", {"bearer": "abcdef"}, name="shared")
        assert parts.execute({"id": "a", "action": "test.call", "retry": {"attempts": 3}})["status"] == "succeeded"
        with parts.database.tenant("acme") as session:
            uses = decryptions.listed(session, "cred_shared", before=None, limit=10)
    assert [use["attempt"] for use in uses] == [3, 2, 1]


def test_what_is_not_decrypted_is_not_recorded(parts: Parts) -> None:
    parts.credential("http", {"bearer": "abcdef"}, name="one")
    parts.credential("http", {"bearer": "abcdef"}, name="two")
    parts.credential("slack", {"bot_token": "x"}, name="other")
    for number, wrong in enumerate(({}, {"credential": "none"}, {"credential": "other"})):
        workflow = parts.workflow({"id": "a", "action": "test.call", **wrong}, workflow_id=f"wf_{number}")
        run_id = parts.start(workflow)
        parts.executor.run("acme", run_id)
        assert parts.run_row(run_id)["status"] == "failed"
    assert parts.rows("SELECT * FROM decryptions") == []


def test_decryptions_are_put_into_the_chain_once_and_a_change_of_them_is_found_out(
    parts: Parts, database_url: str
) -> None:
    parts.credential("http", {"bearer": "abcdef"})
    parts.execute(*({"id": name, "action": "test.call"} for name in "abc"))
    sealer = Sealer(parts.database)
    assert [sealer.run_once(), sealer.run_once()] == [3, 0]

    with parts.database.tenant("acme") as session:
        (row,) = audit.entries(session)
        lines = list(audit.exported(session))
    assert (row["actor"], row["action"], row["data"]["count"]) == ("sealer", audit.DECRYPTIONS, 3)
    assert [use["step_id"] for use in row["decryptions"]] == ["a", "b", "c"]
    assert verdict(parts.database).fault is None
    assert audit.verify(audit.imported(lines)).fault is None
    assert len(json.loads(lines[0])["decryptions"]) == 3

    with owner(database_url) as admin:
        admin.execute("UPDATE decryptions SET run_id = 'run_x' WHERE step_id = 'b'")
    assert "are not those that were recorded" in str(verdict(parts.database).fault)


def test_sealers_at_the_same_moment_seal_each_decryption_once(parts: Parts) -> None:
    with parts.database.tenant("acme") as session:
        for number in range(50):
            session.execute(
                sa.text(
                    "INSERT INTO decryptions (tenant_id, credential_id, run_id, step_id, attempt)"
                    f" VALUES ('acme', 'c', 'run_{number}', 's', 1)"
                )
            )
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda _: Sealer(parts.database).run_once(), range(6))) == 50
    assert verdict(parts.database).fault is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE decryptions SET run_id = 'x'",
        "UPDATE decryptions SET sealed_by = 1",
        "DELETE FROM decryptions",
        "INSERT INTO decryptions (tenant_id, credential_id, sealed_by) VALUES ('acme', 'c', 1)",
        "INSERT INTO decryptions (tenant_id, credential_id, at) VALUES ('acme', 'c', '1999-01-01')",
    ],
)
def test_a_tenant_can_only_add_to_its_decryptions(database: Database, statement: str) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), database.tenant("acme") as session:
        session.execute(sa.text(statement))


@pytest.mark.parametrize("statement", ["UPDATE decryptions SET run_id = 'x'", "DELETE FROM decryptions"])
def test_the_system_can_only_mark_decryptions(database: Database, statement: str) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), database.system() as session:
        session.execute(sa.text(statement))


def test_the_audit_goes_with_its_tenant(database: Database, database_url: str) -> None:
    write(database)
    write(database, "beta", 1)
    with owner(database_url) as admin:
        admin.execute("DELETE FROM tenants WHERE id = 'acme'")
        assert admin.execute("SELECT tenant_id FROM audit").fetchall() == [("beta",)]
