"""Admission against a model of it: whatever limits, starts, ends, raises and months follow each other, they agree."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.plans import Plans
from engine.quotas import FROM_OUTSIDE, StartRefused
from engine.usage import Period
from tests.quota_world import NOW, NoLanes, World

EMPTY = "DELETE FROM runs; DELETE FROM quota_counters; DELETE FROM usage"
TRIGGERS = ("api", "webhook", "replay", "schedule", "poll", "workflow")

limits = st.sampled_from((None, None, 0, 1, 3, 5))
steps = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(TRIGGERS), st.integers(1, 4)),
    st.tuples(st.just("limit"), limits, limits),
    st.tuples(st.just("policy"), st.sampled_from(("hold", "reject"))),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("cancel_held"), st.integers(0, 9)),
    st.tuples(st.just("release")),
    st.tuples(st.just("next_month")),
)


class Model:
    """What docs/quotas.md says, and the real thing beside it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.monthly: int | None = None
        self.queued: int | None = None
        self.rejects = False
        self.used = 0
        self.waiting: list[str] = []
        self.held: list[str] = []
        world.now = NOW
        world.broker.messages.clear()
        self.limit(None, None)
        self.policy("hold")

    def start(self, trigger: str, times: int) -> None:
        for _ in range(times):
            want = self._verdict(outside=trigger in FROM_OUTSIDE)
            became, run_id = self._start(trigger)
            assert became == want
            if became == "held":
                self.held.append(run_id)
            elif became == "queued":
                self.waiting.append(run_id)
                self._admitted(1)

    def _start(self, trigger: str) -> tuple[str, str]:
        try:
            run = self.world.start(trigger)
        except StartRefused as refused:
            return refused.error_code, ""
        return run["status"], run["id"]

    def _verdict(self, *, outside: bool) -> str:
        refuses = self.rejects and outside
        if self.held and not refuses:
            full = self.queued is not None and len(self.held) >= self.queued
            return "quota_queue" if full and outside else "held"
        if self._room() > 0:
            return "queued"
        if self._free_queue() <= self._free_month():
            return "quota_queue" if outside else "held"
        return "quota_executions" if refuses else "held"

    def _free_month(self) -> float:
        return float("inf") if self.monthly is None else max(0, self.monthly - self.used)

    def _free_queue(self) -> float:
        return float("inf") if self.queued is None else max(0, self.queued - len(self.waiting))

    def _room(self) -> float:
        return min(self._free_month(), self._free_queue())

    def _admitted(self, count: int) -> None:
        self.used += count
        assert self.monthly is None or self.used <= self.monthly

    def release(self) -> None:
        before = len(self.world.broker.messages)
        count = int(min(len(self.held), self._room()))
        assert self.world.release() == count
        gone, self.held = self.held[:count], self.held[count:]
        assert [message.run_id for message in list(self.world.broker.messages.values())[before:]] == gone
        self.waiting += gone
        if count:
            self._admitted(count)

    def limit(self, monthly: int | None, queued: int | None) -> None:
        self.monthly, self.queued = monthly, queued
        self.world.limit(max_executions_per_month=monthly, max_queued_runs=queued)

    def policy(self, policy: Any) -> None:
        self.rejects = policy == "reject"
        with self.world.database.system() as session:
            Plans(self.world.database, NoLanes()).set_policy(session, "acme", policy)

    def end(self, which: int) -> None:
        self._cancel(self.waiting, which)

    def cancel_held(self, which: int) -> None:
        self._cancel(self.held, which)

    def _cancel(self, among: list[str], which: int) -> None:
        if among:
            with self.world.database.tenant("acme") as session:
                self.world.runs.cancel(session, among.pop(which % len(among)), by="user_ada")

    def next_month(self) -> None:
        self.world.now = Period.of(self.world.now).end + timedelta(days=1)
        self.used = 0

    def check(self) -> None:
        states = self.world.rows("SELECT id, status FROM runs WHERE finished_at IS NULL ORDER BY id")
        assert [row["id"] for row in states if row["status"] == "held"] == self.held
        assert [row["id"] for row in states if row["status"] == "queued"] == sorted(self.waiting)
        assert self.world.ledger(Period.of(self.world.now)) == self.used


@pytest.fixture(scope="module")
def world(module_database_url: str) -> Iterator[World]:
    world = World(module_database_url)
    yield world
    world.database.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=4, max_size=24))
def test_what_is_admitted_held_and_let_go_is_what_the_limits_say(world: World, sequence: list[tuple[Any, ...]]) -> None:
    engine = sa.create_engine(world.url)
    with engine.begin() as connection:
        connection.exec_driver_sql(EMPTY)
    engine.dispose()
    model = Model(world)
    for name, *arguments in sequence:
        getattr(model, name)(*arguments)
        model.check()
