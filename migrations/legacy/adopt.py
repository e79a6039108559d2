"""A multi-user database on Postgres becomes one of Fairlane in place, and back.

All of it is one transaction: whatever breaks, nothing has changed. The four old tables move to the schema
``fairlane_legacy`` and stay there untouched, in their own types, as the way back. `recognise` accepts the early and the
later form with columns of any type that can be read as text; what it does not know it refuses with one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from sqlalchemy import Connection, create_engine, exc, pool, text

import migrations
from engine.db import dump_json
from engine.errors import Conflict, Unavailable
from engine.models import metadata
from migrations.guard import Refused
from migrations.legacy import road, secrets, sorting, staging
from migrations.legacy.findings import TABLES, Conversion, Progress
from migrations.legacy.road import Parts

LOCK_TIMEOUT = "5s"
LOCK_ATTEMPTS = 6
LOCK_NOT_AVAILABLE = "55P03"
T = TypeVar("T")


class Form(StrEnum):
    """Which of its forms a multi-user database has."""

    EARLY = "early"
    LATER = "later"


def recognise(connection: Connection) -> Form:
    """Raises Conflict ``not_legacy``, with one sentence, for anything but a multi-user database."""
    if connection.execute(text("SELECT to_regclass('public.alembic_version')")).scalar_one() is not None:
        raise _refused("it has Fairlane's schema already")
    if connection.execute(text("SELECT to_regnamespace(:name)"), {"name": staging.SCHEMA}).scalar_one() is not None:
        raise _refused(f"it has a schema {staging.SCHEMA} already")
    tables = set(
        connection.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        ).scalars()
    )
    if missing := [table for table in TABLES if table not in tables]:
        raise _refused(f"it has no table {missing[0]}")
    if taken := sorted((tables & set(metadata.tables)) - set(TABLES)):
        raise _refused(f"it has a table {taken[0]}, which Fairlane would make")
    has_later = [_has_later(connection, table) for table in TABLES]
    return Form.LATER if any(has_later) else Form.EARLY


def _has_later(connection: Connection, table: str) -> bool:
    kind = text("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(:name)")
    if connection.execute(kind, {"name": f"public.{table}"}).scalar_one() != "r":
        raise _refused(f"{table} is no ordinary table")
    present = sorting.columns_of(connection, "public", table)
    known = set(staging.COLUMNS[table])
    later = known & set(staging.LATER)
    if missing := sorted(known - later - present):
        raise _refused(f"{table} has no column {missing[0]}")
    if odd := sorted(present - known):
        raise _refused(f"{table} has a column {odd[0]}, which no form of the multi-user system had")
    return bool(later & present)


def _refused(reason: str) -> Conflict:
    return Conflict(f"This is no database of the multi-user system: {reason}. Nothing was changed.", code="not_legacy")


def adopt(database_url: str, parts: Parts, progress: Progress) -> Conversion:
    """Adopt the database. Raises Conflict when it is none, or when the sums do not add up; BadRequest ``wrong_key`` and
    ``unknown_plan``; Unavailable when somebody else keeps its tables busy. Nothing was changed then.
    """

    def work(connection: Connection) -> Conversion:
        recognise(connection)
        parts.require_known_plan(connection)
        _lock(connection, "public", TABLES)
        parts.require_fitting_key(secrets.encrypted(connection, "public"))
        staging.prepare(connection)
        for table in TABLES:
            connection.execute(text(f"ALTER TABLE public.{table} SET SCHEMA {staging.SCHEMA}"))
        conversion = road.travel(connection, parts, progress)
        _require_whole(conversion)
        connection.execute(
            text(
                f"CREATE TABLE {staging.SCHEMA}.adoption (at timestamptz NOT NULL DEFAULT now(), report JSONB NOT NULL)"
            )
        )
        connection.execute(
            text(f"INSERT INTO {staging.SCHEMA}.adoption (report) VALUES (CAST(:report AS jsonb))"),
            {"report": dump_json(conversion)},
        )
        staging.let_erase(connection)
        return conversion

    return patiently(database_url, work, progress)


def _require_whole(conversion: Conversion) -> None:
    for table, count in conversion.counts.items():
        contents = conversion.checksums[table]
        if not count.adds_up:
            aside = f"{count.carried} were carried over and {count.set_aside} set aside"
            raise Conflict(f"Rows of {table} are missing: of {count.read}, {aside}. Nothing was changed.")
        if contents.before != contents.after:
            sums = f"their checksum was {contents.before} before and is {contents.after} after"
            raise Conflict(f"The contents of {table} are not the same: {sums}. Nothing was changed.")


def is_adopted(connection: Connection) -> bool:
    """Whether the way back is open: the old tables are still there."""
    query = text("SELECT to_regclass(:name)")
    return connection.execute(query, {"name": f"{staging.SCHEMA}.adoption"}).scalar_one() is not None


def take_back(database_url: str, *, discard_new: bool, progress: Progress) -> None:
    """Undo an adoption: the four tables are as they were, row for row. Raises Conflict where that would lose something.

    Never once an organization was made since; while only runs and changes since would go, with `discard_new`.
    """

    def work(connection: Connection) -> None:
        if not is_adopted(connection):
            raise Conflict("There is no adoption to take back: the old tables are not here.")
        _lock(connection, "public", tuple(metadata.tables))
        _refuse_to_lose(connection, discard_new=discard_new)
        connection.execute(text(f"TRUNCATE {', '.join(f'public.{table}' for table in metadata.tables)} CASCADE"))
        migrations.downgrade(connection, "base")
        connection.execute(text("DROP TABLE public.alembic_version"))
        staging.give_back(connection)
        for table in TABLES:
            connection.execute(text(f"ALTER TABLE {staging.SCHEMA}.{table} SET SCHEMA public"))
        connection.execute(text(f"DROP SCHEMA {staging.SCHEMA} CASCADE"))

    patiently(database_url, work, progress)


_OLD_USER = f"SELECT 1 FROM {staging.SCHEMA}.users u"
_LOSSES = (
    (
        f"SELECT count(*) FROM tenants t WHERE NOT EXISTS ({_OLD_USER} WHERE t.id = 'tenant_' || u.id::text)",
        "organization",
        "made since the adoption would have no place in the multi-user system.",
        False,
    ),
    (
        f"SELECT count(*) FROM users n WHERE NOT EXISTS ({_OLD_USER} WHERE n.id = u.id::text)",
        "account",
        "that the multi-user system does not have would be lost",
        True,
    ),
    ("SELECT count(*) FROM runs WHERE trigger <> 'legacy'", "run", "since the adoption would be lost", True),
    *(
        (
            f"SELECT count(*) FROM {table} WHERE updated_at > (SELECT at FROM {staging.SCHEMA}.adoption)",
            table[:-1],
            "made or changed since the adoption would be lost",
            True,
        )
        for table in ("workflows", "credentials")
    ),
    ("SELECT count(*) FROM api_keys", "API key", "would be lost", True),
    ("SELECT count(*) FROM invoices", "invoice", "would be lost", True),
)
"""A count of what the way back would lose, what that is, what to say of it, and whether --discard-new may lose it.
No NOT IN: an old row without an id would make it count nothing."""


def _refuse_to_lose(connection: Connection, *, discard_new: bool) -> None:
    for table in metadata.tables:  # the owner would otherwise count none: its policies hold for it too
        connection.execute(text(f"ALTER TABLE public.{table} NO FORCE ROW LEVEL SECURITY"))
    for query, what, sentence, may_discard in _LOSSES:
        number = int(connection.execute(text(query)).scalar_one())
        if number and not (may_discard and discard_new):
            hint = "; give --discard-new to go back nevertheless." if may_discard else ""
            raise Conflict(f"{number} {what}{'' if number == 1 else 's'} {sentence}{hint}", code="would_lose_data")


def forget(database_url: str, progress: Progress) -> None:
    """Drop the old tables and the rejects: the way back is closed. Raises Conflict when there is nothing to drop."""

    def work(connection: Connection) -> None:
        if connection.execute(text("SELECT to_regnamespace(:n)"), {"n": staging.SCHEMA}).scalar_one() is None:
            raise Conflict("There is nothing of the multi-user system to forget.")
        connection.execute(text(f"DROP SCHEMA {staging.SCHEMA} CASCADE"))

    patiently(database_url, work, progress)


def go_back(database_url: str, revision: str, progress: Progress) -> None:
    """Take the schema back to `revision`, all the way or not at all. Raises Conflict where something would be lost."""

    def work(connection: Connection) -> None:
        try:
            migrations.downgrade(connection, revision)
        except Refused as error:
            raise Conflict(f"There is no way back to {revision}: {error}. Nothing was changed.") from None

    patiently(database_url, work, progress)


def _lock(connection: Connection, schema: str, tables: tuple[str, ...]) -> None:
    connection.execute(
        text(f"LOCK TABLE {', '.join(f'{schema}.{table}' for table in tables)} IN ACCESS EXCLUSIVE MODE")
    )


def connected(database_url: str) -> Connection:
    return create_engine(database_url, poolclass=pool.NullPool).connect()


def patiently(database_url: str, work: Callable[[Connection], T], progress: Progress) -> T:
    """Do the work in one transaction, again when a lock is not to be had; one at a time, as for every migration."""
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            with connected(database_url) as connection, connection.begin():
                connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('fairlane migrations'))"))
                return work(connection)
        except exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            progress("Waiting for whoever uses the tables", attempt, LOCK_ATTEMPTS)
    raise Unavailable(
        f"Somebody else uses the tables: no lock in {LOCK_ATTEMPTS} attempts of {LOCK_TIMEOUT} each. "
        "Stop the old system, or whoever else is connected, and try again; nothing was changed."
    )
