"""Whether the books agree: the runs table, the ledger, counters, usage page, metrics and invoices, after a hard month.

``python -m bench.ledger [--runs 20000] [--tenants 50] [--minutes 25] [--seed N]``

Organizations on every kind of plan start runs by API, webhook and schedule; steps fail and are retried, runs start
others, are cancelled and replayed, one by one and in bulk, while workers are killed with SIGKILL all the time, and the
API a few times. Then everything comes to rest, and all books are compared, for each organization and month:
counts exactly, worker-seconds within rounding. The month is closed, and what comes afterwards must be on the next
invoice. At last a row of the ledger is taken out, which must be found. It prints what each book says, all that differs,
and ``RESULT ledger``; it exits with 1 if anything does. It ends by itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.chaos_ground import Ground
from bench.ledger_books import MEASURES
from bench.ledger_judge import Judge, Outcome
from bench.ledger_load import RECIPES
from bench.ledger_month import Month, Plan, Reaper, say


def run(plan: Plan, folder: Path) -> Outcome:
    """All of it: set up, live, come to rest, compare, and test the test."""
    with Ground(folder, plan.lease, proxies=False, FAIRLANE_METRICS_TENANT_LIMIT=str(plan.tenants)) as ground:
        month = Month(plan, ground)
        month.prepare()
        say(f"{plan.tenants} organizations are set up")
        reaper = Reaper(ground, plan)
        reaper.start()
        begin = time.monotonic()
        try:
            month.live(begin + plan.seconds)
        finally:
            reaper.stop()
        say("no more starts")
        month.calm()
        say("all is at rest")
        outcome = Judge(month).outcome()
        callers = month.callers
        outcome.facts |= {
            "worker_kills": reaper.killed,
            "api_kills": month.api_kills,
            "seconds": time.monotonic() - begin,
        }
        outcome.facts |= {
            "cancels": callers.cancelled,
            "replays": callers.replayed,
            "bulk_replays": month.replayed_in_bulk,
        }
        month.database.close()
        return outcome


def show(outcome: Outcome) -> None:
    names = [book.name for book in outcome.books]
    print(f"| | {' | '.join(names)} |\n|---{'|---:' * len(names)}|")
    for measure in MEASURES:
        cells = [_cell(book.total(measure)) for book in outcome.books]
        print(f"| {measure} | {' | '.join(cells)} |")
    for line in outcome.broken[:50]:
        print(f"DIFFERS {line}")
    print(f"with one row taken out of the ledger: {'; '.join(outcome.facts['self_test'])}")


def _cell(total: float | None) -> str:
    return "" if total is None else f"{total:,.1f}" if total % 1 else f"{total:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=Plan.runs)
    parser.add_argument("--tenants", type=int, default=Plan.tenants)
    parser.add_argument("--minutes", type=float, default=Plan.seconds / 60, help="no start after that many")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--keep", type=Path, help="a folder to keep the logs and data in")
    given = parser.parse_args()
    plan = Plan(given.runs, max(given.tenants, len(RECIPES)), given.minutes * 60, given.seed)
    if given.keep:
        given.keep.mkdir(parents=True)
        outcome = run(plan, given.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="fairlane-ledger-", ignore_cleanup_errors=True) as folder:
            outcome = run(plan, Path(folder))
    show(outcome)
    facts = outcome.facts
    print(
        f"RESULT ledger runs={facts['runs']} tenants={plan.tenants} seconds={facts['seconds']:.0f}"
        f" worker_kills={facts['worker_kills']} api_kills={facts['api_kills']} cancels={facts['cancels']}"
        f" replays={facts['replays']} bulk_replays={facts['bulk_replays']} late={facts['late']}"
        f" differences={len(outcome.broken)}"
    )
    sys.exit(1 if outcome.broken else 0)


if __name__ == "__main__":
    main()
