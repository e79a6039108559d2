"""A whole installation under load while things are killed, frozen, emptied and cut off at random; then the reckoning.

``python -m bench.chaos [--minutes 10] [--seed N] [--lease 30] [--rate 5] [--tenants 4] [--faults NAME ...]`` prints how
often each fault was injected, the invariants I1 to I8 with what was counted (`chaos_oracle.py`), and ``RESULT chaos``;
it exits with 1 if one is broken. The same seed means the same faults in the same order; when each of them hits is up to
the machine. A run that is interrupted ends everything that it started.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from bench.chaos_faults import FAULTS
from bench.chaos_ground import Ground, Recoveries
from bench.chaos_load import Load, Tenant
from bench.chaos_oracle import CAP, WATCH, Oracle, Sampler, Verdict
from bench.chaos_state import Chaos, NotNow
from bench.harness import until
from engine.fairshare.lanes import Lanes

CALM = 300.0
"""Seconds within which everything must have ended after the last fault; what has not is stuck."""


@dataclass(frozen=True)
class Plan:
    seconds: float
    seed: int
    lease: float = 30.0
    rate: float = 5.0
    tenants: int = 4
    faults: tuple[str, ...] = tuple(FAULTS)
    pause: tuple[float, float] = (0.3, 2.5)
    each_once: bool = True
    """Begin with every fault once, in an order of the seed's; then by weight."""


@dataclass(frozen=True)
class Outcome:
    times: Counter[str]
    verdicts: list[Verdict]
    runs: int

    @property
    def broken(self) -> int:
        return sum(len(verdict.broken) for verdict in self.verdicts)


def rage(plan: Plan, folder: Path) -> Outcome:
    """All of it: set up, harm, calm, judge."""
    with Ground(folder, plan.lease) as ground:
        load = Load(ground.port, plan.tenants, plan.rate, plan.seed)
        try:
            return _rage(plan, ground, load)
        finally:
            load.close()


def _rage(plan: Plan, ground: Ground, load: Load) -> Outcome:
    _prepare(ground, load)
    chaos = Chaos(ground, load, random.Random(plan.seed), Recoveries(ground))
    load.begin()
    sampler = Sampler(chaos)
    watch = threading.Event()
    looking = threading.Thread(target=_look, args=(chaos, watch), daemon=True)
    looking.start()
    try:
        _harm(plan, chaos)
    finally:
        chaos.undo(everything=True)
    _calm(chaos)
    watch.set()
    looking.join(30)
    sampler.stop()
    verdicts = Oracle(chaos, sampler).judge()
    return Outcome(chaos.times, verdicts, len(load.accepted))


UNLIMITED = """
UPDATE plans SET limits_version = nextval('limits_version'), limits = limits
    || '{"max_executions_per_month": null, "max_queued_runs": null, "max_runs_per_minute": null}'
"""


def _prepare(ground: Ground, load: Load) -> None:
    with ground.sql() as connection:
        connection.execute(UNLIMITED.encode())
    ground.fairlane("tenants", "set-limit", load.tenants[0].id, "max_concurrent_runs", str(CAP))
    for tenant in load.tenants:
        tenant.set_up()
    with ground.sql() as connection:
        connection.execute(WATCH.encode())


def _order(plan: Plan, rng: random.Random) -> list[str]:
    names = list(plan.faults)
    rng.shuffle(names)
    return names if plan.each_once else []


def _harm(plan: Plan, chaos: Chaos) -> None:
    end = time.monotonic() + plan.seconds
    first = _order(plan, chaos.rng)
    weights = [FAULTS[name][2] for name in plan.faults]
    while time.monotonic() < end or (first and time.monotonic() < end + plan.seconds):
        name = first.pop() if first else chaos.rng.choices(plan.faults, weights)[0]
        _say(f"{plan.seconds - (end - time.monotonic()):6.1f} s  {name}")
        try:
            FAULTS[name][0](chaos)
            chaos.times[name] += 1
        except NotNow:
            _say("          not now")
        chaos.undo()
        chaos.ground.revive()
        chaos.last(*plan.pause)


def _look(chaos: Chaos, stop: threading.Event) -> None:
    while not stop.wait(0.25):
        try:
            chaos.recoveries.look()
        except Exception as error:
            if "Connection" not in type(error).__name__ and "Operational" not in type(error).__name__:
                _say(f"looking at recoveries: {error}")


def _calm(chaos: Chaos) -> None:
    """No more harm, no more load; then everything that was begun ends."""
    ground, load = chaos.ground, chaos.load
    _say("calm")
    ground.revive()
    for name in list(ground.frozen):
        ground.thaw(name)
    for link in ground.links.values():
        link.postgres.heal()
        link.redis.heal()
    ground.await_ready()
    load.stop()
    for tenant in load.tenants:
        until(partial(_switched_off, tenant), within=60, what="a schedule being switched off")
    try:
        until(lambda: _at_rest(ground), within=CALM, what="the end of all runs")
    except TimeoutError as error:
        _say(str(error))


def _switched_off(tenant: Tenant) -> bool:
    try:
        answer = tenant.client.patch(f"/api/workflows/{tenant.workflows['clock']}", json={"is_active": False})
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _at_rest(ground: Ground) -> bool:
    time.sleep(0.3)
    with ground.sql() as connection:
        (left,) = connection.execute("SELECT count(*) FROM runs WHERE finished_at IS NULL").fetchone() or (1,)
    total = Lanes(ground.redis.url).total()
    return left == 0 and total.backlog == 0 and total.in_flight == 0


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def show(outcome: Outcome) -> None:
    print("| fault | of the catalogue | injected |\n|---|---|---|")
    for name, (_, shows, _weight) in FAULTS.items():
        if outcome.times[name]:
            print(f"| {name} | {shows} | {outcome.times[name]} |")
    print("\n| invariant | counted | broken |\n|---|---|---|")
    for verdict in outcome.verdicts:
        print(f"| {verdict.invariant} | {verdict.counted} | {len(verdict.broken)} |")
    for verdict in outcome.verdicts:
        for fault in verdict.broken[:20]:
            print(f"BROKEN {verdict.invariant}: {fault}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=5.0, help="starts a second, of all organizations together")
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="a folder to keep the logs and data in")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), metavar="NAME", default=list(FAULTS))
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    plan = Plan(given.minutes * 60, seed, given.lease, given.rate, max(given.tenants, 2), tuple(given.faults))
    _say(f"seed {seed}, {given.minutes:g} minutes, a lease of {given.lease:g} s")
    if given.keep:
        given.keep.mkdir(parents=True)
        outcome = rage(plan, given.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="fairlane-chaos-", ignore_cleanup_errors=True) as folder:
            outcome = rage(plan, Path(folder))
    show(outcome)
    print(
        f"RESULT chaos seed={seed} minutes={given.minutes:g} lease={given.lease:g} faults={outcome.times.total()}"
        f" accepted={outcome.runs} broken={outcome.broken}"
    )
    sys.exit(1 if outcome.broken else 0)


if __name__ == "__main__":
    main()
