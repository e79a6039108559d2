"""An organization leaves: with all its data in one archive, deleted, restored in time, or erased for good."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from engine import archive, audit, db, leaving
from engine.audit import Actor
from engine.db import Database
from engine.errors import NotFound, Unavailable, VaultError
from engine.fairshare import Lanes
from engine.leaving import Eraser
from engine.models import metadata
from engine.repository import credentials
from engine.repository.leaving import ARCHIVED, SECRET
from engine.vault import MasterKeyRing, Vault
from tests.fair_queue import fair_queue
from tests.integration.test_isolation import SEED, TENANT_TABLES

BY = Actor("operator:test")
PAST_GRACE = datetime.now(UTC) + timedelta(days=31)
NOT_ARCHIVED = {"data_keys", "audit"}


@pytest.fixture
def vault() -> Vault:
    return Vault(MasterKeyRing({"k": b"1" * 32}))


@pytest.fixture
def database(database_url: str, vault: Vault) -> Iterator[Database]:
    """Tenants ``a`` and ``b`` with a row in every table, and a real secret each."""
    with psycopg.connect(database_url.replace("+psycopg", "")) as admin:
        admin.execute(SEED.format(t="a") + SEED.format(t="b"))
        admin.execute("DELETE FROM credentials; DELETE FROM data_keys")
    database = Database(database_url)
    for tenant in "ab":
        with database.tenant(tenant) as session:
            sealed = vault.seal(session, f"cred_{tenant}", {"bearer": f"hush-{tenant}"})
            values = {"ciphertext": sealed.ciphertext, "key_version": sealed.key_version}
            credentials.insert_credential(
                session, {"id": f"cred_{tenant}", "service_name": "http", "name": "shop", **values}
            )
    yield database
    database.close()


def rows(database: Database, statement: str) -> list[Any]:
    with database.system() as session:
        return session.rows(sa.text(statement))


def left_of(database: Database, tenant: str) -> dict[str, int]:
    """Rows of the tenant in every table that has any."""
    counts = {
        table: rows(database, f"SELECT count(*) AS n FROM {table} WHERE tenant_id = '{tenant}'")[0]["n"]
        for table in TENANT_TABLES
    }
    return {table: count for table, count in counts.items() if count}


def delete(database: Database, tenant: str = "a", **options: Any) -> None:
    with database.system() as session:
        leaving.delete(session, BY, tenant, **options)


def test_a_deleted_organization_loses_nothing_until_the_grace_period_is_over(database: Database) -> None:
    before = left_of(database, "a")
    delete(database)
    assert Eraser(database).run_once() == leaving.Erased()
    assert left_of(database, "a") == before | {"audit": before["audit"] + 1}
    (row,) = rows(database, "SELECT status, erase_after - deleted_at AS grace FROM tenants WHERE id = 'a'")
    assert (row["status"], row["grace"]) == ("deleted", timedelta(days=30))


def test_it_can_be_restored_until_then_and_not_twice(database: Database) -> None:
    delete(database)
    with database.system() as session:
        leaving.restore(session, BY, "a")
    assert Eraser(database).run_once(now=PAST_GRACE) == leaving.Erased()
    assert rows(database, "SELECT status FROM tenants WHERE id = 'a'") == [{"status": "active"}]
    with pytest.raises(NotFound), database.system() as session:
        leaving.restore(session, BY, "a")
    actions = rows(database, "SELECT action FROM audit WHERE tenant_id = 'a' ORDER BY id")
    assert [row["action"] for row in actions][-2:] == ["tenant.deleted", "tenant.restored"]


def test_what_is_erased_is_gone_from_every_table_and_others_are_as_they_were(database: Database) -> None:
    theirs = left_of(database, "b")
    assert theirs.keys() == set(TENANT_TABLES)
    delete(database)
    forgotten: list[str] = []
    erased = Eraser(database, forget_lane=forgotten.append).run_once(now=PAST_GRACE)
    assert erased == leaving.Erased(tenants=1, runs=1)
    assert left_of(database, "a") == {}
    assert rows(database, "SELECT id FROM tenants") == [{"id": "b"}]
    assert left_of(database, "b") == theirs
    assert forgotten == ["a"]


def test_what_waits_of_it_in_the_queue_goes_too(database: Database, redis_url: str) -> None:
    lanes = Lanes(redis_url)
    with fair_queue(redis_url) as queue:
        queue.publish("a", 3)
        queue.publish("b", 2)
        delete(database, grace=timedelta(0))
        Eraser(database, forget_lane=lanes.drain).run_once()
        assert queue.take_many(3) == {"b": 2, None: 1}


def test_the_accounts_of_its_people_stay_without_a_home(database: Database) -> None:
    delete(database)
    Eraser(database).run_once(now=PAST_GRACE)
    assert rows(database, "SELECT id, tenant_id FROM users ORDER BY id") == [
        {"id": "user_a", "tenant_id": None},
        {"id": "user_b", "tenant_id": "b"},
    ]


def test_its_keys_are_shredded_before_anything_else_is_deleted(
    database: Database, database_url: str, vault: Vault
) -> None:
    """Were it to fail after the first step, what is left, and what a backup holds without the keys, cannot be read."""
    delete(database)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;"
            "CREATE TRIGGER fail BEFORE DELETE ON runs FOR EACH ROW EXECUTE FUNCTION fail()"
        )
        with capture_logs() as said:
            assert Eraser(database).run_once(now=PAST_GRACE) == leaving.Erased(failed=1)
        assert [(line["event"], line["tenant"]) for line in said] == [("erasure_failed", "a")]
        admin.execute("DROP TRIGGER fail ON runs")
    with database.tenant("a") as session:
        (row,) = credentials.for_step(session, name="shop", service="http", run_id="r", step_id="s", attempt=1)
        with pytest.raises(VaultError, match="its data key is gone"):
            vault.open(session, row)
    Eraser(database).run_once(now=PAST_GRACE)
    assert left_of(database, "a") == {}


def test_one_that_cannot_be_erased_holds_up_no_other(database: Database, database_url: str) -> None:
    delete(database)
    delete(database, "b")
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("CREATE TABLE theirs (id TEXT REFERENCES tenants); INSERT INTO theirs VALUES ('a')")
        assert Eraser(database).run_once(now=PAST_GRACE) == leaving.Erased(tenants=1, runs=1, failed=1)
        assert rows(database, "SELECT id FROM tenants") == [{"id": "a"}]
        admin.execute("DROP TABLE theirs")
    assert Eraser(database).run_once(now=PAST_GRACE) == leaving.Erased(tenants=1)


def test_one_whose_rows_somebody_else_holds_is_passed_over(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(database)
    delete(database, "b")
    monkeypatch.setitem(db.CONNECT, "options", "-c lock_timeout=50ms")
    hasty = contextlib.closing(Database(database_url))
    with hasty as impatient, psycopg.connect(database_url.replace("+psycopg", "")) as admin:
        admin.execute("SELECT 1 FROM tenants WHERE id = 'a' FOR UPDATE")
        assert Eraser(impatient).run_once(now=PAST_GRACE) == leaving.Erased(tenants=1, runs=1, failed=1)


def test_while_postgres_is_away_the_pass_ends() -> None:
    with pytest.raises(Unavailable):
        Eraser(Database("postgresql+psycopg://nobody@127.0.0.1:1/none")).run_once()


def test_what_is_restored_at_the_last_moment_is_not_erased(database: Database) -> None:
    """The pass found both due; b is restored while a is erased."""
    for tenant in "ab":
        delete(database, tenant)
    before = left_of(database, "b")

    def restore_b(_erased: str) -> None:
        with database.system() as session:
            leaving.restore(session, BY, "b")

    assert Eraser(database, forget_lane=restore_b).run_once(now=PAST_GRACE).tenants == 1
    assert left_of(database, "a") == {}
    assert left_of(database, "b").keys() == before.keys()
    assert {row["status"] for row in rows(database, "SELECT status FROM tenants WHERE id = 'b'")} == {"active"}


def test_after_the_grace_period_nothing_can_be_restored(database: Database) -> None:
    delete(database, grace=timedelta(0))
    with database.system() as session, pytest.raises(NotFound):
        leaving.restore(session, BY, "a")


def test_many_runs_are_deleted_in_pieces(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "BATCH", 7)
    with database.system() as session:
        session.execute(
            sa.text(
                "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input)"
                " SELECT 'a', 'run_' || n, 'wf_a', 1, 'queued', 'api', '{}' FROM generate_series(1, 30) n"
            )
        )
    delete(database, grace=timedelta(0))
    assert Eraser(database).run_once() == leaving.Erased(tenants=1, runs=31)


def test_who_is_not_there_cannot_be_deleted(database: Database) -> None:
    delete(database)
    for tenant in ("a", "nobody"):
        with pytest.raises(NotFound):
            delete(database, tenant)


def exported(database: Database, **options: Any) -> zipfile.ZipFile:
    file = io.BytesIO()
    archive.write(database, "a", file, BY, **options)
    return zipfile.ZipFile(file)


def lines(archive: zipfile.ZipFile, name: str) -> list[Any]:
    return [json.loads(line) for line in archive.read(f"{name}.jsonl").splitlines()]


def test_an_archive_holds_every_table_and_nothing_of_others(database: Database) -> None:
    of_nobody = {"plans", "plan_prices", "usage_rollups", "metric_events", "metric_tenants", "metric_totals"}
    assert set(ARCHIVED) == {t for t in metadata.tables if t not in NOT_ARCHIVED | of_nobody}
    with exported(database) as made:
        for table in ARCHIVED:
            (row,) = lines(made, table)
            assert row.get("tenant_id", row["id"] if table == "tenants" else "a") == "a"
            assert not SECRET.get(table, set()) & row.keys()
        manifest = json.loads(made.read("manifest.json"))
        for name, file in manifest["files"].items():
            content = made.read(name)
            assert (file["rows"], file["sha256"]) == (len(content.splitlines()), hashlib.sha256(content).hexdigest())
        everything = b"".join(made.read(name) for name in made.namelist())
    assert b"user_b" not in everything
    assert b"hush" not in everything


def test_its_audit_can_be_verified_and_tells_of_the_export(database: Database) -> None:
    with exported(database) as made:
        text = made.read("audit.jsonl").decode().splitlines()
    assert audit.verify(audit.imported(text)) == audit.Verdict(1, audit.verify(audit.imported(text)).head, None)
    (row,) = rows(database, "SELECT actor, action, data FROM audit WHERE tenant_id = 'a' AND id = 2")
    assert row == {"actor": BY.id, "action": "tenant.exported", "data": {"secrets": False}}


def test_its_secrets_are_in_it_only_when_they_are_asked_for(database: Database, vault: Vault) -> None:
    with exported(database, secrets=vault) as made:
        assert lines(made, "secrets") == [{"id": "cred_a", "name": "shop", "data": {"bearer": "hush-a"}}]


def test_an_archive_is_read_in_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PAGE", 4)
    with database.tenant("a") as session:
        session.execute(
            sa.text(
                "INSERT INTO poll_items (tenant_id, workflow_id, item_id)"
                " SELECT 'a', 'wf_a', 'item_' || n FROM generate_series(1, 15) n"
            )
        )
    with exported(database) as made:
        assert len({row["item_id"] for row in lines(made, "poll_items")}) == 16
