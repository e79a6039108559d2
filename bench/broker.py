"""What a message costs: ``fairredis://`` beside kombu's ``redis://``, with 1, 100 and 10,000 tenants.

    python -m bench.broker [--quick]

Tasks that do nothing are published by one process, then drained by one worker, both set up as Fairlane does: threads, 8
slots, prefetch 1, late acks, no retries of a publish. Each transport has a Redis of its own, which has seen each tenant
before. In a round both publish the same messages in turn, block by block, and then each worker drains its queue; the
drain is timed from the first message that is gone to the last. So a slow minute of the machine meets both. Every figure
is the median of the rounds, and a ratio the median of the ratios of each round. Redis's processor time is what it says
itself (``INFO cpu``), memory what the messages add. Ends with one ``RESULT broker`` line, within eight minutes
(``--quick``: one).
"""

# Celery and parts of redis-py have no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from bench.fairshare_app import make_app
from bench.harness import Worker, until
from bench.simulator import cpu_seconds
from embedded.redis import RedisServer
from engine.fairshare.envelope import Envelope
from engine.fairshare.scripts import Keys, Wire, operation

SLOTS = 8
BLOCK = 250
"""Messages that one transport publishes before it is the other's turn."""

TENANTS = (1, 100, 10_000)


@dataclass
class Measured:
    """One round of one transport. Rates in messages per second, processor time of Redis in microseconds a message."""

    publish: float = 0.0
    drain: float = 0.0
    publish_cpu: float = 0.0
    drain_cpu: float = 0.0
    size: float = 0.0


@dataclass
class Side:
    """One transport on its Redis. `waiting` are the commands whose replies sum to what is not done yet."""

    scheme: str
    folder: Path
    waiting: tuple[tuple[str, str], ...]
    rounds: list[Measured] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Side]:
        server = RedisServer(self.folder / self.scheme).start()
        self.url = server.url.replace("redis", self.scheme, 1)
        self.client = redis.Redis.from_url(server.url)
        self.app = make_app(self.url, {})
        try:
            yield self
        finally:
            self.app.close()
            self.client.close()
            server.stop()

    def begin(self, tenants: int) -> None:
        """Empties Redis and makes it know the tenants; stock queues have no tenants to know."""
        self.rounds.append(Measured())
        self.publish(range(20), 1)
        self.client.flushall()
        if self.scheme != "redis":
            self.serve_once(tenants)
        self.empty = self.memory()

    def serve_once(self, tenants: int) -> None:
        """A message of each tenant, claimed and done."""
        wire, keys = Wire(self.client.connection_pool), Keys.of("runs")
        for start in range(0, tenants, 64):
            names = [f"tenant_{i:05d}" for i in range(start, min(start + 64, tenants))]
            posted = (Envelope(name, name, "f", 0, name, "", "").posted() for name in names)
            wire.call(operation("publish", keys, "", *posted))
        while claimed := wire.call(operation("claim", keys, "", 30, "t", 64))[0][3:]:
            wire.call(operation("ack", keys, "", *(part for id_ in claimed[::3] for part in (id_, "t", 0.001))))

    def publish(self, numbers: range, tenants: int) -> tuple[float, float]:
        """Seconds that this took, and seconds of Redis's processor."""
        noop = self.app.tasks["noop"]
        cpu, begin = cpu_seconds(self.client), time.perf_counter()
        for i in numbers:
            noop.apply_async(headers={"tenant_id": f"tenant_{i % tenants:05d}", "flow": "f"})
        return time.perf_counter() - begin, cpu_seconds(self.client) - cpu

    def drain(self) -> tuple[float, float]:
        """Messages per second, and seconds of Redis's processor for each."""
        worker = Worker(self.url, self.folder / "worker.log", concurrency=SLOTS, level="WARNING").start()
        waiting = self.left()
        try:
            until(lambda: self.left() < waiting, within=30, what="the first message being done")
            cpu, first, begin = cpu_seconds(self.client), self.left(), time.perf_counter()
            until(lambda: self.left() == 0, within=120, what="the last message being done")
            seconds, used = time.perf_counter() - begin, cpu_seconds(self.client) - cpu
        finally:
            worker.stop()
        return first / seconds, used / first

    def left(self) -> int:
        replies: list[Any] = [self.client.execute_command(*command) for command in self.waiting]
        return sum(int(reply) for reply in replies)

    def memory(self) -> int:
        info: Any = self.client.info("memory")
        return int(info["used_memory"])


def measure(sides: list[Side], *, tenants: int, messages: int) -> None:
    """One round: both publish so many messages, in turn, and then each drains what it has."""
    for side in sides:
        side.begin(tenants)
    seconds, cpu = ({side.scheme: 0.0 for side in sides} for _ in range(2))
    for start in range(0, messages, BLOCK):
        for side in sides if start // BLOCK % 2 else sides[::-1]:
            took, used = side.publish(range(start, min(start + BLOCK, messages)), tenants)
            seconds[side.scheme] += took
            cpu[side.scheme] += used
    for side in sides:
        found = side.rounds[-1]
        found.publish = messages / seconds[side.scheme]
        found.publish_cpu = cpu[side.scheme] / messages * 1e6
        found.size = (side.memory() - side.empty) / messages
    for side in sides if len(sides[0].rounds) % 2 else sides[::-1]:
        drained, used = side.drain()
        side.rounds[-1].drain, side.rounds[-1].drain_cpu = drained, used * 1e6


def ratio(name: str, ours: list[Measured], stock: list[Measured]) -> float:
    return statistics.median(
        float(getattr(o, name)) / float(getattr(s, name)) for o, s in zip(ours, stock, strict=True)
    )


def median(name: str, found: list[Measured]) -> float:
    return statistics.median([float(getattr(one, name)) for one in found])


def row(tenants: int, ours: list[Measured], stock: list[Measured]) -> str:
    """A line of the table: ours, stock, and how many times faster."""
    rates = [
        f"{median(name, ours):,.0f} / {median(name, stock):,.0f} = **{ratio(name, ours, stock):.2f}**"
        for name in ("publish", "drain")
    ]
    costs = [f"{median(name, ours):.0f} / {median(name, stock):.0f}" for name in ("publish_cpu", "drain_cpu", "size")]
    return f"| {' | '.join((f'{tenants:,}', *rates, *costs))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 3,000 messages")
    parser.add_argument("--messages", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    number, messages = (1, 3000) if given.quick else (given.rounds, given.messages)
    print(f"No-op tasks, ours / stock, medians of {number} rounds of {messages:,} messages ({SLOTS} slots, threads)\n")
    print("| tenants | published per s | drained per s | Redis CPU us a publish | a drain | bytes a waiting message |")
    print("|---|---|---|---|---|---|")
    found: dict[int, tuple[list[Measured], list[Measured]]] = {}
    with tempfile.TemporaryDirectory(prefix="broker-") as name, ExitStack() as stack:
        stock = Side("redis", Path(name), (("LLEN", "runs"), ("HLEN", "unacked")))
        ours = Side("fairredis", Path(name), (("LLEN", "{runs}:inbox"), ("HLEN", "{runs}:messages")))
        sides = [stack.enter_context(side.running()) for side in (stock, ours)]
        for tenants in TENANTS:
            for side in sides:
                side.rounds = []
            for _ in range(number):
                measure(sides, tenants=tenants, messages=messages)
            found[tenants] = ours.rounds, stock.rounds
            print(row(tenants, *found[tenants]), flush=True)
    drains = " ".join(f"drain_ratio_{tenants}={ratio('drain', *found[tenants]):.2f}" for tenants in TENANTS)
    print(
        f"RESULT broker {drains} publish_ratio_1={ratio('publish', *found[1]):.2f}"
        f" bytes_per_message={median('size', found[1][0]):.0f}"
    )


if __name__ == "__main__":
    main()
