"""How held runs are let go: no more than fit are touched, in small transactions, whatever fails for others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import psycopg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from engine.db import TenantSession
from engine.held import Held
from engine.quotas import Reconciler, recount
from engine.repository.lag import schedule_lag
from engine.runs import FLOODED, Runs, Start
from tests.fairshare_waiting import until
from tests.quota_world import MARCH, NOW, World

WAITS = "SELECT 1 AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    world = World(database_url)
    yield world
    world.database.close()


class Failing(Runs):
    """Lets nothing go of one tenant; and says in which order it was asked."""

    def __init__(self, world: World, *, fails: str) -> None:
        super().__init__(world.broker, clock=lambda: NOW)
        self.fails = fails
        self.asked: list[str] = []

    def release_over_quota(self, session: TenantSession, now: datetime | None) -> int:
        self.asked.append(session.tenant_id)
        if session.tenant_id == self.fails:
            session.execute(sa.text("SELECT 1/0"))
        return super().release_over_quota(session, now)


def _hold(world: World, tenant_id: str) -> None:
    """Another tenant with a run that is held over a quota, and may go now."""
    workflow = "INSERT INTO workflows (id, tenant_id, name, trigger_type, version) VALUES (:w, :t, 'W', 'poll', 1)"
    version = (
        "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
        " SELECT tenant_id, id, 1, '{}', 'h' FROM workflows WHERE id = :w"
    )
    with world.database.system() as session:
        for statement in ("INSERT INTO tenants (id, name) VALUES (:t, :t)", workflow, version):
            session.execute(sa.text(statement), {"t": tenant_id, "w": f"wf_{tenant_id}"})
    with world.database.tenant(tenant_id) as own:
        world.runs.start(own, Start(workflow_id=f"wf_{tenant_id}", trigger="api", input={}, hold="quota"))


def test_what_fails_for_one_organization_stops_no_other_and_each_comes_first_once(world: World) -> None:
    for tenant_id in ("a", "b", "c"):
        _hold(world, tenant_id)
    runs = Failing(world, fails="a")
    held = Held(world.database, runs)
    with capture_logs() as lines:
        assert held.run_once(NOW).released == 2
    assert [line["tenant"] for line in lines if line["event"] == "held_runs_not_released"] == ["a"]
    assert runs.asked == ["a", "b", "c"]
    _hold(world, "d")
    _hold(world, "e")
    del runs.asked[:]
    with capture_logs():
        held.run_once(NOW)
    assert runs.asked == ["d", "e", "a"]
    runs.fails = ""
    assert held.run_once(NOW).released == 1


def test_a_counter_that_cannot_be_compared_stops_no_other(world: World) -> None:
    world.limit(max_executions_per_month=10)
    world.start()
    with psycopg.connect(world.url.replace("+psycopg", "")) as broken:
        broken.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.tenant_id = 'aaa' THEN RAISE 'broken'; END IF; RETURN NEW; END $$;"
            " INSERT INTO tenants (id, name, limits, limits_version)"
            "     SELECT 'aaa', 'A', limits, limits_version FROM tenants;"
            " UPDATE quota_counters SET used = used + 5 WHERE slot = 0;"
            " INSERT INTO quota_counters"
            "     SELECT 'aaa', period, slot, used, room, monthly, queued, version FROM quota_counters;"
            " CREATE TRIGGER refuse BEFORE UPDATE ON quota_counters FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    with capture_logs() as lines:
        assert Reconciler(world.database).run_once(NOW) == 1
    assert [line["tenant"] for line in lines if line["event"] == "quota_counter_not_compared"] == ["aaa"]
    assert world.rows("SELECT sum(used) AS n FROM quota_counters WHERE tenant_id = 'acme'") == [{"n": 1}]


def test_a_full_queue_is_seen_before_any_held_run_is_locked(world: World) -> None:
    world.limit(max_queued_runs=3, max_executions_per_month=1000)
    for _ in range(3):
        world.start()
    held = [world.start("schedule")["id"] for _ in range(5)]
    with psycopg.connect(world.url.replace("+psycopg", "")) as other:
        other.execute("SELECT 1 FROM runs WHERE wait_reason = 'quota' FOR UPDATE")
        assert world.release() == 0
    before = _versions(world)
    assert world.release() == 0
    assert _versions(world) == before, "not one row of them was locked"
    with world.database.system() as session:
        session.execute(
            sa.text(
                "UPDATE runs SET status = 'cancelled', finished_at = now()"
                " WHERE id IN (SELECT id FROM runs WHERE status = 'queued' LIMIT 2)"
            )
        )
    assert world.release() == 2
    assert _versions(world) == before[2:], "nor one more than went"
    assert [run_id for run_id, _ in before] == held


def test_a_flood_is_let_go_in_small_transactions_and_in_its_order(world: World) -> None:
    world.limit(max_executions_per_month=250)
    flood = [world.start("poll", hold=FLOODED)["id"] for _ in range(260)]
    with world.database.tenant("acme") as session:
        assert world.runs.release_held(session, "wf_1") == 260
    assert world.ledger() == 0, "whoever releases them waits for no counter"
    with ThreadPoolExecutor(4) as crew:
        assert sum(crew.map(lambda _: world.release(), range(4))) == 250
    assert [message.run_id for message in world.broker.messages.values()] == flood[:250]
    sizes = world.rows("SELECT count(*) AS n FROM usage WHERE kind = 'execution' GROUP BY xid ORDER BY min(id)")
    assert [row["n"] for row in sizes] == [100, 100, 50]


def test_a_first_limit_counts_the_starts_that_were_under_way_without_one(world: World) -> None:
    world.limit(max_executions_per_month=None, max_queued_runs=None)
    with ThreadPoolExecutor(1) as crew:
        with world.database.tenant("acme") as early:
            request = Start(workflow_id="wf_1", trigger="api", input={})
            for _ in range(3):
                assert world.runs.start(early, request).run["status"] == "queued"
            world.limit(max_executions_per_month=3)
            assert world.start("schedule")["status"] == "held", "who may not wait is held until it is known"
            world.rows("DELETE FROM runs WHERE status = 'held' RETURNING 1 AS n")
            late = crew.submit(world.start)
            until(lambda: bool(world.rows(WAITS)))
        assert late.result()["status"] == "held"
    assert world.ledger() == world.counter() == 3


def test_a_start_that_saw_no_limit_and_comes_behind_the_first_count_is_counted(world: World) -> None:
    world.limit(max_executions_per_month=None, max_queued_runs=None)
    admit = "SELECT admit('acme', 'run_x', '2027-03-31', NULL, NULL, 0, false, true) AS verdict"
    world.limit(max_executions_per_month=1)
    world.start()
    with world.database.tenant("acme") as session:
        assert session.row(sa.text(admit)) == {"verdict": "executions"}
    assert world.counter() == world.ledger(MARCH) == 1


def test_a_limit_that_returns_as_it_was_counts_what_was_admitted_without_it(world: World) -> None:
    world.limit(max_executions_per_month=10, max_queued_runs=10)
    world.start()
    world.limit(max_executions_per_month=None, max_queued_runs=None)
    for _ in range(9):
        world.start()
    world.limit(max_executions_per_month=10, max_queued_runs=10)
    assert Reconciler(world.database).run_once(NOW) == 0, "a counter of another time is not wrong"
    assert world.start("schedule")["status"] == "held"
    assert world.ledger() == world.counter() == 10


def test_what_was_admitted_without_a_limit_is_counted_before_anybody_starts_more(world: World) -> None:
    world.limit(max_executions_per_month=10, max_queued_runs=10)
    world.start()
    world.limit(max_executions_per_month=None, max_queued_runs=None)
    for _ in range(3):
        world.start()
    assert (recount(world.database, NOW), world.counter()) == (0, 1)
    world.limit(max_executions_per_month=10, max_queued_runs=10)
    assert (recount(world.database, NOW), world.counter()) == (1, 4)
    assert recount(world.database, NOW) == 0


def test_processes_of_the_version_before_go_on_admitting_until_they_are_restarted(world: World) -> None:
    world.limit(max_executions_per_month=10, max_queued_runs=None)
    at = f"'{NOW.isoformat()}'"
    admit = sa.text(f"SELECT admit('acme', 'run_old', {at}, 10, NULL, false, true)")
    enter = (
        "INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id)"
        f" VALUES ('acme', {at}, 'execution', 'run_old', 'wf_1')"
    )

    def start(number: int) -> str:
        if number % 2:
            return str(world.start("schedule")["status"])
        with world.database.tenant("acme") as session:
            verdict = str(session.execute(admit).scalar_one())
            if verdict == "admitted":
                session.execute(sa.text(enter))
            return verdict

    with ThreadPoolExecutor(16) as crew:
        said = list(crew.map(start, range(64)))
    assert 10 >= said.count("admitted") + said.count("queued") == world.ledger() == world.counter()
    world.rows("DELETE FROM runs WHERE status = 'held' RETURNING 1 AS n")
    assert [start(0) for _ in range(11 - world.ledger())][-1] == "executions"
    assert world.ledger() == world.counter() == 10

    world.limit(max_executions_per_month=None)
    assert start(0) == "admitted", "what it read of the limits is older than what they are"
    world.limit(max_executions_per_month=13)
    take = sa.text(f"SELECT taken, reason FROM quota_take('acme', '', {at}, 13, NULL, 5, true)")
    with world.database.tenant("acme") as session:
        assert session.row(take) == {"taken": 2, "reason": "executions"}


def test_schedules_of_a_suspended_organization_are_not_late(world: World) -> None:
    late = (
        "INSERT INTO triggers (tenant_id, workflow_id, type, config, next_fire_at)"
        " VALUES ('acme', 'wf_1', 'schedule', '{}', now() - interval '1 hour')"
    )
    with world.database.system() as session:
        session.execute(sa.text(late))
        assert 3599 < schedule_lag(session) < 3700
        session.execute(sa.text("UPDATE tenants SET status = 'suspended'"))
        assert schedule_lag(session) == 0
        session.execute(sa.text("UPDATE tenants SET status = 'active'"))
        session.execute(sa.text("UPDATE triggers SET next_fire_at = now() + interval '1 hour'"))
        assert schedule_lag(session) == 0


def _versions(world: World) -> list[tuple[str, str]]:
    return [
        (row["id"], row["xmax"])
        for row in world.rows("SELECT id, xmax::text FROM runs WHERE wait_reason = 'quota' ORDER BY id")
    ]
