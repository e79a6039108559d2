"""Drives the real Lua operations in virtual time: any number of tenants and workers, hours of load in seconds.

A `Simulator` is a set of worker slots and a calendar of events. Slots claim through ``claim.lua`` and acknowledge
through ``ack.lua`` on a real Redis, with the virtual time as their argument, so what is measured is the shipped
scheduling and not a model of it. Beside it, `fifo` and `round_robin` give the waits of the same arrivals under the two
usual policies.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import redis

from engine.fairshare.envelope import Envelope
from engine.fairshare.lanes import Lanes
from engine.fairshare.scripts import Keys, Wire, operation

LEASE = 1e9
"""Virtual seconds: no lease runs out in a simulation."""


@dataclass(frozen=True, slots=True)
class Job:
    """One message: when it arrives, and the seconds that it keeps a slot."""

    at: float
    tenant: str
    seconds: float
    flow: str = "f"


@dataclass(slots=True)
class Served:
    """When a job was claimed."""

    job: Job
    claimed_at: float

    @property
    def wait(self) -> float:
        return self.claimed_at - self.job.at


class Simulator:
    """`slots` workers on the queue `sim` of an empty Redis."""

    def __init__(self, client: redis.Redis, *, slots: int, payload: int = 16) -> None:
        self.now = 1.0
        self.slots = slots
        self.free = slots
        self.served: list[Served] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.on_claim: Callable[[Served], None] | None = None
        self.client = client
        self._wire = Wire(client.connection_pool, keep=True)
        self._keys = Keys.of("sim")
        self.lanes = Lanes(client, "sim")
        self._payload = "x" * payload
        self._jobs: dict[str, Job] = {}
        self._ids = itertools.count()
        self._busy: list[tuple[float, int, str, str, float]] = []
        self._order = itertools.count()
        client.flushall()

    def close(self) -> None:
        self._wire.close()

    def run_script(self, name: str, *args: Any) -> Any:
        return self._wire.call(operation(name, self._keys, self.now, *args))[0]

    def publish(self, jobs: Iterable[Job]) -> None:
        """Adds jobs now, in batches."""
        for batch in _batches(jobs, 100):
            posted = []
            for job in batch:
                id_ = f"{next(self._ids):012x}"
                self._jobs[id_] = job
                posted.append(Envelope(id_, job.tenant, job.flow, 0, "n", "", self._payload).posted())
            self.run_script("publish", *posted)

    def configure(self, tenant: str, words: str) -> None:
        """`words` as in configure.lua without the version."""
        self.run_script("configure", tenant, f"- {words}")

    def fill(self) -> None:
        """Free slots claim."""
        while self.free:
            token = f"t{next(self._order)}"
            claimed = self.run_script("claim", LEASE, token, min(self.free, 64))[3:]
            if not claimed:
                return
            for i in range(0, len(claimed), 3):
                self._begin(claimed[i].decode(), token)

    def _begin(self, id_: str, token: str) -> None:
        job = self._jobs.pop(id_)
        served = Served(job, self.now)
        self.served.append(served)
        self.free -= 1
        heapq.heappush(self._busy, (self.now + job.seconds, next(self._order), id_, token, job.seconds))
        self.seconds[job.tenant] += job.seconds
        if self.on_claim is not None:
            self.on_claim(served)

    @property
    def next_end(self) -> float:
        """When the next job ends; infinite when nothing runs."""
        return self._busy[0][0] if self._busy else float("inf")

    def residuals(self) -> list[float]:
        """What is left of the work in each slot, ascending; 0 for a free one."""
        return [0.0] * self.free + sorted(end - self.now for end, *_ in self._busy)

    def turns(self) -> list[tuple[str, float]]:
        """The tenants with dispatchable work and their turns, in order: below 0 a first turn, else the start tag."""
        command = ("ZRANGE", f"{self._keys.stem}ready", 0, -1, "WITHSCORES")
        reply = self._wire.call(operation("file", self._keys, self.now), command)[1]
        pairs = reply if reply and isinstance(reply[0], list) else zip(reply[::2], reply[1::2], strict=True)
        return [(tenant.decode(), float(turn)) for tenant, turn in pairs]

    def step(self) -> bool:
        """Goes to the next end of a job; False when nothing runs."""
        if not self._busy:
            return False
        self.now = self._busy[0][0]
        done: list[str | float] = []
        while self._busy and self._busy[0][0] <= self.now:
            _, _, id_, token, seconds = heapq.heappop(self._busy)
            done += [id_, token, seconds]
            self.free += 1
        self.run_script("ack", *done)
        self.fill()
        return True

    def run(self, arrivals: Iterable[Job] = (), *, until: float = float("inf")) -> None:
        """Serves what waits and what arrives (in order of time), until nothing is left to do or it is so late."""
        waiting = deque(arrivals)
        while self.now < until:
            next_end = self.next_end
            if waiting and waiting[0].at <= min(next_end, until):
                self.now = max(self.now, waiting[0].at)
                batch = []
                while waiting and waiting[0].at <= self.now:
                    batch.append(waiting.popleft())
                self.publish(batch)
                self.fill()
            elif next_end > until:
                self.now = until
            elif not self.step():
                return


def fifo(arrivals: Iterable[Job], slots: int) -> list[Served]:
    """The same arrivals in one queue, first come, first served."""
    free = [0.0] * slots
    served = []
    for job in arrivals:
        start = max(heapq.heappop(free), job.at)
        heapq.heappush(free, start + job.seconds)
        served.append(Served(job, start))
    return served


def round_robin(arrivals: Iterable[Job], slots: int) -> list[Served]:
    """The same arrivals in a queue for each tenant, the queues taking turns by message."""
    pending = deque(arrivals)
    queues: dict[str, deque[Job]] = {}
    turn: deque[str] = deque()
    free = [0.0] * slots
    served = []
    while pending or turn:
        now = heapq.heappop(free)
        if not turn and pending:
            now = max(now, pending[0].at)
        while pending and pending[0].at <= now:
            job = pending.popleft()
            if job.tenant not in queues:
                queues[job.tenant] = deque()
                turn.append(job.tenant)
            queues[job.tenant].append(job)
        tenant = turn.popleft()
        job = queues[tenant].popleft()
        if queues[tenant]:
            turn.append(tenant)
        else:
            del queues[tenant]
        served.append(Served(job, now))
        heapq.heappush(free, now + job.seconds)
    return served


def _batches(jobs: Iterable[Job], size: int) -> Iterable[list[Job]]:
    iterator = iter(jobs)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def quantile(values: list[float], fraction: float) -> float:
    """The value at `fraction` of the sorted values; nan of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)] if ordered else float("nan")


def cpu_seconds(client: redis.Redis) -> float:
    """Processor time that Redis used so far."""
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def scaled(full: int, quick: bool) -> int:
    """A tenth for ``--quick``."""
    return max(full // 10, 1) if quick else full


def seed() -> int:
    """The seed of the random loads; ``BENCH_SEED`` gives another one."""
    return int(os.environ.get("BENCH_SEED", "1"))
