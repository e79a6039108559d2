"""The Lua operations of a fair queue, and the one way to send them.

Every operation is a file in ``lua/``; ``library.lua``, which describes the data model, is put in front of it. An
operation is sent by its SHA-1 digest; a Redis that does not know it (new, restarted, failed over) is taught all of
them and asked again, so a caller never sees ``NOSCRIPT``.

`Wire` sends commands in one round trip and returns their replies. A connection that breaks in the middle is dropped
and the error raised: whether the commands ran is then unknown, and each caller says what makes that harmless for it.
A server that takes no writes counts as broken (``unwritable.py``); of one that has become a replica Sentinel is then
asked for the new master.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis import ConnectionPool
from redis.exceptions import NoScriptError, RedisError, ResponseError

from engine.fairshare.unwritable import unwritable

Command = tuple[Any, ...]

STALE_AFTER = 1.0
"""Seconds of silence after which a kept connection is looked at before it is used: the server may have closed it."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue: the list of tickets, the stem of all others (same hash slot), and the inbox among them."""

    tickets: str
    stem: str
    inbox: str

    @staticmethod
    @functools.cache
    def of(queue: str, prefix: str = "") -> Keys:
        stem = f"{{{prefix}{queue}}}:"
        return Keys(f"{prefix}{queue}", stem, f"{stem}inbox")


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
            text = with_library(library, file.read_text())
            found[name] = Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    return found


RARELY = "-- rarely:\n"
"""Stands in an operation before what most calls do not reach, for which nothing shall be defined beforehand."""


def with_library(library: str, operation: str) -> str:
    """The text of an operation, each part of it behind those definitions of the library that it uses.

    Redis runs the whole text at every call, so a function that is only defined costs time as well: all of them together
    as much as the rest of a publish. A definition begins with ``local`` at the start of a line and uses what stands
    above it.
    """
    return "".join(_with_definitions(library, part) for part in operation.split(RARELY))


def _with_definitions(library: str, part: str) -> str:
    text = _without_comments(part)
    for definition in reversed(re.split(r"^(?=local )", _without_comments(library), flags=re.MULTILINE)[1:]):
        head = definition.removeprefix("local ").removeprefix("function ")
        names = re.split(r"[=(]", head, maxsplit=1)[0].replace(",", " ").split()
        if any(re.search(rf"\b{name}\b", text) for name in names):
            text = f"{definition}{text}"
    return text


def _without_comments(text: str) -> str:
    return re.sub(r"\s*--[^\n]*", "", text)


def operation(name: str, keys: Keys, *args: str | bytes | int | float) -> Command:
    """The command that runs one operation; `args` as the header of its file says."""
    return ("EVALSHA", scripts()[name].sha, 2, keys.tickets, keys.stem, *args)


def loading() -> list[Command]:
    """The commands that teach Redis every operation."""
    return [("SCRIPT", "LOAD", script.text) for script in scripts().values()]


def _packed(commands: Sequence[Command]) -> bytes:
    """The commands as Redis reads them, in one piece. A publish spends less time here than in redis-py's way."""
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


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
        #: What was told over the kept connection, whose replies have not been read.
        self._told: list[Command] = []
        self._pid = os.getpid()
        self._used_at = 0.0

    def call(self, *commands: Command) -> list[Any]:
        """The replies, in order. Raises the first error among them, and what a broken connection raises."""
        if self._keep:
            with self._own_lock():
                replies = self._ask(self._alive(), commands, told=self._take_told())
                self._used_at = time.monotonic()
        else:
            connection = self._pool.get_connection()
            try:
                replies = self._ask(connection, commands)
            finally:
                self._pool.release(connection)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def tell(self, command: Command) -> None:
        """Sends a command over the kept connection, for Redis to work on while the caller goes on with its own work.

        Its reply is read with those of the next call, which raises no error of it. Raises what a broken connection
        raises. Without a kept connection this is `call`.
        """
        if not self._keep:
            self.call(command)
            return
        with self._own_lock():
            connection = self._alive()
            try:
                connection.send_packed_command([_packed([command])])
            except BaseException:
                self._drop(connection)
                raise
            self._told.append(command)

    def close(self) -> None:
        """Gives the kept connection back to its pool."""
        with self._lock:
            if self._kept is not None and self._pid == os.getpid():
                if self._told:
                    self._drop(self._kept)
                self._pool.release(self._kept)
            self._kept = None

    def _own_lock(self) -> threading.Lock:
        if self._pid != os.getpid():  # in a forked child, where nobody would ever release the lock
            self._lock, self._kept, self._told, self._pid = threading.Lock(), None, [], os.getpid()
        return self._lock

    def _take_told(self) -> list[Command]:
        told, self._told = self._told, []
        return told

    def _drop(self, connection: Any) -> None:
        """Replies may still be on their way: nobody must read them as answers to something else."""
        self._told = []
        connection.disconnect()

    def _alive(self) -> Any:
        """The kept connection, after a look at whether it still stands."""
        if self._kept is None:
            self._kept = self._pool.get_connection()
        elif time.monotonic() - self._used_at > STALE_AFTER and not self._stands(self._kept):
            self._drop(self._kept)
        if self._kept._sock is None:
            self._told = []
            self._kept.connect()  # sending would connect as well, but to where the master was, without asking Sentinel
        return self._kept

    def _stands(self, connection: Any) -> bool:
        try:
            if told := self._take_told():
                self._ask(connection, (), told=told)
            return not connection.can_read(timeout=0)
        except (RedisError, OSError):  # redis-py's own TimeoutError is neither a ConnectionError nor an OSError
            return False

    def _ask(self, connection: Any, commands: Sequence[Command], *, told: Sequence[Command] = ()) -> list[Any]:
        """The replies to `commands`; those to what was `told` are read before, and count for nothing."""
        replies = self._exchange(connection, commands, owed=len(told))
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            sent = [*told, *commands]
            self._exchange(connection, loading())
            for i, reply in zip(unknown, self._exchange(connection, [sent[i] for i in unknown]), strict=True):
                replies[i] = reply
        return replies[len(told) :]

    def _exchange(self, connection: Any, commands: Sequence[Command], *, owed: int = 0) -> list[Any]:
        replies: list[Any] = []
        try:
            if commands:
                connection.send_packed_command([_packed(commands)])
            for _ in range(owed + len(commands)):
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    if (instead := unwritable(error)) is not None:
                        raise instead from error
                    replies.append(error)
        except BaseException:
            self._drop(connection)
            raise
        return replies
