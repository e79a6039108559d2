"""Durations as people write them: ``500ms``, ``30s``, ``10m``, ``2h``, ``1d``, ``1h30m``; and back again.

`Duration` is the pydantic type: read from such text (or a timedelta), written back as text, a string in JSON Schema.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_PATTERN = r"(?:\d{1,9}(?:ms|[smhd]))+"
_TERM = re.compile(r"(\d{1,9})(ms|[smhd])")

LONGEST = timedelta(days=366)


def parse_duration(text: str) -> timedelta:
    """The duration written as `text`. Raises ValueError with what would be right."""
    if not re.fullmatch(_PATTERN, text, re.ASCII):
        raise ValueError("write a duration as a number and a unit (ms, s, m, h, d), such as 30s, 10m or 1h30m")
    terms = _TERM.findall(text)
    units = [unit for _, unit in terms]
    if units != [unit for unit in _UNITS if unit in units]:
        raise ValueError("name each unit once, the largest first, such as 1h30m")
    total = timedelta(0)
    for count, unit in terms:
        total += min(int(count), 10**12 // int(_UNITS[unit] / _UNITS["ms"])) * _UNITS[unit]
    if total > LONGEST:
        raise ValueError("a duration is at most 366d")
    return total


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads as `duration`; whole milliseconds, never negative."""
    rest = max(duration, timedelta(0))
    terms = []
    for unit, length in _UNITS.items():
        count, rest = divmod(rest, length)
        if count:
            terms.append(f"{count}{unit}")
    return "".join(terms) or "0s"


def _read(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("write a duration as text with a unit, such as 30s")


Duration = Annotated[
    timedelta,
    BeforeValidator(_read),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_PATTERN}$", "examples": ["500ms", "30s", "10m", "1h30m"]}),
]
"""A timedelta that documents write as text."""
