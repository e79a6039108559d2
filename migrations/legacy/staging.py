"""The schema ``fairlane_legacy``: where the old rows wait for the road, and where those that it set aside stay.

An adoption moves the four old tables here untouched; that copy is the way back. An import makes them here, every
column text and without a constraint, so that whatever a file holds fits in. When an organization is erased, ``erase``
takes its rows out of what stays here.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from engine.db import SYSTEM_ROLE

SCHEMA = "fairlane_legacy"
COLUMNS: dict[str, tuple[str, ...]] = {
    "users": ("id", "email", "password_hash", "created_at"),
    "credentials": ("id", "user_id", "service_name", "encrypted_key", "created_at"),
    "workflows": (
        "id",
        "user_id",
        "name",
        "trigger_type",
        "action_type",
        "config_json",
        "action_chain",
        "parameters",
        "is_active",
        "last_executed_at",
        "created_at",
    ),
    "logs": ("id", "workflow_id", "status", "message", "executed_at"),
}
LATER = ("action_chain", "parameters")
"""Columns of workflows that the early form does not have."""


def prepare(connection: Connection) -> None:
    """Make the schema and its table of rejects; there must be none."""
    connection.execute(
        text(
            f"""
            CREATE SCHEMA {SCHEMA};
            CREATE TABLE {SCHEMA}.rejects (
                number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                table_name TEXT NOT NULL, id TEXT, "row" JSONB NOT NULL, reason TEXT NOT NULL
            );
            """
        )
    )


def create(connection: Connection) -> None:
    """Make the four tables for an import, as text; a boolean is read from 1, 0, t, f, true or false."""
    prepare(connection)
    for table, columns in COLUMNS.items():
        names = ", ".join(f"{column} TEXT" for column in columns)
        connection.execute(text(f"CREATE TABLE {SCHEMA}.{table} ({names})"))


def drop_sources(connection: Connection) -> None:
    """Forget the four tables, for which an import has the file; the rejects stay."""
    connection.execute(text("DROP TABLE " + ", ".join(f"{SCHEMA}.{table}" for table in reversed(COLUMNS))))


def let_erase(connection: Connection) -> None:
    """Make ``erase``, which the engine calls while the organization's own rows are still there."""
    connection.exec_driver_sql(_ERASE)
    connection.execute(
        text(
            f"GRANT USAGE ON SCHEMA {SCHEMA} TO {SYSTEM_ROLE};"
            f"GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {SYSTEM_ROLE}"
        )
    )


def give_back(connection: Connection) -> None:
    """Take the rights to the old tables away again, before they go back to where they were."""
    connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {SYSTEM_ROLE}"))


_ERASE = f"""
CREATE FUNCTION {SCHEMA}.erase(tenant text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    person CONSTANT text := CASE WHEN left(tenant, 7) = 'tenant_' THEN substr(tenant, 8) END;
    adopted CONSTANT boolean := to_regclass('{SCHEMA}.adoption') IS NOT NULL;
    own_workflows text[] := ARRAY(SELECT id FROM public.workflows WHERE tenant_id = tenant);
    own_credentials text[] := ARRAY(SELECT id FROM public.credentials WHERE tenant_id = tenant);
    own_rejects bigint[];
    own text[];  -- 'workflows 5': each table may have numbered its rows for itself
BEGIN
    IF adopted THEN  -- what was deleted since is still in the old tables
        own_workflows := own_workflows
            || ARRAY(SELECT id::text FROM {SCHEMA}.workflows WHERE user_id::text = person);
        own_credentials := own_credentials
            || ARRAY(SELECT id::text FROM {SCHEMA}.credentials WHERE user_id::text = person);
    END IF;
    own_rejects := ARRAY(SELECT number FROM {SCHEMA}.rejects WHERE CASE table_name WHEN 'users' THEN id = person
        WHEN 'logs' THEN "row"->>'workflow_id' = ANY (own_workflows) ELSE "row"->>'user_id' = person END);
    own := ARRAY(SELECT table_name || ' ' || id FROM {SCHEMA}.rejects WHERE number = ANY (own_rejects))
        || ARRAY(SELECT 'workflows ' || id FROM unnest(own_workflows) id)
        || ARRAY(SELECT 'credentials ' || id FROM unnest(own_credentials) id)
        || ('users ' || person);
    DELETE FROM {SCHEMA}.rejects WHERE number = ANY (own_rejects);
    IF adopted THEN
        UPDATE {SCHEMA}.adoption SET report = jsonb_set(report, '{{findings}}', coalesce((
            SELECT jsonb_agg(finding) FROM jsonb_array_elements(report->'findings') finding
            WHERE (concat_ws(' ', finding->>'table', finding->>'id') = ANY (own)) IS NOT TRUE
                AND NOT (finding->>'table' = 'logs' AND EXISTS (SELECT 1 FROM {SCHEMA}.logs l
                    WHERE l.id::text = finding->>'id' AND l.workflow_id::text = ANY (own_workflows)))), '[]'));
        DELETE FROM {SCHEMA}.logs WHERE workflow_id::text = ANY (own_workflows);
        DELETE FROM {SCHEMA}.workflows WHERE id::text = ANY (own_workflows);
        DELETE FROM {SCHEMA}.credentials WHERE id::text = ANY (own_credentials);
        DELETE FROM {SCHEMA}.users WHERE id::text = person;
    ELSE
        DELETE FROM {SCHEMA}.originals o WHERE table_name || ' ' || id = ANY (own)
            OR table_name = 'logs' AND EXISTS (SELECT 1 FROM public.logs WHERE id = o.id AND tenant_id = tenant)
            OR left(id, 5) <> '(row ' AND CASE table_name  -- deleted since: nobody's any more
                WHEN 'workflows' THEN NOT EXISTS (SELECT 1 FROM public.workflows WHERE id = o.id)
                WHEN 'credentials' THEN NOT EXISTS (SELECT 1 FROM public.credentials WHERE id = o.id)
                WHEN 'logs' THEN NOT EXISTS (SELECT 1 FROM public.logs WHERE id = o.id)
            END AND NOT EXISTS (SELECT 1 FROM {SCHEMA}.rejects r WHERE r.table_name = o.table_name AND r.id = o.id);
    END IF;
END
$$
"""
