"""What several processes say, on one stream: for people with the name of who says it, for programs as JSON lines.

Children may repeat what strangers sent them, so control characters are made visible and never reach the terminal. When
nobody reads any more, `broken` becomes true and nothing is raised.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, TextIO

COLOURS = (36, 32, 35, 34, 33, 96, 92, 95)
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}


class Printer:
    """Lines with the name of who says them, in a colour each when `stream` is a terminal that wants colours."""

    def __init__(self, names: Sequence[str], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._width = max((len(name) for name in names), default=0)
        self._colours = dict(zip(names, cycle(COLOURS), strict=False)) if wants_colour(self._stream) else {}
        self.broken = False

    def say(self, name: str, line: str) -> None:
        """Print one line that `name` said."""
        prefix = f"{name:<{self._width}} |"
        if name in self._colours:
            prefix = f"\x1b[{self._colours[name]}m{prefix}\x1b[0m"
        self._write(f"{prefix} {line.translate(_VISIBLE)}")

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self.broken = True


class JsonPrinter(Printer):
    """Every line one JSON object with ``process``; what is no JSON yet, such as a traceback, becomes an ``event``."""

    def say(self, name: str, line: str) -> None:
        said = _object(line) or {"timestamp": _now(), "level": "info", "event": line}
        self._write(json.dumps({**said, "process": name}))


def wants_colour(stream: TextIO) -> bool:
    """A terminal that is not dumb, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
