"""An adoption is taken back row for row, or refused where that loses something; erasing reaches the old tables too."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import migrations
from embedded.postgres import PostgresServer
from engine import leaving
from engine.audit import Actor
from engine.db import Database
from engine.errors import Conflict
from engine.leaving import Eraser
from tests.adopting import adopted_now, dirty, do, rows_of, taken_back
from tests.command_line import DOWN, configured
from tests.conftest import fresh_database
from tests.legacy_database import (
    EARLY,
    Legacy,
    clean,
    dump,
)


def test_a_dirty_database_is_taken_back_row_for_row(postgres_server: PostgresServer) -> None:
    with fresh_database(postgres_server) as url:
        dirty()[0].write(url)
        before = dump(url)
        adopted_now(url, None)
        assert dump(url) != before
        taken_back(url)
        assert dump(url) == before


def test_the_way_back_refuses_to_lose_what_was_made_since(empty_database_url: str) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    adopted_now(empty_database_url)
    do(empty_database_url, "UPDATE runs SET trigger = 'webhook' WHERE id = (SELECT min(id) FROM runs)")
    with pytest.raises(Conflict, match="1 run since the adoption would be lost; give --discard-new"):
        taken_back(empty_database_url)
    do(empty_database_url, "INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
    with pytest.raises(Conflict, match="1 organization made since"):
        taken_back(empty_database_url, discard_new=True)
    assert rows_of(empty_database_url, "SELECT count(*) FROM tenants") == [(4,)]
    do(empty_database_url, "DELETE FROM tenants WHERE id = 'acme'")
    taken_back(empty_database_url, discard_new=True)
    assert dump(empty_database_url) == before


def _erase(url: str, tenant_id: str) -> None:
    with closing(Database(url, pool_size=1)) as database:
        with database.system() as session:
            leaving.delete(session, Actor("operator:test"), tenant_id, grace=timedelta(0))
        assert Eraser(database).run_once().tenants == 1


def test_erasing_an_organization_reaches_the_old_tables_and_the_others_can_go_back(
    postgres_server: PostgresServer,
) -> None:
    others, legacy = clean(), clean()
    leaver = legacy.user("leaver@example.com", created_at="no time at all")
    workflow = legacy.workflow(leaver, "webhook", "slack_message", {"slack_message": "x"})
    deleted = legacy.workflow(leaver, "webhook", "slack_message", {"slack_message": "x"})
    legacy.credential(leaver, "slack", "", encrypted_key="!!")
    for each in (workflow, workflow, deleted):
        legacy.log(each, executed_at="when it rained")
    legacy.rows["workflows"].append(dict(legacy.rows["workflows"][-1]))  # one that is set aside
    orphan = legacy.log("gone")
    for table, rows in others.rows.items():
        rows[:] = legacy.rows[table][: len(rows)]
    with fresh_database(postgres_server) as url, fresh_database(postgres_server) as expected:
        loose = EARLY.replace(" PRIMARY KEY", "")
        legacy.write(url, loose)
        others.log("gone", id=orphan)
        others.write(expected, loose)
        assert {finding.id for finding in adopted_now(url).findings} > {workflow, deleted, leaver, orphan} - {workflow}
        do(url, f"DELETE FROM public.workflows WHERE id = '{deleted}'")
        _erase(url, f"tenant_{leaver}")
        [(report,)] = rows_of(url, "SELECT report->'findings' FROM fairlane_legacy.adoption")
        assert [finding["id"] for finding in report] == [orphan]
        assert rows_of(url, "SELECT id FROM fairlane_legacy.rejects") == [(orphan,)]
        with pytest.raises(Conflict, match="1 account that the multi-user system does not have"):
            taken_back(url)
        taken_back(url, discard_new=True)
        assert dump(url) == dump(expected)


def test_erasing_forgets_no_finding_of_others_that_has_the_same_number_in_another_table(
    empty_database_url: str,
) -> None:
    legacy, bad = Legacy(), "when it rained"
    for number in ("1", "2"):
        user = legacy.user(f"{number}@example.com", id=number, created_at=bad)
        workflow = legacy.workflow(user, "webhook", "slack_message", {"slack_message": "x"}, id=number, created_at=bad)
        legacy.log(workflow, id="1" if number == "2" else "2", executed_at=bad)
    legacy.write(empty_database_url)
    adopted_now(empty_database_url)
    _erase(empty_database_url, "tenant_1")
    [(report,)] = rows_of(empty_database_url, "SELECT report->'findings' FROM fairlane_legacy.adoption")
    assert {(finding["table"], finding["id"]) for finding in report} == {
        ("logs", "1"),
        ("users", "2"),
        ("workflows", "2"),
    }


def test_where_the_way_back_is_closed_going_back_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    clean().write(empty_database_url)
    adopted_now(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    command.fine("migrate", "--forget-legacy")
    refused = command("migrate", "--back-to", "0001")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("There is no way back to 0001: ")
    assert refused.err.endswith("Nothing was changed.\n")
    assert refused.err.count("\n") == 1
    assert rows_of(empty_database_url, "SELECT version_num FROM alembic_version") == [(migrations.head(),)]
    command.fine("migrate", "--back-to", "0016")
    assert rows_of(empty_database_url, "SELECT version_num FROM alembic_version") == [("0016",)]


def test_an_eraser_that_may_not_reach_the_old_tables_says_what_does(empty_database_url: str) -> None:
    legacy = clean()
    legacy.write(empty_database_url)
    adopted_now(empty_database_url)
    do(empty_database_url, "DROP FUNCTION fairlane_legacy.erase(text)")  # as adoptions before it left it
    with capture_logs() as said:
        _erase(empty_database_url, f"tenant_{legacy.rows['users'][0]['id']}")
    [warning] = [entry for entry in said if entry["event"] == "legacy_rows_kept"]
    assert warning["remedy"] == "fairlane migrate --forget-legacy"


def test_old_rows_that_a_table_of_somebody_else_holds_do_not_keep_the_organization(empty_database_url: str) -> None:
    legacy = clean()
    legacy.write(empty_database_url)
    person = legacy.rows["users"][0]["id"]
    do(
        empty_database_url,
        f"CREATE TABLE sessions (user_id VARCHAR REFERENCES users);INSERT INTO sessions VALUES ('{person}')",
    )
    adopted_now(empty_database_url)
    with capture_logs() as said:
        _erase(empty_database_url, f"tenant_{person}")
    [warning] = [entry for entry in said if entry["event"] == "legacy_rows_kept"]
    assert 'still referenced from table "sessions"' in warning["reason"]
    assert rows_of(empty_database_url, f"SELECT id FROM tenants WHERE id = 'tenant_{person}'") == []
    assert rows_of(empty_database_url, f"SELECT id FROM fairlane_legacy.users WHERE id = '{person}'") == [(person,)]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')", "1 organization made since"),
        ("INSERT INTO users (id, email, password_hash) VALUES ('new', 'n@b', 'x')", "1 account that the multi-user"),
    ],
)
def test_an_old_row_without_an_id_hides_nothing_that_was_made_since(
    empty_database_url: str, made: str, sentence: str
) -> None:
    legacy = clean()
    legacy.add("users", id=None, email="nobody@example.com", password_hash="x")
    legacy.write(empty_database_url, EARLY.replace(" PRIMARY KEY", ""))
    adopted_now(empty_database_url)
    do(empty_database_url, made)
    with pytest.raises(Conflict, match=sentence):
        taken_back(empty_database_url)
