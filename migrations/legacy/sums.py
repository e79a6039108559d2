"""Sums over the contents of the four tables, whatever the order of their rows: what was read, and what stands for it.

What the road read is taken from the old tables before it writes anything, what stands for it from the tables of the
engine and the rejects when it has written everything. The first knows nothing of how `filling` stores a value: it takes
one for replaced only where a finding of `sorting` says so, so a change that nobody is told of makes the sums differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, text

from engine.db import SYSTEM_ROLE
from migrations.legacy import sorting
from migrations.legacy.findings import TABLES, Checksums
from migrations.legacy.sorting import NEVER, TIMES, value
from migrations.legacy.staging import COLUMNS, SCHEMA

MODULUS = 2**64
NOT_COMPARED = frozenset({"encrypted_key", "is_active"})
"""What the conversion alters on purpose: secrets are encrypted anew, and a workflow that cannot run arrives inactive.
Where the first failed, and where the second happened, is a finding."""


def before(connection: Connection) -> dict[str, int]:
    """Of the old tables in the schema of `staging`, by table; `sorting.sort` was called."""
    return {
        table: _number(connection, _kept(connection, table)) + _number(connection, _aside(table)) for table in TABLES
    }


def after(connection: Connection) -> dict[str, int]:
    """Of what was carried over and of what was set aside, by table."""
    aside = {table: _number(connection, _REJECTED[table]) for table in TABLES}
    connection.execute(text("SELECT set_config('role', :role, true)"), {"role": SYSTEM_ROLE})
    carried = {table: _number(connection, _CARRIED[table]) for table in TABLES}
    connection.execute(text("SELECT set_config('role', 'none', true)"))
    return {table: aside[table] + carried[table] for table in TABLES}


def compared(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Checksums]:
    """As a report shows them."""
    return {table: Checksums(_hex(before[table]), _hex(after[table])) for table in TABLES}


def _hex(number: int) -> str:
    return f"{number % MODULUS:016x}"


def _number(connection: Connection, query: str) -> int:
    return int(connection.exec_driver_sql(query).scalar_one())


def _kept(connection: Connection, table: str) -> str:
    present = sorting.columns_of(connection, SCHEMA, table)
    columns = ", ".join(f"{_due(column, present)} AS {column}" for column in _COMPARED[table])
    told = f"""SELECT place, array_agg(column_name) AS columns FROM legacy_sorted
        WHERE table_name = '{table}' AND kind = 'changed' GROUP BY place"""
    rows = f"""(SELECT {columns} FROM {SCHEMA}.{table} s LEFT JOIN ({told}) told ON told.place = s.ctid
        WHERE NOT {sorting.is_set_aside(table)} OFFSET 0) kept"""  # or each value is read twice
    return _summed(_COMPARED[table], rows)


def _due(column: str, present: set[str]) -> str:
    """What a column of the alias ``s`` is to be written as: as it stands, or replaced as a finding tells."""
    found = read = value(column, present)
    instead = "''"
    if column in TIMES:
        read = _utc(f"pg_temp.legacy_moment({found})")
        instead = "NULL" if column == NEVER else _utc("now()")
    return f"coalesce({read}, CASE WHEN '{column}' = ANY (told.columns) THEN {instead} ELSE {found} END)"


def _aside(table: str) -> str:
    rows = f'(SELECT to_jsonb(s) AS "row" FROM {SCHEMA}.{table} s WHERE {sorting.is_set_aside(table)}) aside'
    return _summed([_whole(column) for column in _COMPARED[table]], rows)


def _summed(fields: list[str], source: str) -> str:
    """SQL: the sum of `values.digest` over the rows."""
    joined = " || ".join(f"coalesce(length({field}) || ':' || ({field}), '-')" for field in fields)
    digest_of = f"('x' || left(encode(sha256(convert_to({joined}, 'UTF8')), 'hex'), 15))::bit(60)::bigint"
    return f"SELECT coalesce(sum({digest_of}), 0) FROM {source}"


def _written(column: str) -> str:
    """A column as `values.Reading` writes it."""
    return _utc(column) if column in TIMES else column


def _utc(moment: str) -> str:
    return f"""to_char({moment} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')"""


def _whole(column: str) -> str:
    """A column of a row that was set aside."""
    return f"(\"row\"->>'{column}')"


_LOG = """
    (SELECT l.id, r.workflow_id, e.data->>'status' AS status, e.at AS executed_at,
        CASE WHEN l.message IS NULL AND e.message = '' THEN NULL ELSE e.message END AS message
    FROM runs r JOIN execution_logs e ON e.tenant_id = r.tenant_id AND e.run_id = r.id
        JOIN logs l ON l.tenant_id = r.tenant_id AND l.id = e.data->>'log_id'
    WHERE r.trigger = 'legacy') log
"""
"""The old log as the execution log has it, where a line always has a message."""
_SOURCES = {table: _LOG if table == "logs" else table for table in TABLES}
_COMPARED = {table: [column for column in columns if column not in NOT_COMPARED] for table, columns in COLUMNS.items()}
_CARRIED = {
    table: _summed([_written(column) for column in columns], _SOURCES[table]) for table, columns in _COMPARED.items()
}
_REJECTED = {
    table: _summed([_whole(column) for column in columns], f"{SCHEMA}.rejects WHERE table_name = '{table}'")
    for table, columns in _COMPARED.items()
}
