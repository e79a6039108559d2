"""What the operator's commands work on: the configured Postgres and Redis, or the embedded ones of a data folder.

Embedded servers that do not run are started for as long as the command takes, and their schema is brought up to date;
that of a configured database is only looked at, because changing it is `fairlane migrate`'s business.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from cli import commands, schema
from cli.output import warn
from cli.progress import progress
from embedded import ensure
from engine.audit import Actor
from engine.db import Database
from engine.errors import Unavailable
from engine.fairshare import Lanes
from engine.plans import Plans
from engine.ports import Lane
from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Installation:
    """The parts of the engine that commands use."""

    settings: Settings
    database: Database
    lanes: Lanes
    plans: Plans
    """Says on stderr when a change is stored and Redis could not be told."""


@contextmanager
def opened(data: Path) -> Iterator[Installation]:
    """Raises ConfigurationError or Unavailable, with a sentence, when the servers or the schema cannot be used."""
    with ExitStack() as stack:
        with progress("Reaching Postgres and Redis"):
            stack.enter_context(ensure(data))
            settings = Settings.load()
            schema.require_newest(settings.database_url, ours=commands.given_database_url() is None)
        database = Database(settings.database_url, pool_size=2)
        stack.callback(database.close)
        lanes = Lanes(settings.redis_url)
        yield Installation(
            settings, database, lanes, Plans(database, Book(lanes), untold=_say_untold, by=operator_here())
        )


def operator_here() -> Actor:
    """Who types the command, as audits name them."""
    return Actor(f"operator:{getpass.getuser()}")


class Book:
    """The `engine.plans.LaneBook` over Redis."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def configure_many(self, configurations: Mapping[str, Lane], *, only_known: bool = False) -> int:
        try:
            return self._lanes.configure_many(configurations, only_known=only_known)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer ({error}).") from error


def _say_untold(reason: str) -> None:
    warn(
        f"{reason} The change is stored, but the lanes do not know it yet: each learns of it with its next message, "
        "all of them by `fairlane lanes check --repair`."
    )
