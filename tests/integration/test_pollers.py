"""Polls start one run for each new item: the baseline, cursors, floods, and what is remembered for how long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import RetryLater
from engine.held import Held
from engine.runs import FLOODED, Start
from tests.poll_parts import TWIN, PollParts, poll_parts_for
from triggers import Scheduler
from triggers.pollers import FLOOD, Outcome, Result

POLLED = Outcome.POLLED
LANE = {"weight": 1, "cap": 20, "rate": 0, "burst": 1, "paused": 0}


@pytest.fixture
def parts(database_url: str) -> Iterator[PollParts]:
    with poll_parts_for(database_url) as parts:
        yield parts


@pytest.mark.parametrize("source", ["http.json", "rss"])
def test_the_first_poll_takes_the_baseline_and_later_ones_start_what_is_new(parts: PollParts, source: str) -> None:
    parts.service.ids = [1, 2, 3]
    workflow_id = parts.save(parts.trigger(source=source))
    assert parts.poll(workflow_id) == Result(POLLED, new=3)
    assert parts.runs_of(workflow_id) == []
    parts.service.ids += [4, 5]
    assert parts.poll(workflow_id) == Result(POLLED, new=2, started=2)
    assert parts.poll(workflow_id) == Result(POLLED)
    names = {"http.json": ["4", "5"], "rss": ["tag:4", "tag:5"]}[source]
    assert parts.started(workflow_id) == names


def test_with_initial_all_the_first_poll_starts_what_is_there_the_oldest_first(parts: PollParts) -> None:
    parts.service.ids = [7, 8]
    workflow_id = parts.save(parts.trigger(initial="all"))
    assert parts.poll(workflow_id) == Result(POLLED, new=2, started=2)
    first, second = parts.runs_of(workflow_id)
    assert (first["trigger"], first["status"]) == ("poll", "queued")
    assert first["input"] == {"item": {"id": 7, "total": 70}, "item_id": "7", "source": "http.json"}
    assert second["input"]["item_id"] == "8"
    assert list(parts.broker.runs) == [first["id"], second["id"]]


def test_an_entry_of_a_feed_is_what_the_run_gets(parts: PollParts) -> None:
    parts.service.ids = [7]
    workflow_id = parts.save(parts.trigger(source="rss", initial="all"))
    parts.poll(workflow_id)
    (run,) = parts.runs_of(workflow_id)
    assert run["input"]["item"] == {
        "id": "tag:7", "title": "Order 7", "link": f"{parts.service.url}/orders/7", "summary": None, "content": None,
        "author": None, "published": None, "updated": None, "tags": [], "enclosures": [],
    }  # fmt: skip


def test_an_item_that_was_away_for_a_while_is_not_new(parts: PollParts) -> None:
    parts.service.ids = [1]
    workflow_id = parts.save(parts.trigger())
    for ids in ([1], [1, 2], [], [2], [3, 1, 2]):
        parts.service.ids = ids
        parts.poll(workflow_id)
    assert parts.started(workflow_id) == ["2", "3"]


def test_a_cursor_asks_only_for_what_came_after_the_newest_item(parts: PollParts) -> None:
    parts.service.ids = [1, 2, 3]
    workflow_id = parts.save(parts.trigger(parameters={"cursor": {"parameter": "since"}}))
    for ids in ([1, 2, 3], [1, 2, 3, 4], [], [4, 5]):
        parts.service.ids = ids
        parts.poll(workflow_id)
    assert [request.query.get("since") for request in parts.service.received] == [None, ["3"], ["4"], ["4"]]
    assert parts.started(workflow_id) == ["4", "5"]


@pytest.mark.parametrize("source", ["http.json", "rss"])
def test_a_page_that_did_not_change_is_not_sent_again(parts: PollParts, source: str) -> None:
    parts.service.validators = True
    parts.service.ids = [1, 2]
    workflow_id = parts.save(parts.trigger(source=source))
    parts.poll(workflow_id)
    assert parts.poll(workflow_id) == Result(POLLED)
    parts.service.ids.append(3)
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)
    assert [request.headers.get("if-none-match") for request in parts.service.received] == [None, '"2"', '"2"']


def test_polls_keep_their_rhythm(parts: PollParts) -> None:
    workflow_id = parts.save(parts.trigger())
    scheduler = Scheduler(parts.database, parts.runs, parts.broker)
    saved_at = parts.trigger_of(workflow_id)["next_fire_at"]
    scheduler.run_once()
    parts.poll(workflow_id)
    assert parts.trigger_of(workflow_id)["next_fire_at"] == saved_at + timedelta(minutes=10)
    late = saved_at - timedelta(minutes=34)
    parts.change("UPDATE triggers SET next_fire_at = :at WHERE workflow_id = :id", at=late, id=workflow_id)
    scheduler.run_once()
    parts.poll(workflow_id)
    row = parts.trigger_of(workflow_id)
    assert (row["last_fired_at"], row["next_fire_at"]) == (late, late + timedelta(minutes=40))


def test_a_poll_that_was_saved_before_the_plan_asked_for_more_time_keeps_to_the_plan(parts: PollParts) -> None:
    workflow_id = parts.save(parts.trigger())
    parts.change("UPDATE tenants SET limits = '{\"min_poll_interval\": 3600}'")
    saved_at = parts.trigger_of(workflow_id)["next_fire_at"]
    Scheduler(parts.database, parts.runs, parts.broker).run_once()
    parts.poll(workflow_id)
    assert parts.trigger_of(workflow_id)["next_fire_at"] == saved_at + timedelta(hours=1)


def test_a_hundred_new_items_run_and_one_more_holds_all_of_them(parts: PollParts) -> None:
    calm, flooded = (parts.save(parts.trigger(initial="all")) for _ in range(2))
    parts.service.ids = list(range(1, FLOOD + 1))
    assert parts.poll(calm) == Result(POLLED, new=FLOOD, started=FLOOD)
    parts.service.ids.append(FLOOD + 1)
    assert parts.poll(flooded) == Result(POLLED, new=FLOOD + 1, started=FLOOD + 1, held=True)
    assert {(run["status"], run["wait_reason"]) for run in parts.runs_of(flooded)} == {("held", FLOODED)}
    assert len(parts.broker.runs) == FLOOD
    parts.service.ids.append(FLOOD + 2)
    assert parts.poll(flooded) == Result(POLLED, new=1, started=1)
    assert parts.started(flooded) == [str(number) for number in parts.service.ids]


def test_held_runs_start_in_their_order_once_they_are_released(parts: PollParts) -> None:
    workflow_id, other = (parts.save(parts.trigger(initial="all")) for _ in range(2))
    parts.service.ids = list(range(1, FLOOD + 2))
    parts.poll(workflow_id)
    parts.poll(other)
    with parts.database.tenant("a") as session:
        held_otherwise = Start(workflow_id=workflow_id, trigger="api", input={}, hold="another reason")
        other_hold = parts.runs.start(session, held_otherwise).run["id"]
        assert parts.runs.release_held(session, workflow_id) == FLOOD + 1
    assert parts.broker.runs == {}
    assert Held(parts.database, parts.runs).run_once().released == FLOOD + 1
    with parts.database.tenant("a") as session:
        assert parts.runs.release_held(session, workflow_id) == 0
    released = [run for run in parts.runs_of(workflow_id) if run["id"] != other_hold]
    assert {(run["status"], run["wait_reason"]) for run in released} == {("queued", None)}
    assert list(parts.broker.runs) == [run["id"] for run in released]
    lanes = [dict(message.lane or {}) for message in parts.broker.runs.values()]
    assert all(lane == {**LANE, "version": lane["version"]} for lane in lanes)
    assert [run["status"] for run in parts.runs_of(workflow_id) if run["id"] == other_hold] == ["held"]
    assert {run["status"] for run in parts.runs_of(other)} == {"held"}


def test_nobody_releases_the_runs_of_another_tenant(parts: PollParts) -> None:
    workflow_id = parts.save(parts.trigger(initial="all"))
    parts.service.ids = list(range(FLOOD + 1))
    parts.poll(workflow_id)
    with parts.database.tenant("b") as session:
        assert parts.runs.release_held(session, workflow_id) == 0


def test_another_rhythm_goes_on_and_another_source_begins_anew(parts: PollParts) -> None:
    parts.service.ids = [1]
    workflow_id = parts.save(parts.trigger())
    parts.poll(workflow_id)
    parts.service.ids = [1, 2]
    parts.save(parts.trigger(every="1h"), workflow_id=workflow_id)
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)
    parts.service.ids = [1, 2, 3]
    parts.save(parts.trigger(parameters={"headers": {"x-view": "all"}}), workflow_id=workflow_id)
    assert parts.poll(workflow_id) == Result(POLLED, new=3)
    parts.service.ids = [1, 2, 3, 4]
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)
    assert parts.started(workflow_id) == ["2", "4"]


def test_the_same_id_at_another_source_is_another_item(parts: PollParts) -> None:
    parts.service.ids = [1]
    workflow_id = parts.save(parts.trigger(initial="all"))
    parts.poll(workflow_id)
    elsewhere = parts.trigger(initial="all", parameters={"url": f"{parts.service.url}/elsewhere"})
    parts.save(elsewhere, workflow_id=workflow_id)
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)
    assert parts.started(workflow_id) == ["1", "1"]


def test_items_are_forgotten_long_after_the_source_has_ceased_to_list_them(parts: PollParts) -> None:
    workflow_id = parts.save(TWIN)
    parts.twin.items = ["gone", "listed"]
    parts.poll(workflow_id)
    parts.change("UPDATE poll_items SET seen_at = now() - interval '31 days'")
    parts.twin.items = ["listed"]
    assert parts.poll(workflow_id) == Result(POLLED)
    parts.twin.items = ["listed", "new"]
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)
    known = parts.rows("SELECT item_id FROM poll_items ORDER BY item_id")
    assert [row["item_id"] for row in known] == ["listed", "new"]


def test_ids_that_are_long_or_odd_are_told_apart(parts: PollParts) -> None:
    workflow_id = parts.save({**TWIN, "initial": "all"})
    odd = ["x" * 100_000, "x" * 100_001, "tab\t", "nul\0", "nul\0\0", "é" * 300, "😀", " "]
    parts.twin.items = odd
    assert parts.poll(workflow_id) == Result(POLLED, new=len(odd), started=len(odd))
    parts.twin.items = [*odd, odd[0], "x" * 100_002]
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)


listings = st.lists(st.none() | st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=8)
"""What a source lists at each of several polls; None when it fails."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listings)
def test_whatever_is_listed_when_each_item_after_the_baseline_has_one_run_in_the_order_of_its_coming(
    parts: PollParts, polls: list[list[str] | None]
) -> None:
    workflow_id = parts.save(TWIN)
    seen: list[str] | None = None
    expected: list[str] = []
    for listed in polls:
        parts.twin.items, parts.twin.error = listed or [], RetryLater("not now") if listed is None else None
        parts.poll(workflow_id)
        if listed is not None:
            new = [item for item in dict.fromkeys(listed) if item not in (seen or ())]
            expected += [] if seen is None else new
            seen = [*(seen or ()), *new]
    assert parts.started(workflow_id) == expected
