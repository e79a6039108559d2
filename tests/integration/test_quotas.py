"""Admission on a real Postgres: exactly as many as the limits say, held in order, refused with a code, never lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from engine.metrics import TALLIES
from engine.plans import Plans
from engine.quotas import FROM_OUTSIDE, Reconciler, StartRefused, note_refusal
from engine.repository import usage as stored
from engine.runs import FLOODED, Start
from engine.usage import Period, RollUp
from tests.fairshare_waiting import until
from tests.quota_world import NOW, NoLanes, World


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    world = World(database_url)
    yield world
    world.database.close()


def test_fifty_clients_and_four_hundred_starts_against_a_limit_of_a_hundred(world: World) -> None:
    world.limit(max_executions_per_month=100)
    world.many(400, "api", "webhook", "api")
    assert world.states() == {"queued": 100, "held": 300}
    assert (world.ledger(), world.counter(), len(world.broker.messages)) == (100, 100, 100)
    report = world.report()
    assert (report.executions, report.held) == (100, 300)

    world.limit(max_executions_per_month=250)
    waiting = [row["id"] for row in world.rows("SELECT id FROM runs WHERE status = 'held' ORDER BY id")]
    world.broker.messages.clear()
    with ThreadPoolExecutor(4) as crew:
        assert sum(crew.map(lambda _: world.release(), range(4))) == 150
    assert [message.run_id for message in world.broker.messages.values()] == waiting[:150]
    assert (world.ledger(), world.counter()) == (250, 250)

    world.limit(max_executions_per_month=None)
    assert world.release() == 150
    assert [message.run_id for message in world.broker.messages.values()] == waiting
    assert world.states() == {"queued": 400}


def test_starts_with_one_key_take_one_of_the_month(world: World) -> None:
    world.limit(max_executions_per_month=10)
    with ThreadPoolExecutor(20) as crew:
        made = {row["id"] for row in crew.map(lambda _: world.start(key="same"), range(40))}
    assert len(made) == 1
    assert (world.ledger(), world.counter()) == (1, 1)


def test_what_no_one_could_try_again_is_held_whoever_is_busy(world: World) -> None:
    """Transactions that start several runs wait for no one: what they could not count is admitted a moment later."""
    world.limit(max_executions_per_month=60)

    def batch(_: int) -> None:
        with world.database.tenant("acme") as session:
            for _number in range(5):
                world.runs.start(session, Start(workflow_id="wf_1", trigger="schedule", input={}))

    with ThreadPoolExecutor(20) as crew:
        list(crew.map(batch, range(20)))
    assert world.ledger() <= 60
    world.release()
    assert world.states() == {"queued": 60, "held": 40}
    assert (world.ledger(), world.counter()) == (60, 60)


def test_the_next_month_lets_the_oldest_go_and_counts_them_there(world: World) -> None:
    world.limit(max_executions_per_month=3)
    made = [world.start()["id"] for _ in range(8)]
    assert world.release() == 0
    world.now = NOW + timedelta(minutes=1)
    april = Period.of(world.now)
    assert world.release() == 3
    world.end_queued()
    assert [row["id"] for row in world.rows("SELECT id FROM runs WHERE status = 'held' ORDER BY id")] == made[6:]
    assert (world.ledger(), world.ledger(april)) == (3, 3)
    assert world.start()["status"] == "held", "the month is used up again"


def test_a_held_run_can_be_cancelled_and_takes_nothing(world: World) -> None:
    world.limit(max_executions_per_month=1)
    world.start()
    first, second = world.start()["id"], world.start()["id"]
    with world.database.tenant("acme") as session:
        assert world.runs.cancel(session, first, by="user_ada")
    world.limit(max_executions_per_month=2)
    assert world.release() == 1
    assert world.rows(f"SELECT status FROM runs WHERE id = '{second}'") == [{"status": "queued"}]


def test_who_comes_while_others_are_held_goes_behind_them(world: World) -> None:
    world.limit(max_executions_per_month=1)
    world.start()
    held = world.start()["id"]
    world.limit(max_executions_per_month=3)
    later = world.start()
    assert (later["status"], later["wait_reason"]) == ("held", "quota")
    world.broker.messages.clear()
    assert world.release() == 2
    assert [message.run_id for message in world.broker.messages.values()] == [held, later["id"]]


def test_a_lower_limit_holds_at_once_and_a_removed_one_is_counted_when_it_returns(world: World) -> None:
    world.limit(max_executions_per_month=100)
    world.many(20, "api")
    world.limit(max_executions_per_month=10)
    assert world.start()["status"] == "held"
    world.limit(max_executions_per_month=None)
    world.release()
    world.many(5, "api")
    world.limit(max_executions_per_month=27)
    assert [world.start()["status"] for _ in range(2)] == ["queued", "held"]
    assert world.counter() == world.ledger() == 27


def test_the_policy_reject_refuses_what_comes_from_outside_until_the_month_ends(world: World) -> None:
    world.limit(max_executions_per_month=1)
    with world.database.system() as session:
        Plans(world.database, NoLanes()).set_policy(session, "acme", "reject")
    world.start()
    for trigger in sorted(FROM_OUTSIDE):
        with pytest.raises(StartRefused) as refused:
            world.start(trigger)
        assert (refused.value.error_code, refused.value.retry_after) == ("quota_executions", timedelta(seconds=30))
    assert world.start("schedule")["status"] == "held"
    note_refusal(world.database, refused.value)
    assert world.rows("SELECT kind, outcome FROM usage WHERE run_id IS NULL") == [
        {"kind": "rejected", "outcome": "quota_executions"}
    ]


def test_no_more_wait_than_may_and_a_schedule_is_held_for_it(world: World) -> None:
    world.limit(max_queued_runs=40, max_executions_per_month=None)

    def try_it(_: int) -> str:
        try:
            return str(world.start()["status"])
        except StartRefused as refusal:
            return refusal.error_code

    with ThreadPoolExecutor(30) as crew:
        assert Counter(crew.map(try_it, range(120))) == {"queued": 40, "quota_queue": 80}
    assert world.start("schedule")["status"] == "held"
    assert world.release() == 0
    world.end_queued()
    assert world.release() == 1
    assert world.start()["status"] == "queued"


def test_runs_of_a_flood_are_admitted_when_somebody_releases_them(world: World) -> None:
    world.limit(max_executions_per_month=2)
    for _ in range(4):
        world.start("poll", hold=FLOODED)
    assert world.ledger() == 0
    with world.database.tenant("acme") as session:
        assert world.runs.release_held(session, "wf_1") == 4
    assert world.release() == 2
    assert world.states() == {"queued": 2, "held": 2}
    assert world.ledger() == 2


def test_a_counter_that_is_wrong_is_mended_and_the_difference_counted(world: World) -> None:
    world.limit(max_executions_per_month=10)
    world.many(6, "api")
    reconciler = Reconciler(world.database)
    assert reconciler.run_once(world.now) == 0
    with world.database.system() as session:
        session.execute(sa.text("UPDATE quota_counters SET used = used + 3 WHERE slot = 0"))
    TALLIES.take()
    assert reconciler.run_once(world.now) == 1
    assert TALLIES.take() == {("quota_drift", ()): 3}
    assert world.counter() == world.ledger() == 6
    world.many(6, "api")
    assert world.states() == {"queued": 10, "held": 2}


def test_the_roll_up_counts_late_commits_and_nothing_twice(world: World) -> None:
    world.limit(max_executions_per_month=None)
    row = (
        "INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id)"
        " VALUES ('acme', '2027-03-05', 'execution', 'late', 'wf_1')"
    )
    with psycopg.connect(world.url.replace("+psycopg", ""), autocommit=False) as late:
        late.execute(row)  # its number is lower than those that are visible before it
        world.many(10, "api")
        assert world.report().executions == 10
        with ThreadPoolExecutor(2) as crew:
            list(crew.map(lambda _: RollUp(world.database).run_once(), range(2)))
        assert world.report().executions == 10
        late.commit()
    for expected in (11, 0, 0):
        with ThreadPoolExecutor(2) as crew:
            rolled = sum(crew.map(lambda _: RollUp(world.database).run_once().rows, range(2)))
        assert rolled >= expected if expected else rolled == 0
        assert world.report().executions == world.ledger() == 11
    sums = "SELECT sum(quantity) AS n FROM usage_{} WHERE kind = 'execution'"
    assert world.rows(sums.format("hourly")) == world.rows(sums.format("monthly")) == [{"n": 11}]


@pytest.mark.parametrize("numbers", ["cluster = 7", "cluster = 0, xid = xid + 1000000"])
def test_roll_ups_that_came_from_another_cluster_are_made_again(world: World, numbers: str) -> None:
    world.many(5, "api")
    roll_up = RollUp(world.database)
    roll_up.run_once()
    world.many(2, "api")
    with psycopg.connect(world.url.replace("+psycopg", "")) as restored:  # as a dump is, with numbers from elsewhere
        restored.execute("UPDATE usage SET xid = xid + 1000000 WHERE id <= 3")
        restored.execute(f"UPDATE usage_rollups SET {numbers}".encode())
    world.many(4, "api")
    assert roll_up.run_once().rows == 11
    sums = "SELECT sum(quantity) AS n FROM usage_{} WHERE kind = 'execution'"
    for more in (0, 6):
        world.many(more, "api")
        assert world.report().executions == world.ledger() == 11 + more
        assert roll_up.run_once().rows == more
        assert world.report().executions == 11 + more
        assert world.rows(sums.format("hourly")) == world.rows(sums.format("monthly")) == [{"n": 11 + more}]


def test_roll_ups_are_made_again_when_whoever_writes_to_the_ledger_has_ended(world: World) -> None:
    world.many(5, "api")
    RollUp(world.database).run_once()
    row = (
        "INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id) VALUES ('acme', %s, 'execution', 'late', 'wf_1')"
    )
    with psycopg.connect(world.url.replace("+psycopg", "")) as late, ThreadPoolExecutor(1) as crew:
        late.execute("UPDATE usage_rollups SET cluster = 7")
        late.commit()
        late.execute(row, [NOW])
        rolled = crew.submit(RollUp(world.database).run_once)
        until(lambda: bool(world.rows("SELECT 1 AS n FROM pg_locks WHERE NOT granted AND mode = 'ShareLock'")))
        late.commit()
        assert rolled.result().rows == 6
    assert world.report().executions == world.ledger() == 6


def test_a_roll_up_has_as_long_as_it_needs(world: World) -> None:
    """The first after an upgrade takes the whole ledger."""
    with world.database.system() as session:
        assert session.execute(sa.text("SHOW statement_timeout")).scalar_one() == "1min"
        stored.roll_up(session)
        assert session.execute(sa.text("SHOW statement_timeout")).scalar_one() == "0"


def test_nobody_changes_the_ledger(world: World) -> None:
    world.start()
    for session_of in (world.database.system(), world.database.tenant("acme")):
        with pytest.raises(sa.exc.ProgrammingError), session_of as session:
            session.execute(sa.text("UPDATE usage SET quantity = 0"))
