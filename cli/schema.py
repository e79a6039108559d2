"""Which revision the schema of a database is at, and whether a command may use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError, Conflict

if TYPE_CHECKING:
    import psycopg

ADOPT = "This is a database of the multi-user system: adopt it with `fairlane migrate --adopt` (docs/migration.md)."


def connection_to(url: str, *, seconds: int = 5) -> psycopg.Connection[Any]:
    """A plain connection, whose block ends its transaction and closes it. `url` in SQLAlchemy's form."""
    import psycopg

    return psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=seconds)


def revision(connection: psycopg.Connection[Any]) -> str | None:
    """None for a database that no migration has touched."""
    if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def refuse_multi_user(url: str) -> None:
    """Raises Conflict for a database of the multi-user system, whose tables the schema would collide with."""
    with connection_to(url) as connection:
        if _is_multi_user(connection):
            raise Conflict(f"{ADOPT} Nothing was changed.")


def _is_multi_user(connection: psycopg.Connection[Any]) -> bool:
    from migrations.legacy.findings import TABLES

    found = "SELECT bool_and(to_regclass('public.' || name) IS NOT NULL) FROM unnest(%s::text[]) name"
    there = connection.execute(found, [list(TABLES)]).fetchone()
    return there == (True,) and revision(connection) is None


def fault(connection: psycopg.Connection[Any]) -> str | None:
    """What to do when the schema is not at the newest revision."""
    import migrations

    at, head = revision(connection), migrations.head()
    if at == head:
        return None
    if _is_multi_user(connection):
        return ADOPT
    return f"The schema is at revision {at or 'none'}, not at {head}: run `fairlane migrate`."


def require_newest(url: str, *, ours: bool) -> None:
    """Bring the schema up to date where it is `ours` to change. Raises ConfigurationError where it is not."""
    with connection_to(url) as connection:
        sentence = fault(connection)
    if sentence is None:
        return
    if not ours:
        raise ConfigurationError(sentence)
    import migrations

    migrations.upgrade(url)
