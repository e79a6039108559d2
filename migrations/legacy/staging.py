"""The schema ``fairlane_legacy``: where the old rows wait for the road, and where those that it set aside stay.

An adoption moves the four old tables here untouched; that copy is the way back. An import makes them here, every
column text and without a constraint, so that whatever a file holds fits in.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

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
