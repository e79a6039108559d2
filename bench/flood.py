"""A quiet tenant behind the flood of another, on real Celery workers: ours, a queue per tenant, and one plain queue."""

# Celery and parts of redis-py have no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from bench.fairshare_app import make_app
from bench.harness import Worker, until
from bench.simulator import quantile, scaled, seed
from embedded.redis import RedisServer
from engine.fairshare.envelope import Envelope
from engine.fairshare.lanes import Lanes
from engine.fairshare.scripts import Keys, Wire, operation

PROCESSES = 2
SLOTS = 16
"""Of all processes: what ``fairlane up`` starts on two cores."""

TASK = 0.02
"""Seconds of one task."""

BATCH = 500


class Ground:
    """The workers on a broker of `scheme`, and a journal of what they start; `queues` as a worker is told them."""

    def __init__(self, folder: Path, scheme: str, queues: str) -> None:
        self.fair = scheme != "redis"
        self._rng = random.Random(seed())
        self._servers = [RedisServer(folder / name).start() for name in ("broker", "journal")]
        broker, journal = self._servers
        self._url = broker.url.replace("redis", scheme, 1)
        self.client, self._journal = redis.Redis.from_url(broker.url), redis.Redis.from_url(journal.url)
        self._app = make_app(self._url, {})
        options: dict[str, Any] = {"concurrency": SLOTS // PROCESSES, "queues": queues, "level": "WARNING"}
        logs = [folder / f"worker-{number}.log" for number in range(PROCESSES)]
        self._workers = [Worker(self._url, log, journal.url, **options).start() for log in logs]
        for worker in self._workers:
            worker.ready()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._app.close()
        self.client.close()
        self._journal.close()
        for server in self._servers:
            server.stop()

    def waits(self, number: int, queue: str, *, pause: float = 0.05, within: float = 60.0) -> list[float]:
        """Seconds from the send to the start of single tasks of tenant B, one about every `pause` seconds."""
        self._journal.delete("journal")
        sent = {}
        for _ in range(number):
            task_id = str(uuid.uuid4())
            sent[task_id] = time.time()
            headers = {"tenant_id": "B", "flow": "b"}
            self._app.tasks["note"].apply_async((TASK,), queue=queue, task_id=task_id, headers=headers)
            time.sleep(self._rng.uniform(0.5, 1.5) * pause)
        until(lambda: len(self._starts()) == number, within=within, what="the start of B's tasks")
        return [started - sent[task_id] for task_id, started in self._starts().items()]

    def _starts(self) -> dict[str, float]:
        lines: Any = self._journal.lrange("journal", 0, -1)
        words = [line.decode().split() for line in lines]
        return {task_id: float(at) for kind, task_id, _, at in words if kind == "start"}

    def flood(self, number: int, queue: str, *, spread: float) -> None:
        """As many naps of tenant A, pushed straight into Redis: copies of one that Celery made, each with an id and a
        delivery tag of its own."""
        template = self._template(spread)
        wire, keys = Wire(self.client.connection_pool), Keys.of(queue)
        for start in range(0, number, BATCH):
            ids = [f"a{i}" for i in range(start, min(start + BATCH, number))]
            payloads = [template.replace("TEMPLATE-ID", id_) for id_ in ids]
            if self.fair:
                posted = [Envelope(i, "A", "a", 0, i, "", p).posted() for i, p in zip(ids, payloads, strict=True)]
                wire.call(operation("publish", keys, "", *posted))
            else:
                self.client.lpush(queue, *payloads)

    def _template(self, spread: float) -> str:
        """The text of a message of `nap`, as this broker stores it."""
        sink = make_app(self._url, {"fair_queues": ["sink"]})
        sink.tasks["nap"].apply_async((TASK, spread), queue="sink", task_id="TEMPLATE-ID", headers={"tenant_id": "A"})
        sink.close()
        if self.fair:
            Lanes(self.client, "sink").total()  # a look files what was published
            entry: Any = self.client.hget("{sink}:messages", "TEMPLATE-ID")
            self.client.delete("sink", *self.client.scan_iter("{sink}:*"))
            return str(entry.partition(b"\n")[2].decode())
        message: Any = self.client.rpop("sink")
        tag = json.loads(message)["properties"]["delivery_tag"]
        return str(message.decode().replace(tag, "TEMPLATE-ID"))

    def end_flood(self, queue: str) -> None:
        if self.fair:
            Lanes(self.client).drain("A")
        else:
            self.client.delete(queue)
        until(self._at_rest, within=30, what="the end of what had begun")

    def _at_rest(self) -> bool:
        return Lanes(self.client).total().in_flight == 0 if self.fair else self.client.hlen("unacked") == 0


@contextmanager
def ground(scheme: str, queues: str) -> Iterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="flood-") as folder:
        made = Ground(Path(folder), scheme, queues)
        try:
            yield made
        finally:
            made.close()


@dataclass
class Waits:
    """B's waits of each round, on the idle system and behind the flood."""

    idle: list[list[float]] = field(default_factory=list)
    busy: list[list[float]] = field(default_factory=list)

    def ratio(self, fraction: float) -> float:
        """The median over the rounds of how many times longer B waits, at this fraction of its waits."""
        return statistics.median(
            quantile(busy, fraction) / quantile(idle, fraction) for idle, busy in zip(self.idle, self.busy, strict=True)
        )

    def row(self, name: str) -> str:
        at = [
            statistics.median(quantile(r, q) for r in rounds) for rounds in (self.idle, self.busy) for q in (0.5, 0.99)
        ]
        i50, i99, b50, b99 = (f"{seconds * 1e3:.1f}" for seconds in at)
        ratios = f"{self.ratio(0.5):.2f} / {self.ratio(0.99):.2f}"
        return f"| {name} | {i50} / {i99} ms | {b50} / {b99} ms | {ratios} |"


def measure(here: Ground, *, rounds: int, number: int, flood: int, queues: tuple[str, str], spread: float) -> Waits:
    """`queues` of A and of B."""
    a, b = queues
    found = Waits()
    here.waits(20, b)
    for _ in range(rounds):
        found.idle.append(here.waits(number, b))
        here.flood(flood, a, spread=spread)
        found.busy.append(here.waits(number, b))
        here.end_flood(a)
    return found


def compare(quick: bool) -> tuple[float, float]:
    """Prints the table; returns how many times longer B waits behind the flood: the median, and the 99th percentile."""
    number, flood, rounds = scaled(250, quick), scaled(100_000, quick), 1 if quick else 3
    print(
        f"\nA quiet tenant behind {flood:,} tasks of 20 ms of another, medians of {rounds} rounds of {number} messages"
    )
    print(f"({PROCESSES} workers of {SLOTS // PROCESSES} threads)\n")
    print("| broker | idle median / p99 | behind the flood median / p99 | ratio median / p99 |\n|---|---|---|---|")
    with ground("fairredis", "runs") as here:
        runs = ("runs", "runs")
        ours = measure(here, rounds=rounds, number=number, flood=flood, queues=runs, spread=0.5)
        print(ours.row("fairredis, 10 to 30 ms"), flush=True)
        in_step = measure(here, rounds=1, number=number, flood=flood, queues=runs, spread=0.0)
        print(in_step.row("fairredis, exactly 20 ms: all end in step"), flush=True)
    with ground("redis", "a,b") as here:
        each = measure(here, rounds=1, number=number, flood=flood, queues=("a", "b"), spread=0.5)
        print(each.row("redis, a queue per tenant, round robin"), flush=True)
    with ground("redis", "runs") as here:
        idle = here.waits(scaled(100, quick), "runs")
        here.flood(flood, "runs", spread=0.5)
        fifo = Waits([idle], [here.waits(20, "runs", within=400)])
        print(fifo.row("redis, one queue (first in, first out)"), flush=True)
    return ours.ratio(0.5), ours.ratio(0.99)
