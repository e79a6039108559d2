"""The embedded servers of one data folder: those of Postgres and Redis that no URL in the environment replaces.

`ensure` is what a command line tool wants: the configured servers if there are any, those of a running ``fairlane up``,
or else servers of its own for as long as it needs them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from embedded.home import DATA_DIR, DATABASE_URL, REDIS_URL, URLS, Home, InUse
from embedded.postgres import PostgresServer
from embedded.processes import wait_until
from embedded.redis import RedisServer
from engine.errors import Unavailable

STARTING_SECONDS = 60.0
"""How long a command waits for an `up` that is just starting."""


class Servers:
    """Postgres and Redis below `home`; None where the environment names another. Needs the home's lock."""

    def __init__(self, home: Home, *, connections: int = 100) -> None:
        self.home = home
        self.postgres: PostgresServer | None = None
        self.redis: RedisServer | None = None
        if DATABASE_URL not in os.environ:
            self.postgres = PostgresServer(
                home.folder / "postgres", port=home.port_of("postgres"), extra=(f"max_connections={connections}",)
            )
        if REDIS_URL not in os.environ:
            self.redis = RedisServer(home.folder / "redis", port=home.port_of("redis"), durable=True)

    def __enter__(self) -> Servers:
        """Start, and write the URLs where every other process of the project finds them."""
        urls = {}
        try:
            if self.postgres is not None:
                urls[DATABASE_URL] = self.postgres.start().url.replace("+psycopg", "")  # as psql and pg_dump take it
            if self.redis is not None:
                urls[REDIS_URL] = self.redis.start().url
        except BaseException:
            self.stop()
            raise
        self.home.publish_urls(urls)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.home.withdraw_urls()

    def stop(self) -> None:
        """Redis before Postgres: the queue can be rebuilt, the truth cannot."""
        if self.redis is not None:
            self.redis.stop()
        if self.postgres is not None:
            self.postgres.stop()


@contextlib.contextmanager
def ensure(data_dir: Path) -> Iterator[bool]:
    """Within the block `engine.settings` finds servers that answer. Yields whether they are embedded ones."""
    home = Home(data_dir)
    os.environ[DATA_DIR] = str(home.folder)
    if all(url in os.environ for url in URLS):
        yield False
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(home.locked())
        except InUse:
            _await_urls(home)
        else:
            stack.enter_context(Servers(home))
        yield True


def _await_urls(home: Home) -> None:
    """An `up` that is starting has the lock before it has its servers."""
    wanted = {url for url in URLS if url not in os.environ}
    if not wait_until(lambda: wanted <= home.read_env().keys(), STARTING_SECONDS):
        raise Unavailable(f"The Fairlane that uses {home.folder} has not started its servers; look at its output.")
