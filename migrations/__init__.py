"""The history of the schema, and the door to it for ``fairlane migrate`` and the tests.

Every migration is plain SQL, runs in a transaction of its own, gives up after 5 s without its locks, and never imports
the models: history must not change when they do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def _config(target: str | Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["url" if isinstance(target, str) else "connection"] = target
    return config


def upgrade(target: str | Connection, revision: str = "head") -> None:
    """Bring the schema up to `revision`; a no-op when it is there.

    `target` is a URL that begins with postgresql+psycopg://, or a connection in a transaction that becomes part of it.
    """
    command.upgrade(_config(target), revision)


def downgrade(target: str | Connection, revision: str) -> None:
    """Take the schema back to `revision`; refuses with one sentence where that would lose data.

    To take back an adoption is `migrations.adopt.take_back`.
    """
    command.downgrade(_config(target), revision)


def revisions() -> tuple[str, ...]:
    """All that this code knows, the oldest first."""
    found = ScriptDirectory(str(Path(__file__).parent)).walk_revisions()
    return tuple(script.revision for script in found)[::-1]


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory(str(Path(__file__).parent)).get_current_head()
    if revision is None:
        raise RuntimeError("migrations/versions holds no revision")
    return revision


def current(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()
