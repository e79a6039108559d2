"""Lists out of Postgres, read page by page: no transaction stays open while a person reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.db import Database, Row, SystemSession

PAGE = 200


def pages(
    database: Database, page: Callable[[SystemSession, Row | None, int], list[Row]], *, limit: int | None = None
) -> Iterator[Row]:
    """The rows that `page` reads, given a session, the last row so far and how many it may read; at most `limit`."""
    last: Row | None = None
    left = limit
    while left is None or left > 0:
        wanted = PAGE if left is None else min(PAGE, left)
        with database.system() as session:
            rows = page(session, last, wanted)
        yield from rows
        if len(rows) < wanted:
            return
        last = rows[-1]
        left = None if left is None else left - len(rows)
