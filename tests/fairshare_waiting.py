"""Waiting on a condition, for tests that watch processes and threads that they cannot step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], *, within: float = 20.0, what: str = "the condition") -> float:
    """Returns the seconds until `condition` was true; fails the test when that takes longer than `within`."""
    pause = threading.Event()
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > within:
            raise AssertionError(f"{what} did not come true within {within} s")
        pause.wait(0.01)
    return time.monotonic() - begin
