"""Lists in pages: ``{"items": [...], "next_cursor": ...}``.

A cursor is the sort key of the last item, encoded; to a client it is opaque. It stays right while items come and go.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query

from engine.db import Row
from engine.errors import Fault, InvalidInput

DEFAULT_LIMIT = 50
MAXIMUM_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Paging:
    """What part of a list is wanted."""

    limit: int
    cursor: str | None

    @property
    def fetch(self) -> int:
        """How many rows to read: one more than are shown, which tells whether there is a next page."""
        return self.limit + 1

    def after(self, *kinds: type) -> Any:
        """The sort key behind which the page begins, None for the first; a single value where it has one part."""
        if self.cursor is None:
            return None
        try:
            key = json.loads(base64.urlsafe_b64decode(self.cursor.encode()))
        except (ValueError, binascii.Error, RecursionError):
            key = None
        if not isinstance(key, list) or len(key) != len(kinds) or not all(map(isinstance, key, kinds)):
            raise InvalidInput([Fault("/cursor", "not a cursor of this list; take next_cursor of the page before")])
        return key if len(kinds) > 1 else key[0]

    def page(self, rows: Sequence[Row], key: Callable[[Row], Sequence[Any]]) -> Row:
        """The answer, from up to `fetch` rows; `key` gives a row's sort key."""
        shown = rows[: self.limit]
        more = len(rows) > len(shown)
        return {"items": shown, "next_cursor": _encoded(key(shown[-1])) if more else None}


def _encoded(key: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(key)).encode()).decode()


def _paging(
    limit: Annotated[int, Query(ge=1, le=MAXIMUM_LIMIT, description="Items per page.")] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
) -> Paging:
    return Paging(limit, cursor or None)


Page = Annotated[Paging, Depends(_paging)]
