"""What is promised about fairness, measured: ``python -m bench.fairness [--quick]``.

Prints a table for each promise of docs/fair-share.md and ends with one ``RESULT fairness`` line. The first table uses real
Celery workers; the others drive the real Lua operations in virtual time (`bench/simulator.py`). Stops by itself, within
eight minutes (``--quick``: one).
"""

# Celery and parts of redis-py have no annotations.
# mypy: disable-error-code="no-untyped-call,union-attr"

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from bench.fairshare_app import make_app
from bench.harness import Worker, until
from bench.simulator import Job, Simulator, cpu_seconds, fifo, quantile, round_robin, scaled, seed
from embedded.redis import RedisServer
from engine.fairshare.envelope import Envelope
from engine.fairshare.scripts import Keys, Wire, operation

RNG = random.Random(seed())


def lognormal(mean: float, sigma: float = 0.6) -> float:
    return RNG.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


@contextmanager
def simulator(slots: int) -> Iterator[tuple[Simulator, redis.Redis]]:
    with tempfile.TemporaryDirectory(prefix="fairness-") as folder:
        server = RedisServer(Path(folder)).start()
        client = redis.Redis.from_url(server.url)
        sim = Simulator(client, slots=slots)
        try:
            yield sim, client
        finally:
            sim.close()
            client.close()
            server.stop()


# -- a quiet tenant behind a flood, real workers -------------------------------------------------------------------


class Flood:
    """Eight slots of a real worker, a flood of 20 ms tasks of tenant A, and single messages of tenant B."""

    def __init__(self, folder: Path, scheme: str, queues: str) -> None:
        self.server = RedisServer(folder / "broker").start()
        self.journal_server = RedisServer(folder / "journal").start()
        self.url = self.server.url.replace("redis", scheme, 1)
        self.client = redis.Redis.from_url(self.server.url)
        self.journal = redis.Redis.from_url(self.journal_server.url)
        self.app = make_app(self.url, {})
        self.fair = scheme != "redis"
        self.worker = Worker(
            self.url, folder / "worker.log", self.journal_server.url, concurrency=8, queues=queues, level="WARNING"
        ).start()
        self.worker.ready()

    def close(self) -> None:
        self.worker.process.kill()
        self.worker.stop()
        self.app.close()
        for client in (self.client, self.journal):
            client.close()
        self.server.stop()
        self.journal_server.stop()

    def single(self, queue: str) -> tuple[str, float]:
        task_id = str(uuid.uuid4())
        sent = time.time()
        options = {"task_id": task_id, "headers": {"tenant_id": "B", "flow": "b"}}
        self.app.tasks["note"].apply_async((0.02,), queue=queue, **options)
        return task_id, sent

    def waits(self, number: int, queue: str, *, pause: float = 0.05) -> list[float]:
        """Seconds from the send to the start of each single message."""
        sent = {}
        for _ in range(number):
            task_id, at = self.single(queue)
            sent[task_id] = at
            time.sleep(RNG.uniform(0.5, 1.5) * pause)
        until(lambda: len(self._starts() & sent.keys()) == number, within=60, what="the start of B's tasks")
        return [self._started_at[task_id] - at for task_id, at in sent.items()]

    def _starts(self) -> set[str]:
        lines = [line.decode().split() for line in self.journal.lrange("journal", 0, -1)]
        self._started_at = {words[1]: float(words[3]) for words in lines if words[0] == "start"}
        return set(self._started_at)

    def flood(self, number: int, queue: str) -> None:
        """As many naps of 20 ms of tenant A, pushed straight into Redis: copies of one that Celery made."""
        self.client.delete("template")
        template = self._template()
        wire, keys = Wire(self.client.connection_pool), Keys.of("runs")
        for start in range(0, number, 500):
            ids = [f"a{i}" for i in range(start, min(start + 500, number))]
            payloads = [template.replace(b"TEMPLATE-ID", id_.encode()) for id_ in ids]
            if self.fair:
                posted = [
                    Envelope(id_, "A", "a", 0, id_, "", payload.decode()).posted()
                    for id_, payload in zip(ids, payloads, strict=True)
                ]
                wire.call(operation("publish", keys, "", *posted))
            else:
                self.client.lpush(queue, *payloads)

    def _template(self) -> bytes:
        """The text of a message of `nap`, as this broker stores it."""
        sink = make_app(self.url, {"fair_queues": ["sink"]})
        sink.tasks["nap"].apply_async((0.02,), queue="sink", task_id="TEMPLATE-ID", headers={"tenant_id": "A"})
        sink.close()
        if not self.fair:
            return bytes(self.client.rpop("sink"))
        entry: Any = self.client.hget("{sink}:messages", "TEMPLATE-ID")
        return bytes(entry.partition(b"\n")[2])


def quiet_behind_flood(quick: bool) -> tuple[float, float]:
    """B's wait behind A's flood over its wait on the idle system: of the medians, and of the 99th percentiles."""
    number, flood = scaled(400, quick), scaled(100_000, quick)
    rows: list[tuple[str, list[float], list[float]]] = []
    for name, scheme, queue, queues in (
        ("fairredis", "fairredis", "runs", "runs"),
        ("queue per tenant", "redis", "b", "a,b"),
    ):
        with tempfile.TemporaryDirectory(prefix="fairness-") as folder:
            run = Flood(Path(folder), scheme, queues)
            try:
                run.waits(20, queue)
                idle = run.waits(number, queue)
                run.flood(flood if run.fair else min(flood, 30_000), "runs" if run.fair else "a")
                busy = run.waits(number, queue)
            finally:
                run.close()
        rows.append((name, idle, busy))
    print(
        f"\nA quiet tenant behind {flood:,} messages of 20 ms of another (8 slots, real workers, {number} single messages)\n"
    )
    print("| transport | idle median / p99 | behind the flood median / p99 | ratio median / p99 |\n|---|---|---|---|")
    for name, idle, busy in rows:
        i50, i99, b50, b99 = (quantile(v, q) * 1e3 for v in (idle, busy) for q in (0.5, 0.99))
        print(f"| {name} | {i50:.1f} / {i99:.1f} ms | {b50:.1f} / {b99:.1f} ms | {b50 / i50:.2f} / {b99 / i99:.2f} |")
    print(f"| redis, one queue (FIFO) | {i50:.1f} / {i99:.1f} ms | {flood * 0.02 / 8:.0f} s (all of A first) | - |")
    _, idle, busy = rows[0]
    return quantile(busy, 0.5) / quantile(idle, 0.5), quantile(busy, 0.99) / quantile(idle, 0.99)


# -- in virtual time -----------------------------------------------------------------------------------------------

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}
LENGTHS = {"a": 0.1, "b": 1.0, "c": 0.02, "d": 0.3}


def shares(quick: bool) -> float:
    """The largest relative error of a tenant's worker-seconds against its weight; everybody has work all the time."""
    horizon = 60.0 if quick else 400.0
    with simulator(8) as (sim, _):
        for tenant, weight in WEIGHTS.items():
            sim.configure(tenant, f"{weight} - - -")
            count = int(8 * horizon * 1.3 * weight / 8 / LENGTHS[tenant]) + 100
            sim.publish(Job(0, tenant, lognormal(LENGTHS[tenant])) for _ in range(count))
        sim.fill()
        sim.run(until=horizon)
        got = dict(sim.seconds)
    total = sum(got.values())
    weights = sum(WEIGHTS.values())
    print(f"\nShares, all backlogged, log-normal lengths ({horizon:.0f} virtual s, 8 slots)\n")
    print(
        "| tenant | weight | mean length | share of worker-seconds | due | by counting tasks |\n|---|---|---|---|---|---|"
    )
    by_count = {t: WEIGHTS[t] * LENGTHS[t] for t in WEIGHTS}
    worst = 0.0
    for tenant, weight in WEIGHTS.items():
        share, due = got[tenant] / total, weight / weights
        worst = max(worst, abs(share / due - 1))
        counted = by_count[tenant] / sum(by_count.values())
        print(f"| {tenant} | {weight:g} | {LENGTHS[tenant]} s | {share:.4f} | {due:.4f} | {counted:.2f} |")
    return worst


def weight_change(quick: bool) -> float:
    """Virtual seconds after a change of weights until the shares of the next second are within 10 % of the new ones."""
    with simulator(8) as (sim, _):
        for tenant in ("x", "y"):
            sim.publish(Job(0, tenant, lognormal(0.05)) for _ in range(scaled(20_000, quick)))
        sim.fill()
        sim.run(until=10)
        sim.configure("x", "4 - - -")
        changed, served = sim.now, len(sim.served)
        sim.run(until=changed + 4)
        after = sim.served[served:]
    for tenths in range(30):
        begin = changed + tenths / 10
        window = [s for s in after if begin <= s.claimed_at < begin + 1]
        x = sum(s.job.seconds for s in window if s.job.tenant == "x")
        if abs(x / max(sum(s.job.seconds for s in window), 1e-9) / 0.8 - 1) < 0.1:
            return tenths / 10
    return float("inf")


def splitting(quick: bool) -> tuple[float, float]:
    """The share of a tenant with 1,000 flows beside one with 1; and the smallest share of a flow beside a hot one, over
    its due."""
    with simulator(8) as (sim, _):
        flows, each = 1000, 5 if quick else 20
        sim.publish(Job(0, "many", lognormal(0.1), f"f{i}") for _ in range(each) for i in range(flows))
        sim.publish(Job(0, "one", lognormal(0.1)) for _ in range(each * flows))
        sim.fill()
        sim.run(until=each * flows * 0.1 / 8)
        split = sim.seconds["many"] / sum(sim.seconds.values())
    with simulator(4) as (sim, _):
        sim.publish(Job(0, "t", lognormal(0.1), "hot") for _ in range(scaled(20_000, quick)))
        for flow in "abcd":
            sim.publish(Job(0, "t", lognormal(0.1), flow) for _ in range(scaled(4000, quick)))
        sim.fill()
        sim.run(until=scaled(300, quick))
        of: dict[str, float] = {}
        for served in sim.served:
            of[served.job.flow] = of.get(served.job.flow, 0) + served.job.seconds
        sibling = min(of.get(flow, 0) for flow in "abcd") / (sum(of.values()) / 5)
    return split, sibling


def claim_cost(tenants: int, *, claims: int, waiting: int) -> tuple[float, float, float]:
    """Processor microseconds of Redis for one claim with its ack, for one publish, and bytes for one waiting message."""
    with simulator(1) as (sim, client):
        before, empty = cpu_seconds(client), client.info("memory")["used_memory"]
        sim.publish(Job(0, f"tenant_{i % tenants:06d}", 0.01) for i in range(waiting))
        published = cpu_seconds(client) - before
        memory = client.info("memory")["used_memory"] - empty
        calls = []
        for _ in range(3):
            before = cpu_seconds(client)
            for _ in range(claims // 3 // 10):
                token = uuid.uuid4().hex[:8]
                claimed = sim.run_script("claim", 1e9, token, 10)[3:]
                sim.now += 0.01
                sim.run_script("ack", *[part for i in range(0, len(claimed), 3) for part in (claimed[i], token, 0.01)])
            calls.append((cpu_seconds(client) - before) / (claims // 3 // 10 * 10))
    return statistics.median(calls) * 1e6, published / waiting * 1e6, memory / waiting


def growth(quick: bool) -> float:
    """Cost of a claim at the largest number of tenants over that at 10."""
    sizes = (10, 1000, 10_000) if quick else (10, 1000, 100_000)
    waiting, claims = scaled(200_000, quick), scaled(30_000, quick)
    print(f"\nCost by number of tenants ({waiting:,} waiting messages, batches of 10)\n")
    print(
        "| tenants | Redis CPU per claim and ack | per publish | bytes per waiting message (16 of payload) |\n|---|---|---|---|"
    )
    costs = []
    for tenants in sizes:
        claim, publish, size = claim_cost(tenants, claims=claims, waiting=waiting)
        costs.append(claim)
        print(f"| {tenants:,} | {claim:.1f} us | {publish:.1f} us | {size:.0f} |", flush=True)
    if not quick:
        claim, publish, size = claim_cost(100_000, claims=claims, waiting=1_000_000)
        print(f"| 100,000 (1,000,000 waiting) | {claim:.1f} us | {publish:.1f} us | {size:.0f} |", flush=True)
    return costs[-1] / costs[0]


def zipf(quick: bool) -> None:
    """Waits by class of tenant under a Zipf load that fills the workers to 95 %, in bursts."""
    tenants, slots, horizon = 1000, 20, 40.0 if quick else 240.0
    weights = [1 / (rank + 1) for rank in range(tenants)]
    arrivals: list[Job] = []
    while sum(job.seconds for job in arrivals) < 0.95 * slots * horizon:
        tenant = RNG.choices(range(tenants), weights)[0]
        at, burst = RNG.uniform(0, horizon), RNG.choice((1, 1, 1, 5, 40)) if tenant < 20 else 1
        arrivals += [Job(1 + at, f"z{tenant:04d}", lognormal(0.2)) for _ in range(burst)]
    arrivals.sort(key=lambda job: job.at)
    with simulator(slots) as (sim, _):
        sim.run(arrivals)
        ours = sim.served
    print(f"\nWaits under a Zipf load ({tenants} tenants, {len(arrivals):,} jobs of 0.2 s, {slots} slots, 95 % busy)\n")
    print("| tenants by rank | policy | median | p90 | p99 | longest |\n|---|---|---|---|---|---|")
    policies = (("fair", ours), ("round robin", round_robin(arrivals, slots)), ("FIFO", fifo(arrivals, slots)))
    for label, low, high in (("1 to 10", 0, 10), ("11 to 100", 10, 100), ("101 to 1000", 100, 1000)):
        for policy, served in policies:
            waits = [s.wait for s in served if low <= int(s.job.tenant[1:]) < high]
            row = " | ".join(f"{quantile(waits, q) * 1e3:.0f} ms" for q in (0.5, 0.9, 0.99, 1.0))
            print(f"| {label} | {policy} | {row} |")


def bound(quick: bool) -> int:
    """Asserts the bound of docs/fair-share.md over random loads; returns how many newcomers were watched."""
    watched = 0
    for _ in range(scaled(30, quick) + 3):
        slots, number, length = RNG.randint(1, 12), RNG.randint(1, 30), RNG.choice((0.05, 0.3, 2.0))
        with simulator(slots) as (sim, _):
            for i in range(number):
                sim.configure(f"busy{i}", f"{RNG.choice((0.5, 1, 3))} - - -")
                sim.publish(Job(0, f"busy{i}", length) for _ in range(200))
            sim.fill()
            while sim.now < 1 + 4 * length:  # until the estimates are right
                sim.step()
            for newcomer in range(10):
                watched += 1
                _watch(sim, f"new{newcomer}", length, slots)
    return watched


def _watch(sim: Simulator, tenant: str, length: float, slots: int) -> None:
    """One newcomer: those served before it have no larger tag, each at most once, and it waits no longer than that."""
    sim.now += RNG.uniform(0, 0.9) * max(sim.next_end - sim.now, 0)
    begin, before = sim.now, len(sim.served)
    residual = sim.next_end - sim.now
    sim.publish([Job(sim.now, tenant, length)])
    tags = {lane.decode(): tag for lane, tag in sim.ready()}
    equal = {lane for lane, tag in tags.items() if tag <= tags[tenant] + 1e-9 and lane != tenant}
    while not any(served.job.tenant == tenant for served in sim.served[before:]):
        sim.step()
    ahead = [served.job.tenant for served in sim.served[before:]]
    ahead = ahead[: ahead.index(tenant)]
    assert set(ahead) <= equal, (ahead, equal)
    assert len(ahead) == len(set(ahead)), ahead
    waited = sim.now - begin
    allowed = residual + math.ceil(len(equal) / slots) * length
    assert waited <= allowed + 1e-6, (waited, allowed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a tenth of the load")
    quick: bool = parser.parse_args().quick
    median, p99 = quiet_behind_flood(quick)
    share_error = shares(quick)
    print(f"\nA change of weights shows within {weight_change(quick):.1f} s")
    split, sibling = splitting(quick)
    print(
        f"\nA tenant with 1,000 flows beside one with 1 gets {split:.3f}; beside a hot flow the others get {sibling:.2f} of their due"
    )
    claim_growth = growth(quick)
    zipf(quick)
    print(f"\nThe bound held for {bound(quick)} newcomers in random loads")
    print(
        f"RESULT fairness quiet_ratio_median={median:.2f} quiet_ratio_p99={p99:.2f} share_error={share_error:.4f}"
        f" split_share={split:.3f} claim_growth={claim_growth:.2f}"
    )


if __name__ == "__main__":
    main()
