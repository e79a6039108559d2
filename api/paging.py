"""Lists in pages: ``{"items": [...], "next_cursor": ...}``.

A cursor is the sort key of the last item, encoded; to a client it is opaque. It stays right while items come and go.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic_core
from fastapi import Depends, Query

from engine.db import Row
from engine.errors import Fault, InvalidInput

DEFAULT_LIMIT = 50
MAXIMUM_LIMIT = 200
GREATEST = 2**63
PAGE_BYTES = 8 * 1024 * 1024
"""How much of inputs and outputs a page holds before it ends early."""


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
        key = _decoded(self.cursor)
        if not isinstance(key, list) or len(key) != len(kinds) or not all(map(_is_part, key, kinds)):
            raise InvalidInput([Fault("/cursor", "not a cursor of this list; take next_cursor of the page before")])
        return key if len(kinds) > 1 else key[0]

    def page(self, rows: Sequence[Row], key: Callable[[Row], Sequence[Any]]) -> Row:
        """The answer, from up to `fetch` rows; `key` gives a row's sort key, `found` of a row how many there were."""
        shown = rows[: self.limit]
        more = bool(shown) and rows[0].get("found", len(rows)) > len(shown)
        return {"items": shown, "next_cursor": _encoded(key(shown[-1])) if more else None}


def _decoded(cursor: str) -> Any:
    try:
        return pydantic_core.from_json(base64.urlsafe_b64decode(cursor.encode()), allow_inf_nan=False)
    except ValueError:
        return None


def _is_part(part: Any, kind: type) -> bool:
    """Whether a forged cursor can be handed to Postgres: no number beyond 64 bits, no NUL in a text."""
    if isinstance(part, str):
        return kind is str and "\0" not in part
    return isinstance(part, int) and kind is int and abs(part) < GREATEST


def _encoded(key: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(key)).encode()).decode()


def _paging(
    limit: Annotated[int, Query(ge=1, le=MAXIMUM_LIMIT, description="Items per page.")] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
) -> Paging:
    return Paging(limit, cursor or None)


Page = Annotated[Paging, Depends(_paging)]
