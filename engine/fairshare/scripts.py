"""The Lua operations of a fair queue, and the one way to send them.

Every operation is a file in ``lua/``; ``library.lua``, which describes the data model, is put in front of it. An
operation is sent by its SHA-1 digest; a Redis that does not know it (new, restarted, failed over) is taught all of
them and asked again, so a caller never sees ``NOSCRIPT``.

`Wire` sends commands in one round trip and returns their replies. A connection that breaks in the middle is dropped
and the error raised: whether the commands ran is then unknown, and each caller says what makes that harmless for it.
A server that has become a replica counts as broken, so that Sentinel is asked for the new master.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

Command = tuple[Any, ...]

STALE_AFTER = 1.0
"""Seconds of silence after which a kept connection is looked at before it is used: the server may have closed it."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue: the list of tickets, and the stem of all others (same hash slot)."""

    tickets: str
    stem: str

    @classmethod
    def of(cls, queue: str, prefix: str = "") -> Keys:
        return cls(f"{prefix}{queue}", f"{{{prefix}{queue}}}:")


@dataclass(frozen=True, slots=True)
class Script:
    text: str
    sha: str


@functools.cache
def scripts() -> dict[str, Script]:
    """Every operation by its name."""
    folder = resources.files(__package__).joinpath("lua")
    library = folder.joinpath("library.lua").read_text()
    found = {}
    for file in folder.iterdir():
        name, _, suffix = file.name.partition(".")
        if suffix == "lua" and name != "library":
            text = f"{library}\n{file.read_text()}"
            found[name] = Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    return found


def operation(name: str, keys: Keys, *args: str | bytes | int | float) -> Command:
    """The command that runs one operation; `args` as the header of its file says."""
    return ("EVALSHA", scripts()[name].sha, 2, keys.tickets, keys.stem, *args)


def loading() -> list[Command]:
    """The commands that teach Redis every operation."""
    return [("SCRIPT", "LOAD", script.text) for script in scripts().values()]


class Wire:
    """Sends commands over connections of a pool.

    With `keep` one connection stays borrowed, which saves a good part of the cost of a small command; it is used by one
    thread at a time. Without, any number of threads may call at once. Usable in a forked child: a connection of the
    parent is left alone there.
    """

    def __init__(self, pool: ConnectionPool, *, keep: bool = False) -> None:
        self._pool = pool
        self._keep = keep
        self._lock = threading.Lock()
        self._kept: Any = None
        self._pid = os.getpid()
        self._used_at = 0.0

    def call(self, *commands: Command) -> list[Any]:
        """The replies, in order. Raises the first error among them, and what a broken connection raises."""
        with self._borrowed() as connection:
            replies = self._exchange(connection, commands)
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                self._exchange(connection, loading())
                for i, reply in zip(unknown, self._exchange(connection, [commands[i] for i in unknown]), strict=True):
                    replies[i] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def close(self) -> None:
        """Gives the kept connection back to its pool."""
        with self._lock:
            if self._kept is not None and self._pid == os.getpid():
                self._pool.release(self._kept)
            self._kept = None

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Any]:
        if not self._keep:
            connection = self._pool.get_connection()
            try:
                yield connection
            finally:
                self._pool.release(connection)
            return
        with self._lock:
            yield self._alive()
            self._used_at = time.monotonic()

    def _alive(self) -> Any:
        """The kept connection, after a look at whether it still stands."""
        if self._pid != os.getpid():
            self._kept, self._pid = None, os.getpid()
        if self._kept is None:
            self._kept = self._pool.get_connection()
        elif time.monotonic() - self._used_at > STALE_AFTER:
            try:
                broken = self._kept.can_read(timeout=0)
            except (RedisConnectionError, OSError):
                broken = True
            if broken:
                self._kept.disconnect()
        return self._kept

    @staticmethod
    def _exchange(connection: Any, commands: list[Command] | tuple[Command, ...]) -> list[Any]:
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    if "READONLY" in str(error):
                        raise RedisConnectionError("the server has become a replica") from error
                    replies.append(error)
        except BaseException:
            # Replies may still be on their way: nobody must read them as answers to something else.
            connection.disconnect()
            raise
        return replies
