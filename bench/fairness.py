"""What is promised about fairness, measured: ``python -m bench.fairness [--quick]``.

Prints a table for each promise of docs/fair-share.md and ends with one ``RESULT fairness`` line. The first table uses
real Celery workers (`bench/flood.py`); the others drive the real Lua operations in virtual time (`bench/simulator.py`).
Stops by itself, within ten minutes (``--quick``: one). ``BENCH_SEED`` gives other random loads.
"""

# Parts of redis-py have no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from bench import flood
from bench.bound import random_load
from bench.simulator import Job, Served, Simulator, cpu_seconds, fifo, quantile, round_robin, scaled, seed
from embedded.redis import RedisServer

RNG = random.Random(seed())

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}
LENGTHS = {"a": 0.1, "b": 1.0, "c": 0.02, "d": 0.3}


def lognormal(mean: float, sigma: float = 0.6) -> float:
    return RNG.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


@contextmanager
def simulator(slots: int) -> Iterator[Simulator]:
    with tempfile.TemporaryDirectory(prefix="fairness-") as folder:
        server = RedisServer(Path(folder)).start()
        client = redis.Redis.from_url(server.url)
        sim = Simulator(client, slots=slots)
        try:
            yield sim
        finally:
            sim.close()
            client.close()
            server.stop()


# -- shares --------------------------------------------------------------------------------------------------------


def shares_once(horizon: float) -> dict[str, float]:
    """Each tenant's share of the worker-seconds while everybody has work all the time."""
    with simulator(8) as sim:
        for tenant, weight in WEIGHTS.items():
            sim.configure(tenant, f"{weight} - - -")
            count = int(horizon * 1.3 * weight / LENGTHS[tenant]) + 100
            sim.publish(Job(0, tenant, lognormal(LENGTHS[tenant])) for _ in range(count))
        sim.fill()
        sim.run(until=horizon)
        total = sum(sim.seconds.values())
        return {tenant: sim.seconds[tenant] / total for tenant in WEIGHTS}


def shares(quick: bool) -> float:
    """The largest relative error of a tenant's worker-seconds against its weight; the median of three runs."""
    horizon = 60.0 if quick else 400.0
    runs = [shares_once(horizon) for _ in range(1 if quick else 3)]
    due = {tenant: weight / sum(WEIGHTS.values()) for tenant, weight in WEIGHTS.items()}
    counted = {tenant: weight * LENGTHS[tenant] for tenant, weight in WEIGHTS.items()}
    print(f"\nShares, all backlogged, log-normal lengths, {len(runs)} run(s) of {horizon:.0f} virtual s, 8 slots\n")
    print("| tenant | weight | mean length | share of the worker-seconds | due | if tasks were counted |")
    print("|---|---|---|---|---|---|")
    for tenant, weight in WEIGHTS.items():
        share = statistics.median(run[tenant] for run in runs)
        by_count = counted[tenant] / sum(counted.values())
        row = (tenant, f"{weight:g}", f"{LENGTHS[tenant]} s", f"{share:.4f}", f"{due[tenant]:.4f}", f"{by_count:.2f}")
        print(f"| {' | '.join(row)} |")
    return statistics.median(max(abs(run[tenant] / due[tenant] - 1) for tenant in due) for run in runs)


def weight_change(quick: bool) -> float:
    """Virtual seconds after a change of weights from 1:1 to 4:1 until the shares of the next second are within 10 % of
    the new ones; the backlog was there before."""
    with simulator(8) as sim:
        for tenant in ("x", "y"):
            sim.publish(Job(0, tenant, lognormal(0.05)) for _ in range(scaled(20_000, quick)))
        sim.fill()
        sim.run(until=10)
        sim.configure("x", "4 - - -")
        changed, before = sim.now, len(sim.served)
        sim.run(until=changed + 4)
        after = sim.served[before:]
    for tenths in range(30):
        begin = changed + tenths / 10
        window = seconds_by(s for s in after if begin <= s.claimed_at < begin + 1)
        if abs(window["x"] / max(sum(window.values()), 1e-9) / 0.8 - 1) < 0.1:
            return tenths / 10
    return float("inf")


def seconds_by(served: Iterator[Served]) -> Counter[str]:
    """Worker-seconds of each tenant, in milliseconds."""
    found: Counter[str] = Counter()
    for one in served:
        found[one.job.tenant] += round(one.job.seconds * 1e3)
    return found


def splitting(quick: bool) -> float:
    """The share of a tenant with 1,000 flows beside one with a single flow."""
    flows, each = 1000, 5 if quick else 20
    with simulator(8) as sim:
        sim.publish(Job(0, "many", lognormal(0.1), f"f{i}") for _ in range(each) for i in range(flows))
        sim.publish(Job(0, "one", lognormal(0.1)) for _ in range(each * flows))
        sim.fill()
        sim.run(until=each * flows * 0.1 / 8)
        return sim.seconds["many"] / sum(sim.seconds.values())


def hot_flow(quick: bool) -> float:
    """The smallest share of a flow beside a hot one of the same tenant, over its due."""
    with simulator(4) as sim:
        sim.publish(Job(0, "t", lognormal(0.1), "hot") for _ in range(scaled(20_000, quick)))
        for flow in "abcd":
            sim.publish(Job(0, "t", lognormal(0.1), flow) for _ in range(scaled(4000, quick)))
        sim.fill()
        sim.run(until=scaled(300, quick))
        seconds: Counter[str] = Counter()
        for served in sim.served:
            seconds[served.job.flow] += round(served.job.seconds * 1e3)
    return min(seconds[flow] for flow in "abcd") / (sum(seconds.values()) / 5)


# -- scale ---------------------------------------------------------------------------------------------------------


class Crowd:
    """A queue with messages of so many tenants, and what operations on it cost Redis."""

    def __init__(self, sim: Simulator, tenants: int, waiting: int) -> None:
        self._sim = sim
        begin, empty = cpu_seconds(sim.client), self._memory()
        sim.publish(Job(0, f"tenant_{i % tenants:06d}", 0.01) for i in range(waiting))
        sim.turns()
        self.publish = (cpu_seconds(sim.client) - begin) / waiting * 1e6
        self.size = (self._memory() - empty) / waiting
        self.claims: list[float] = []

    def claim(self, batches: int) -> None:
        """Claims and acknowledges ten messages, so many times; notes microseconds of processor time a message."""
        begin = cpu_seconds(self._sim.client)
        for _ in range(batches):
            token = uuid.uuid4().hex[:8]
            claimed = self._sim.run_script("claim", 1e9, token, 10)[3:]
            self._sim.now += 0.01
            self._sim.run_script("ack", *[part for id_ in claimed[::3] for part in (id_, token, 0.01)])
        self.claims.append((cpu_seconds(self._sim.client) - begin) / (10 * batches) * 1e6)

    def row(self, name: str) -> str:
        return f"| {name} | {statistics.median(self.claims):.1f} us | {self.publish:.1f} us | {self.size:.0f} |"

    def _memory(self) -> int:
        info: Any = self._sim.client.info("memory")
        return int(info["used_memory"])


def growth(quick: bool) -> float:
    """Cost of a claim at the largest number of tenants over that at 10, measured in turn."""
    sizes = (10, 1000, 10_000 if quick else 100_000)
    waiting, rounds = scaled(200_000, quick), 3 if quick else 11
    with ExitStack() as stack:
        crowds = [Crowd(stack.enter_context(simulator(1)), tenants, waiting) for tenants in sizes]
        for _ in range(rounds):
            for crowd in crowds:
                crowd.claim(scaled(400, quick))
    print(f"\nCost by number of tenants, {waiting:,} waiting messages of 16 bytes, claimed ten at a time\n")
    print("| tenants | Redis CPU for a claim and its ack | for a publish | bytes for a waiting message |")
    print("|---|---|---|---|")
    for tenants, crowd in zip(sizes, crowds, strict=True):
        print(crowd.row(f"{tenants:,}"))
    if not quick:
        with simulator(1) as sim:
            million = Crowd(sim, 100_000, 1_000_000)
            for _ in range(3):
                million.claim(400)
        print(million.row("100,000 with 1,000,000 messages"), flush=True)
    first, *_, last = (crowd.claims for crowd in crowds)
    return statistics.median(many / few for few, many in zip(first, last, strict=True))


# -- waits ---------------------------------------------------------------------------------------------------------


def zipf(quick: bool) -> None:
    """Prints waits by class of tenant under a Zipf load that keeps the workers 95 % busy, in bursts."""
    tenants, slots, horizon = 1000, 20, 40.0 if quick else 240.0
    weights = [1 / (rank + 1) for rank in range(tenants)]
    arrivals: list[Job] = []
    while sum(job.seconds for job in arrivals) < 0.95 * slots * horizon:
        for tenant in RNG.choices(range(tenants), weights, k=100):
            at, burst = RNG.uniform(0, horizon), RNG.choice((1, 1, 1, 5, 40)) if tenant < 20 else 1
            arrivals += [Job(1 + at, f"z{tenant:04d}", lognormal(0.2)) for _ in range(burst)]
    arrivals.sort(key=lambda job: job.at)
    with simulator(slots) as sim:
        sim.run(arrivals)
        policies = {
            "fair share": sim.served,
            "round robin": round_robin(arrivals, slots),
            "FIFO": fifo(arrivals, slots),
        }
    print(f"\nWaits under a Zipf load: {tenants} tenants, {len(arrivals):,} jobs of 0.2 s, {slots} slots 95 % busy\n")
    print("| tenants by rank | policy | median | p90 | p99 | longest |\n|---|---|---|---|---|---|")
    for label, low, high in (("1 to 10", 0, 10), ("11 to 100", 10, 100), ("101 to 1000", 100, 1000)):
        for policy, served in policies.items():
            waits = [s.wait for s in served if low <= int(s.job.tenant[1:]) < high]
            row = " | ".join(f"{quantile(waits, q) * 1e3:.0f} ms" for q in (0.5, 0.9, 0.99, 1.0))
            print(f"| {label} | {policy} | {row} |", flush=True)


def bounded(quick: bool) -> tuple[int, int]:
    """Checks the bound of `bench/bound.py` over random loads: how many newcomers were watched, in how many loads."""
    loads = scaled(100, quick)
    with simulator(1) as first:
        sims = (Simulator(first.client, slots=RNG.randint(1, 12)) for _ in range(loads))
        return sum(random_load(sim, RNG, arrivals=60).watched for sim in sims), loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a tenth of the load")
    quick: bool = parser.parse_args().quick
    median, p99 = flood.compare(quick)
    share_error = shares(quick)
    print(f"\nA change of weights shows within {weight_change(quick):.1f} s")
    split = splitting(quick)
    print(f"A tenant with 1,000 flows beside one with a single flow gets {split:.3f}")
    print(f"Beside a hot flow its siblings get at least {hot_flow(quick):.2f} of their due", flush=True)
    claim_growth = growth(quick)
    zipf(quick)
    watched, loads = bounded(quick)
    print(f"\nThe bound on a newcomer's wait held for {watched:,} newcomers in {loads} random loads")
    print(
        f"RESULT fairness quiet_ratio_median={median:.2f} quiet_ratio_p99={p99:.2f} share_error={share_error:.4f}"
        f" split_share={split:.3f} claim_growth={claim_growth:.2f}"
    )


if __name__ == "__main__":
    main()
