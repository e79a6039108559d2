"""`fairlane import-legacy`: every row of a SQLite file is carried over or told, and the engine runs on what arrived."""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actions
from embedded.postgres import PostgresServer
from engine import leaving
from engine.audit import Actor
from engine.db import Database
from engine.leaving import Eraser
from engine.vault import MasterKeyRing, Vault
from migrations.legacy import sqlite_file
from migrations.legacy.findings import TABLES, Kind
from migrations.legacy.importing import Imported, import_file
from migrations.legacy.road import Parts
from tests import legacy_file
from tests.api_server import Api, running_api, services_for, settings_for
from tests.command_line import DOWN, CommandLine, Result, configured
from tests.conftest import fresh_database
from tests.installation import Receiver, wait_for
from tests.legacy_database import KEY, Legacy, clean, encrypt, examples, hashed, spoil
from triggers import KINDS

OLD_KEY = base64.b64encode(KEY).decode()
FORMS = [pytest.param(True, id="later"), pytest.param(False, id="early")]


def _rows(url: str, query: str, *values: Any) -> list[Any]:
    with psycopg.connect(url.replace("+psycopg", ""), options="-c timezone=UTC") as connection:
        return connection.execute(query, values).fetchall()


def _contents(url: str) -> tuple[Any, ...]:
    """What is in a database: its schemas and tables, and the rows of the latter."""
    tables = _rows(
        url,
        "SELECT schemaname, relname FROM pg_stat_user_tables WHERE schemaname !~ '^pg_' ORDER BY 1, 2",
    )
    return tuple((table, _rows(url, f'SELECT count(*) FROM {table[0]}."{table[1]}"')) for table in tables)


@pytest.fixture
def command(tmp_path: Path, empty_database_url: str) -> CommandLine:
    return configured(tmp_path, empty_database_url, DOWN)


def _import(command: CommandLine, path: Path, *words: str) -> Result:
    return command("import-legacy", str(path), "--encryption-key", OLD_KEY, *words)


def _import_file(url: str, path: Path) -> Imported:
    """All of it but the last moment, so that the next import finds the database as it was."""
    parts = Parts(Vault(MasterKeyRing({"k": b"1" * 32})), actions.build(), KINDS, KEY, keep_undecryptable=True)
    return import_file(url, path, parts, lambda *_: None, dry_run=True)


@pytest.mark.parametrize("later", FORMS)
def test_a_clean_file_of_either_form_is_imported_whole_once_and_never_written(
    command: CommandLine, empty_database_url: str, tmp_path: Path, later: bool
) -> None:
    path = legacy_file.write(tmp_path / "old.db", clean(), later=later)
    before, empty = sqlite_file.fingerprint(path), _contents(empty_database_url)
    tried = _import(command, path, "--dry-run", "--json")
    assert tried.code == 0, tried
    assert _contents(empty_database_url) == empty
    report = tmp_path / "report.json"
    done = _import(command, path, "--report", str(report))
    assert done.code == 0, done
    told = json.loads(report.read_text())
    assert told == {**tried.json, "dry_run": False}
    assert told["form"] == ("later" if later else "early")
    assert told["findings"] == []
    assert {table: count["carried"] for table, count in told["counts"].items()} == {
        "users": 3, "credentials": 6, "workflows": 6, "logs": 24
    }  # fmt: skip
    assert all(sums["before"] == sums["after"] for sums in told["checksums"].values())
    again = _import(command, path)
    assert again.code == 1
    assert "brought into it already" in again.err
    assert sqlite_file.fingerprint(path) == before
    assert sorted(found.name for found in tmp_path.iterdir() if found.name.startswith("old.db")) == ["old.db"]


def test_imported_organizations_begin_on_the_plan_that_was_asked_for(
    command: CommandLine, empty_database_url: str, tmp_path: Path
) -> None:
    legacy = Legacy()
    user = legacy.user("busy@example.com", id="busy")
    legacy.credential(user, "slack", "http://x/")
    legacy.workflow(user, "schedule", "slack_message", {"slack_message": "x", "interval": 1})
    path = legacy_file.write(tmp_path / "old.db", legacy)
    refused = _import(command, path, "--plan", "gold")
    assert (refused.code, refused.out) == (2, "")
    assert "There is no plan 'gold'; there will be free, team, enterprise." in refused.err
    [told] = _import(command, path, "--dry-run", "--json").json["findings"]
    assert "the plan free admits 10,000; what comes over that is held. --plan team admits" in told["reason"]
    assert _contents(empty_database_url) == ()
    assert _import(command, path, "--plan", "team", "--json").json["findings"] == []
    assert _rows(empty_database_url, "SELECT plan FROM tenants") == [("team",)]
    assert _rows(empty_database_url, "SELECT count(*) FROM plan_terms") == [(0,)]


def test_a_migrated_database_without_users_will_do_and_one_with_users_is_left_alone(
    database_url: str, tmp_path: Path
) -> None:
    path = legacy_file.write(tmp_path / "old.db", clean())
    command = configured(tmp_path, database_url, DOWN)
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("INSERT INTO users (id, email, password_hash) VALUES ('u', 'a@b', 'x')")
    before = _contents(database_url)
    refused = _import(command, path)
    assert (refused.code, _contents(database_url)) == (1, before)
    assert "it has users already" in refused.err
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("DELETE FROM users")
    assert _import(command, path).code == 0
    assert _rows(database_url, "SELECT count(*) FROM users") == [(3,)]


def test_plans_and_prices_that_were_set_before_stay_and_organizations_may_begin_on_one_of_them(
    database_url: str, tmp_path: Path
) -> None:
    legacy = Legacy()
    user = legacy.user("busy@example.com", id="busy")
    legacy.credential(user, "slack", "http://x/")
    legacy.workflow(user, "schedule", "slack_message", {"slack_message": "x", "interval": 1})
    path = legacy_file.write(tmp_path / "old.db", legacy)
    command = configured(tmp_path, database_url, DOWN)
    command.fine("plans", "set", "gold", "max_executions_per_month", "20000", "--create")
    command.fine("plans", "set", "free", "max_workflows", "7")
    command.fine("billing", "set-price", "team", "--base", "10", "--included", "5", "--per-thousand", "1")
    kept = [_rows(database_url, query) for query in (PLANS, PRICES)]
    refused = _import(command, path, "--plan", "silver")
    assert (refused.code, refused.out) == (2, "")
    assert "There is no plan 'silver'; there will be free, gold, team, enterprise." in refused.err
    [told] = _import(command, path, "--plan", "gold", "--json").json["findings"]
    assert "the plan gold admits 20,000; what comes over that is held. --plan team admits 250,000" in told["reason"]
    assert [_rows(database_url, query) for query in (PLANS, PRICES)] == kept
    assert _rows(database_url, "SELECT plan FROM tenants") == [("gold",)]
    assert _rows(database_url, "SELECT count(*) FROM plan_terms") == [(0,)]


PLANS = "SELECT name, limits FROM plans ORDER BY 1"
PRICES = "SELECT plan, starts, currency, base, included, per_thousand FROM plan_prices ORDER BY id"


def test_an_email_that_no_login_finds_or_that_it_must_write_with_blanks_is_told(
    empty_database_url: str, tmp_path: Path
) -> None:
    legacy = Legacy()
    empty, blank = legacy.user(""), legacy.user(" bob@example.com")
    done = _import_file(empty_database_url, legacy_file.write(tmp_path / "old.db", legacy))
    assert {(found.id, found.kind, found.reason) for found in done.findings} == {
        (empty, Kind.NOTED, "its email is empty: nobody can log in with it"),
        (blank, Kind.NOTED, "its email begins or ends with a blank, which a login must write too"),
    }


def _broken_files() -> dict[str, tuple[bytes | str, str]]:
    schema = legacy_file.SCHEMA.format(later="")
    return {
        "text": (b"id,email\n", "it is no SQLite file"),
        "empty": (b"", "it is empty"),
        "cut": (sqlite_file.MAGIC + b"\0" * 300, "SQLite cannot read it"),
        "no table": (schema.replace("CREATE TABLE logs", "CREATE TABLE log"), "it has no table logs"),
        "no column": (schema.replace("password_hash", "secret"), "its table users has no column password_hash"),
    }


@pytest.mark.parametrize("kind", list(_broken_files()))
def test_what_is_no_legacy_file_is_refused_with_what_is_missing(
    command: CommandLine, empty_database_url: str, tmp_path: Path, kind: str
) -> None:
    contents, sentence = _broken_files()[kind]
    path = tmp_path / "old.db"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        legacy_file.write(path, Legacy(), schema=contents)
    refused = _import(command, path)
    assert refused.code == 1
    assert sentence in refused.err
    assert _contents(empty_database_url) == ()


def test_a_file_with_writes_still_in_a_journal_is_refused(command: CommandLine, tmp_path: Path) -> None:
    path = legacy_file.write(tmp_path / "old.db", clean())
    with closing(sqlite3.connect(path)) as still_open:
        still_open.execute("PRAGMA journal_mode = WAL")
        still_open.execute("DELETE FROM logs")
        still_open.commit()
        refused = _import(command, path)
    assert refused.code == 1
    assert "stop the old system first" in refused.err


@pytest.mark.parametrize("words", [["--encryption-key", "short"], [], ["--encryption-key", OLD_KEY, "--report", "."]])
def test_wrong_usage_is_told_before_anything_is_done(command: CommandLine, tmp_path: Path, words: list[str]) -> None:
    path = legacy_file.write(tmp_path / "old.db", clean())
    assert command("import-legacy", str(path), *words).code == 2


def test_a_key_that_opens_no_credential_is_refused_unless_they_may_all_arrive_broken(
    command: CommandLine, empty_database_url: str, tmp_path: Path
) -> None:
    path = legacy_file.write(tmp_path / "old.db", clean())
    wrong = base64.b64encode(b"3" * 32).decode()
    for words in ([], ["--dry-run"]):
        refused = command("import-legacy", str(path), "--encryption-key", wrong, *words)
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.startswith("None of the 6 credentials decrypts with this key: is it the right one?")
        assert _contents(empty_database_url) == ()
    kept = command.fine("import-legacy", str(path), "--encryption-key", wrong, "--keep-undecryptable", "--report", "-")
    assert [found["kind"] for found in kept.json["findings"]] == ["broken"] * 6
    assert not (tmp_path / "-").exists()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


PASSWORDS = {"$2a$": "password one", "$2b$": "password two", "$2y$": "password three"}


class Dirty:
    """A file with every kind of dirt that is known of, imported, with the API over it."""

    def __init__(self, receiver: Receiver) -> None:
        self.legacy = Legacy()
        self.ids: dict[str, str] = {}
        self._people()
        self._work(receiver)

    def _people(self) -> None:
        for number, (prefix, password) in enumerate(PASSWORDS.items()):
            stored = hashed(password).replace("$2a$", prefix)
            email = ["O'Brien+tag@Exämple.com", "Twin@example.com", "twin@example.com"][number]
            self.ids[prefix] = self.legacy.user(email, password_hash=stored)
        self.legacy.user("idle@example.com", created_at="no time at all", password_hash=None)
        self.legacy.add("users", id=None, email="nobody@example.com", password_hash="x", created_at=None)

    def _work(self, receiver: Receiver) -> None:
        user, legacy, ids = self.ids["$2a$"], self.legacy, self.ids
        legacy.credential(user, "slack", f"{receiver.url}/first", created_at="2026-01-01 00:00:00")
        legacy.credential(user, "slack", f"{receiver.url}/second")
        ids["broken"] = legacy.credential(user, "discord", "x", encrypted_key=encrypt("x", b"2" * 32))
        ids["orphan credential"] = legacy.credential("gone", "slack", "http://x/")
        text = {"slack_message": "Order {{order.id}} by {{user.name}}"}
        ids["hook"] = legacy.workflow(user, "webhook", "slack_message", text)
        ids["needy"] = legacy.workflow(user, "webhook", "discord_post", {"discord_message": "x"})
        for kind, config in {"empty": "", "no JSON": "{", "a list": "[1]"}.items():
            ids[kind] = legacy.workflow(user, "schedule", "slack_message", config)
        ids["unknown"] = legacy.workflow(user, "webhook", "soap_call", {})
        ids["orphan"] = legacy.workflow("gone", "webhook", "slack_message", text)
        ids["log"] = legacy.log(ids["hook"], executed_at="2026-01-12 10:11:12.123456789-05:00")
        ids["future"] = legacy.log(ids["hook"], executed_at="2199-01-01 00:00:00")
        ids["timeless"] = legacy.log(ids["hook"], executed_at="when it rained")
        ids["dirty"] = legacy.log(ids["hook"], "failed", message=b"caf\xe9\0")
        ids["orphan log"] = legacy.log(ids["orphan"])


@pytest.fixture(scope="module")
def imported(
    postgres_server: PostgresServer, redis_server: Any, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Dirty, dict[str, Any], Api]]:
    folder, dirty = tmp_path_factory.mktemp("dirty"), Dirty(receiver)
    schema = legacy_file.SCHEMA.format(later=legacy_file.LATER).replace(" NOT NULL", "") + "CREATE TABLE sessions (id);"
    path = legacy_file.write(folder / "old.db", dirty.legacy, schema=schema)
    with fresh_database(postgres_server) as url:
        settings = settings_for(url, redis_server.url, allowed_networks="127.0.0.0/8")
        command = configured(folder, url, redis_server.url)
        keys = ",".join(f"{name}:{base64.b64encode(key).decode()}" for name, key in settings.master_key_ring.items())
        words = ("import-legacy", str(path), "--encryption-key", OLD_KEY, "--json")
        report = command.fine(*words, FAIRLANE_MASTER_KEYS=keys)
        with running_api(services_for(settings)) as api:
            yield dirty, report.json, api


Imports = tuple[Dirty, dict[str, Any], Api]


def test_every_row_that_is_not_as_it_was_is_told_by_its_id_and_no_secret_is(imported: Imports) -> None:
    dirty, report, _ = imported
    ids = dirty.ids
    told = {(found["table"], found["id"]): (found["kind"], found["reason"]) for found in report["findings"]}
    for (table, name), (kind, words) in {
        ("credentials", "broken"): (Kind.BROKEN, "does not decrypt"),
        ("credentials", "orphan credential"): (Kind.SET_ASIDE, "its user gone is gone"),
        ("workflows", "orphan"): (Kind.SET_ASIDE, "its user gone is gone"),
        ("workflows", "empty"): (Kind.INACTIVE, "slack_message"),
        ("workflows", "no JSON"): (Kind.INACTIVE, "not JSON"),
        ("workflows", "a list"): (Kind.INACTIVE, "object"),
        ("workflows", "unknown"): (Kind.INACTIVE, "soap_call"),
        ("logs", "timeless"): (Kind.CHANGED, "the time of the file stands for it"),
        ("logs", "dirty"): (Kind.CHANGED, "U+FFFD"),
        ("logs", "orphan log"): (Kind.SET_ASIDE, "is gone"),
        ("users", "$2b$"): (Kind.NOTED, "other capitals"),
        ("users", "$2y$"): (Kind.NOTED, "other capitals"),
    }.items():
        found = told[table, ids[name]]
        assert found[0] == kind, (name, found)
        assert words in found[1]
    assert ("sessions", "") in told
    assert told["users", "(row 5)"] == (Kind.SET_ASIDE, "it has no id")
    (broken,) = [found for found in report["findings"] if found["kind"] == "broken"]
    assert broken["needed_by"] == [ids["needy"]]
    assert report["counts"]["logs"] == {"read": 5, "carried": 4, "set_aside": 1}
    assert report["counts"]["users"] == {"read": 5, "carried": 4, "set_aside": 1}
    text = json.dumps(report)
    secrets = [str(row["encrypted_key"]) for row in dirty.legacy.rows["credentials"]]
    secrets += [str(row["password_hash"]) for row in dirty.legacy.rows["users"] if row["password_hash"]]
    assert not [secret for secret in [*secrets, OLD_KEY, "/first"] if len(secret) > 1 and secret in text]


def test_erasing_an_imported_organization_takes_its_originals_and_what_was_set_aside_of_it(
    command: CommandLine, empty_database_url: str, tmp_path: Path
) -> None:
    legacy, ids = Legacy(), {}
    for name in ("leaver", "stayer"):
        user = legacy.user(f"{name}\0@example.com", id=name)
        ids[name] = legacy.workflow(
            user, "webhook", "slack_message", {"slack_message": "x"}, name="a\0", id=f"w-{name}"
        )
        legacy.log(ids[name], message="a\0", id=f"l-{name}")
        legacy.log(ids[name], message="a\0", id=f"l-{name}")
        legacy.credential(user, "slack\0", "x", id=f"c-{name}")
    schema = legacy_file.SCHEMA.format(later=legacy_file.LATER).replace(" PRIMARY KEY", "")
    legacy.log(legacy.workflow("leaver", "webhook", "x", {}, name="a\0", id="w-deleted"), message="a\0", id="l-deleted")
    path = legacy_file.write(tmp_path / "old.db", legacy, schema=schema)
    assert _import(command, path).code == 0
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as connection:
        connection.execute("DELETE FROM workflows WHERE id = 'w-deleted'")
    _erase(empty_database_url, "tenant_leaver")
    kept = _rows(empty_database_url, "SELECT DISTINCT id FROM fairlane_legacy.originals ORDER BY 1")
    assert kept == [("c-stayer",), ("l-stayer",), ("stayer",), ("w-stayer",)]
    assert _rows(empty_database_url, "SELECT id FROM fairlane_legacy.rejects") == [("l-stayer",)]


def _numbered() -> Legacy:
    """Tables that number their rows each for itself: a number is one person's in some, the other's in others."""
    legacy, bad = Legacy(), "when it rained"
    for number in (1, 2):
        user = legacy.user(f"{number}@example.com", id=str(number), created_at=bad)
        workflow = legacy.workflow(
            user, "webhook", "slack_message", {"slack_message": "x"}, id=str(number), created_at=bad
        )
        legacy.credential(user, "slack", "x", id=str(3 - number), created_at=bad)
        legacy.log(workflow, id=str(3 - number), executed_at=bad)
        legacy.credential("gone", "slack", "x", id=str(number + 2))
        legacy.log("gone", id=str(number + 2))
    legacy.workflow("2", "webhook", "slack_message", {"slack_message": "x"}, id="3", created_at=bad)
    return legacy


def test_erasing_takes_no_row_of_others_that_has_the_same_number_in_another_table(
    command: CommandLine, empty_database_url: str, tmp_path: Path
) -> None:
    legacy = _numbered()
    assert _import(command, legacy_file.write(tmp_path / "old.db", legacy)).code == 0
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as connection:
        connection.execute("DELETE FROM workflows WHERE id = '3'")
    _erase(empty_database_url, "tenant_1")
    kept = _rows(empty_database_url, "SELECT table_name, id FROM fairlane_legacy.originals ORDER BY 1")
    assert kept == [("credentials", "1"), ("logs", "1"), ("users", "2"), ("workflows", "2")]
    assert _rows(empty_database_url, "SELECT count(*) FROM fairlane_legacy.rejects") == [(4,)]


def _erase(url: str, tenant_id: str) -> None:
    with closing(Database(url, pool_size=1)) as database:
        with database.system() as session:
            leaving.delete(session, Actor("operator:test"), tenant_id, grace=timedelta(0))
        assert Eraser(database).run_once().tenants == 1


def test_originals_of_replaced_values_are_kept(imported: Imports) -> None:
    dirty, _, api = imported
    url = api.services.settings.database_url
    query = "SELECT original FROM fairlane_legacy.originals WHERE id = %s AND column_name = 'message'"
    ((original,),) = _rows(url, query, dirty.ids["dirty"])
    assert base64.b64decode(original["base64"]) == b"caf\xe9\0"
    query = "SELECT \"row\"->>'message' FROM fairlane_legacy.rejects WHERE id = %s"
    assert _rows(url, query, dirty.ids["orphan log"]) == [("it was a success",)]


def _log_in(api: Api, email: str, password: str) -> Any:
    return api.client().post("/api/auth/login", json={"email": email, "password": password})


def test_old_passwords_of_every_kind_open_and_are_upgraded(imported: Imports) -> None:
    dirty, _, api = imported
    emails = {"$2a$": "O'BRIEN+tag@exämple.com", "$2b$": "Twin@example.com", "$2y$": "twin@example.com"}
    for prefix, email in emails.items():
        for _ in range(2):  # the second time by the new hash
            answer = _log_in(api, email, PASSWORDS[prefix])
            assert answer.status_code == 200, (email, answer.text)
            assert answer.json()["user"]["id"] == dirty.ids[prefix]
        query = "SELECT password_hash FROM users WHERE id = %s"
        ((stored,),) = _rows(api.services.settings.database_url, query, dirty.ids[prefix])
        assert stored.startswith("$argon2id$")


def test_a_third_spelling_of_two_emails_means_neither_and_cannot_register(imported: Imports) -> None:
    _, _, api = imported
    assert _log_in(api, "TWIN@example.com", PASSWORDS["$2b$"]).status_code == 401
    body = {"email": "TWIN@example.com", "password": "correct horse battery"}
    assert api.client().post("/api/auth/register", json=body).json()["code"] == "email_taken"


def _logged_in(dirty: Dirty, api: Api) -> Any:
    answer = _log_in(api, dirty.legacy.rows["users"][0]["email"], PASSWORDS["$2a$"])
    return api.client(answer.json()["token"])


def test_old_log_rows_are_listed_like_new_ones(imported: Imports) -> None:
    dirty, _, api = imported
    client = _logged_in(dirty, api)
    runs = client.get("/api/runs", params={"workflow_id": dirty.ids["hook"], "limit": 100}).json()["items"]
    by_log = {run["input"]["log_id"]: run for run in runs if run["trigger"] == "legacy"}
    assert by_log[dirty.ids["log"]]["finished_at"].startswith("2026-01-12T15:11:12.123456")
    assert by_log[dirty.ids["future"]]["finished_at"].startswith("2199-01-01T00:00:00")
    run_id = by_log[dirty.ids["dirty"]]["id"]
    (line,) = client.get(f"/api/runs/{run_id}/logs").json()["items"]
    assert line["message"] == "caf\ufffd\ufffd"


def test_every_workflow_is_listed_and_shown_with_its_reason_also_one_that_has_no_trigger(imported: Imports) -> None:
    dirty, _, api = imported
    client = _logged_in(dirty, api)
    listed = client.get("/api/workflows").json()["items"]
    reasons = {row["id"]: row["inactive_reason"] for row in listed}
    for name, words in {
        "empty": "slack_message",
        "no JSON": "not JSON",
        "a list": "object",
        "unknown": "soap_call",
    }.items():
        shown = client.get(f"/api/workflows/{dirty.ids[name]}").json()
        assert words in reasons[dirty.ids[name]] == shown["inactive_reason"]
        assert (shown["is_active"], shown["failures"], shown["next_fire_at"]) == (False, 0, None)
    assert reasons[dirty.ids["hook"]] is None


def test_an_old_webhook_reaches_its_receiver_with_the_template_filled(imported: Imports, receiver: Receiver) -> None:
    dirty, _, api = imported
    body = {"order": {"id": 7}}
    answer = api.client().post(f"/api/webhooks/{dirty.ids['hook']}", json=body)
    assert answer.status_code == 202, answer.text
    api.work(f"tenant_{dirty.ids['$2a$']}", answer.json()["run_id"])
    wait_for(lambda: receiver.requests, "the message")
    assert receiver.requests[-1][1]["text"] == "Order 7 by {{user.name}}"
    assert api.client().post(f"/api/webhooks/{dirty.ids['unknown']}", json={}).status_code == 409


def test_an_import_that_is_killed_leaves_nothing_behind(
    command: CommandLine, empty_database_url: str, tmp_path: Path
) -> None:
    legacy = clean()
    workflow = legacy.rows["workflows"][0]["id"]
    for _ in range(8_000):
        legacy.log(workflow)
    path = legacy_file.write(tmp_path / "old.db", legacy)
    process = command.start("import-legacy", str(path), "--encryption-key", OLD_KEY)
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        " AND query ~ 'INSERT INTO (runs|execution_logs)'"
    )
    name = empty_database_url.rpartition("/")[2]
    wait_for(lambda: _rows(empty_database_url, query, name)[0][0] or process.poll() is not None, "the logs", seconds=60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = _import(command, path)  # waits for the lock of the dead one, and finds nothing of it
    assert done.code == 0, done
    assert _rows(empty_database_url, "SELECT count(*) FROM logs") == [(8_024,)]


def test_sums_that_do_not_add_up_are_told_and_nothing_is_changed(
    command: CommandLine, empty_database_url: str, tmp_path: Path
) -> None:
    path = legacy_file.write(tmp_path / "old.db", clean())
    spoil(empty_database_url)
    report = tmp_path / "report.json"
    failed = _import(command, path, "--report", str(report))
    assert failed.code == 1
    assert "do not add up" in failed.err
    assert json.loads(report.read_text())["adds_up"] is False
    assert _contents(empty_database_url) == ()


RAW = (
    st.none()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.sampled_from(["2026-01-12 10:11:12", "2026-01-12 10:11:12.123456789-05:00", "webhook", "{}", '{"a"', "slack"])
)
ID = st.sampled_from(["a", "b", "A", b"a", None, 1, "", "\0", b"\xff", "x" * 900])


def _table(*columns: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    return st.lists(st.tuples(*columns), max_size=6)


ROWS = st.fixed_dictionaries(
    {
        "users": _table(ID, ID | RAW, RAW, RAW),
        "credentials": _table(ID, ID, RAW, RAW | st.text(max_size=8).map(encrypt), RAW),
        "workflows": _table(ID, ID, *[RAW] * 9),
        "logs": _table(ID, ID, *[RAW] * 3),
    }
)


@settings(max_examples=examples(10), deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS)
def test_no_file_breaks_the_import_or_loses_a_row(
    empty_database_url: str, tmp_path: Path, rows: dict[str, list[tuple[Any, ...]]]
) -> None:
    path = legacy_file.write_loose(tmp_path / "old.db", rows)
    done = _import_file(empty_database_url, path)
    assert done.adds_up, done
    assert {table: done.counts[table].read for table in TABLES} == {table: len(rows[table]) for table in TABLES}
    told = [found.table for found in done.findings if found.kind is Kind.SET_ASIDE]
    assert {table: told.count(table) for table in TABLES} == {
        table: count.set_aside for table, count in done.counts.items()
    }
