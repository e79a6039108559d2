"""Slows down whoever guesses passwords, or floods a route that is open or costs us something.

Of logins few may fail per account and address, more per account and per address; other things are counted by `spend`.

The counters live in Redis, so all API processes share them; while it does not answer, each process counts for itself,
which is weaker and never open. An attempt is counted before the password is looked at, so that a burst cannot slip
through together, and taken back when it was right.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import redis
import structlog

from engine.errors import QuotaExceeded, Unauthenticated

WINDOW = timedelta(minutes=5)
PER_ACCOUNT_AND_ADDRESS = 10
PER_ACCOUNT = 100
PER_ADDRESS = 200
LOCAL_KEYS = 10_000
"""How many counters a process keeps for itself at most."""

log = structlog.get_logger(__name__)


class Throttle:
    """Counts failed logins. `clock` gives seconds."""

    def __init__(self, redis_url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = _connect(redis_url)
        self._clock = clock
        self._local: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def attempt(self, *, account: str, address: str) -> Iterator[None]:
        """Around one attempt; it counts if it raises Unauthenticated. Raises QuotaExceeded ``too_many_attempts``."""
        keys = self._keys(account.lower(), address)
        counts = [self._add(key, 1) for key in keys]
        limits = (PER_ACCOUNT_AND_ADDRESS, PER_ACCOUNT, PER_ADDRESS)
        if any(count > limit for count, limit in zip(counts, limits, strict=True)):
            raise QuotaExceeded(
                "Too many failed logins; wait a few minutes.", code="too_many_attempts", retry_after=self._rest()
            )
        wrong = False
        try:
            yield
        except Unauthenticated:
            wrong = True
            raise
        finally:
            for key in () if wrong else keys:
                self._add(key, -1)

    def spend(self, what: str, who: str | None, *, most: int) -> None:
        """Count one `what` of `who`. Raises QuotaExceeded ``too_many_requests`` for more than `most` in a window."""
        if self._add(self._key(what, (who or "",)), 1) > most:
            raise QuotaExceeded(
                "Too many of these in a few minutes; wait.", code="too_many_requests", retry_after=self._rest()
            )

    def _keys(self, account: str, address: str) -> list[str]:
        return [self._key("login", part) for part in ((account, address), (account, ""), ("", address))]

    def _key(self, what: str, who: tuple[str, ...]) -> str:
        window = int(self._clock() // WINDOW.total_seconds())
        name = repr(who).encode("utf-8", "backslashreplace")
        return f"fairlane:{what}:{window}:{hashlib.sha256(name).hexdigest()[:32]}"

    def _rest(self) -> timedelta:
        return timedelta(seconds=WINDOW.total_seconds() - self._clock() % WINDOW.total_seconds())

    def _add(self, key: str, amount: int) -> int:
        try:
            if self._redis is not None:
                with self._redis.pipeline() as pipe:
                    pipe.incrby(key, amount)
                    pipe.expire(key, WINDOW * 2)
                    return int(pipe.execute()[0])
        except redis.RedisError as error:
            log.warning("login_throttle_local", reason=type(error).__name__)
        return self._add_locally(key, amount)

    def _add_locally(self, key: str, amount: int) -> int:
        with self._lock:
            if key not in self._local and len(self._local) >= LOCAL_KEYS:
                self._local.pop(next(iter(self._local)))
            self._local[key] = self._local.get(key, 0) + amount
            return self._local[key]


def _connect(url: str) -> redis.Redis | None:
    """None for a sentinel URL, which the plain client does not know: then every process counts for itself."""
    if url.startswith("sentinel"):
        return None
    return redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)
