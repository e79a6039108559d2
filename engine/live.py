"""A run while somebody watches it: its status, its steps and its log as they come, each once.

Everything is read from Postgres behind a cursor, which travels with every event: who comes back with the cursor of the
last event that arrived misses nothing and gets nothing twice. Workers do nothing for it. One task per process asks,
with one statement for all runs that are watched there, which of them have changed; only those are read.

While Postgres does not answer nothing comes, and afterwards what has happened meanwhile. Redis is not needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal, TypeVar

import structlog

from engine.db import Database, Row, TenantSession
from engine.errors import NotFound, QuotaExceeded, Unavailable
from engine.repository import live as stored
from engine.repository.live import Mark, Watched
from engine.states import RunState

INTERVAL = 0.3
"""Seconds between two looks at the runs that are watched; what an event is late at most."""
QUIET = 15.0
"""Seconds without an event after which a listener is told that there is none."""
MAX_LISTENERS = 1000
SHARE = 4
"""One organization listens at most to a quarter as many as could still be listened to, so that there is always room for
another: 200 when it is alone."""
AGAIN = timedelta(seconds=5)
LINES, STEPS = 500, 20
"""Of one read; a step's output may be large."""
READERS = 2
LARGEST = 2**63 - 1

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How much a listener knows: the numbers of the last log line and step, and the status with its attempt."""

    line: int = 0
    step: int = -1
    attempt: int = -1
    status: str = ""

    def __str__(self) -> str:
        return f"{self.line}.{self.step}.{self.attempt}.{self.status}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises ValueError for what is no cursor."""
        line, step, attempt, status = text.split(".")
        cursor = cls(int(line), int(step), int(attempt), RunState(status).value if status else "")
        if max(cursor.line, cursor.step) > LARGEST:
            raise ValueError(text)
        return cursor

    @property
    def is_at_the_end(self) -> bool:
        return self.status != "" and RunState(self.status).is_terminal


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `cursor` is what a listener knows that has got it."""

    kind: Literal["status", "step", "log"]
    data: Row
    cursor: Cursor


def news(session: TenantSession, run_id: str, cursor: Cursor) -> list[Event]:
    """A piece of what is new behind the cursor, in order; nothing when nothing is. The end of a run comes last.

    The run is read first: what is written after that is new the next time. Raises NotFound.
    """
    run = stored.status_of(session, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    events: list[Event] = []
    changed = (run["attempt"], run["status"]) != (cursor.attempt, cursor.status)
    terminal = RunState(run["status"]).is_terminal
    if changed and not terminal:
        cursor = replace(cursor, attempt=run["attempt"], status=run["status"])
        events.append(Event("status", run, cursor))
    steps = stored.steps_after(session, run_id, cursor.step, limit=STEPS)
    lines = stored.lines_after(session, run_id, cursor.line, limit=LINES)
    for line in lines:
        cursor = replace(cursor, line=line["seq"])
        events.append(Event("log", _without_seq(line), cursor))
    for step in steps:
        cursor = replace(cursor, step=step["seq"])
        events.append(Event("step", _without_seq(step), cursor))
    if changed and terminal and len(steps) < STEPS and len(lines) < LINES:
        cursor = replace(cursor, attempt=run["attempt"], status=run["status"])
        events.append(Event("status", run, cursor))
    return events


def _without_seq(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "seq"}


@dataclass(eq=False, slots=True)
class _Watch:
    """One listener's run, and the sign that it has changed."""

    of: Watched
    mark: Mark | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Live:
    """The listeners of one process. To be used in one event loop; `close` when that ends."""

    def __init__(self, database: Database, *, interval: float = INTERVAL, quiet: float = QUIET) -> None:
        self._database = database
        self._interval = interval
        self._quiet = quiet
        self._watches: set[_Watch] = set()
        self._looking: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="live")

    @property
    def listeners(self) -> int:
        return len(self._watches)

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def check_room(self, tenant_id: str) -> None:
        """Raises QuotaExceeded when as many listen as may, in this process or of this organization."""
        of_tenant = sum(1 for watch in self._watches if watch.of[0] == tenant_id)
        if of_tenant * SHARE >= MAX_LISTENERS - len(self._watches):
            sentence = "As many runs are watched as may be at once; end a stream, or look again later."
            raise QuotaExceeded(sentence, code="too_many_requests", retry_after=AGAIN)

    async def follow(self, tenant_id: str, run_id: str, cursor: Cursor) -> AsyncIterator[Event | None]:
        """Events behind the cursor until the run has ended; None when there was none for a while."""
        with self._watching((tenant_id, run_id)) as watch:
            while not cursor.is_at_the_end:
                watch.changed.clear()
                events = await self._news(tenant_id, run_id, cursor)
                for event in events:
                    cursor = event.cursor
                    yield event
                if not events and not await self._changed(watch):
                    yield None

    async def _news(self, tenant_id: str, run_id: str, cursor: Cursor) -> list[Event]:
        def read() -> list[Event]:
            with self._database.tenant(tenant_id) as session:
                return news(session, run_id, cursor)

        try:
            return await self._in_thread(read)
        except Unavailable:
            await asyncio.sleep(self._interval)
            return []

    async def _changed(self, watch: _Watch) -> bool:
        try:
            async with asyncio.timeout(self._quiet):
                await watch.changed.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def _watching(self, of: Watched) -> Iterator[_Watch]:
        watch = _Watch(of)
        self._watches.add(watch)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    async def _look(self) -> None:
        """While there are listeners, tell those whose run has changed."""
        while self._watches:
            await asyncio.sleep(self._interval)
            try:
                marks = await self._in_thread(self._marks)
            except Unavailable as error:
                log.warning("watching_interrupted", reason=error.detail)
                continue
            except Exception:  # whatever it was: those who listen still do
                log.exception("watching_interrupted")
                continue
            for watch in self._watches:
                mark = marks.get(watch.of)
                if mark != watch.mark:
                    watch.mark = mark
                    watch.changed.set()

    def _marks(self) -> dict[Watched, Mark]:
        with self._database.system() as session:
            return stored.marks(session, {watch.of for watch in list(self._watches)})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)
