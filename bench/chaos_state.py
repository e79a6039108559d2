"""What a fault of `make chaos` has to do with: the installation, its load, the seed's chance, and what it must undo."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from bench.chaos_ground import WORKERS, Ground, Recoveries
from bench.chaos_load import Load, Tenant
from bench.harness import until


class NotNow(Exception):
    """The installation is in no state for this fault, or it met nothing: it does not count as injected."""


@dataclass
class Chaos:
    """What a fault needs. `due` are the undoings that are still to come, with their time."""

    ground: Ground
    load: Load
    rng: random.Random
    recoveries: Recoveries
    times: Counter[str] = field(default_factory=Counter)
    due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    poisoned: int = 0
    redis_lost_at: list[float] = field(default_factory=list)
    cancelled: int = 0
    stop: Callable[[float], object] = time.sleep
    """Waits so many seconds, or until everything is to end."""

    def worker(self) -> str:
        return self.rng.choice([name for name in WORKERS if name not in self.ground.frozen])

    def tenant(self) -> Tenant:
        return self.rng.choice(self.load.tenants)

    def in_hand(self) -> list[tuple[str, int]]:
        """The runs that are running, once a call is under way: a kill of idle workers shows nothing."""
        with contextlib.suppress(TimeoutError):
            until(lambda: self.load.receiver.open.total() > 1, within=5, what="a call")
        return self.recoveries.before_kill()

    def last(self, least: float, most: float) -> None:
        self.stop(self.rng.uniform(least, most))

    def undo(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        for entry in [entry for entry in self.due if everything or entry[0] <= now]:
            self.due.remove(entry)
            entry[1]()

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.ground.redis.url, socket_timeout=5)

    def lose_redis(self) -> None:
        self.ground.disturb()
        self.redis_lost_at.append(time.time())


Fault = Callable[[Chaos], None]
FAULTS: dict[str, tuple[Fault, str, int]] = {}
"""By name: what does it, the faults of the catalogue that it shows, and how often it comes relative to others."""


def fault(name: str, shows: str, weight: int = 2) -> Callable[[Fault], Fault]:
    def enter(function: Fault) -> Fault:
        FAULTS[name] = (function, shows, weight)
        return function

    return enter
