"""The check before an adoption: what it would do, how long it would take, and every finding that it would report.

It sorts, decrypts and plans as the adoption does and writes nothing but temporary tables, so it takes no lock that
anybody waits for. Rows that come between the check and the adoption are all that it can miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

import migrations
from engine.errors import BadRequest
from migrations.legacy import adopt, conversion, filling, plans, road, secrets, sorting, staging
from migrations.legacy.conversion import Converter, Notes
from migrations.legacy.findings import TABLES, Count, Finding
from migrations.legacy.road import Parts
from migrations.legacy.secrets import Secrets

PER_SECOND = {"logs": 3_000, "workflows": 1_000, "credentials": 100}
"""What `bench/adoption.py` and 1,000 users measured on two cores that had other work, rounded."""
ROOM_PER_LOG = 1_000
"""Bytes of a run, a line and their indexes, measured on 20,000 rows; the text of the row is stored twice more."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What an adoption would do."""

    form: adopt.Form
    revision: str
    """Of the schema that it would make."""
    plan: str
    """Of the personal organizations."""
    seconds: int
    """About how long it would take."""
    disk_bytes: int
    """About how much more room the database would need."""
    counts: dict[str, Count]
    findings: list[Finding]
    refused: str | None
    """Why it would be refused: no credential decrypts."""


def preview(database_url: str, parts: Parts) -> Preview:
    """Look, without a lock and without a change."""
    with adopt.connected(database_url) as connection:
        form = adopt.recognise(connection)
        parts.require_known_plan(connection)
        counts, findings = foresee(connection, "public", parts)
        refused = _refusal(connection, parts)
        size = text("SELECT pg_total_relation_size('public.logs')")
        logs = int(connection.execute(size).scalar_one())
        connection.rollback()
    seconds = 5 + sum(counts[table].read // number for table, number in PER_SECOND.items())
    room = 2 * logs + ROOM_PER_LOG * counts["logs"].read
    return Preview(form, migrations.head(), parts.plan, seconds, room, counts, findings, refused)


def foresee(connection: Connection, schema: str, parts: Parts) -> tuple[dict[str, Count], list[Finding]]:
    """What `road.travel` would count and find, from the four tables in `schema`."""
    sorting.sort(connection, schema)
    now: datetime = connection.execute(text("SELECT now()")).scalar_one()
    opened = _opened(connection, schema, parts.old_key)
    notes = _planned(connection, schema, Converter(parts.actions, parts.kinds, opened, now))
    counts = {table: _count(connection, schema, table) for table in TABLES}
    offered = plans.offered(connection)
    return counts, [
        *road.findings(connection),
        *secrets.findings(opened, notes.used_by),
        *notes.findings(parts.plan, offered),
    ]


def _opened(connection: Connection, schema: str, old_key: bytes | None) -> Secrets:
    """As `secrets.convert` opens them, in its order; how they are named matters where there are several."""
    opened = Secrets()
    rows = _kept(connection, schema, "credentials", order="tenant_id, service_name, created_at, id")
    for row in rows:
        known = opened.names.setdefault((row["tenant_id"], row["service_name"]), [])
        known.append((f"{row['service_name']} {len(known) + 1}", row["id"]))
        try:
            secrets.decrypt(row["encrypted_key"], old_key)
        except secrets.Unreadable as error:
            opened.broken[row["id"]] = str(error)
    return opened


def _planned(connection: Connection, schema: str, converter: Converter) -> Notes:
    """As `conversion.convert` plans them, without writing."""
    notes = Notes()
    for row in _kept(connection, schema, "workflows", order="id"):
        notes.add(converter.plan(row))
    return notes


def _kept(connection: Connection, schema: str, table: str, *, order: str) -> Any:
    """The rows that would be carried over, as they would be stored."""
    present = sorting.columns_of(connection, schema, table)
    columns = ", ".join(f"{filling.stored(column, present)} AS {column}" for column in staging.COLUMNS[table])
    query = text(
        f"""SELECT *, 'tenant_' || user_id AS tenant_id FROM (SELECT {columns} FROM {schema}.{table} s
        WHERE NOT {sorting.is_set_aside(table)}) kept ORDER BY {order}"""
    )
    return connection.execute(query, execution_options={"yield_per": conversion.BATCH}).mappings()


def _count(connection: Connection, schema: str, table: str) -> Count:
    read = int(connection.execute(text(f"SELECT count(*) FROM {schema}.{table}")).scalar_one())
    aside = text("SELECT count(*) FROM legacy_sorted WHERE table_name = :table AND kind = 'set_aside'")
    set_aside = int(connection.execute(aside, {"table": table}).scalar_one())
    return Count(read, read - set_aside, set_aside)


def _refusal(connection: Connection, parts: Parts) -> str | None:
    try:
        parts.require_fitting_key(secrets.encrypted(connection, "public"))
    except BadRequest as error:
        return error.detail
    return None
