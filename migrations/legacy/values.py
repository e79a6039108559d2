"""One row of a SQLite file as Postgres can hold it, and what had to be replaced in it for that.

SQLite keeps any type in any column. Numbers and readable bytes become text without a word. What Postgres cannot hold
(NUL, bytes that are no UTF-8), what an index cannot (ids and emails beyond `LONGEST_KEY` bytes), what is missing where
a value is needed, and times that nobody can read are replaced and told; the original is handed back with it, whole.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from migrations.legacy import moments
from migrations.legacy.sorting import OPTIONAL, TIMES

Raw: TypeAlias = str | bytes | int | float | None
LONGEST_KEY = 500
KEYS = frozenset({"id", "user_id", "workflow_id", "email", "service_name"})
MAY_LACK = frozenset({*OPTIONAL, "last_executed_at", "id", "user_id", "workflow_id", "email"})
"""Where NULL stays: it is a value there, or the road sets the row aside for it."""
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


@dataclass(frozen=True, slots=True)
class Change:
    """A value that was replaced: why, and what it was."""

    column: str
    reason: str
    original: Raw

    def stored(self) -> dict[str, object]:
        """The original as JSON that loses nothing."""
        if isinstance(self.original, str):
            raw = self.original.encode("utf-8", "surrogateescape")
            return {"type": "text", "base64": base64.b64encode(raw).decode()}
        if isinstance(self.original, bytes):
            return {"type": "blob", "base64": base64.b64encode(self.original).decode()}
        return {"type": type(self.original).__name__, "value": repr(self.original)}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the columns of one table are read; `instead` stands for a time that is missing or nobody can read."""

    columns: tuple[str, ...]
    instead: datetime

    def row(self, raw: Sequence[Raw]) -> tuple[list[str | None], list[Change]]:
        """The values as text, in the order of `columns`, and what was replaced."""
        values: list[str | None] = []
        changes: list[Change] = []
        for column, value in zip(self.columns, raw, strict=True):
            text, reason = self._value(column, value)
            values.append(text)
            if reason is not None:
                changes.append(Change(column, reason, value))
        return values, changes

    def _value(self, column: str, raw: Raw) -> tuple[str | None, str | None]:
        if column in TIMES:
            return self._time(column, raw)
        if column == "is_active":
            return _boolean(raw)
        if raw is None:
            return (None, None) if column in MAY_LACK else ("", f"{column} is missing; it is empty now")
        text, reason = _text(column, raw)
        if column in KEYS and len(text.encode()) > LONGEST_KEY:
            digest = hashlib.sha256(text.encode()).hexdigest()[:32]
            return f"{text[:80]}~{digest}", f"{column} is longer than {LONGEST_KEY} bytes; it is shortened"
        return text, reason

    def _time(self, column: str, raw: Raw) -> tuple[str | None, str | None]:
        if raw is None and column in MAY_LACK:
            return None, None
        value = _decoded(raw) if isinstance(raw, bytes) else raw
        moment = moments.read(value)
        if moment is not None:
            return moments.written(moment), None
        said = "is missing" if raw is None else "cannot be read as a time"
        if column in MAY_LACK:
            return None, f"{column} {said}; it counts as never"
        return moments.written(self.instead), f"{column} {said}; the time of the file stands for it"


def _boolean(raw: Raw) -> tuple[str, str | None]:
    written = str(int(raw)) if isinstance(raw, float) and raw in (0.0, 1.0) else str(raw).strip().lower()
    if written in _TRUE:
        return "true", None
    return "false", None if written in _FALSE else "is_active is neither true nor false; it is false now"


def _text(column: str, raw: str | bytes | float) -> tuple[str, str | None]:
    text = _decoded(raw) if isinstance(raw, bytes) else str(raw)
    if text.isascii() and "\0" not in text:
        return text, None
    clean = text.replace("\0", "\ufffd").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return clean, None if clean == text else f"{column} holds bytes that are no text; U+FFFD stands for each"


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def digest(values: Sequence[str | None]) -> int:
    """A number for the contents of a row; that of a table is their sum in any order. `sums` says it in SQL."""
    joined = "".join("-" if value is None else f"{len(value)}:{value}" for value in values)
    return int(hashlib.sha256(joined.encode()).hexdigest()[:15], 16)
