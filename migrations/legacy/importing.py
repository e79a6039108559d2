"""A SQLite file of the multi-user system into a database without users: loaded as text, then down the one road.

All of it is one transaction in Postgres. Whatever ends it before its last moment (a fault, Ctrl-C, ``kill -9``, sums
that do not add up, a dry run, which does all but the commit) leaves the database as it was, with nothing to clean up.
Rows stream from the file into COPY; what was replaced in them waits in a temporary file, so memory does not grow with
the tables. The originals of replaced values and the rows that were set aside stay in the schema ``fairlane_legacy``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psycopg
from sqlalchemy import Connection, text

from engine.errors import Conflict
from migrations.legacy import road, sorting, sqlite_file, staging
from migrations.legacy.adopt import patiently
from migrations.legacy.findings import TABLES, Checksums, Conversion, Count, Finding, Kind, Progress
from migrations.legacy.road import Parts
from migrations.legacy.sqlite_file import Source
from migrations.legacy.staging import COLUMNS, SCHEMA
from migrations.legacy.sums import NOT_COMPARED
from migrations.legacy.values import Change, Reading, digest

REPORT_EVERY = 5_000


@dataclass(slots=True)
class Imported:
    """What an import did, or would do."""

    file: str
    sha256: str
    form: str
    dry_run: bool
    counts: dict[str, Count]
    checksums: dict[str, Checksums]
    findings: list[Finding]
    adds_up: bool = field(init=False)
    """As for a `Conversion`."""

    def __post_init__(self) -> None:
        self.adds_up = Conversion(self.counts, self.checksums).adds_up


@dataclass(slots=True)
class _Loaded:
    """What loading found, for all tables."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    digests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    findings: list[Finding] = field(default_factory=list)
    nameless: dict[str, list[str]] = field(default_factory=lambda: {table: [] for table in TABLES})
    """The places of the rows without an id, in the order of the file."""


def import_file(database_url: str, path: Path, parts: Parts, progress: Progress, *, dry_run: bool) -> Imported:
    """Import the file. Unless the result `adds_up`, and in a dry run, nothing was changed.

    Raises Conflict ``not_empty`` for a database with users or organizations or from which an import stems, BadRequest
    ``not_legacy`` for another file, ``wrong_key`` for a key that opens no credential and ``unknown_plan``, Unavailable
    when somebody else keeps the tables busy.
    """

    def work(connection: Connection) -> Imported:
        _require_empty(connection)
        parts.require_known_plan(connection)
        with sqlite_file.opened(path) as source:
            done = _carried(connection, source, path, parts, progress, dry_run=dry_run)
        if dry_run or not done.adds_up:
            transaction = connection.get_transaction()
            if transaction is not None:
                transaction.rollback()
        return done

    return patiently(database_url, work, progress)


def _carried(
    connection: Connection, source: Source, path: Path, parts: Parts, progress: Progress, *, dry_run: bool
) -> Imported:
    sha256 = sqlite_file.fingerprint(path)
    parts.require_fitting_key(_encrypted(source))
    staging.create(connection)
    loaded = load(connection, source, progress)
    conversion = road.travel(connection, parts, progress, loaded=loaded.digests)
    staging.drop_sources(connection)
    staging.let_erase(connection)
    if sqlite_file.fingerprint(path) != sha256:
        raise Conflict(f"{path.name} was written while it was read; stop the old system first. Nothing was changed.")
    return Imported(
        file=path.name,
        sha256=sha256,
        form=source.form,
        dry_run=dry_run,
        # What came out of the file counts as read, not what arrived in the database.
        counts={
            table: Count(loaded.counts[table], count.carried, count.set_aside)
            for table, count in conversion.counts.items()
        },
        checksums=conversion.checksums,
        findings=[*_strangers(source), *loaded.findings, *_named(conversion.findings, loaded)],
    )


def _encrypted(source: Source) -> Iterator[str | None]:
    place = COLUMNS["credentials"].index("encrypted_key")
    for row, _ in source.rows("credentials"):
        found = row[place]
        yield found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else str(found)


def _require_empty(connection: Connection) -> None:
    present = "SELECT to_regclass('public.users') IS NOT NULL, to_regclass('public.alembic_version') IS NOT NULL"
    has_users, ours = connection.execute(text(present)).one()
    if has_users and not ours:
        raise _not_empty("it holds a table users that is not Fairlane's")
    if connection.execute(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}).scalar_one() is not None:
        raise _not_empty(f"a multi-user system was brought into it already; the schema {SCHEMA} stems from that")
    if not has_users:
        return
    connection.execute(text("LOCK TABLE public.users IN ACCESS EXCLUSIVE MODE"))
    for table, name in (("users", "users"), ("tenants", "organizations")):
        if connection.execute(text(f"SELECT to_regclass('public.{table}')")).scalar_one() is None:
            continue
        connection.execute(text(f"ALTER TABLE public.{table} NO FORCE ROW LEVEL SECURITY"))  # or its owner sees none
        if connection.execute(text(f"SELECT EXISTS (SELECT 1 FROM public.{table})")).scalar_one():
            raise _not_empty(f"it has {name} already")


def _not_empty(reason: str) -> Conflict:
    return Conflict(f"An import wants a database without users: {reason}. Nothing was changed.", code="not_empty")


def load(connection: Connection, source: Source, progress: Progress) -> _Loaded:
    """Fill the tables of `staging` from the file, and ``originals`` with the values that were replaced."""
    connection.execute(
        text(f"CREATE TABLE {SCHEMA}.originals (table_name TEXT, id TEXT, column_name TEXT, original JSONB NOT NULL)")
    )
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    loaded = _Loaded()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as originals:
        for table, columns in COLUMNS.items():
            statement = f"COPY {SCHEMA}.{table} ({', '.join(columns)}) FROM STDIN"
            with driver.cursor() as cursor, cursor.copy(statement) as copy:
                for values in _read(source, table, loaded, originals, progress):
                    copy.write_row(values)
        originals.seek(0)
        with driver.cursor() as cursor, cursor.copy(f"COPY {SCHEMA}.originals FROM STDIN") as copy:
            for line in originals:
                copy.write_row(json.loads(line))
    return loaded


def _read(
    source: Source, table: str, loaded: _Loaded, originals: IO[str], progress: Progress
) -> Iterator[list[str | None]]:
    """The rows of one table as text, noting what there is to note."""
    reading = Reading(COLUMNS[table], source.changed_at)
    compared = [number for number, column in enumerate(COLUMNS[table]) if column not in NOT_COMPARED]
    total, number, summed = source.count(table), 0, 0
    for number, (raw, extra) in enumerate(source.rows(table), start=1):
        values, changes = reading.row(raw)
        if values[0] is None:
            loaded.nameless[table].append(_place(number))
        summed += digest([values[place] for place in compared])
        for change in changes:
            row_id = values[0] or _place(number)
            loaded.findings.append(Finding(table, row_id, Kind.CHANGED, change.reason))
            _keep(originals, table, row_id, change)
        for column, value in zip(source.extra[table], extra, strict=True):
            if value is not None:
                _keep(originals, table, values[0], Change(_plain(column), "", value))
        if number % REPORT_EVERY == 0:
            progress(f"Loading {table}", number, total)
        yield values
    loaded.counts[table], loaded.digests[table] = number, summed


def _keep(originals: IO[str], table: str, row_id: str | None, change: Change) -> None:
    originals.write(json.dumps([table, row_id, change.column, json.dumps(change.stored())]) + "\n")


def _place(number: int) -> str:
    """What a row without an id is called."""
    return f"(row {number})"


def _named(findings: list[Finding], loaded: _Loaded) -> Iterator[Finding]:
    """With the place in the file for rows without an id; the road tells them in the order in which they were loaded."""
    places = {table: iter(found) for table, found in loaded.nameless.items()}
    for finding in findings:
        nameless = finding.kind is Kind.SET_ASIDE and finding.reason == sorting.NO_ID
        yield replace(finding, id=next(places[finding.table])) if nameless else finding


def _strangers(source: Source) -> Iterator[Finding]:
    """Columns and tables that no form of the multi-user system had."""
    for table, columns in source.extra.items():
        for column in columns:
            said = f"no form of the system had the column {_plain(column)}; its values are in {SCHEMA}.originals"
            yield Finding(table, "", Kind.NOTED, said)
    for table in source.other_tables:
        yield Finding(
            _plain(table), "", Kind.NOTED, f"no form of the system had this table; its {source.count(table)} rows stay"
        )


def _plain(name: str) -> str:
    return name.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
