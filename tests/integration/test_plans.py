"""Plans and limits act on lanes at once, outlive Redis, and never go back to an older version."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import redis
import sqlalchemy as sa

from engine import plans
from engine.db import Database, SystemSession
from engine.errors import Conflict, NotFound, Unavailable
from engine.fairshare import Lanes
from engine.plans import BATCH, NAMES, Limits, Plans
from engine.ports import Lane
from engine.repository import plans as stored
from tests.engine_parts import Parts, parts_for
from tests.fair_queue import FairQueue, fair_queue


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme'), ('beta', 'Beta')"))
    yield database
    database.close()


@pytest.fixture
def lanes(redis_url: str) -> Lanes:
    return Lanes(redis_url)


@pytest.fixture
def book(database: Database, lanes: Lanes) -> Plans:
    return Plans(database, lanes)


@pytest.fixture
def queue(redis_url: str) -> Iterator[FairQueue]:
    with fair_queue(redis_url) as queue:
        yield queue


def lane_of(database: Database, tenant: str) -> Lane:
    with database.system() as session:
        return stored.lanes(session, [tenant])[tenant]


def set_limits(database: Database, book: Plans, tenant: str, **values: float | None) -> None:
    with database.system() as session:
        book.set_limits(session, tenant, values)


def test_a_weight_acts_on_what_waits_already(database: Database, book: Plans, queue: FairQueue) -> None:
    for tenant in ("acme", "beta"):
        queue.publish(tenant, 40, lane=lane_of(database, tenant))
    assert queue.take_many(10) == {"acme": 5, "beta": 5}
    set_limits(database, book, "beta", weight=4)
    assert abs(queue.take_many(20)["beta"] - 16) <= 1


def test_a_cap_acts_on_what_waits_already_and_so_does_raising_it(
    database: Database, book: Plans, queue: FairQueue
) -> None:
    queue.publish("acme", 6, lane=lane_of(database, "acme"))
    assert queue.take_many(2) == {"acme": 2}
    set_limits(database, book, "acme", max_concurrent_runs=2)
    assert queue.take() is None
    set_limits(database, book, "acme", max_concurrent_runs=3)
    assert queue.take_many(2) == {"acme": 1, None: 1}
    with database.system() as session:
        book.unset_limits(session, "acme", "max_concurrent_runs")
    assert queue.take_many(3) == {"acme": 3}


def test_a_rate_acts_on_what_waits_already(database: Database, book: Plans, queue: FairQueue, lanes: Lanes) -> None:
    queue.publish("acme", 3, lane=lane_of(database, "acme"))
    set_limits(database, book, "acme", max_runs_per_minute=1)
    assert queue.take_many(2) == {"acme": 1, None: 1}
    lane = lanes.inspect("acme")
    assert lane is not None
    assert lane.rate == pytest.approx(1 / 60)
    assert 0 < lane.rate_due_in <= 60


def test_a_plan_reaches_the_lanes_of_all_its_tenants_and_makes_none(
    database: Database, book: Plans, queue: FairQueue, lanes: Lanes
) -> None:
    with database.system() as session:
        numbers = sa.text("INSERT INTO tenants (id, name) SELECT 'many' || n, 'M' FROM generate_series(1, :n) n")
        session.execute(numbers, {"n": BATCH * 2})
        session.execute(sa.text("UPDATE tenants SET plan = 'team' WHERE id = 'beta'"))
    busy = ["acme", "beta", "many1", f"many{BATCH}", f"many{BATCH * 2}"]
    for tenant in busy:
        queue.publish(tenant, 1, lane=lane_of(database, tenant))
    with database.system() as session:
        book.change_plan(session, "free", {"weight": 7, "max_concurrent_runs": None})
    assert {lane.tenant: (lane.weight, lane.cap) for lane in lanes.all()} == {
        tenant: (2.0, 50) if tenant == "beta" else (7.0, None) for tenant in busy
    }


def test_what_differs_for_a_tenant_stands_over_its_plan(
    database: Database, book: Plans, queue: FairQueue, lanes: Lanes
) -> None:
    queue.publish("acme", 1, lane=lane_of(database, "acme"))
    set_limits(database, book, "acme", weight=3, max_members=None)
    with database.system() as session:
        book.change_plan(session, "free", {"weight": 9})
        book.set_plan(session, "acme", "enterprise")
        own = plans.of_tenant(session, "acme")
    lane = lanes.inspect("acme")
    assert lane is not None
    assert (lane.weight, lane.cap) == (3.0, 200)
    assert own.overrides == {"weight": 3.0, "max_members": None}
    assert (own.limits.weight, own.limits.max_members, own.limits.log_retention_days) == (3.0, None, 365)


class NoLanes:
    """Lanes behind a broker that is down."""

    def configure_many(self, configurations: object, *, only_known: bool = False) -> int:
        raise Unavailable("Redis does not answer.")


def test_a_change_stands_while_redis_is_down_and_travels_with_the_next_message(
    database_url: str, queue: FairQueue, lanes: Lanes
) -> None:
    reasons: list[str] = []
    with parts_for(database_url) as parts:
        parts.workflow({"id": "a", "action": "debug.echo"})
        queue.publish("acme", 1, lane=lane_of(parts.database, "acme"))
        book = Plans(parts.database, NoLanes(), untold=reasons.append)
        with parts.database.system() as session:
            book.set_limits(session, "acme", {"weight": 5})
            book.change_plan(session, "free", {"max_concurrent_runs": 11})
        before = lanes.inspect("acme")
        message = parts.publisher.messages[parts.start()]
        queue.send(message)
    assert reasons == ["Redis does not answer."] * 2
    after = lanes.inspect("acme")
    assert before is not None
    assert after is not None
    assert (before.weight, before.cap) == (1.0, 20)
    assert (after.weight, after.cap) == (5.0, 11)


def test_a_change_that_is_rolled_back_tells_nobody(database: Database, book: Plans, lanes: Lanes) -> None:
    def change_both() -> None:
        with database.system() as session:
            for tenant in ("acme", "nobody"):
                book.set_limits(session, tenant, {"weight": 5})

    with pytest.raises(NotFound, match="nobody"):
        change_both()
    assert lanes.inspect("acme") is None
    assert lane_of(database, "acme")["weight"] == 1


def test_a_paused_lane_stays_paused_when_redis_loses_its_data(
    database: Database, book: Plans, queue: FairQueue, redis_url: str
) -> None:
    with database.system() as session:
        book.pause_lane(session, "acme")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    queue.publish("acme", 2, lane=lane_of(database, "acme"))
    assert queue.take() is None
    with database.system() as session:
        book.resume_lane(session, "acme")
    assert queue.take_many(2) == {"acme": 2}


def test_a_suspended_tenant_starts_nothing_and_goes_on_where_it_was(database_url: str, redis_url: str) -> None:
    with parts_for(database_url) as parts, fair_queue(redis_url) as queue:
        parts.workflow({"id": "a", "action": "debug.echo"})
        waiting = parts.start()
        queue.send(parts.publisher.messages[waiting])
        book = Plans(parts.database, Lanes(redis_url))
        with parts.database.system() as session:
            book.suspend(session, "acme")
        assert queue.take() is None
        _nothing_new_starts(parts)
        parts.executor.run("acme", waiting)  # as if Redis had been down, and its lane knew nothing
        assert parts.run_row(waiting)["status"] == "queued"
        with parts.database.system() as session:
            book.resume(session, "acme")
        assert queue.take() == "acme"
        parts.executor.run("acme", waiting)
        assert parts.run_row(waiting)["status"] == "succeeded"


def _nothing_new_starts(parts: Parts) -> None:
    with pytest.raises(Conflict):
        parts.start()


def test_resuming_a_tenant_leaves_an_operators_pause_of_its_lane(database: Database, book: Plans, lanes: Lanes) -> None:
    with database.system() as session:
        book.pause_lane(session, "acme")
        book.suspend(session, "acme")
        book.resume(session, "acme")
    lane = lanes.inspect("acme")
    assert lane is not None
    assert lane.paused
    with database.system() as session:
        assert plans.of_tenant(session, "acme").paused


def test_of_many_changes_at_once_the_lane_ends_with_the_last(database: Database, book: Plans, lanes: Lanes) -> None:
    def change(number: int) -> None:
        for step in range(5):
            set_limits(database, book, "acme", weight=number * 10 + step + 1)
            with database.system() as session:
                book.change_plan(session, "free", {"max_concurrent_runs": number * 10 + step + 1})

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted, lane = lane_of(database, "acme"), lanes.inspect("acme")
    assert lane is not None
    assert (lane.weight, lane.cap, lane.version) == (wanted["weight"], wanted["cap"], wanted["version"])


def test_every_limit_at_its_edges_makes_a_lane(database: Database, book: Plans, lanes: Lanes) -> None:
    for edges in ({"max_concurrent_runs": 1_000_000, "max_runs_per_minute": 1_000_000, "weight": 1000},
                  {"max_concurrent_runs": 1, "max_runs_per_minute": 1, "weight": 0.01}):  # fmt: skip
        set_limits(database, book, "acme", **edges)
        lane = lanes.inspect("acme")
        assert lane is not None
        assert (lane.cap, lane.weight) == (edges["max_concurrent_runs"], edges["weight"])
        assert lane.rate == pytest.approx(edges["max_runs_per_minute"] / 60)


def test_the_plans_that_come_with_the_schema_say_every_limit_and_are_whole(database: Database) -> None:
    with database.system() as session:
        seeded = {row["name"]: row["limits"] for row in stored.listed(session)}
        whole = plans.listed(session)
    assert set(seeded) == {"free", "team", "enterprise"}
    assert all(set(limits) == set(NAMES) for limits in seeded.values())
    assert {row["name"]: row["limits"].model_dump() for row in whole} == seeded
    assert [row["tenants"] for row in whole if row["name"] == "free"] == [2]


def test_versions_rise_with_every_change(database: Database, book: Plans) -> None:
    versions = [lane_of(database, "acme")["version"]]
    changes: list[Callable[[SystemSession], None]] = [
        lambda session: book.set_limits(session, "acme", {"weight": 2}),
        lambda session: book.change_plan(session, "free", {"weight": 2}),
        lambda session: book.set_plan(session, "acme", "team"),
        lambda session: book.suspend(session, "acme"),
    ]
    for change in changes:
        with database.system() as session:
            change(session)
        versions.append(lane_of(database, "acme")["version"])
    assert all(before < after for before, after in pairwise(versions))


def test_a_plan_is_made_once(database: Database, book: Plans) -> None:
    with database.system() as session:
        book.create_plan(session, "pro", Limits(weight=3))
        book.set_plan(session, "acme", "pro")
    with pytest.raises(Conflict, match="'pro' already"), database.system() as session:
        book.create_plan(session, "pro", Limits())
    with pytest.raises(NotFound, match="no plan 'gold'"), database.system() as session:
        book.change_plan(session, "gold", {"weight": 1})
    with pytest.raises(NotFound, match="no plan 'gold'"), database.system() as session:
        book.set_plan(session, "acme", "gold")
