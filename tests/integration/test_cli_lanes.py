"""``fairlane lanes`` by its entry point, on real messages in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from engine.db import Database
from engine.fairshare import Lanes
from tests.command_line import DOWN, CommandLine, configured
from tests.fair_queue import FairQueue, fair_queue


@pytest.fixture
def fairlane(database_url: str, redis_url: str, tmp_path: Path) -> CommandLine:
    database = Database(database_url)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme'), ('beta', 'Beta')"))
    database.close()
    return configured(tmp_path, database_url, redis_url)


@pytest.fixture
def queue(redis_url: str) -> Iterator[FairQueue]:
    with fair_queue(redis_url) as queue:
        yield queue


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_lanes_are_listed_with_what_waits_and_what_runs(fairlane: CommandLine, queue: FairQueue) -> None:
    assert fairlane.fine("lanes", "list").out == "There are no such lanes.\n"
    queue.publish("acme", 3)
    fairlane.fine("lanes", "pause", "beta")
    queue.take()
    lanes = {lane["tenant"]: lane for lane in fairlane.fine("lanes", "list", "--json").json}
    assert (lanes["acme"]["backlog"], lanes["acme"]["in_flight"], lanes["acme"]["paused"]) == (2, 1, False)
    assert lanes["beta"]["paused"]
    assert [lane["tenant"] for lane in fairlane.fine("lanes", "list", "--busy", "--json").json] == ["acme"]
    header, acme, beta = fairlane.fine("lanes", "list").out.splitlines()
    assert header.startswith("organization")
    assert "open" in acme
    assert "paused" in beta


def test_one_lane_is_shown_also_before_anything_waited_there_and_so_is_the_whole_queue(
    fairlane: CommandLine, queue: FairQueue
) -> None:
    resting = fairlane.fine("lanes", "show", "acme", "--json").json
    assert (resting["backlog"], resting["cap"], resting["rate"], resting["paused"]) == (0, 20, None, False)
    assert fairlane.fine("lanes", "list", "--json").json == []
    queue.publish("acme", 2)
    assert fairlane.fine("lanes", "show", "acme", "--json").json["backlog"] == 2
    assert fairlane.fine("lanes", "show", "--json").json["backlog"] == 2
    assert "backlog" in fairlane.fine("lanes", "show").out
    assert fairlane("lanes", "show", "nobody").code == 1


def test_a_paused_lane_begins_nothing_until_it_is_resumed_even_if_redis_is_emptied(
    fairlane: CommandLine, queue: FairQueue, client: redis.Redis, redis_url: str
) -> None:
    queue.publish("acme", 2)
    assert "lanes resume acme" in fairlane.fine("lanes", "pause", "acme").out
    assert queue.take() is None
    client.flushall()
    queue.publish("acme", 1, lane={"weight": 1, "version": 0})
    fairlane.fine("lanes", "check", "--repair")
    assert queue.take() is None
    assert fairlane.fine("lanes", "resume", "acme").out == "The lane of acme is open.\n"
    assert queue.take() == "acme"
    assert fairlane("lanes", "pause", "nobody").code == 1
    assert fairlane("lanes", "resume", "nobody").code == 1


def test_pausing_and_resuming_tell_a_program_what_the_lane_is_now(fairlane: CommandLine, queue: FairQueue) -> None:
    assert fairlane.fine("lanes", "pause", "acme", "--json").json == {"tenant": "acme", "paused": True}
    assert queue.take() is None
    resumed = fairlane.fine("lanes", "resume", "acme", "--json").json
    assert resumed == {"tenant": "acme", "paused": False, "status": "active"}


def test_resuming_the_lane_of_a_suspended_organization_says_that_it_rests(fairlane: CommandLine) -> None:
    fairlane.fine("tenants", "suspend", "acme")
    result = fairlane.fine("lanes", "resume", "acme")
    assert result.out == "The lane of acme is open, and rests as long as the organization is suspended.\n"
    assert fairlane.fine("lanes", "show", "acme", "--json").json["paused"]


def test_a_whole_queue_passes_the_check(fairlane: CommandLine, queue: FairQueue) -> None:
    for tenant in ("acme", "beta"):
        fairlane.fine("tenants", "set-limit", tenant, "max_runs_per_minute", "90")
        queue.publish(tenant, 3)
    assert fairlane.fine("lanes", "check", "--json").json == {"ok": True, "repaired": False, "faults": []}
    assert fairlane.fine("lanes", "check").out == "The queue is whole, and each lane is as it should be.\n"


def test_a_broken_queue_is_named_and_repaired(fairlane: CommandLine, queue: FairQueue, client: redis.Redis) -> None:
    fairlane.fine("lanes", "resume", "acme")
    queue.publish("acme", 3)
    fairlane.fine("lanes", "list")
    client.zrem("{runs}:ready", "acme")
    assert queue.take() is None
    broken = fairlane("lanes", "check", "--json")
    assert broken.code == 1
    assert not broken.json["ok"]
    assert broken.json["faults"][0].keys() == {"invariant", "tenant", "detail"}
    assert "acme" in {fault["tenant"] for fault in broken.json["faults"]}
    assert "lanes check --repair" in fairlane("lanes", "check").out
    assert fairlane.fine("lanes", "check", "--repair").out.startswith("Repaired ")
    assert queue.take() == "acme"
    fairlane.fine("lanes", "check")


def test_lanes_of_another_database_are_refused_with_what_to_do(fairlane: CommandLine, redis_url: str) -> None:
    Lanes(redis_url).configure("acme", weight=9, version=10**9)
    assert "weight is 9, Postgres wants 1" in fairlane("lanes", "check").err
    result = fairlane("lanes", "check", "--repair")
    assert result.code == 1
    assert "this Redis belongs to another database" in result.err


def test_messages_that_were_set_aside_are_listed_put_back_and_deleted(fairlane: CommandLine, queue: FairQueue) -> None:
    assert fairlane.fine("lanes", "aside", "list").out == "Nothing is set aside.\n"
    queue.publish("acme", 3)
    queue.reject(3)
    messages = fairlane.fine("lanes", "aside", "list", "--json").json
    assert len(messages) == 3
    assert messages[0].keys() == {"id", "at", "reason", "payload"}
    assert len(fairlane.fine("lanes", "aside", "list").out.splitlines()) == 4
    first, second, third = (message["id"] for message in messages)
    assert fairlane.fine("lanes", "aside", "revive", first).out == "Put back 1.\n"
    assert queue.take() == "acme"
    assert fairlane.fine("lanes", "aside", "forget", second).out == "Deleted 1.\n"
    for words in (("revive", second), ("forget", second)):
        assert fairlane("lanes", "aside", *words).code == 1
    assert fairlane.fine("lanes", "aside", "forget", "--all").out == "Deleted 1.\n"
    assert fairlane("lanes", "aside", "revive").code == 2
    assert fairlane("lanes", "aside", "forget", third, "--all").code == 2


@pytest.mark.parametrize("words", [("list",), ("show",), ("check",), ("aside", "list")])
def test_without_redis_a_command_about_lanes_fails_with_one_sentence(
    fairlane: CommandLine, words: tuple[str, ...]
) -> None:
    result = fairlane("lanes", *words, FAIRLANE_REDIS_URL=DOWN)
    assert result.code == 1
    assert result.err.startswith("Redis does not answer at FAIRLANE_REDIS_URL: ")
    assert len(result.err.splitlines()) == 1
