"""A multi-user database is adopted in place, whatever is in it: nothing vanishes, and it can be taken back."""

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
from structlog.testing import capture_logs

import actions
import migrations
from embedded.postgres import PostgresServer
from engine import billing, leaving
from engine.audit import Actor
from engine.billing import Closer
from engine.db import Database
from engine.errors import BadRequest, Conflict, Unavailable
from engine.leaving import Eraser
from engine.vault import MasterKeyRing, Vault
from migrations.legacy import adopt, checking, moments, plans, road, staging
from migrations.legacy.conversion import next_fire
from migrations.legacy.findings import TABLES, Conversion, Kind
from migrations.legacy.importing import import_file
from migrations.legacy.road import Parts
from tests import legacy_file
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
)
from triggers import KINDS

LONG_AGO = "2026-01-12 10:11:12.123456789-05:00"


def _parts(old_key: bytes | None = KEY) -> Parts:
    return Parts(Vault(MasterKeyRing({"k": b"1" * 32})), actions.build(), KINDS, old_key)


def _adopt(url: str, old_key: bytes | None = KEY) -> Conversion:
    return adopt.adopt(url, _parts(old_key), lambda *_: None)


def _take_back(url: str, *, discard_new: bool = False) -> None:
    adopt.take_back(url, discard_new=discard_new, progress=lambda *_: None)


def _rows(url: str, query: str, *values: Any) -> list[Any]:
    with psycopg.connect(url.replace("+psycopg", ""), options="-c timezone=UTC -c datestyle=ISO") as connection:
        return connection.execute(query, values).fetchall()


def _do(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(statement)


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
    seen = checking.preview(empty_database_url, _parts())
    conversion = _adopt(empty_database_url)
    assert conversion.findings == seen.findings == []
    assert conversion.counts == seen.counts
    assert len({sums.before for sums in conversion.checksums.values()}) == 4
    assert all(sums.before == sums.after for sums in conversion.checksums.values())
    assert seen.refused is None
    assert {table: count.carried for table, count in conversion.counts.items()} == {
        "users": 3, "credentials": 6, "workflows": 6, "logs": 24
    }  # fmt: skip
    assert _rows(empty_database_url, "SELECT version_num FROM alembic_version") == [(migrations.head(),)]
    assert _rows(empty_database_url, "SELECT DISTINCT organizations FROM tenants") == [(False,)]
    assert _rows(empty_database_url, "SELECT count(*) FROM workflows WHERE version = 1 AND is_active") == [(6,)]
    _take_back(empty_database_url)
    assert dump(empty_database_url) == before
    assert _adopt(empty_database_url).counts == conversion.counts  # and the road is open again


def test_the_report_shows_checksums_of_the_contents_and_they_are_those_of_the_same_contents_in_a_file(
    empty_database_url: str, tmp_path: Path
) -> None:
    """Those of a file are taken row by row as it is read, those of a database by Postgres."""
    legacy = clean()
    for form, _ in FORMS_OF_A_TIME:
        legacy.log(legacy.rows["workflows"][0]["id"], executed_at=str(form))
    path = legacy_file.write(tmp_path / "old.db", legacy)
    read = import_file(empty_database_url, path, _parts(), lambda *_: None, dry_run=True).checksums
    legacy.write(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    done = command.fine("migrate", "--adopt", "--encryption-key", base64.b64encode(KEY).decode())
    assert "contents before   after" in done.out
    for table, sums in read.items():
        assert re.search(rf"^{table} .* {sums.before}  {sums.after}$", done.out, re.MULTILINE), done.out
    [(kept,)] = _rows(empty_database_url, "SELECT report->'checksums' FROM fairlane_legacy.adoption")
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


def test_times_are_read_in_the_same_forms_as_those_of_a_file_whatever_the_database_prefers(
    empty_database_url: str,
) -> None:
    legacy = clean()
    workflow = legacy.rows["workflows"][0]["id"]
    forms = {legacy.log(workflow, executed_at=str(form)): meant for form, meant in FORMS_OF_A_TIME}
    odd = {legacy.log(workflow, executed_at=form) for form in NO_TIMES}
    legacy.write(empty_database_url)
    _do(
        empty_database_url,
        "ALTER TABLE users ALTER created_at DROP DEFAULT, ALTER created_at TYPE timestamptz USING '2026-01-12Z'",
    )
    name = empty_database_url.rsplit("/", 1)[1]
    _do(empty_database_url, f"""ALTER DATABASE "{name}" SET datestyle = 'SQL, DMY'""")
    conversion = _adopt(empty_database_url)
    assert {finding.id for finding in conversion.findings} == odd
    rows = dict(_rows(empty_database_url, "SELECT id, executed_at FROM logs"))
    assert {log_id: moments.written(rows[log_id]) for log_id in forms} == forms
    with closing(Database(empty_database_url, pool_size=1)) as database, database.system() as session:
        assert session.execute(sa.text("SELECT DISTINCT created_at::date FROM users")).scalar_one() == date(2026, 1, 12)


@pytest.fixture(scope="module")
def dirty() -> tuple[Legacy, dict[str, str]]:
    """A database with every kind of dirt that is known of, and the ids of its rows by what is wrong with them."""
    legacy = Legacy()
    ids = {"user": legacy.user("O'Brien+tag@Exämple.com"), "twin": legacy.user("o'brien+TAG@exämple.com")}
    user = ids["user"]
    legacy.user("idle@example.com", created_at="no time at all")
    ids["no email"], ids["blank"] = legacy.user(""), legacy.user("bob@example.com ")
    ids["first"] = legacy.credential(user, "slack", "http://old/", created_at="2026-01-01 00:00:00")
    ids["second"] = legacy.credential(user, "slack", "http://new/", created_at="2026-01-02 00:00:00")
    ids["named"] = legacy.credential(user, "slack 2", "of a service with an odd name")
    ids["broken"] = legacy.credential(user, "openweather", "", encrypted_key=encrypt("x", b"2" * 32))
    ids["garbage"] = legacy.credential(user, "discord", "", encrypted_key="!!")
    ids["orphan credential"] = legacy.credential("nobody", "slack", "x")
    hook = {"slack_message": "{{a}}"}
    ids["good"] = legacy.workflow(user, "webhook", "slack_message", hook)
    ids["weather"] = legacy.workflow(user, "schedule", "weather_check", "", last_executed_at="2099-01-01 00:00:00")
    for what, interval in {"zero": 0, "in words": "often", "in quotes": "30", "half-hourly": 30}.items():
        ids[what] = legacy.workflow(user, "schedule", "slack_message", hook | {"interval": interval})
    ids["unknown"] = legacy.workflow(user, "webhook", "twilio_sms", {"to": "1"})
    ids["no json"] = legacy.workflow(user, "webhook", "slack_message", "{broken")
    ids["huge"] = legacy.workflow(user, "webhook", "slack_message", {"slack_message": "x" * 300_000})
    ids["no object"] = legacy.workflow(user, "schedule", "slack_message", "[1]")
    ids["surrogate"] = legacy.workflow(user, "webhook", "slack_message", '{"slack_message": "\\ud800 \\u0000"}')
    ids["odd trigger"] = legacy.workflow(user, "carrier pigeon", "slack_message", hook)
    ids["nameless"] = legacy.workflow(user, "webhook", "slack_message", hook, name=" ", is_active=7)
    ids["off"] = legacy.workflow(user, "schedule", "slack_message", hook, is_active=0)
    ids["orphan"] = legacy.workflow("nobody", "webhook", "slack_message", hook)
    ids["log of an orphan"] = legacy.log(ids["orphan"])
    ids["log of nothing"] = legacy.log("gone")
    ids["log of unknown"] = legacy.log(ids["unknown"])
    ids["future log"] = legacy.log(ids["good"], executed_at="2099-01-12T10:11:12Z")
    ids["zoned log"] = legacy.log(ids["good"], executed_at=LONG_AGO)
    ids["timeless log"] = legacy.log(ids["good"], executed_at="when it rained")
    ids["odd log"] = legacy.log(ids["good"], "pending", message=None)
    return legacy, ids


Adopted: TypeAlias = tuple[str, Conversion, checking.Preview]


@pytest.fixture(scope="module")
def adopted(postgres_server: PostgresServer, dirty: tuple[Legacy, dict[str, str]]) -> Iterator[Adopted]:
    with fresh_database(postgres_server) as url:
        dirty[0].write(url)
        seen = checking.preview(url, _parts())
        yield url, _adopt(url), seen


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
    rejects = _rows(url, "SELECT id, row ->> 'id' FROM fairlane_legacy.rejects")
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


def _busy() -> Legacy:
    """Of two users one whose schedule of a minute starts 43,200 runs a month."""
    legacy = Legacy()
    users = [legacy.user("busy@example.com", id="busy"), legacy.user("calm@example.com", id="calm")]
    for user in users:
        legacy.credential(user, "slack", "http://x/")
        for active in (user == "busy", False):
            every_minute = {"slack_message": "x", "interval": 1}
            legacy.workflow(user, "schedule", "slack_message", every_minute, is_active=int(active))
    return legacy


def test_schedules_that_start_more_than_the_new_plan_admits_are_told_with_the_plan_that_does(
    empty_database_url: str,
) -> None:
    _busy().write(empty_database_url)
    [told] = _adopt(empty_database_url).findings
    assert (told.table, told.id, told.kind) == ("users", "busy", Kind.NOTED)
    assert told.reason == (
        "its schedules start about 43,200 runs a month, and the plan free admits 10,000; what comes over that is held."
        " --plan team admits 250,000"
    )
    assert _rows(empty_database_url, "SELECT DISTINCT plan FROM tenants") == [(plans.FREE,)]
    seeded = _rows(empty_database_url, "SELECT name, (limits->>'max_executions_per_month')::int FROM plans")
    assert dict(seeded) == plans.SEEDED


def test_a_wider_plan_than_the_widest_with_a_limit_is_the_one_without() -> None:
    said = plans.said_of("team", 250_001, plans.SEEDED)
    assert said is not None
    assert said.endswith(
        "the plan team admits 250,000; what comes over that is held. --plan enterprise admits any number"
    )
    assert plans.said_of("team", 250_000, plans.SEEDED) is plans.said_of("enterprise", 10**9, plans.SEEDED) is None
    narrow = plans.said_of("free", 2, {"free": 1})
    assert narrow is not None
    assert narrow.endswith(
        "the plan free admits 1; what comes over that is held, and so it is on every plan that there is"
    )


def test_adopted_organizations_begin_on_the_plan_that_was_asked_for_and_can_go_back(
    empty_database_url: str, tmp_path: Path
) -> None:
    _busy().write(empty_database_url)
    before = dump(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    words = ("migrate", "--adopt", "--encryption-key", base64.b64encode(KEY).decode())
    refused = command(*words, "--plan", "gold")
    assert (refused.code, refused.out) == (2, "")
    assert "There is no plan 'gold'; there will be free, team, enterprise." in refused.err
    assert command("migrate", "--plan", "team").code == 2
    seen = command.fine(*words, "--plan", "team", "--check")
    assert "a personal organization on the plan team for each user" in seen.out
    assert "noted" not in seen.out
    assert "--plan team admits 250,000" in command.fine(*words, "--check").out
    assert dump(empty_database_url) == before
    assert command.fine(*words, "--plan", "team", "--json").json["findings"] == []
    assert _rows(empty_database_url, "SELECT id, plan FROM tenants ORDER BY 1") == [
        ("tenant_busy", "team"), ("tenant_calm", "team")
    ]  # fmt: skip
    assert _rows(empty_database_url, "SELECT count(*) FROM plan_terms") == [(0,)]
    with closing(Database(empty_database_url, pool_size=1)) as database, database.tenant("tenant_busy") as session:
        bill = billing.of_tenant(session, f"{datetime.now(UTC):%Y-%m}")
    assert all("team" in line["description"] for line in bill["lines"]), bill["lines"]
    assert [line["from"] for line in bill["lines"]] == [f"{datetime.now(UTC):%Y-%m-%d}"] * 2
    command.fine("migrate", "--back-to", "0001")
    assert dump(empty_database_url) == before


def test_a_key_that_opens_no_credential_is_refused_before_anything_is_changed(empty_database_url: str) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    wrong = _parts(b"3" * 32)
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
    [(active, reason, config)] = _rows(url, query, ids["no json"])
    assert (active, config) == (False, "{broken")
    assert reason.startswith("config_json: not JSON")
    assert _rows(url, query, ids["off"]) == [(False, None, '{"slack_message": "{{a}}"}')]


def test_of_several_credentials_workflows_name_the_oldest_that_can_be_read_and_broken_ones_say_who_needs_them(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, conversion, _) = dirty[1], adopted
    names = dict(_rows(url, "SELECT id, name FROM credentials"))
    assert (names[ids["first"]], names[ids["second"]]) == ("slack", "slack 2") or names[ids["named"]] == "slack 2"
    assert len(set(names.values())) == len(names) == 5
    query = "SELECT definition #>> '{steps,0,credential}' FROM workflow_versions WHERE workflow_id = %s"
    assert _rows(url, query, ids["good"]) == [(names[ids["first"]],)]
    [broken] = [f for f in conversion.findings if f.id == ids["broken"]]
    assert broken.needed_by == (ids["weather"],)


def test_every_old_log_row_is_a_run_of_its_workflow_at_its_time_in_utc(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, _, _) = dirty[1], adopted
    rows = {
        log_id: rest
        for log_id, *rest in _rows(
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
    assert _rows(url, "SELECT count(*) FROM usage") == [(0,)]


def test_an_old_organization_is_billed_from_the_adoption_on_and_its_old_log_costs_nothing(
    dirty: tuple[Legacy, dict[str, str]], adopted: Adopted
) -> None:
    ids, (url, _, _) = dirty[1], adopted
    [(adopted_on,)] = _rows(url, "SELECT at::date::text FROM fairlane_legacy.adoption")
    _do(url, "UPDATE tenants SET plan = 'team'; TRUNCATE plan_terms")
    with closing(Database(url, pool_size=1)) as database:
        with database.tenant(f"tenant_{ids['user']}") as session:
            assert billing.of_tenant(session, "2026-01")["lines"] == []
            running = billing.of_tenant(session, adopted_on[:7])
        with pytest.raises(Conflict, match=f"2026-01 ended before billing was installed on {adopted_on}"):
            Closer(database).close_all("2026-01", now=datetime.now(UTC))
    assert running["executions"] == 0
    assert [line["from"] for line in running["lines"]] == [adopted_on] * 2


def test_a_dirty_database_is_taken_back_row_for_row(
    postgres_server: PostgresServer, dirty: tuple[Legacy, dict[str, str]]
) -> None:
    with fresh_database(postgres_server) as url:
        dirty[0].write(url)
        before = dump(url)
        _adopt(url, None)
        assert dump(url) != before
        _take_back(url)
        assert dump(url) == before


def test_the_way_back_refuses_to_lose_what_was_made_since(empty_database_url: str) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    _adopt(empty_database_url)
    _do(empty_database_url, "UPDATE runs SET trigger = 'webhook' WHERE id = (SELECT min(id) FROM runs)")
    with pytest.raises(Conflict, match="1 run since the adoption would be lost; give --discard-new"):
        _take_back(empty_database_url)
    _do(empty_database_url, "INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
    with pytest.raises(Conflict, match="1 organization made since"):
        _take_back(empty_database_url, discard_new=True)
    assert _rows(empty_database_url, "SELECT count(*) FROM tenants") == [(4,)]
    _do(empty_database_url, "DELETE FROM tenants WHERE id = 'acme'")
    _take_back(empty_database_url, discard_new=True)
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
        assert {finding.id for finding in _adopt(url).findings} > {workflow, deleted, leaver, orphan} - {workflow}
        _do(url, f"DELETE FROM public.workflows WHERE id = '{deleted}'")
        _erase(url, f"tenant_{leaver}")
        [(report,)] = _rows(url, "SELECT report->'findings' FROM fairlane_legacy.adoption")
        assert [finding["id"] for finding in report] == [orphan]
        assert _rows(url, "SELECT id FROM fairlane_legacy.rejects") == [(orphan,)]
        with pytest.raises(Conflict, match="1 account that the multi-user system does not have"):
            _take_back(url)
        _take_back(url, discard_new=True)
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
    _adopt(empty_database_url)
    _erase(empty_database_url, "tenant_1")
    [(report,)] = _rows(empty_database_url, "SELECT report->'findings' FROM fairlane_legacy.adoption")
    assert {(finding["table"], finding["id"]) for finding in report} == {
        ("logs", "1"),
        ("users", "2"),
        ("workflows", "2"),
    }


def test_where_the_way_back_is_closed_going_back_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    clean().write(empty_database_url)
    _adopt(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    command.fine("migrate", "--forget-legacy")
    refused = command("migrate", "--back-to", "0001")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("There is no way back to 0001: ")
    assert refused.err.endswith("Nothing was changed.\n")
    assert refused.err.count("\n") == 1
    assert _rows(empty_database_url, "SELECT version_num FROM alembic_version") == [(migrations.head(),)]
    command.fine("migrate", "--back-to", "0016")
    assert _rows(empty_database_url, "SELECT version_num FROM alembic_version") == [("0016",)]


def test_an_eraser_that_may_not_reach_the_old_tables_says_what_does(empty_database_url: str) -> None:
    legacy = clean()
    legacy.write(empty_database_url)
    _adopt(empty_database_url)
    _do(empty_database_url, "DROP FUNCTION fairlane_legacy.erase(text)")  # as adoptions before it left it
    with capture_logs() as said:
        _erase(empty_database_url, f"tenant_{legacy.rows['users'][0]['id']}")
    [warning] = [entry for entry in said if entry["event"] == "legacy_rows_kept"]
    assert warning["remedy"] == "fairlane migrate --forget-legacy"


def test_old_rows_that_a_table_of_somebody_else_holds_do_not_keep_the_organization(empty_database_url: str) -> None:
    legacy = clean()
    legacy.write(empty_database_url)
    person = legacy.rows["users"][0]["id"]
    _do(
        empty_database_url,
        f"CREATE TABLE sessions (user_id VARCHAR REFERENCES users);INSERT INTO sessions VALUES ('{person}')",
    )
    _adopt(empty_database_url)
    with capture_logs() as said:
        _erase(empty_database_url, f"tenant_{person}")
    [warning] = [entry for entry in said if entry["event"] == "legacy_rows_kept"]
    assert 'still referenced from table "sessions"' in warning["reason"]
    assert _rows(empty_database_url, f"SELECT id FROM tenants WHERE id = 'tenant_{person}'") == []
    assert _rows(empty_database_url, f"SELECT id FROM fairlane_legacy.users WHERE id = '{person}'") == [(person,)]


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
    _adopt(empty_database_url)
    _do(empty_database_url, made)
    with pytest.raises(Conflict, match=sentence):
        _take_back(empty_database_url)


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
    _do(empty_database_url, statement)
    with pytest.raises(Conflict, match=sentence):
        _adopt(empty_database_url)
    assert _rows(empty_database_url, "SELECT to_regnamespace('fairlane_legacy')") == [(None,)]


def test_tables_in_use_are_left_alone_after_some_attempts(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean().write(empty_database_url)
    monkeypatch.setattr(adopt, "LOCK_TIMEOUT", "20ms")
    waits: list[str] = []
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as busy:
        busy.execute("LOCK TABLE logs IN ROW EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="Stop the old system"):
            adopt.adopt(empty_database_url, _parts(), lambda what, *_: waits.append(what))
    assert waits == ["Waiting for whoever uses the tables"] * adopt.LOCK_ATTEMPTS
    assert _adopt(empty_database_url).adds_up


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
            foreseen = checking.foresee(connection, staging.SCHEMA, _parts())
            looked.rollback()
        conversion = road.travel(connection, _parts(), lambda *_: None)
        transaction.rollback()
    engine.dispose()
    assert {table: conversion.counts[table].read for table in TABLES} == {table: len(rows[table]) for table in TABLES}
    assert conversion.adds_up
    assert foreseen == (conversion.counts, conversion.findings)
