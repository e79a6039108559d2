"""A circuit breaker: of those who call something that has died, the first ones wait, and nobody after them.

The first failure opens it. While it is open every call is refused at once, and one thread in the background asks again
and again whether the other side answers; the first answer closes it. So no caller is ever the one who finds out, and
a side that hangs costs each process one waiting thread instead of all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from engine.errors import Unavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Breaker:
    """Around calls to `what`. `failures` are the errors that mean it is gone; `probe` raises one of them until it is
    back, and must end by a timeout of its own. `pause` is the time between probes in seconds.

    Safe to share between threads, not with a forked child.
    """

    def __init__(
        self, what: str, *, failures: tuple[type[Exception], ...], probe: Callable[[], object], pause: float = 0.5
    ) -> None:
        self._what = what
        self._failures = failures
        self._probe = probe
        self._pause = pause
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._closed.set()

    @property
    def is_open(self) -> bool:
        return not self._closed.is_set()

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises Unavailable when it fails, and without a try while the breaker is open."""
        if self.is_open:
            raise Unavailable(f"{self._what} did not answer a moment ago.")
        try:
            return work()
        except self._failures as error:
            self._open(error)
            raise Unavailable(f"{self._what} does not answer", cause=str(error)) from error

    def wait_closed(self, seconds: float) -> bool:
        """Whether calls are let through, now or within so many seconds."""
        return self._closed.wait(seconds)

    def _open(self, error: Exception) -> None:
        with self._lock:
            if self.is_open:
                return
            self._closed.clear()
        log.warning("breaker_opened", what=self._what, reason=str(error))
        threading.Thread(target=self._probe_until_it_answers, name=f"probe {self._what}", daemon=True).start()

    def _probe_until_it_answers(self) -> None:
        between = threading.Event()
        while True:
            try:
                self._probe()
            except self._failures:
                between.wait(self._pause)
            except Exception:
                # Whatever this is, callers find out more about it than a thread that nobody watches.
                log.exception("breaker_probe_failed", what=self._what)
                break
            else:
                break
        self._closed.set()
        log.info("breaker_closed", what=self._what)
