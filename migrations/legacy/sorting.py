"""Which old rows can be carried over, and what of them could not be stored as it is. It reads, and writes temporary
tables only, so that a check before an adoption uses it too.

A row is set aside when it has no id of its own, or when its owner is gone: no foreign key could hold it. Everything
else is carried over; a value that is missing where one is needed, or a time that nobody can read, is replaced and told.
Times without a zone are UTC; their forms are those of `moments`, and others that Postgres reads. The work is done by
Postgres, so memory does not grow with the tables.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from migrations.legacy.staging import COLUMNS

_FUNCTIONS = r"""
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO';
CREATE FUNCTION pg_temp.legacy_moment(written text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
DECLARE
    moment timestamptz;
    number numeric;
BEGIN
    IF written ~ '^\s*-?[0-9]{9,20}(\.[0-9]*)?\s*$' THEN
        number := written;
        number := trunc(CASE WHEN abs(number) < 1e11 THEN number * 1e6 WHEN abs(number) < 1e14 THEN number * 1e3
            WHEN abs(number) < 1e17 THEN number ELSE floor(number / 1e3) END);
        moment := timestamptz 'epoch' + number::float8 * interval '1 microsecond';
    ELSIF written ~ '^\s*[0-9]{4}-[0-9]{2}-[0-9]{2}' THEN
        written := regexp_replace(written, '[.,]([0-9]{1,6})[0-9]*', '.\1');  -- cut, where Postgres would round
        -- Go's own form names the zone twice: 2026-01-12 10:11:12 -0500 EST m=+0.1
        moment := regexp_replace(written, '^([0-9T: .-]+\d) ?([+-]\d{2}:?\d{2}) [A-Z+-].*$', '\1\2');
    END IF;
    RETURN CASE WHEN moment >= '0001-01-02' AND moment < '9999-12-31' THEN moment END;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
CREATE FUNCTION pg_temp.legacy_boolean(written text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN lower(trim(written)) IN ('1', 't', 'true') THEN true
                WHEN lower(trim(written)) IN ('0', 'f', 'false') THEN false END
$$;
CREATE TEMPORARY TABLE legacy_sorted (
    table_name text, place tid, id text, kind text, reason text, column_name text  -- for 'changed'
) ON COMMIT DROP;
CREATE TEMPORARY TABLE legacy_owners (table_name text, id text) ON COMMIT DROP;
"""
NO_ID = "it has no id"
_REASONS = {
    "users": f"""CASE WHEN id IS NULL THEN '{NO_ID}'
        WHEN number > 1 THEN 'another row has the same id'
        WHEN email IS NULL THEN 'it has no email'
        WHEN row_number() OVER (PARTITION BY email ORDER BY place) > 1
            THEN 'another user has exactly this email' END""",
    "credentials": f"""CASE WHEN id IS NULL THEN '{NO_ID}'
        WHEN number > 1 THEN 'another row has the same id'
        WHEN o.id IS NULL THEN 'its user ' || coalesce(user_id, '(none)') || ' is gone' END""",
    "workflows": f"""CASE WHEN s.id IS NULL THEN '{NO_ID}'
        WHEN number > 1 THEN 'another row has the same id'
        WHEN o.id IS NULL THEN 'its user ' || coalesce(user_id, '(none)') || ' is gone' END""",
    "logs": f"""CASE WHEN s.id IS NULL THEN '{NO_ID}'
        WHEN number > 1 THEN 'another row has the same id'
        WHEN o.id IS NULL THEN 'its workflow ' || coalesce(workflow_id, '(none)') || ' is gone' END""",
}
_OWNERS = {"credentials": ("users", "user_id"), "workflows": ("users", "user_id"), "logs": ("workflows", "workflow_id")}
NEVER = "last_executed_at"
"""The time that a row may be without."""
TIMES = ("created_at", NEVER, "executed_at")
OPTIONAL = ("message", "action_chain", "parameters")


def value(column: str, present: set[str]) -> str:
    """SQL: the text of a column of the alias ``s``; NULL where the early form does not have it."""
    return f's."{column}"::text' if column in present else "NULL::text"


def is_set_aside(table: str) -> str:
    """SQL: whether the row of the alias ``s`` is; `sort` was called."""
    return f"""EXISTS (SELECT 1 FROM legacy_sorted x
        WHERE x.table_name = '{table}' AND x.kind = 'set_aside' AND x.place = s.ctid)"""


def columns_of(connection: Connection, schema: str, table: str) -> set[str]:
    """The columns that a table has."""
    query = text("SELECT column_name FROM information_schema.columns WHERE table_schema = :s AND table_name = :t")
    return set(connection.execute(query, {"s": schema, "t": table}).scalars())


def sort(connection: Connection, schema: str) -> None:
    """Fill ``pg_temp.legacy_sorted`` from the four tables in `schema`."""
    connection.exec_driver_sql(_FUNCTIONS)
    for table in COLUMNS:
        present = columns_of(connection, schema, table)
        connection.exec_driver_sql(_set_aside(schema, table, present))
        connection.exec_driver_sql("ANALYZE pg_temp.legacy_sorted")
        connection.exec_driver_sql(_changed(schema, table, present))
        if table in ("users", "workflows"):
            connection.exec_driver_sql(
                f"""INSERT INTO legacy_owners SELECT '{table}', s.id::text FROM {schema}.{table} s
                WHERE NOT {is_set_aside(table)};
                ANALYZE pg_temp.legacy_owners"""
            )
    connection.exec_driver_sql(
        rf"""INSERT INTO legacy_sorted SELECT 'users', s.ctid, s.id::text, 'noted',
            CASE WHEN s.email::text = '' THEN 'its email is empty: nobody can log in with it'
                ELSE 'its email begins or ends with a blank, which a login must write too' END
        FROM {schema}.users s WHERE s.email::text ~ '^$|^\s|\s$' AND NOT {is_set_aside("users")}"""
    )
    connection.exec_driver_sql(
        f"""INSERT INTO legacy_sorted SELECT 'users', s.ctid, s.id::text, 'noted',
            'another user has this email in other capitals: ' || (s.email::text)
        FROM {schema}.users s WHERE lower(s.email::text) IN
            (SELECT lower(email::text) FROM {schema}.users GROUP BY 1 HAVING count(DISTINCT email::text) > 1)"""
    )


def _set_aside(schema: str, table: str, present: set[str]) -> str:
    names = ", ".join(f"{value(column, present)} AS {column}" for column in COLUMNS[table])
    owner, key = _OWNERS.get(table, ("", ""))
    join = f"LEFT JOIN legacy_owners o ON o.table_name = '{owner}' AND o.id = s.{key}" if owner else ""
    reason = _REASONS[table].replace("WHEN id IS", "WHEN s.id IS")
    return f"""
        INSERT INTO legacy_sorted SELECT '{table}', place, id, 'set_aside', reason FROM (
            SELECT s.place, s.id, {reason} AS reason FROM (
                SELECT s.ctid AS place, row_number() OVER (PARTITION BY {value("id", present)} ORDER BY s.ctid)
                    AS number, {names}
                FROM {schema}.{table} s) s {join}) judged
        WHERE reason IS NOT NULL"""


def _changed(schema: str, table: str, present: set[str]) -> str:
    """One row for each value that cannot be kept."""
    checks: dict[str, str] = {}
    for column in COLUMNS[table][1:]:
        written = value(column, present)
        missing = f"CASE WHEN {written} IS NULL THEN '{column} is missing' END"
        if column in TIMES:
            said = f"'{column} cannot be read as a time: ' || left({written}, 100)"
            odd = f"CASE WHEN {written} IS NOT NULL AND pg_temp.legacy_moment({written}) IS NULL THEN {said} END"
            checks[column] = odd if column == NEVER else f"coalesce({missing}, {odd})"
        elif column == "is_active":
            said = f"'is_active is neither true nor false, taken as false: ' || coalesce(left({written}, 100), 'NULL')"
            checks[column] = f"CASE WHEN pg_temp.legacy_boolean({written}) IS NULL THEN {said} END"
        elif column == "status":
            said = (
                f"'status is neither success nor failed, shown as failed: ' || coalesce(left({written}, 100), 'NULL')"
            )
            checks[column] = f"CASE WHEN {written} IS NULL OR {written} NOT IN ('success', 'failed') THEN {said} END"
        elif column not in OPTIONAL:
            checks[column] = missing
    names = ", ".join(f"'{column}'" for column in checks)
    return f"""
        INSERT INTO legacy_sorted SELECT '{table}', s.ctid, s.id::text, 'changed', said.reason, said.column_name
        FROM {schema}.{table} s,
            LATERAL unnest(ARRAY[{", ".join(checks.values())}], ARRAY[{names}]) AS said(reason, column_name)
        WHERE said.reason IS NOT NULL AND NOT {is_set_aside(table)}"""
