"""The bound on a newcomer's wait, checked over random loads by the real Lua operations in virtual time.

A tenant that has had no more than its share and becomes ready (its first message arrives, or its cap has room again)
has its first turn. Let F be the tenants that were already in their first turn, k of them, and L the longest work that
is begun until its own. Then, however much others have waiting, and however wrong their estimates are:

1. before its message only messages of F are claimed, at most one of each;
2. it waits no longer than until each of k messages of length L has been put into the slot that came free first, and one
   more slot comes free. With nobody in F that is what is left of the work that ends first.

1 holds because a first turn comes before every start tag, in the order of arrival, and ends with one claim. 2 follows:
the slots take those messages in that order, and shorter ones make nobody wait longer.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field

from bench.simulator import Job, Served, Simulator

ROUNDING = 1e-6
"""Seconds: a turn is a time of 2^33 s and more in a double."""


@dataclass
class Newcomer:
    """One that waits for its first turn."""

    turn: tuple[float, str]
    came_at: float
    residuals: list[float]
    first: set[str]
    served: int = 0
    longest: float = 0.0

    @property
    def allowed(self) -> float:
        """The longest wait, in seconds."""
        free = list(self.residuals)
        for _ in range(self.served + len(self.first)):
            heapq.heapreplace(free, free[0] + self.longest)
        return free[0]


@dataclass
class Bound:
    """Watches every claim of `sim`. Raises AssertionError when the bound is broken."""

    sim: Simulator
    watched: int = 0
    owing: int = 0
    waiting: dict[str, Newcomer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sim.on_claim = self.claimed

    def arrives(self, job: Job) -> None:
        """Publishes `job`; if that makes its tenant ready, and it owes nothing, its wait is watched from now on."""
        before = dict(self.sim.turns())
        self.sim.publish([job])
        turns = dict(self.sim.turns())
        if job.tenant in before:
            return
        if turns[job.tenant] >= 0:
            self.owing += 1
            return
        turn = (turns[job.tenant], job.tenant)
        for other in self.waiting.values():
            if turn < other.turn:  # at the same moment, by name
                other.first.add(job.tenant)
        first = {tenant for tenant, at in turns.items() if (at, tenant) < turn}
        self.waiting[job.tenant] = Newcomer(turn, self.sim.now, self.sim.residuals(), first)

    def claimed(self, served: Served) -> None:
        tenant = served.job.tenant
        if newcomer := self.waiting.pop(tenant, None):
            waited = self.sim.now - newcomer.came_at
            assert waited <= newcomer.allowed + ROUNDING, (waited, newcomer)
            self.watched += 1
        for other in self.waiting.values():
            assert tenant in other.first, (tenant, other)
            other.first.discard(tenant)
            other.served += 1
            other.longest = max(other.longest, served.job.seconds)


def random_load(sim: Simulator, rng: random.Random, *, arrivals: int) -> Bound:
    """Backlogged tenants with any weights, caps and lengths; others come in between, some again and again."""
    for number in range(rng.randint(1, 25)):
        sim.configure(f"busy{number}", f"{rng.choice((0.5, 1, 4))} {rng.choice((0, 0, 0, 1, 2))} - -")
        mean, sigma = rng.choice((0.02, 0.3, 2.0)), rng.choice((0.0, 0.6, 1.5))
        sim.publish(Job(0, f"busy{number}", rng.lognormvariate(math.log(mean), sigma)) for _ in range(40))
    sim.fill()
    bound = Bound(sim)
    for number in range(arrivals):
        sim.run(until=sim.now + rng.expovariate(sim.slots / rng.choice((0.01, 0.3, 2.0))))
        for _ in range(rng.choice((1, 1, 1, 2, 9))):
            name = f"quiet{rng.randrange(12)}" if rng.random() < 0.5 else f"new{number}-{rng.randrange(100)}"
            bound.arrives(Job(sim.now, name, rng.choice((0.0, 0.05, 1.0))))
        sim.fill()
    sim.run()
    assert not bound.waiting
    return bound
