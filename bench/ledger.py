"""Whether the books agree: the runs table, the ledger, counters, usage page, metrics and invoices, after a hard month.

``python -m bench.ledger [--runs 20000] [--tenants 50] [--minutes 25] [--seed N]``

Organizations on every kind of plan start runs by API, webhook and schedule; steps fail and are retried, runs start
others, are cancelled and replayed, one by one and in bulk, while workers are killed with SIGKILL all the time, and the
API once for each round. Then everything comes to rest, and all books are compared, for each organization and month:
counts exactly, worker-seconds within rounding. At last a row of the ledger is taken out, which must be found. It prints
what each book says, all that differs, and ``RESULT ledger``; it exits with 1 if anything does. It ends by itself.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import sqlalchemy as sa

from bench import ledger_books as books
from bench.chaos_ground import WORKERS, Ground
from bench.harness import ROOT, until
from bench.ledger_books import EXECUTIONS, MEASURES, Book
from bench.ledger_load import RECIPES, Callers, Recipe, Tenant
from engine import api_keys, billing, invoice
from engine.billing import Closer
from engine.db import Database
from engine.fairshare.lanes import Lanes
from engine.invoice import Price
from engine.plans import Limits, Plans
from engine.quotas import Reconciler
from engine.usage import RollUp

CALM = 300.0
"""Seconds within which everything must have come to rest."""
PRICES = {"free": (0, 60, 0), "team": (4900, 30, 40000), "enterprise": (49900, 600, 25000)}
"""Few executions are included, so that there is something to pay for more."""


@dataclass(frozen=True)
class Plan:
    runs: int = 20000
    tenants: int = 50
    seconds: float = 25 * 60
    seed: int = 1
    lease: float = 3.0
    kills: tuple[float, float] = (3.0, 12.0)
    """Seconds from one kill of a worker to the next."""
    rounds: int = 4
    labels: int = 40
    """`METRICS_TENANT_LIMIT`: the others are one in the metrics."""


@dataclass
class Outcome:
    """What happened, what each book says of it, and where they differ."""

    books: list[Book] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Reaper(threading.Thread):
    """Kills one worker after the other, and starts another for each."""

    def __init__(self, ground: Ground, rng: random.Random, pause: tuple[float, float]) -> None:
        super().__init__(daemon=True)
        self._ground, self._rng, self._pause = ground, rng, pause
        self._over = threading.Event()
        self.killed = 0

    def run(self) -> None:
        while not self._over.wait(self._rng.uniform(*self._pause)):
            self._ground.restart(self._rng.choice(WORKERS))
            self.killed += 1

    def stop(self) -> None:
        self._over.set()
        self.join(60)


class Month:
    """One installation, its organizations, and all that befalls them."""

    def __init__(self, plan: Plan, ground: Ground) -> None:
        self.plan, self.ground = plan, ground
        self.today = datetime.now(UTC).date()
        self.month = f"{self.today:%Y-%m}"
        self.database = Database(ground.postgres.url, pool_size=4)
        self.plans = Plans(self.database, Lanes(ground.redis.url))
        self.base = f"http://127.0.0.1:{ground.port}"
        self.tenants = [self._tenant(number) for number in range(plan.tenants)]
        self.callers = Callers(self.base, self.tenants, plan.seed)
        self.refused_in_bulk = self.replayed_in_bulk = self.api_kills = 0
        self._rng = random.Random(plan.seed)

    def _tenant(self, number: int) -> Tenant:
        recipe, name = RECIPES[number % len(RECIPES)], f"t{number:03}"
        with self.database.system() as session:
            session.execute(sa.text("INSERT INTO tenants (id, name) VALUES (:t, :t)"), {"t": name})
            with session.acting_for(name) as own:
                _, key = api_keys.create(own, name="callers", scopes=["admin", "runs:write"])
        return Tenant(name, recipe, key)

    def prepare(self) -> None:
        """Plans, prices, limits, workflows; the schedules begin."""
        each = self.plan.runs / self.plan.tenants
        with self.ground.sql() as connection:
            connection.execute(books.JOURNAL.encode())
        with self.database.system() as session:
            self.plans.create_plan(session, "tiny", Limits(max_executions_per_month=int(each * 0.3)))
            for name, (base, included, further) in PRICES.items():
                billing.set_price(session, name, Price("USD", base, included, further), period=self.month)
        with httpx.Client(base_url=self.base, timeout=30) as client:
            for tenant in self.tenants:
                self._limit(tenant.id, tenant.recipe, each)
                tenant.set_up(client)

    def _limit(self, tenant: str, recipe: Recipe, each: float) -> None:
        share = {} if recipe.share is None else {"max_executions_per_month": int(each * recipe.share)}
        with self.database.system() as session:
            self.plans.set_plan(session, tenant, recipe.plan)
            if recipe.limits or share:
                self.plans.set_limits(session, tenant, {**recipe.limits, **share})
            if recipe.policy == "reject":
                self.plans.set_policy(session, tenant, recipe.policy)

    def relieve(self) -> None:
        """Raise limits and change plans, while runs are started."""
        for tenant in self.tenants:
            with self.database.system() as session:
                if tenant.recipe.later == "raised":
                    self.plans.set_limits(session, tenant.id, {"max_executions_per_month": 1_000_000})
                elif tenant.recipe.later is not None:
                    self.plans.set_plan(session, tenant.id, tenant.recipe.later)

    def live(self, ends: float) -> None:
        """Rounds of starts, each with a kill of the API, some with a bulk replay, until there are enough runs."""
        each = int(self.plan.runs * 0.7 / self.plan.rounds)
        for number in range(self.plan.rounds * 3):
            threads = [threading.Thread(target=self._kill_api)]
            if number == self.plan.rounds // 2:
                threads.append(threading.Thread(target=self.relieve))
            for thread in threads:
                thread.start()
            self.callers.work(min(each, max(50, self.plan.runs - self.runs())), ends)
            for thread in threads:
                thread.join()
            if number % 2:
                self._replay_in_bulk(number)
            say(f"{self.runs()} runs after round {number + 1}")
            if self.runs() >= self.plan.runs or time.monotonic() > ends:
                break

    def _kill_api(self) -> None:
        time.sleep(self._rng.uniform(0.5, 2))
        self.ground.restart("api")
        self.api_kills += 1
        self.ground.await_ready()

    def _replay_in_bulk(self, number: int) -> None:
        """What failed in the last minutes, by the operator's own command."""
        words = ("runs", "replay", "--status", "failed", "--batch", f"batch{number}", "--json")
        command = [sys.executable, "-c", "import cli; cli.main()", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.ground.environment, capture_output=True, text=True, timeout=600, check=False
        )
        tally = json.loads(done.stdout) if done.stdout else {}
        if done.returncode not in (0, 1) or "replayed" not in tally:
            raise RuntimeError(
                f"the bulk replay ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
            )
        self.replayed_in_bulk += tally["replayed"]
        for line in done.stderr.splitlines():
            if "max_executions_per_month" in line or "max_queued_runs" in line:
                self.refused_in_bulk += 1
                self.callers.refused[self._owner(line.split(":")[0].strip())] += 1

    def _owner(self, run: str) -> str:
        with self.ground.sql() as connection:
            row = connection.execute("SELECT tenant_id FROM runs WHERE id = %s", [run]).fetchone()
        return str(row[0]) if row else run

    def runs(self) -> int:
        with self.ground.sql() as connection:
            row: Any = connection.execute("SELECT count(*) FROM runs").fetchone()
        return int(row[0])

    def calm(self) -> None:
        """No more starts; then everything ends but what is over a limit for good, and what waits for that."""
        self.ground.revive()
        self.ground.await_ready()
        with httpx.Client(base_url=self.base, timeout=30) as client:
            for tenant in self.tenants:
                path = f"/api/workflows/{tenant.workflows['clock']}"
                client.patch(path, json={"is_active": False}, headers=tenant.headers).raise_for_status()
        until(self._at_rest, within=CALM, what="the end of all runs")
        until(self._rolled_up, within=60, what="the roll-up")

    def _at_rest(self) -> bool:
        time.sleep(0.2)
        over = [tenant.id for tenant in self.tenants if tenant.recipe.stays_over]
        with self.ground.sql() as connection:
            row: Any = connection.execute(
                """
                SELECT count(*) FILTER (WHERE status IN ('queued', 'running')
                    OR status = 'waiting' AND wait_reason <> 'workflow' OR NOT tenant_id = ANY(%s)),
                    count(*) FILTER (WHERE status = 'held' AND used < most)
                FROM runs JOIN LATERAL (
                    SELECT (limits ->> 'max_executions_per_month')::int AS most, (
                        SELECT count(*) FROM usage u WHERE u.tenant_id = t.id AND u.kind = 'execution') AS used
                    FROM tenants t WHERE t.id = tenant_id) l ON true
                WHERE finished_at IS NULL
                """,
                [over],
            ).fetchone()
        return tuple(row) == (0, 0)

    def _rolled_up(self) -> bool:
        RollUp(self.database).run_once()
        with self.ground.sql() as connection:
            row: Any = connection.execute(
                "SELECT (SELECT xid FROM usage_rollups WHERE name = 'usage') > (SELECT max(xid) FROM usage)"
            ).fetchone()
        return bool(row[0])

    def judge(self) -> Outcome:
        """All books, compared; then the month is closed, and the invoices must stay what they were."""
        outcome = Outcome()
        with self.ground.sql() as connection:
            outcome.books = self.all_books(connection)
            outcome.broken = [str(difference) for difference in books.compare(outcome.books)]
            outcome.broken += books.run_by_run(connection) + self.callers.broken + self._unknown(connection)
            outcome.facts["states"] = dict(books.states(connection))
        drifted = Reconciler(self.database).run_once()
        outcome.broken += [f"the nightly check mended {drifted} counters"] * bool(drifted)
        outcome.broken += self._amounts() + self._close(outcome)
        outcome.facts |= {"runs": self.runs(), "bulk": self.replayed_in_bulk, "api_kills": self.api_kills}
        return outcome

    def all_books(self, connection: books.Connection) -> list[Book]:
        ledger = books.of_ledger(connection)
        return [
            books.of_runs(connection),
            books.of_clients(self.month, self.callers.refused, self.callers.unheard, ledger),
            ledger,
            *books.of_roll_ups(connection),
            books.of_counters(connection),
            *books.of_usage(self._answers("/api/usage")),
            books.of_quotas(self.month, self._answers("/api/quotas")),
            books.of_invoices("invoice", self._answers("/api/billing/invoice")),
        ]

    def _answers(self, path: str) -> list[tuple[str, Any]]:
        with httpx.Client(base_url=self.base, timeout=30) as client:
            return [
                (tenant.id, client.get(path, headers=tenant.headers).raise_for_status().json())
                for tenant in self.tenants
            ]

    def _unknown(self, connection: books.Connection) -> list[str]:
        """Runs that were started from outside and no caller knows of, and the other way round."""
        rows = connection.execute(
            "SELECT id FROM runs WHERE trigger IN ('api', 'webhook')"
            " OR trigger = 'replay' AND idempotency_key NOT LIKE 'replay:%:batch%'"
        ).fetchall()
        stored, known = {str(row[0]) for row in rows}, {run for tenant in self.tenants for run in tenant.runs}
        return [f"{run} is known to a caller or to the runs table only" for run in sorted(stored ^ known)]

    def _amounts(self) -> list[str]:
        """The money, computed once more; each has one plan, that of the last day."""
        wrong = []
        for tenant, (_, document) in zip(self.tenants, self._answers("/api/billing/invoice"), strict=True):
            owed = owed_for(tenant.recipe.last_plan, document["executions"], since=self.today)
            if owed != document["total_minor"]:
                wrong.append(f"{tenant.id} owes {owed}, and its invoice says {document['total_minor']}")
        return wrong

    def _close(self, outcome: Outcome) -> list[str]:
        before = self._answers("/api/billing/invoice")
        after_it = invoice.bounds(self.month)[1] + timedelta(hours=7)
        Closer(self.database).close_all(self.month, now=after_it)
        closed = self._answers("/api/billing/invoice")
        outcome.books.append(books.of_invoices("closed invoice", closed))
        kept = ("lines", "totals", "executions")
        return [
            f"the invoice of {tenant} changed when it was closed"
            for (tenant, old), (_, new) in zip(before, closed, strict=True)
            if new["status"] != "closed" or any(old[name] != new[name] for name in kept)
        ]

    def finds_a_missing_row(self) -> list[str]:
        """What the comparison says with one execution less in the ledger; nothing stays of that."""
        with psycopg.connect(self.ground.postgres.url.replace("+psycopg", "")) as connection:
            connection.execute(
                "DELETE FROM usage WHERE (tenant_id, id) = (SELECT tenant_id, min(id) FROM usage"
                " WHERE kind = 'execution' AND tenant_id = 't002' GROUP BY 1)"
            )
            found = [str(each) for each in books.compare(self.all_books(connection)) if each.key[2] == EXECUTIONS]
            found += books.run_by_run(connection)
            connection.rollback()
        return found


def owed_for(plan: str, executions: int, *, since: date) -> int:
    """Minor units for the days from `since` to the end of the month, each share rounded as docs/billing.md says."""
    base, included, further = PRICES[plan]
    days, before = invoice.days_of(since), since.day - 1
    fee = base - (2 * base * before + days) // (2 * days)
    over = max(0, executions - (included - included * before // days))
    return fee + (2 * over * further + 1000) // 2000


def run(plan: Plan, folder: Path) -> Outcome:
    """All of it: set up, live, come to rest, compare, and test the test."""
    with Ground(folder, plan.lease, proxies=False, FAIRLANE_METRICS_TENANT_LIMIT=str(plan.labels)) as ground:
        month = Month(plan, ground)
        month.prepare()
        say(f"{plan.tenants} organizations are set up")
        reaper = Reaper(ground, random.Random(plan.seed), plan.kills)
        reaper.start()
        begin = time.monotonic()
        try:
            month.live(begin + plan.seconds)
        finally:
            reaper.stop()
        say("no more starts")
        month.calm()
        say("all is at rest")
        outcome = month.judge()
        found = month.finds_a_missing_row()
        outcome.broken += [] if found else ["a row that was missing in the ledger was not found"]
        outcome.facts |= {"worker_kills": reaper.killed, "seconds": time.monotonic() - begin, "self_test": found}
        outcome.facts |= {"cancels": month.callers.cancelled, "replays": month.callers.replayed}
        month.database.close()
        return outcome


def say(words: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {words}", file=sys.stderr, flush=True)


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
        f" replays={facts['replays']} bulk_replays={facts['bulk']} differences={len(outcome.broken)}"
    )
    sys.exit(1 if outcome.broken else 0)


if __name__ == "__main__":
    main()
