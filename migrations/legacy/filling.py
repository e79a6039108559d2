"""From the old tables to those of revision 0001: what `sorting` kept is copied, what it set aside becomes rejects."""

from __future__ import annotations

from sqlalchemy import Connection, text

from migrations.legacy.findings import Progress
from migrations.legacy.sorting import NEVER, OPTIONAL, TIMES, columns_of, is_set_aside, value
from migrations.legacy.staging import COLUMNS, SCHEMA

PAGES_PER_BATCH = 2000


def keep_rejects(connection: Connection) -> None:
    """Every row that was set aside, whole, with its reason."""
    for table in COLUMNS:
        connection.exec_driver_sql(
            f"""INSERT INTO {SCHEMA}.rejects (table_name, id, "row", reason)
            SELECT '{table}', x.id, to_jsonb(s), x.reason FROM {SCHEMA}.{table} s
            JOIN legacy_sorted x ON x.table_name = '{table}' AND x.kind = 'set_aside' AND x.place = s.ctid
            ORDER BY s.ctid"""
        )


def fill(connection: Connection, progress: Progress) -> None:
    """Copy a batch of pages at a time, owners first. A time that is missing or odd becomes the moment of the copy."""
    for table, columns in COLUMNS.items():
        present = columns_of(connection, SCHEMA, table)
        values = ", ".join(stored(column, present) for column in columns)
        statement = text(
            f"""INSERT INTO public.{table} ({", ".join(columns)}) SELECT {values} FROM {SCHEMA}.{table} s
            WHERE s.ctid >= CAST(:first AS tid) AND s.ctid < CAST(:last AS tid) AND NOT {is_set_aside(table)}"""
        )
        size = text(f"SELECT pg_relation_size('{SCHEMA}.{table}') / current_setting('block_size')::int")
        pages = int(connection.execute(size).scalar_one())
        for first in range(0, pages, PAGES_PER_BATCH):
            last = min(first + PAGES_PER_BATCH, pages)
            connection.execute(statement, {"first": f"({first},0)", "last": f"({last},0)"})
            progress(f"Copying {table}", last, pages)
        connection.exec_driver_sql(f"ANALYZE public.{table}")


def stored(column: str, present: set[str]) -> str:
    """SQL: what a column of the alias ``s`` becomes; `sorting.sort` was called."""
    written = value(column, present)
    if column in TIMES:
        moment = f"pg_temp.legacy_moment({written})"
        return moment if column == NEVER else f"coalesce({moment}, now())"
    if column == "is_active":
        return f"coalesce(pg_temp.legacy_boolean({written}), false)"
    return written if column in OPTIONAL else f"coalesce({written}, '')"
