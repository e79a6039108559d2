"""The hard month of `bench.ledger`: an installation, its organizations, and all that befalls them until it is calm."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import sqlalchemy as sa

from bench import ledger_books as books
from bench.chaos_ground import WORKERS, Ground
from bench.harness import ROOT, until
from bench.ledger_load import RECIPES, Callers, Recipe, Tenant
from engine import api_keys, billing
from engine.db import Database
from engine.fairshare.lanes import Lanes
from engine.invoice import Price
from engine.plans import Limits, Plans
from engine.usage import RollUp

CALM = 600.0
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
    kills: tuple[float, float] = (6.0, 25.0)
    """Seconds from one kill of a worker to the next."""
    most_kills: int = 1000
    rounds: int = 4
    api_kills: int = 4
    """One in each of the first rounds."""


def say(words: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {words}", file=sys.stderr, flush=True)


class Reaper(threading.Thread):
    """Kills one worker after the other, and starts another for each."""

    def __init__(self, ground: Ground, plan: Plan) -> None:
        super().__init__(daemon=True)
        self._ground, self._plan, self._rng = ground, plan, random.Random(plan.seed)
        self._over = threading.Event()
        self.killed = 0

    def run(self) -> None:
        while self.killed < self._plan.most_kills and not self._over.wait(self._rng.uniform(*self._plan.kills)):
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
        self.name = f"{self.today:%Y-%m}"
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
        return Tenant(name, recipe, key, every=max(2, self.plan.tenants * 2 // 5))

    def prepare(self) -> None:
        """Plans, prices, limits, workflows; the schedules begin."""
        each = self.plan.runs / self.plan.tenants
        with self.ground.sql() as connection:
            connection.execute(books.JOURNAL.encode())
        with self.database.system() as session:
            self.plans.create_plan(session, "tiny", Limits(max_executions_per_month=int(each * 0.3)))
            for name, (base, included, further) in PRICES.items():
                billing.set_price(session, name, Price("USD", base, included, further), period=self.name)
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
            threads = [threading.Thread(target=self._kill_api)] if number < self.plan.api_kills else []
            if number == self.plan.rounds // 2:
                threads.append(threading.Thread(target=self.relieve))
            for thread in threads:
                thread.start()
            self.callers.work(min(each, max(50, self.plan.runs - self.runs())), ends)
            for thread in threads:
                thread.join()
            if number % 2 == 0:
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
        until(self.at_rest, within=CALM, what="the end of all runs")
        until(self._rolled_up, within=60, what="the roll-up")

    def at_rest(self) -> bool:
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
        RollUp(self.database, labels=self.plan.tenants).run_once()
        with self.ground.sql() as connection:
            row: Any = connection.execute(
                "SELECT (SELECT xid FROM usage_rollups WHERE name = 'usage') > (SELECT max(xid) FROM usage)"
                " AND NOT EXISTS (SELECT 1 FROM metric_events)"
            ).fetchone()
        return bool(row[0])
