"""Faults against real workers: what is lost, what runs twice, how long until it runs again; stock kombu beside.

``python -m bench.faults [--kills 200] [--lease 30] [--quick]`` prints a table. Every fault is a function that returns
what it measured; the acceptance tests run the same functions with small numbers.
"""

# Celery and parts of redis-py have no annotations.
# mypy: disable-error-code="no-untyped-call,union-attr"

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from bench.fairshare_app import make_app
from bench.harness import Proxy, Worker, until
from embedded.redis import RedisServer
from engine.fairshare.lanes import Fault, Lanes
from engine.fairshare.scripts import scripts


class Lost(TimeoutError):
    """A message did not run in all the time it was given."""


@dataclass
class Ground:
    """A Redis as broker, another for the journal, and the workers on them; `stock` uses kombu's own transport."""

    folder: Path
    lease: float
    stock: bool = False
    broker: RedisServer = field(init=False)
    journal_server: RedisServer = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    proxies: list[Proxy] = field(default_factory=list)
    _read: list[tuple[str, str, int, float]] = field(default_factory=list)

    def __enter__(self) -> Ground:
        self.broker = RedisServer(self.folder / "broker").start()
        self.journal_server = RedisServer(self.folder / "journal").start()
        self.client = redis.Redis.from_url(self.broker.url)
        self.journal = redis.Redis.from_url(self.journal_server.url)
        self.app = self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.ask_to_stop()
        for worker in self.workers:
            worker.stop()
        for proxy in self.proxies:
            proxy.close()
        self.app.close()
        self.client.close()
        self.journal.close()
        self.broker.stop()
        self.journal_server.stop()

    @property
    def options(self) -> dict[str, Any]:
        if self.stock:
            restore = {"unacked_restore_throttle": 1, "unacked_restore_interval": 1}
            return {"visibility_timeout": self.lease, "socket_timeout": 5, **restore}
        return {"lease": self.lease}

    def url(self, port: int | None = None) -> str:
        return f"{'' if self.stock else 'fair'}redis://127.0.0.1:{port or self.broker.port}/0"

    def connect(self, port: int | None = None) -> Celery:
        return make_app(self.url(port), self.options)

    def proxy(self) -> Proxy:
        self.proxies.append(Proxy(self.broker.port))
        return self.proxies[-1]

    def worker(
        self, *, port: int | None = None, concurrency: int = 4, pool: str = "threads", prefetch: int = 1
    ) -> Worker:
        """Starts a worker; it is ready some time later."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = Worker(
            self.url(port),
            log,
            self.journal_server.url,
            self.options,
            concurrency=concurrency,
            pool=pool,
            prefetch=prefetch,
        ).start()
        self.workers.append(worker)
        return worker

    def send(self, seconds: float, *, tenant: str = "t", app: Celery | None = None, **options: Any) -> str:
        task_id = str(uuid.uuid4())
        task = (app or self.app).tasks["note"]
        task.apply_async((seconds,), task_id=task_id, headers={"tenant_id": tenant}, **options)
        return task_id

    @property
    def lanes(self) -> Lanes:
        return Lanes(self.broker.url)

    def events(self) -> list[tuple[str, str, int, float]]:
        """(start or end, task id, process, when), as written down so far."""
        lines: Any = self.journal.lrange("journal", len(self._read), -1)
        for line in lines:
            kind, task_id, pid, at = line.decode().split()
            self._read.append((kind, task_id, int(pid), float(at)))
        return self._read

    def count(self, kind: str, task_id: str) -> int:
        return sum(event[:2] == (kind, task_id) for event in self.events())

    def await_end(self, *task_ids: str, within: float) -> float:
        """Seconds until all of them have ended. Raises Lost."""
        missing = set(task_ids)

        def ended() -> bool:
            seen = len(self._read)
            missing.difference_update(task_id for kind, task_id, _, _ in self.events()[seen:] if kind == "end")
            return not missing

        missing.difference_update(task_id for kind, task_id, _, _ in self.events() if kind == "end")
        try:
            return until(ended, within=within, what="the end of all tasks")
        except TimeoutError as error:
            raise Lost(str(error)) from error

    def await_start(self, task_id: str, *, within: float = 15.0) -> float:
        return until(lambda: self.count("start", task_id) > 0, within=within, what="the start of a task")

    def left(self) -> int:
        """How many messages Redis holds, waiting or in hand."""
        if self.stock:
            waiting: Any = self.client.llen("runs")
            in_hand: Any = self.client.hlen("unacked")
            return int(waiting + in_hand)
        total = self.lanes.total()
        return total.backlog + total.in_flight

    def settle(self, *, within: float = 10.0) -> list[Fault]:
        """Waits until the queue is empty; returns the invariants that do not hold then."""
        until(lambda: self.left() == 0, within=within, what="an empty queue")
        return self.lanes.check()


@dataclass(frozen=True)
class Kills:
    """`again` is the seconds from each kill until each message in the dead worker's hands ran again, sorted."""

    kills: int
    sent: int
    lost: int
    hit: int
    again: list[float]

    def at(self, quantile: float) -> float:
        return self.again[min(int(len(self.again) * quantile), len(self.again) - 1)] if self.again else float("nan")


def kill_at_random(ground: Ground, *, kills: int, workers: int = 3, pause: tuple[float, float] = (0.2, 1.0)) -> Kills:
    """Workers are killed with messages in hand, one after another at random moments, and replaced; one always lives."""
    rng = random.Random(kills)
    alive = [ground.worker() for _ in range(workers)]
    sent: list[str] = []
    deaths: dict[int, float] = {}
    for _ in range(kills):
        until_when = time.time() + rng.uniform(*pause)
        while time.time() < until_when:
            sent += [ground.send(rng.choice((0.005, 0.05, 0.3)), tenant=f"t{rng.randrange(5)}") for _ in range(4)]
            time.sleep(0.02)
        victim = alive.pop(0).ready()
        alive[0].ready()
        deaths[victim.pid] = victim.kill()
        alive.append(ground.worker())
    until(lambda: ground.left() == 0, within=20 * ground.lease + 60, what="an empty queue")
    with contextlib.suppress(Lost):  # stock kombu has some in neither place for a moment
        ground.await_end(*sent, within=5)
    ended = {task_id for kind, task_id, _, _ in ground.events() if kind == "end"}
    return Kills(kills, len(sent), len(set(sent) - ended), *_recovery(ground.events(), deaths))


def _recovery(events: list[tuple[str, str, int, float]], deaths: dict[int, float]) -> tuple[int, list[float]]:
    """How many tasks were interrupted by a kill, and how long each took to start again."""
    starts: dict[str, list[tuple[int, float]]] = {}
    ends = {(task_id, pid) for kind, task_id, pid, _ in events if kind == "end"}
    for kind, task_id, pid, at in events:
        if kind == "start":
            starts.setdefault(task_id, []).append((pid, at))
    hit, again = 0, []
    for task_id, runs in starts.items():
        for pid, _ in runs:
            if pid in deaths and (task_id, pid) not in ends:
                hit += 1
                later = [at - deaths[pid] for _, at in runs if at > deaths[pid]]
                if later:
                    again.append(min(later))
    return hit, sorted(again)


def ticket_lost_with_its_worker(ground: Ground) -> float:
    """Somebody pops the ticket and dies before the claim. Returns the seconds until the message runs all the same."""
    ground.worker().ready()
    until(lambda: not ground.lanes.no_worker, within=10, what="the first sign of life")
    ground.lanes.pause("t")
    task_id = ground.send(0)
    ground.lanes.resume("t")
    ground.client.rpop("runs")
    return ground.await_end(task_id, within=15)


def reply_held_back(ground: Ground, script: str) -> float:
    """A worker sends `script` or a command for a message that waits for it, its reply is held back, it is killed.
    Returns the seconds until the message runs."""
    proxy = ground.proxy()
    proxy.hold_after(scripts()[script].sha.encode() if script in scripts() else script.encode())
    task_id = ground.send(0)
    victim = ground.worker(port=proxy.port)
    if not proxy.withheld.wait(30):
        raise TimeoutError(f"no worker was answered to {script}")
    victim.kill()
    ground.worker().ready()
    return ground.await_end(task_id, within=2 * ground.lease + 20)


def poison(ground: Ground) -> tuple[int, bool]:
    """Garbage in the list, an unknown task, a serializer that is not accepted, a body that is no JSON. Returns how many
    were set aside, and whether the worker lives and works."""
    worker = ground.worker().ready()
    for item in (b"garbage", b"[1, 2]", b'{"body": "%%%", "properties": {"body_encoding": "base64"}}', b"\xff\xfe"):
        ground.client.lpush("runs", item)
    ground.app.send_task("no.such.task", headers={"tenant_id": "t"})
    ground.app.send_task("note", (0,), headers={"tenant_id": "t"}, serializer="yaml")
    with ground.app.producer_pool.acquire() as producer:
        producer.publish(
            "{not json",
            routing_key="runs",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"id": "undecodable", "task": "note", "tenant_id": "t"},
        )
    ground.await_end(ground.send(0), within=15)
    until(lambda: ground.lanes.total().set_aside >= 7, within=10, what="everything bad being set aside")
    return ground.lanes.total().set_aside, worker.alive


def publish_reply_lost(ground: Ground) -> int:
    """The reply to a publish is lost, Celery sends it again. Returns how often the task ran."""
    ground.worker().ready()
    proxy = ground.proxy()
    publisher = ground.connect(proxy.port)
    warm = ground.send(0, app=publisher)
    ground.await_end(warm, within=15)
    proxy.cut_after(b"LPUSH")
    task_id = ground.send(0, app=publisher, retry=True)
    if not proxy.triggered.is_set():
        raise TimeoutError("the publish was never cut")
    last = ground.send(0)
    ground.await_end(task_id, last, within=15)
    publisher.close()
    return ground.count("start", task_id)


def longer_than_its_lease(ground: Ground, *, leases: float = 5, pool: str = "threads") -> int:
    """A task that takes several leases. Returns how often it was started."""
    for worker in [ground.worker(concurrency=2, pool=pool), ground.worker(concurrency=2, pool=pool)]:
        worker.ready()
    task_id = ground.send(leases * ground.lease)
    ground.await_end(task_id, within=leases * ground.lease + 20)
    return ground.count("start", task_id)


def stopped_past_its_lease(ground: Ground) -> tuple[int, int, list[Fault]]:
    """A worker is stopped with a message in hand, another runs it, the first goes on. Returns how often it was started,
    the acks that came too late, and the broken invariants."""
    victim = ground.worker().ready()
    task_id = ground.send(1.0)
    ground.await_start(task_id)
    victim.signal(signal.SIGSTOP)
    ground.worker().ready()
    until(lambda: ground.count("start", task_id) == 2, within=3 * ground.lease + 15, what="the second start")
    ground.await_end(task_id, within=10)
    ground.settle()
    victim.signal(signal.SIGCONT)
    until(lambda: ground.lanes.total().counters.get("late", 0) > 0, within=15, what="the late ack")
    return ground.count("start", task_id), ground.lanes.total().counters["late"], ground.settle()


def stopped_in_order(ground: Ground) -> tuple[float, int]:
    """A worker gets SIGTERM with more in hand than it runs. Returns the seconds until another has run the rest, and how
    many were started twice."""
    leaving = ground.worker(concurrency=2, prefetch=4).ready()
    sent = [ground.send(0.5) for _ in range(8)]
    for task_id in sent[:2]:
        ground.await_start(task_id)
    ground.worker().ready()
    leaving.signal(signal.SIGTERM)
    seconds = ground.await_end(*sent, within=3 * ground.lease)
    return seconds, sum(ground.count("start", task_id) > 1 for task_id in sent)


def redis_restarted_empty(ground: Ground) -> tuple[int, int, list[Fault]]:
    """Redis is killed under load and comes back empty. Returns how many messages in hand were registered again, how
    many of them were started twice, and the broken invariants at the end."""
    for worker in [ground.worker(), ground.worker()]:
        worker.ready()
    held = [ground.send(3.0 + ground.lease, tenant=f"t{i}") for i in range(8)]
    for task_id in held:
        ground.await_start(task_id)
    for i in range(100):  # what waits is lost here; Fairlane publishes it again out of Postgres
        ground.send(0.1, tenant=f"t{i % 8}")
    ground.broker.kill()
    ground.broker.start()
    until(lambda: ground.lanes.total().in_flight == 8, within=15, what="all messages in hand being registered again")
    faults = ground.lanes.check()
    after = ground.send(0, retry=True)
    ground.await_end(after, *held, within=ground.lease + 25)
    registered = ground.lanes.total().counters["registered"]
    return registered, sum(ground.count("start", task_id) > 1 for task_id in held), faults + ground.settle()


def connections_dropped(ground: Ground, *, drops: int = 20) -> tuple[float, int]:
    """All connections to Redis are closed again and again while a long task runs. Returns the longest time until a new
    message ran, and how often the long task was started."""
    ground.worker().ready()
    long_task = ground.send(max(drops * 0.3, 3.0))
    ground.await_start(long_task)
    worst = 0.0
    for _ in range(drops):
        for kind in ("normal", "pubsub"):
            ground.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        task_id = ground.send(0, retry=True)
        worst = max(worst, ground.await_end(task_id, within=30))
    ground.await_end(long_task, within=drops + 30)
    return worst, ground.count("start", long_task)


@contextlib.contextmanager
def ground(lease: float, *, stock: bool = False) -> Iterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, Ground(Path(folder), lease, stock) as made:
        yield made


@dataclass(frozen=True)
class Row:
    fault: str
    ours: str
    stock: str = "-"


def measure_kills(kills: int, lease: float, *, stock: bool) -> Kills:
    with ground(lease, stock=stock) as here:
        return kill_at_random(here, kills=kills)


def in_words(result: Kills) -> str:
    if not result.again:
        return f"{result.lost} of {result.sent} lost, {result.hit} interrupted"
    again = f"again after {result.at(0.5):.1f} s median, {result.at(0.99):.1f} s p99, {result.again[-1]:.1f} s max"
    return f"{result.lost} of {result.sent} lost, {result.hit} interrupted, {again}"


def compare(kills: int, lease: float, times: int) -> Iterator[Row]:
    """Each fault, measured on our transport, and on stock kombu where the fault exists there."""
    ours, stock = (in_words(measure_kills(kills, lease, stock=is_stock)) for is_stock in (False, True))
    yield Row(f"{kills} x kill -9 of a worker; lease or visibility timeout of {lease:g} s", ours, stock)
    yield Row(f"{times} x ticket lost between pop and claim", _repeated(ticket_lost_with_its_worker, times))
    claim, pop = (partial(reply_held_back, script=request) for request in ("claim", "BRPOP"))
    yield Row(f"{times} x reply to a claim held back, worker killed (2 s)", _repeated(claim, times))
    yield Row(
        f"{times} x reply to BRPOP held back, worker killed (2 s)",
        _repeated(pop, times),
        _repeated(pop, times, stock=True),
    )
    with ground(2.0) as here:
        set_aside, alive = poison(here)
    ours = f"{set_aside} set aside, the worker {'goes on' if alive else 'is dead'}"
    yield Row("7 poisonous messages", ours, _stock_poisoned())
    yield Row("publish whose reply is lost, sent again", *_both(publish_reply_lost, "ran {} time(s)"))
    yield Row("task of 5 leases (2 s)", *_both(longer_than_its_lease, "started {} time(s)"))
    with ground(2.0) as here:
        starts, late, broken = stopped_past_its_lease(here)
    ours = f"started {starts} times, {late} late ack refused, {len(broken)} invariants broken"
    yield Row("SIGSTOP past the lease, then SIGCONT", ours)
    with ground(30.0) as here:
        seconds, twice = stopped_in_order(here)
    yield Row("SIGTERM with 8 in hand, 2 running", f"all done {seconds:.1f} s later, {twice} started twice")
    with ground(2.0) as here:
        registered, twice, broken = redis_restarted_empty(here)
    ours = f"{registered} registered again, {twice} ran twice, {len(broken)} invariants broken"
    yield Row("Redis restarted empty under load, 8 in hand", ours)
    yield Row("20 x all connections dropped", *(_dropped(stock=is_stock) for is_stock in (False, True)))


def _repeated(fault: Callable[[Ground], float], times: int, *, stock: bool = False) -> str:
    """How many of the messages were lost, and how long the others took to run."""
    waited, lost = [], 0
    for _ in range(times):
        with ground(2.0, stock=stock) as here:
            try:
                waited.append(fault(here))
            except Lost:
                lost += 1
    return f"{lost} lost" + (f", ran within {max(waited):.1f} s" if waited else "")


def _both(fault: Callable[[Ground], int], words: str) -> Iterator[str]:
    for is_stock in (False, True):
        with ground(2.0, stock=is_stock) as here:
            yield words.format(fault(here))


def _stock_poisoned() -> str:
    with ground(2.0, stock=True) as here:
        worker = here.worker().ready()
        here.client.lpush("runs", b"garbage")
        with contextlib.suppress(TimeoutError):
            until(lambda: not worker.alive, within=10, what="the end of the worker")
        return "the first one: the worker " + ("goes on" if worker.alive else "is dead")


def _dropped(*, stock: bool) -> str:
    with ground(30.0, stock=stock) as here:
        try:
            worst, starts = connections_dropped(here)
        except TimeoutError as error:
            return f"failed: {error}"
    return f"next message within {worst:.1f} s, long task started {starts} time(s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="10 kills with a lease of 3 s")
    given = parser.parse_args()
    kills, lease, times = (10, 3.0, 1) if given.quick else (given.kills, given.lease, 5)
    print("| fault | fairredis:// | redis:// |\n|---|---|---|")
    for row in compare(kills, lease, times):
        print(f"| {row.fault} | {row.ours} | {row.stock} |", flush=True)


if __name__ == "__main__":
    main()
