"""Polls that fail, meet each other, or come too late: nothing is lost, nothing is doubled, and the reason is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import psycopg
import pytest

from embedded.postgres import PostgresServer
from engine.errors import QuotaExceeded, Unavailable
from engine.runs import Runs, Start, Started
from tests.outside_services import Answer, json_answer
from tests.poll_parts import TWIN, PollParts, poll_parts_for
from triggers import Poller
from triggers.poll import LEASE
from triggers.pollers import Outcome, Result

POLLED = Outcome.POLLED


@pytest.fixture
def parts(database_url: str) -> Iterator[PollParts]:
    with poll_parts_for(database_url) as parts:
        yield parts


@pytest.fixture
def refused_by_the_database(database_url: str) -> Callable[[str], None]:
    """Makes Postgres refuse the run of one item."""

    def refuse(item_id: str) -> None:
        with psycopg.connect(database_url.replace("+psycopg", "")) as owner:
            owner.execute(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF NEW.input ->> 'item_id' = '{item_id}' THEN"
                f" RAISE check_violation USING MESSAGE = 'no {item_id} today'; END IF; RETURN NEW; END $$;"
                " CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION refuse()"
            )

    return refuse


@pytest.fixture
def cut_off(postgres_server: PostgresServer, database_url: str) -> Callable[[bool], None]:
    """Makes Postgres refuse this database, to those who are connected too, and take it in again."""
    name = database_url.rpartition("/")[2]

    def switch(off: bool) -> None:
        with psycopg.connect(postgres_server.url.replace("+psycopg", ""), autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not off}")
            if off:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    return switch


def test_a_failing_source_is_left_alone_for_longer_and_longer_and_then_paused(parts: PollParts) -> None:
    parts.service.ids = [1]
    workflow_id = parts.save(parts.trigger())
    parts.poll(workflow_id)
    parts.service.script = [Answer(500)] * 10
    for failures, hours in enumerate([1 / 3, 2 / 3, 4 / 3, 8 / 3, 16 / 3, 6, 6, 6, 6], start=1):
        assert parts.poll(workflow_id).outcome == Outcome.FAILED
        row = parts.trigger_of(workflow_id)
        assert (row["failures"], row["last_error"]) == (failures, f"{parts.service.url} answered 500.")
        waits = (row["next_fire_at"] - row["now"]).total_seconds()
        assert waits == pytest.approx(hours * 3600, abs=60)
    assert parts.poll(workflow_id).outcome == Outcome.PAUSED
    row = parts.trigger_of(workflow_id)
    assert (row["next_fire_at"], row["failures"]) == (None, 10)
    assert row["paused_reason"] == f"10 polls failed in a row; the last one: {parts.service.url} answered 500."
    assert parts.poll(workflow_id) == Result(Outcome.DROPPED)

    parts.service.ids = [1, 2]
    with parts.database.tenant("a") as session:
        shown = parts.workflows.set_active(session, workflow_id, True)
    assert (shown["paused_reason"], shown["failures"], shown["last_error"]) == (None, 0, None)
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)


def test_one_success_ends_a_row_of_failures(parts: PollParts) -> None:
    workflow_id = parts.save(parts.trigger())
    parts.service.script = [Answer(503)] * 9
    for _ in range(9):
        parts.poll(workflow_id)
    assert parts.trigger_of(workflow_id)["failures"] == 9
    with parts.database.tenant("a") as session:
        shown = parts.workflows.get(session, workflow_id)
    assert (shown["last_error"], shown["paused_reason"]) == (f"{parts.service.url} answered 503.", None)
    assert parts.poll(workflow_id) == Result(POLLED)
    row = parts.trigger_of(workflow_id)
    assert (row["failures"], row["last_error"]) == (0, None)


def test_a_source_that_names_a_time_is_not_asked_before_it(parts: PollParts) -> None:
    workflow_id = parts.save(parts.trigger())
    parts.service.script = [Answer(429, b"", {"retry-after": "36000"})]
    assert parts.poll(workflow_id).outcome == Outcome.FAILED
    row = parts.trigger_of(workflow_id)
    assert (row["next_fire_at"] - row["now"]).total_seconds() == pytest.approx(36000, abs=60)


@pytest.mark.parametrize(
    ("options", "answer", "says"),
    [
        ({}, Answer(404), "answered 404"),
        ({}, Answer(200, b"<html>"), "the content type says JSON, but"),
        ({}, json_answer({"data": []}), "there is no list at 'orders'"),
        ({}, json_answer({"orders": [{"id": 1}, {"number": 2}]}), "item 1 of the list has no id at 'id'"),
        ({}, json_answer({"orders": [{"id": n} for n in range(5001)]}), "lists 5,001 items; at most 5,000"),
        ({"initial": "all"}, json_answer({"orders": [{"id": 1, "x": "x" * 1024 * 1024}]}), "The item 1 has 1,048,"),
        ({"parameters": {"url": "http://10.0.0.1/x"}}, Answer(200), "10.0.0.1 may not be called"),
        ({"source": "rss"}, Answer(200, b"<html>"), "neither RSS nor Atom"),
        ({"source": "rss"}, Answer(304), "answered 304 instead of a page"),
    ],
)
def test_every_failure_says_what_is_wrong_and_changes_nothing_else(
    parts: PollParts, options: dict[str, Any], answer: Answer, says: str
) -> None:
    workflow_id = parts.save(parts.trigger(**options))
    parts.service.script = [answer]
    result = parts.poll(workflow_id)
    assert result.outcome == Outcome.FAILED
    assert says in str(result.reason)
    row = parts.trigger_of(workflow_id)
    assert (row["failures"], row["cursor"]) == (1, None)
    assert parts.rows("SELECT * FROM poll_items") == parts.runs_of(workflow_id) == []


def test_a_source_that_breaks_is_a_failure_like_any_other(parts: PollParts) -> None:
    workflow_id = parts.save(TWIN)
    parts.twin.error = KeyError("gone")
    assert parts.poll(workflow_id).reason == "The source test.twin broke (KeyError)."
    assert parts.trigger_of(workflow_id)["failures"] == 1


def test_an_item_that_is_no_json_is_a_failure_of_its_source(parts: PollParts) -> None:
    workflow_id = parts.save({**TWIN, "initial": "all"})
    parts.twin.items = ["fine", "\ud800"]
    assert "is not JSON" in str(parts.poll(workflow_id).reason)
    assert parts.runs_of(workflow_id) == []


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"source": "ftp"}, "/trigger/source: unknown source 'ftp'"),
        ({"source": "rss", "with": {}}, "/trigger/with/url: the key 'url' is missing"),
        ({"every": "soon"}, "/trigger/every: write a duration"),
    ],
)
def test_a_trigger_that_cannot_be_read_any_more_is_paused_with_the_reason(
    parts: PollParts, config: dict[str, Any], says: str
) -> None:
    workflow_id = parts.save(parts.trigger())
    change = "UPDATE triggers SET config = config || cast(:change AS jsonb) WHERE workflow_id = :id"
    parts.change(change, change=json.dumps(config), id=workflow_id)
    assert parts.poll(workflow_id).outcome == Outcome.PAUSED
    row = parts.trigger_of(workflow_id)
    assert row["next_fire_at"] is None
    assert says in row["paused_reason"]
    assert parts.service.received == []


def test_runs_items_and_cursor_are_stored_together_or_not_at_all(
    parts: PollParts, refused_by_the_database: Callable[[str], None]
) -> None:
    parts.service.ids = [1]
    workflow_id = parts.save(parts.trigger(parameters={"cursor": {"parameter": "since"}}))
    parts.poll(workflow_id)
    before = parts.trigger_of(workflow_id)["cursor"]
    refused_by_the_database("3")
    parts.service.ids = [1, 2, 3, 4]
    assert parts.poll(workflow_id).reason == "The database refuses the run: no 3 today."
    assert parts.runs_of(workflow_id) == []
    assert parts.broker.runs == {}
    assert [row["item_id"] for row in parts.rows("SELECT item_id FROM poll_items")] == ["1"]
    assert (parts.trigger_of(workflow_id)["cursor"], parts.trigger_of(workflow_id)["failures"]) == (before, 1)
    refused_by_the_database("nothing")
    assert parts.poll(workflow_id) == Result(POLLED, new=3, started=3)
    assert parts.started(workflow_id) == ["2", "3", "4"]


def test_a_poll_that_the_quota_refuses_is_undone_and_is_no_failure(parts: PollParts) -> None:
    class Full(Runs):
        """Takes two runs."""

        taken = 0

        def start(self, session: Any, request: Start) -> Started:
            self.taken += 1
            if self.taken > 2:
                raise QuotaExceeded("The queue is full.", code="quota_queue")
            return super().start(session, request)

    parts.service.ids = [1, 2, 3]
    workflow_id = parts.save(parts.trigger(initial="all"))
    full = Poller(parts.database, Full(parts.broker), parts.client)
    assert full.poll("a", workflow_id) == Result(Outcome.DROPPED, reason="The queue is full.")
    row = parts.trigger_of(workflow_id)
    assert (row["failures"], row["cursor"]) == (0, None)
    assert timedelta() < row["next_fire_at"] - row["now"] <= LEASE
    assert parts.runs_of(workflow_id) == []
    assert parts.broker.runs == {}
    assert parts.poll(workflow_id) == Result(POLLED, new=3, started=3)


def test_while_postgres_is_away_a_poll_changes_nothing_and_is_repeated(
    parts: PollParts, cut_off: Callable[[bool], None]
) -> None:
    workflow_id = parts.save({**TWIN, "initial": "all"})
    parts.twin.items, parts.twin.during = ["1"], lambda: cut_off(True)
    with pytest.raises(Unavailable):
        parts.poll(workflow_id)
    cut_off(False)
    parts.twin.during = None
    row = parts.trigger_of(workflow_id)
    assert (row["failures"], row["cursor"]) == (0, None)
    assert timedelta() < row["next_fire_at"] - row["now"] <= LEASE
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)


def test_with_the_broker_down_the_runs_are_stored_all_the_same(parts: PollParts) -> None:
    parts.service.ids = [1]
    workflow_id = parts.save(parts.trigger(initial="all"))
    parts.broker.down = True
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)
    assert [run["status"] for run in parts.runs_of(workflow_id)] == ["queued"]


def test_of_two_polls_at_once_one_stores_and_every_item_has_one_run(parts: PollParts) -> None:
    workflow_id = parts.save({**TWIN, "initial": "all"})
    both_look = Barrier(2)
    parts.twin.items = ["1", "2", "3"]
    parts.twin.during = lambda: both_look.wait(timeout=30)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: parts.poll(workflow_id), range(2)))
    assert sorted(result.outcome for result in results) == [Outcome.DROPPED, Outcome.POLLED]
    assert parts.started(workflow_id) == ["1", "2", "3"]
    assert len(parts.broker.runs) == 3


def test_a_slow_first_poll_does_not_swallow_what_a_faster_one_would_have_found(parts: PollParts) -> None:
    workflow_id = parts.save(TWIN)

    def another_poll_comes_first() -> None:
        parts.twin.during = None
        assert parts.poll(workflow_id) == Result(POLLED)
        parts.twin.items = ["1"]

    parts.twin.during = another_poll_comes_first
    assert parts.poll(workflow_id) == Result(Outcome.DROPPED)
    assert parts.poll(workflow_id) == Result(POLLED, new=1, started=1)


@pytest.mark.parametrize("what", ["off", "deleted", "changed", "suspended"])
def test_what_a_poll_found_is_dropped_when_the_trigger_is_no_more_what_it_was(parts: PollParts, what: str) -> None:
    workflow_id = parts.save({**TWIN, "initial": "all"})

    def meanwhile() -> None:
        with parts.database.tenant("a") as session:
            if what == "off":
                parts.workflows.set_active(session, workflow_id, False)
            elif what == "deleted":
                parts.workflows.delete(session, workflow_id)
        if what == "changed":
            parts.save({**TWIN, "every": "1h"}, workflow_id=workflow_id)
        elif what == "suspended":
            parts.change("UPDATE tenants SET status = 'suspended' WHERE id = 'a'")

    parts.twin.items, parts.twin.during = ["1"], meanwhile
    assert parts.poll(workflow_id).outcome == Outcome.DROPPED
    assert parts.runs_of(workflow_id) == []
    assert parts.rows("SELECT * FROM poll_items") == []
    assert all(row["failures"] == 0 for row in parts.rows("SELECT failures FROM triggers"))


@pytest.mark.parametrize("what", ["off", "deleted", "suspended", "another tenant's", "no poll", "unknown"])
def test_a_message_for_what_is_not_to_be_polled_does_nothing(parts: PollParts, what: str) -> None:
    workflow_id = parts.save({"type": "manual"} if what == "no poll" else TWIN)
    tenant = "b" if what == "another tenant's" else "a"
    with parts.database.tenant("a") as session:
        if what == "off":
            parts.workflows.set_active(session, workflow_id, False)
        elif what == "deleted":
            parts.workflows.delete(session, workflow_id)
    if what == "suspended":
        parts.change("UPDATE tenants SET status = 'suspended' WHERE id = 'a'")
    before = parts.rows("SELECT * FROM triggers")
    assert parts.poller.poll(tenant, "wf_x" if what == "unknown" else workflow_id) == Result(Outcome.DROPPED)
    assert parts.rows("SELECT * FROM triggers") == before
    assert parts.twin.polls == 0
