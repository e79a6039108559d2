"""A multi-user database is adopted in place, whatever is in it: nothing vanishes, and all that changes is told."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

import migrations
from embedded.postgres import PostgresServer
from engine import billing
from engine.billing import Closer
from engine.db import Database
from engine.errors import BadRequest, Conflict, Unavailable
from migrations.legacy import adopt, checking, moments, road, sorting, staging, sums
from migrations.legacy.conversion import next_fire
from migrations.legacy.findings import TABLES, Conversion, Kind
from migrations.legacy.importing import import_file
from tests import legacy_file
from tests.adopting import LONG_AGO, adopted_now, dirty, do, parts, rows_of, taken_back
from tests.command_line import DOWN, configured
from tests.conftest import fresh_database
from tests.legacy_database import (
    EARLY,
    FORMS_OF_A_TIME,
    KEY,
    LATER,
    NO_TIMES,
    Legacy,
    clean,
    dump,
    encrypt,
    examples,
    spoil,
    spoil_lines,
)


def _by_id(conversion: Conversion) -> dict[tuple[str, str], list[tuple[Kind, str]]]:
    found: dict[tuple[str, str], list[tuple[Kind, str]]] = {}
    for finding in conversion.findings:
        found.setdefault((finding.table, finding.id), []).append((finding.kind, finding.reason))
    return found


@pytest.mark.parametrize("schema", [EARLY, LATER], ids=["early", "later"])
def test_a_clean_database_of_either_form_is_carried_over_whole_and_can_be_taken_back(
    empty_database_url: str, schema: str
) -> None:
    clean().write(empty_database_url, schema)
    before = dump(empty_database_url)
    seen = checking.preview(empty_database_url, parts())
    conversion = adopted_now(empty_database_url)
    assert conversion.findings == seen.findings == []
    assert conversion.counts == seen.counts
    assert len({sums.before for sums in conversion.checksums.values()}) == 4
    assert all(sums.before == sums.after for sums in conversion.checksums.values())
    assert seen.refused is None
    assert {table: count.carried for table, count in conversion.counts.items()} == {
        "users": 3, "credentials": 6, "workflows": 6, "logs": 24
    }  # fmt: skip
    assert rows_of(empty_database_url, "SELECT version_num FROM alembic_version") == [(migrations.head(),)]
    assert rows_of(empty_database_url, "SELECT DISTINCT organizations FROM tenants") == [(False,)]
    assert rows_of(empty_database_url, "SELECT count(*) FROM workflows WHERE version = 1 AND is_active") == [(6,)]
    taken_back(empty_database_url)
    assert dump(empty_database_url) == before
    assert adopted_now(empty_database_url).counts == conversion.counts  # and the road is open again


def test_the_report_shows_checksums_of_the_contents_and_they_are_those_of_the_same_contents_in_a_file(
    empty_database_url: str, tmp_path: Path
) -> None:
    """Those of a file are taken row by row as it is read, those of a database by Postgres."""
    legacy = clean()
    for form, _ in FORMS_OF_A_TIME:
        legacy.log(legacy.rows["workflows"][0]["id"], executed_at=str(form))
    path = legacy_file.write(tmp_path / "old.db", legacy)
    read = import_file(empty_database_url, path, parts(), lambda *_: None, dry_run=True).checksums
    legacy.write(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    done = command.fine("migrate", "--adopt", "--encryption-key", base64.b64encode(KEY).decode())
    assert "contents before   after" in done.out
    for table, each in read.items():
        assert re.search(rf"^{table} .* {each.before}  {each.after}$", done.out, re.MULTILINE), done.out
    [(kept,)] = rows_of(empty_database_url, "SELECT report->'checksums' FROM fairlane_legacy.adoption")
    assert kept == {table: asdict(sums) for table, sums in read.items()}


def test_contents_that_are_not_the_same_afterwards_are_told_and_nothing_is_changed(
    empty_database_url: str, tmp_path: Path
) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    spoil(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    failed = command("migrate", "--adopt", "--encryption-key", base64.b64encode(KEY).decode())
    assert (failed.code, failed.out) == (1, "")
    said = r"The contents of users are not the same: their checksum was \w{16} before and is \w{16} after. Nothing was"
    assert re.match(said, failed.err), failed.err
    assert dump(empty_database_url) == before


def test_a_value_that_is_replaced_without_a_finding_makes_the_contents_differ(empty_database_url: str) -> None:
    legacy = clean()
    user = legacy.user("late@example.com", created_at=None)
    odd = legacy.workflow(user, "webhook", "slack_message", {"slack_message": "x"}, last_executed_at="soon")
    log = legacy.log(odd, executed_at=None)
    legacy.write(empty_database_url)
    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection:
        staging.prepare(connection)
        for table in TABLES:
            connection.exec_driver_sql(f"ALTER TABLE {table} SET SCHEMA {staging.SCHEMA}")
        sorting.sort(connection, staging.SCHEMA)
        told = sums.before(connection)
        connection.exec_driver_sql("DELETE FROM legacy_sorted")
        untold = sums.before(connection)
        connection.rollback()
    engine.dispose()
    assert [table for table in TABLES if told[table] != untold[table]] == ["users", "workflows", "logs"]
    conversion = adopted_now(empty_database_url)
    assert conversion.adds_up
    changed = {(finding.id, finding.reason) for finding in conversion.findings if finding.kind is Kind.CHANGED}
    assert changed == {
        (user, "created_at is missing"),
        (odd, "last_executed_at cannot be read as a time: soon"),
        (log, "executed_at is missing"),
    }


def test_a_line_of_the_execution_log_that_is_not_as_the_old_log_had_it_is_told_and_nothing_is_changed(
    empty_database_url: str,
) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    spoil_lines(empty_database_url)
    with pytest.raises(Conflict, match="The contents of logs are not the same"):
        adopted_now(empty_database_url)
    assert dump(empty_database_url) == before


def test_times_are_read_in_the_same_forms_as_those_of_a_file_whatever_the_database_prefers(
    empty_database_url: str,
) -> None:
    legacy = clean()
    workflow = legacy.rows["workflows"][0]["id"]
    forms = {legacy.log(workflow, executed_at=str(form)): meant for form, meant in FORMS_OF_A_TIME}
    odd = {legacy.log(workflow, executed_at=form) for form in NO_TIMES}
    legacy.write(empty_database_url)
    do(
        empty_database_url,
        "ALTER TABLE users ALTER created_at DROP DEFAULT, ALTER created_at TYPE timestamptz USING '2026-01-12Z'",
    )
    name = empty_database_url.rsplit("/", 1)[1]
    do(empty_database_url, f"""ALTER DATABASE "{name}" SET datestyle = 'SQL, DMY'""")
    conversion = adopted_now(empty_database_url)
    assert {finding.id for finding in conversion.findings} == odd
    rows = dict(rows_of(empty_database_url, "SELECT id, executed_at FROM logs"))
    assert {log_id: moments.written(rows[log_id]) for log_id in forms} == forms
    with closing(Database(empty_database_url, pool_size=1)) as database, database.system() as session:
        assert session.execute(sa.text("SELECT DISTINCT created_at::date FROM users")).scalar_one() == date(2026, 1, 12)


@pytest.fixture(scope="module", name="dirty")
def _dirty() -> tuple[Legacy, dict[str, str]]:
    return dirty()


Adopted: TypeAlias = tuple[str, Conversion, checking.Preview]


@pytest.fixture(scope="module")
def adopted(postgres_server: PostgresServer, dirty: tuple[Legacy, dict[str, str]]) -> Iterator[Adopted]:
    with fresh_database(postgres_server) as url:
        dirty[0].write(url)
        seen = checking.preview(url, parts())
        yield url, adopted_now(url), seen


def test_every_dirty_row_is_carried_over_or_set_aside_with_its_id_and_reason(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, conversion, _) = dirty[1], adopted
    found = _by_id(conversion)
    assert conversion.adds_up
    assert conversion.counts["logs"].set_aside == 2
    expected = {
        ("users", "twin"): (Kind.NOTED, "in other capitals"),
        ("users", "no email"): (Kind.NOTED, "its email is empty: nobody can log in with it"),
        ("users", "blank"): (Kind.NOTED, "its email begins or ends with a blank, which a login must write too"),
        ("credentials", "orphan credential"): (Kind.SET_ASIDE, "its user nobody is gone"),
        ("credentials", "broken"): (Kind.BROKEN, "does not decrypt"),
        ("credentials", "garbage"): (Kind.BROKEN, "not base64"),
        ("workflows", "orphan"): (Kind.SET_ASIDE, "its user nobody is gone"),
        ("workflows", "unknown"): (Kind.INACTIVE, "there is no action 'twilio_sms'"),
        ("workflows", "no json"): (Kind.INACTIVE, "config_json: not JSON"),
        ("workflows", "no object"): (Kind.INACTIVE, "config_json: must be a JSON object"),
        ("workflows", "surrogate"): (Kind.INACTIVE, ""),
        ("workflows", "huge"): (Kind.INACTIVE, "the document is larger than 256 KiB"),
        ("workflows", "odd trigger"): (Kind.INACTIVE, "trigger_type"),
        ("workflows", "nameless"): (Kind.CHANGED, "is_active is neither"),
        ("logs", "log of an orphan"): (Kind.SET_ASIDE, "is gone"),
        ("logs", "log of nothing"): (Kind.SET_ASIDE, "its workflow gone is gone"),
        ("logs", "timeless log"): (Kind.CHANGED, "when it rained"),
        ("logs", "odd log"): (Kind.CHANGED, "neither success nor failed"),
    }
    for (table, what), (kind, words) in expected.items():
        assert [k for k, reason in found[table, ids[what]] if words in reason] == [kind], what
    assert not [reason for told in found.values() for _, reason in told if reason.startswith(":")]
    rejects = rows_of(url, "SELECT id, row ->> 'id' FROM fairlane_legacy.rejects")
    aside = ("orphan credential", "orphan", "log of an orphan", "log of nothing")
    assert sorted(rejects) == sorted((ids[what], ids[what]) for what in aside)


def test_the_check_foretells_every_finding_and_count_of_the_adoption(adopted: Adopted) -> None:
    _, conversion, seen = adopted
    assert seen.findings == conversion.findings
    assert seen.counts == conversion.counts
    assert (seen.form, seen.revision, seen.refused) == (adopt.Form.EARLY, migrations.head(), None)


def test_a_rhythm_that_is_not_as_it_was_written_is_told(dirty: tuple[Legacy, dict[str, str]], adopted: Adopted) -> None:
    ids, (_, conversion, _) = dirty[1], adopted
    found = _by_id(conversion)
    for what, words in {
        "zero": "its interval is 0; it runs every 10 minutes, as it did in the old system",
        "in words": 'its interval is "often", not a whole number of minutes up to a year; it runs every 10 minutes',
        "in quotes": 'its interval is "30", not a whole number of minutes up to a year; it runs every 30 minutes',
        "weather": "its last execution is in the future, 2099-01-01 00:00:00; it counts as now",
    }.items():
        assert (Kind.NOTED, words) in found["workflows", ids[what]]
    assert ("workflows", ids["half-hourly"]) not in found


def test_a_key_that_opens_no_credential_is_refused_before_anything_is_changed(empty_database_url: str) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    wrong = parts(b"3" * 32)
    refused = checking.preview(empty_database_url, wrong).refused
    assert refused is not None
    assert refused.startswith("None of the 6 credentials decrypts with this key: is it the right one? With --keep-und")
    with pytest.raises(BadRequest, match="None of the 6 credentials decrypts"):
        adopt.adopt(empty_database_url, wrong, lambda *_: None)
    assert dump(empty_database_url) == before
    kept = adopt.adopt(empty_database_url, replace(wrong, keep_undecryptable=True), lambda *_: None)
    assert [finding.kind for finding in kept.findings] == [Kind.BROKEN] * 6


def test_a_workflow_that_cannot_run_keeps_its_form_and_shows_why(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, _, _) = dirty[1], adopted
    query = "SELECT is_active, inactive_reason, config_json FROM workflows WHERE id = %s"
    [(active, reason, config)] = rows_of(url, query, ids["no json"])
    assert (active, config) == (False, "{broken")
    assert reason.startswith("config_json: not JSON")
    assert rows_of(url, query, ids["off"]) == [(False, None, '{"slack_message": "{{a}}"}')]


def test_of_several_credentials_workflows_name_the_oldest_that_can_be_read_and_broken_ones_say_who_needs_them(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, conversion, _) = dirty[1], adopted
    names = dict(rows_of(url, "SELECT id, name FROM credentials"))
    assert (names[ids["first"]], names[ids["second"]]) == ("slack", "slack 2") or names[ids["named"]] == "slack 2"
    assert len(set(names.values())) == len(names) == 5
    query = "SELECT definition #>> '{steps,0,credential}' FROM workflow_versions WHERE workflow_id = %s"
    assert rows_of(url, query, ids["good"]) == [(names[ids["first"]],)]
    [broken] = [f for f in conversion.findings if f.id == ids["broken"]]
    assert broken.needed_by == (ids["weather"],)


def test_every_old_log_row_is_a_run_of_its_workflow_at_its_time_in_utc(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, _, _) = dirty[1], adopted
    rows = {
        log_id: rest
        for log_id, *rest in rows_of(
            url,
            "SELECT l.data ->> 'log_id', r.workflow_id, r.status, l.message, r.finished_at::text FROM runs r"
            " JOIN execution_logs l ON l.run_id = r.id",
        )
    }
    assert rows[ids["zoned log"]] == [ids["good"], "succeeded", "it was a success", "2026-01-12 15:11:12.123456+00"]
    assert rows[ids["future log"]][3] == "2099-01-12 10:11:12+00"
    assert rows[ids["log of unknown"]][0] == ids["unknown"]
    assert rows[ids["odd log"]][1:3] == ["failed", ""]
    assert len(rows) == 5
    assert rows_of(url, "SELECT count(*) FROM usage") == [(0,)]


def test_an_old_organization_is_billed_from_the_adoption_on_and_its_old_log_costs_nothing(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, _, _) = dirty[1], adopted
    [(adopted_on,)] = rows_of(url, "SELECT at::date::text FROM fairlane_legacy.adoption")
    do(url, "UPDATE tenants SET plan = 'team'; TRUNCATE plan_terms")
    with closing(Database(url, pool_size=1)) as database:
        with database.tenant(f"tenant_{ids['user']}") as session:
            assert billing.of_tenant(session, "2026-01")["lines"] == []
            running = billing.of_tenant(session, adopted_on[:7])
        with pytest.raises(Conflict, match=f"2026-01 ended before billing was installed on {adopted_on}"):
            Closer(database).close_all("2026-01", now=datetime.now(UTC))
    assert running["executions"] == 0
    assert [line["from"] for line in running["lines"]] == [adopted_on] * 2


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DROP TABLE logs", "it has no table logs"),
        ("ALTER TABLE users DROP COLUMN email", "users has no column email"),
        ("ALTER TABLE workflows ADD COLUMN tenant_id text", "a column tenant_id, which no form"),
        ("CREATE TABLE tenants (id text)", "it has a table tenants, which Fairlane would make"),
        ("CREATE TABLE alembic_version (version_num text)", "it has Fairlane's schema already"),
        ("ALTER TABLE logs RENAME TO log; CREATE VIEW logs AS SELECT * FROM log", "logs is no ordinary table"),
    ],
)
def test_what_is_no_multi_user_database_is_refused_and_not_touched(
    empty_database_url: str, statement: str, sentence: str
) -> None:
    clean().write(empty_database_url)
    do(empty_database_url, statement)
    with pytest.raises(Conflict, match=sentence):
        adopted_now(empty_database_url)
    assert rows_of(empty_database_url, "SELECT to_regnamespace('fairlane_legacy')") == [(None,)]


def test_tables_in_use_are_left_alone_after_some_attempts(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean().write(empty_database_url)
    monkeypatch.setattr(adopt, "LOCK_TIMEOUT", "20ms")
    waits: list[str] = []
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as busy:
        busy.execute("LOCK TABLE logs IN ROW EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="Stop the old system"):
            adopt.adopt(empty_database_url, parts(), lambda what, *_: waits.append(what))
    assert waits == ["Waiting for whoever uses the tables"] * adopt.LOCK_ATTEMPTS
    assert adopted_now(empty_database_url).adds_up


NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_schedule_keeps_its_rhythm() -> None:
    assert next_fire("w", HOUR, NOW - timedelta(minutes=20), NOW) == NOW + timedelta(minutes=40)
    assert next_fire("w", HOUR, NOW + 900 * HOUR, NOW) == NOW + HOUR


def test_overdue_schedules_are_spread_over_their_interval() -> None:
    fires = [next_fire(str(uuid.UUID(int=n)), HOUR, NOW - 50 * HOUR, NOW) for n in range(600)]
    by_minute = [sum(1 for fire in fires if (fire - NOW) // timedelta(minutes=10) == part) for part in range(6)]
    assert sum(by_minute) == 600
    assert min(by_minute) > 60
    assert next_fire("w", 9 * HOUR, None, NOW) <= NOW + timedelta(minutes=10)


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
OR_NONE = st.none() | TEXT
ID = st.sampled_from([None, "a", "b", "c", "ü/ "])
ODD_TIMES = [LONG_AGO, "2026-02-30", "9999-12-31 23:59:59-12:00", "infinity", "1", "2026-01-12 10:11:12 -0500 EST"]
TIME = (
    OR_NONE | st.datetimes().map(str) | st.datetimes().map(lambda t: t.isoformat() + "Z") | st.sampled_from(ODD_TIMES)
)
CONFIG = OR_NONE | st.sampled_from(['{"slack_message": "\\u0000"}', "[" * 5000, '{"interval": 1e999}', "{}"])
CHAIN = OR_NONE | st.sampled_from(["[1]", '[{"action_type": "weather_check"}]', '[{"config": 1}]'])


def _table(*columns: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Rows of a table, in the order of its columns."""
    return st.lists(st.tuples(*columns), max_size=5)


ROWS = st.fixed_dictionaries(
    {
        "users": _table(ID, OR_NONE, OR_NONE, TIME),
        "credentials": _table(
            ID, ID, st.sampled_from([None, "slack", "slack 2", ""]), OR_NONE | TEXT.map(encrypt), TIME
        ),
        "workflows": _table(
            ID,
            ID,
            OR_NONE,
            st.sampled_from(["webhook", "schedule", "?"]),
            st.sampled_from(["slack_message", "weather_check", "?", None]),
            CONFIG,
            CHAIN,
            CHAIN,
            st.sampled_from([None, "1", "0", "perhaps"]),
            TIME,
            TIME,
        ),
        "logs": _table(ID, ID, OR_NONE, OR_NONE, TIME),
    }
)


@settings(max_examples=examples(12), deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS)
def test_no_old_database_breaks_the_road_or_loses_a_row_on_it(
    empty_database_url: str, rows: dict[str, list[tuple[Any, ...]]]
) -> None:
    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection, connection.begin() as transaction:
        staging.create(connection)
        driver: Any = connection.connection.driver_connection
        for table, found in rows.items():
            for row in found:
                place = sql.Identifier(staging.SCHEMA, table)
                holes = sql.SQL(", ").join([sql.Placeholder()] * len(row))
                driver.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(place, holes), row)
        with connection.begin_nested() as looked:
            foreseen = checking.foresee(connection, staging.SCHEMA, parts())
            looked.rollback()
        conversion = road.travel(connection, parts(), lambda *_: None)
        transaction.rollback()
    engine.dispose()
    assert {table: conversion.counts[table].read for table in TABLES} == {table: len(rows[table]) for table in TABLES}
    assert conversion.adds_up
    assert foreseen == (conversion.counts, conversion.findings)
