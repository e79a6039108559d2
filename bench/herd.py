"""What a herd does: thousands of schedules due in the same second, beside callers of the API.

    python -m bench.herd [--schedules 5000] [--tenants 100] [--jitter SECONDS] [--nice NUMBER] [--quick]

A whole installation as an operator starts it: the API, a beat, three workers of four threads, Postgres (durable) and
Redis. One organization has a fifth of the schedules, the others from a few to twice the mean. All are saved through the
API with one minute of the hour, which is half an hour away so that none comes by itself; then their rows are set to
fall due in one second, a few seconds ahead, so that nobody has to wait for it: beat, and all behind it, cannot tell.

Steady callers ask and start runs all the time, at a fixed pace; an answer counts from when its request was due, so that
one who waits hides nothing. They are measured before the herd, during it (from its second until its last run has
ended), and during as many runs of the same workflows that were started through the API in as long a time: what
remains between those two is what schedules cost beyond the work itself. Ends by itself, within ten minutes; with exit
code 1 if any schedule did not fire exactly once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench.chaos_ground import Ground
from bench.herd_ground import BEFORE, BIG, HERD, SAME, SMALL, Herd, Outcome, Plan
from bench.simulator import quantile


def report(plan: Plan, outcome: Outcome) -> None:
    title = f"{plan.schedules:,} schedules of {plan.tenants} organizations due in one second"
    title += f", jitter {plan.jitter} s" if plan.jitter else ""
    waits = Table(title=title + (f", workers and beat nice {plan.nice}" if plan.nice else ""))
    for column in ("seconds from due to start", "runs", "p50", "p99", "max"):
        waits.add_column(column, justify="left" if column.startswith("seconds") else "right")
    for name, lags in {"all": outcome.all_lags, **outcome.lags}.items():
        waits.add_row(name, f"{len(lags):,}", *(f"{quantile(lags, q):.2f}" for q in (0.5, 0.99, 1)))
    answers = Table(title=f"Callers of the API beside it, {plan.rate:g} requests a second, in ms")
    for column in ("", "seconds", "answers", "p50", "p95", "p95 / before", "p95 of starts", "their runs begin, p95"):
        answers.add_column(column, justify="right" if column else "left")
    for phase, given in outcome.answers.items():
        times = [answer.seconds for answer in given]
        starts = [answer.seconds for answer in given if answer.kind == "start"]
        figures = (quantile(times, 0.5), quantile(times, 0.95), quantile(starts, 0.95))
        p50, p95, of_starts = (f"{seconds * 1000:.0f}" for seconds in figures)
        ratio = f"{outcome.p95(phase) / outcome.p95(BEFORE):.2f}"
        begin = f"{quantile(outcome.waits[phase], 0.95) * 1000:.0f}"
        answers.add_row(phase, f"{outcome.seconds[phase]:.0f}", f"{len(given):,}", p50, p95, ratio, of_starts, begin)
    console = Console(width=120)
    console.print(waits)
    console.print(answers)
    used = ", ".join(f"{name} {seconds / outcome.took:.2f}" for name, seconds in outcome.cpu.items())
    print(f"cores in use during the herd, of {psutil.cpu_count()}: {used}")
    fired = ", ".join(f"{number:,} fired {times} times" for times, number in sorted(outcome.fired.items()))
    print(f"schedules: {fired}; callers that got no good answer: {outcome.refused}")
    print(
        f"RESULT herd ratio={outcome.p95(HERD) / outcome.p95(BEFORE):.2f} p99={quantile(outcome.all_lags, 0.99):.1f}"
        f" p50={quantile(outcome.all_lags, 0.5):.1f} small_p99={quantile(outcome.lags[SMALL], 0.99):.1f}"
        f" big_p99={quantile(outcome.lags[BIG], 0.99):.1f} before_ms={outcome.p95(BEFORE) * 1000:.0f}"
        f" during_ms={outcome.p95(HERD) * 1000:.0f} api_ratio={outcome.p95(SAME) / outcome.p95(BEFORE):.2f}"
        f" once={outcome.fired[1]}/{plan.schedules}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=Plan.schedules)
    parser.add_argument("--tenants", type=int, default=Plan.tenants, help="at least 3, with two schedules each")
    parser.add_argument("--jitter", type=int, default=0, metavar="SECONDS", help="of every schedule")
    parser.add_argument("--nice", type=int, default=0, metavar="NUMBER", help="of workers and beat, as by nice -n")
    parser.add_argument("--quick", action="store_true", help="500 schedules of 20 organizations")
    given = parser.parse_args()
    if given.tenants < 3 or given.schedules < 2 * given.tenants:
        parser.error("--tenants must be at least 3, and --schedules at least twice as many")
    plan = Plan(given.schedules, given.tenants, jitter=given.jitter, nice=given.nice)
    if given.quick:
        plan = Plan(500, 20, before=5.0, jitter=given.jitter, nice=given.nice)
    with tempfile.TemporaryDirectory(prefix="fairlane-herd-", ignore_cleanup_errors=True) as folder:
        outcome = run(plan, Path(folder))
    report(plan, outcome)
    sys.exit(0 if outcome.exactly_once else 1)


def run(plan: Plan, folder: Path) -> Outcome:
    """Set up, measure, end."""
    with Ground(folder, 30.0, proxies=False) as ground:
        herd = Herd(plan, ground)
        try:
            herd.prepare()
            return herd.run()
        finally:
            herd.close()


if __name__ == "__main__":
    main()
