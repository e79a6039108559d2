"""The herd of `bench.herd`: an installation, its organizations with their schedules, and what is measured there."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import psutil

from bench.chaos_ground import Ground
from bench.harness import until
from bench.herd_callers import Answer, Callers, Organization, at_once
from bench.scrape import cpu_of_tree
from bench.simulator import quantile
from engine import api_keys
from engine.db import Database
from triggers.cron import offset_of

AHEAD = 4.0
"""Seconds from setting the rows until they fall due."""
PATIENCE = 240.0
"""Seconds within which a herd must have ended."""
SMALL_PART = 0.25
"""An organization is small with up to this part of the mean number of schedules."""
BIG, MIDDLE, SMALL = "the big one", "middle", "small"
BEFORE, HERD, SAME = "before", "herd", "as many through the API"


@dataclass(frozen=True)
class Plan:
    schedules: int = 5000
    tenants: int = 100
    before: float = 20.0
    """Seconds that callers are measured before the herd."""
    rate: float = 20.0
    """Requests a second of all steady callers."""
    jitter: int = 0
    """Seconds."""
    nice: int = 0
    """How far workers and beat give way to the API, as ``nice -n`` lets them."""

    def sizes(self) -> list[int]:
        """How many schedules each organization has: a fifth the first, then more and more, from one on."""
        big, others = self.schedules // 5, self.tenants - 1
        rest = self.schedules - big - others
        bounds = [rest * n * (n + 1) // (others * (others + 1)) for n in range(self.tenants)]
        return [big, *(1 + after - before for before, after in pairwise(bounds))]


@dataclass
class Outcome:
    """Seconds that runs waited by group, what callers met in each phase, and how often schedules fired."""

    lags: dict[str, list[float]]
    took: float
    answers: dict[str, list[Answer]]
    waits: dict[str, list[float]]
    """Of the runs that steady callers started, by phase."""
    cpu: dict[str, float]
    """Seconds of each part during the herd."""
    fired: Counter[int]
    """How many schedules fired so many times."""
    schedules: int
    refused: int
    """Requests of steady callers without a good answer."""
    seconds: dict[str, float]
    """Of each phase."""

    @property
    def all_lags(self) -> list[float]:
        return [lag for lags in self.lags.values() for lag in lags]

    def p95(self, phase: str) -> float:
        return quantile([answer.seconds for answer in self.answers[phase]], 0.95)

    @property
    def exactly_once(self) -> bool:
        return self.fired == Counter({1: self.schedules})


class Herd:
    """An installation with its organizations, and what is measured there."""

    def __init__(self, plan: Plan, ground: Ground) -> None:
        self.plan, self._ground = plan, ground
        self._base = f"http://127.0.0.1:{ground.port}"
        self._database = Database(ground.postgres.url, pool_size=4)
        sizes = plan.sizes()
        self._organizations = [self._organization(f"t{n:03}", size) for n, size in enumerate(sizes)]
        bystanders = [self._organization(f"by{n}", 0) for n in range(2)]
        self._steady = [*bystanders, self._organizations[0], self._organizations[len(sizes) // 2]]
        self._phases: dict[str, tuple[float, float]] = {}

    def close(self) -> None:
        self._database.close()

    def _organization(self, name: str, size: int) -> Organization:
        with self._ground.sql() as connection:
            connection.execute("INSERT INTO tenants (id, name, plan) VALUES (%s, %s, 'enterprise')", [name, name])
        with self._database.tenant(name) as session:
            _, key = api_keys.create(session, name="callers", scopes=["admin", "runs:write"])
        return Organization(name, size, key)

    def prepare(self) -> None:
        """Save every workflow through the API, as its author would."""
        minute = (datetime.now(UTC) + timedelta(minutes=30)).minute
        trigger: dict[str, Any] = {"type": "schedule", "cron": f"{minute} * * * *"}
        if self.plan.jitter:
            trigger["jitter"] = f"{self.plan.jitter}s"
        jobs = [(own, trigger) for own in self._organizations for _ in range(own.size)]
        jobs += [(own, {"type": "manual"}) for own in self._steady]

        def save(client: httpx.Client, job: tuple[Organization, dict[str, Any]]) -> None:
            own, trigger = job
            document = {
                "name": "One step",
                "trigger": trigger,
                "steps": [{"id": "say", "action": "debug.echo", "with": {"text": "hello"}}],
            }
            answer = client.post("/api/workflows", json={"definition": document}, headers=own.headers)
            answer.raise_for_status()
            (own.manual if trigger["type"] == "manual" else own.scheduled).append(answer.json()["id"])

        at_once(self._base, jobs, save)
        with self._ground.sql() as connection:
            connection.execute("ANALYZE")
        for name, process in self._ground.processes.items():
            if name != "api" and self.plan.nice:
                os.setpriority(os.PRIO_PGRP, process.pid, self.plan.nice)  # every thread of it

    def run(self) -> Outcome:
        callers = Callers(self._base, self._steady, self.plan.rate)
        with callers:
            time.sleep(min(5.0, self.plan.before))  # connections are opened and statements planned
            self._phase(BEFORE, lambda: time.sleep(self.plan.before))
            moment = self._set_due()
            time.sleep(max(0.0, moment.timestamp() - time.time()))
            used = self._cpu()
            took = self._phase(HERD, lambda: self._await_ended("schedule", self.plan.schedules))
            used = {name: after - used[name] for name, after in self._cpu().items()}
            time.sleep(min(2.0, self.plan.before))
            self._phase(SAME, lambda: self._start_as_many(took))
        return self._outcome(callers.answers, moment, took, used)

    def _phase(self, name: str, work: Callable[[], None]) -> float:
        began = time.time()
        work()
        self._phases[name] = (began, time.time())
        return time.time() - began

    def _set_due(self) -> datetime:
        """Every schedule falls due in the second that is returned, and with a jitter so much later."""
        moment = (datetime.now(UTC) + timedelta(seconds=AHEAD)).replace(microsecond=0)
        names = [name for own in self._organizations for name in own.scheduled]
        with self._ground.sql() as connection:
            connection.execute(
                "UPDATE triggers t SET next_fire_at = d.at FROM unnest(%s::text[], %s::timestamptz[]) d (id, at)"
                " WHERE t.workflow_id = d.id",
                [names, [moment + self._offset(name) for name in names]],
            )
        if datetime.now(UTC) >= moment:
            raise SystemExit("the rows were not set before they fell due: this machine is too busy")
        return moment

    def _offset(self, workflow_id: str) -> timedelta:
        return offset_of(workflow_id, timedelta(seconds=self.plan.jitter))

    def _await_ended(self, trigger: str, number: int) -> None:
        with self._ground.sql() as connection:

            def ended() -> bool:
                time.sleep(0.5)
                row = connection.execute(
                    "SELECT count(*) FROM runs r JOIN workflows w ON w.tenant_id = r.tenant_id AND w.id = r.workflow_id"
                    " WHERE r.trigger = %s AND r.finished_at IS NOT NULL AND w.trigger_type = 'schedule'",
                    [trigger],
                ).fetchone()
                return row is not None and int(str(row[0])) >= number

            until(ended, within=PATIENCE, what=f"the end of {number} runs")

    def _start_as_many(self, seconds: float) -> None:
        """One run of each workflow of the herd, in a mixed order, spread over as many seconds as the herd took."""
        jobs = [(own, name) for own in self._organizations for name in own.scheduled]
        random.Random(1).shuffle(jobs)
        began, each = time.monotonic(), seconds / len(jobs)

        def start(client: httpx.Client, job: tuple[int, tuple[Organization, str]]) -> None:
            number, (own, workflow) = job
            time.sleep(max(0.0, began + number * each - time.monotonic()))
            client.post(f"/api/workflows/{workflow}/runs", json={}, headers=own.headers).raise_for_status()

        at_once(self._base, list(enumerate(jobs)), start)
        self._await_ended("api", len(jobs))

    def _cpu(self) -> dict[str, float]:
        processes = {name: process.pid for name, process in self._ground.processes.items()}
        for name, server in (("postgres", self._ground.postgres), ("redis", self._ground.redis)):
            assert server.process is not None
            processes[name] = server.process.pid
        used: dict[str, float] = {"callers": time.process_time()}
        for name, pid in processes.items():
            part = name.rstrip("0123456789")
            used[part] = used.get(part, 0.0) + cpu_of_tree(psutil.Process(pid))
        return used

    def _outcome(self, answers: Sequence[Answer], moment: datetime, took: float, cpu: dict[str, float]) -> Outcome:
        with self._ground.sql() as connection:
            fires = connection.execute(
                "SELECT tenant_id, workflow_id, extract(epoch FROM started_at)::float8 FROM runs"
                " WHERE trigger = 'schedule'"
            ).fetchall()
            own = connection.execute(
                "SELECT extract(epoch FROM r.queued_at)::float8, extract(epoch FROM r.started_at - r.queued_at)::float8"
                " FROM runs r JOIN workflows w ON w.tenant_id = r.tenant_id AND w.id = r.workflow_id"
                " WHERE w.trigger_type = 'manual' AND r.started_at IS NOT NULL"
            ).fetchall()
        groups, lags = self._groups(), dict[str, list[float]]((name, []) for name in (BIG, MIDDLE, SMALL))
        for tenant, workflow, started in fires:
            due = moment + self._offset(str(workflow))
            lags[groups[str(tenant)]].append(float(str(started)) - due.timestamp())
        times = Counter(str(workflow) for _, workflow, _ in fires)
        every = [name for organization in self._organizations for name in organization.scheduled]
        waits = [(float(str(at)), float(str(waited))) for at, waited in own]
        return Outcome(
            lags=lags,
            took=took,
            answers={p: [a for a in answers if a.good and b <= a.due < e] for p, (b, e) in self._phases.items()},
            waits={p: [waited for at, waited in waits if b <= at < e] for p, (b, e) in self._phases.items()},
            cpu=cpu,
            fired=Counter(times[name] for name in every),
            schedules=self.plan.schedules,
            refused=sum(not answer.good for answer in answers),
            seconds={phase: end - begin for phase, (begin, end) in self._phases.items()},
        )

    def _groups(self) -> dict[str, str]:
        big, *others = self._organizations
        mean = self.plan.schedules / self.plan.tenants
        return {big.id: BIG} | {own.id: SMALL if own.size <= SMALL_PART * mean else MIDDLE for own in others}
