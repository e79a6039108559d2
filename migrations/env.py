"""How Alembic reaches the database: by the URL that `migrations.upgrade` was given, one transaction per revision.

One at a time: whoever comes second waits, and finds the work done. Given a connection instead, all revisions run inside
the transaction that it is in.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

LOCK_TIMEOUT = "5s"


def run() -> None:
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _run_on(given)
        return
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(hashtext('fairlane migrations'))"))
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.commit()
        _run_on(connection)


def _run_on(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


run()
