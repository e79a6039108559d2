"""Which tenant comes first each time that a service goes through them: another one, so that none is always behind."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


class Turns:
    """Remembers, in this process only, who was first the last time."""

    def __init__(self) -> None:
        self._first = ""

    def order(self, tenants: Sequence[str]) -> list[str]:
        """All of them, beginning behind the one that was first the last time."""
        ordered = sorted(tenants)
        begin = bisect.bisect_right(ordered, self._first)
        turn = ordered[begin:] + ordered[:begin]
        self._first = turn[0] if turn else ""
        return turn
