"""The limit that runs of one workflow share: exact, in order, and handed on whatever ends a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from engine.ports import Json, StepContext
from engine.repository import relatives
from engine.states import RunState
from engine.sweeper import Sweeper
from tests.engine_parts import Parts, parts_for
from tests.scripted import WorkerDied, call, echo, scripted

SLEEP = {"id": "sleep", "wait": {"for": "1h"}}


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def begun(parts: Parts, count: int, **options: Any) -> list[str]:
    """So many runs of ``wf_1``, each begun by a worker; their ids, oldest first."""
    run_ids = [parts.start("wf_1", **options) for _ in range(count)]
    for run_id in run_ids:
        parts.executor.run("acme", run_id)
        parts.publisher.messages.pop(run_id, None)
    return run_ids


def states(parts: Parts) -> list[tuple[str, str | None]]:
    return [(row["status"], row["wait_reason"]) for row in parts.rows("SELECT * FROM runs ORDER BY id")]


UNDER_WAY, IN_LINE = ("waiting", "sleeping"), ("waiting", "concurrency")


class TestQueue:
    """Runs above the limit wait for a place, the oldest first."""

    def test_a_place_is_kept_while_a_run_waits_and_handed_on_at_its_end(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={"limit": 2})
        begun(parts, 4)
        assert states(parts) == [UNDER_WAY, UNDER_WAY, IN_LINE, IN_LINE]
        parts.let_pass(hours=1)
        parts.sweep_and_run()
        assert [status for status, _ in states(parts)] == ["succeeded", "succeeded", "queued", "queued"]
        parts.sweep_and_run()
        assert states(parts)[2:] == [UNDER_WAY, UNDER_WAY]

    def test_a_waiting_run_is_published_with_the_end_of_another(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={})
        first, second = begun(parts, 2)
        parts.publisher.messages.clear()
        parts.cancel(first)
        assert list(parts.publisher.messages) == [f"{second}.1"]

    def test_only_runs_with_the_same_key_count_together(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={"key": "trigger.input.customer"})
        for customer in ("a", "b", "a", 1):
            begun(parts, 1, input={"input": {"customer": customer}})
        assert states(parts) == [UNDER_WAY, UNDER_WAY, IN_LINE, UNDER_WAY]

    def test_a_key_that_has_no_value_fails_the_run(self, parts: Parts) -> None:
        parts.workflow(echo(), concurrency={"key": "trigger.input.customer"})
        (run_id,) = begun(parts, 1)
        error = parts.run_row(run_id)["error"]
        assert (error["code"], "concurrency.key: trigger.input.customer" in error["message"]) == (
            "expression_failed",
            True,
        )

    def test_cancelling_one_that_waits_hands_nothing_on(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={})
        run_ids = begun(parts, 3)
        parts.cancel(run_ids[1])
        assert states(parts) == [UNDER_WAY, ("cancelled", None), IN_LINE]

    def test_one_whose_time_is_over_while_it_waits_takes_no_place_of_another(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={}, timeout="30m")
        begun(parts, 3)
        parts.fill("UPDATE runs SET started_at = started_at - interval '31 minutes' WHERE wait_reason = 'concurrency'")
        parts.fill("UPDATE runs SET wake_at = now() WHERE wait_reason = 'concurrency'")
        parts.sweep_and_run()
        assert [status for status, _ in states(parts)] == ["waiting", "failed", "failed"]

    def test_a_worker_that_dies_keeps_the_place_for_the_next(self, parts: Parts, script: SimpleNamespace) -> None:
        def die(_context: StepContext, _parameters: Any) -> Json:
            raise WorkerDied

        script.body = die
        parts.workflow(call(), concurrency={})
        run_id = parts.start("wf_1")
        with pytest.raises(WorkerDied):
            parts.executor.run("acme", run_id)
        begun(parts, 1)
        assert states(parts) == [("running", None), IN_LINE]
        script.body = lambda _context, _parameters: None
        parts.silence()
        assert parts.another_worker().run("acme", run_id) is RunState.SUCCEEDED
        assert states(parts) == [("succeeded", None), ("queued", None)]

    def test_many_workers_never_pass_the_limit_and_every_run_ends(self, parts: Parts, script: SimpleNamespace) -> None:
        lock, now, most = threading.Lock(), [0], [0]
        together = threading.Barrier(3, timeout=0.02)

        def body(_context: StepContext, _parameters: Any) -> Json:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            try:
                together.wait()
            except threading.BrokenBarrierError:
                together.reset()
            with lock:
                now[0] -= 1
            return None

        script.body = body
        parts.workflow(call(), concurrency={"limit": 3})
        run_ids = [parts.start("wf_1") for _ in range(40)]
        with ThreadPoolExecutor(8) as pool:
            while run_ids:
                list(pool.map(lambda run_id: parts.executor.run("acme", run_id), run_ids))
                run_ids = [row["id"] for row in parts.rows("SELECT id FROM runs WHERE status = 'queued'")]
        assert parts.rows("SELECT status, count(*) AS n FROM runs GROUP BY 1") == [{"status": "succeeded", "n": 40}]
        assert len(script.action.contexts) == 40
        assert 1 < most[0] <= 3

    def test_a_child_goes_on_in_the_place_of_the_run_that_waits_for_it(self, parts: Parts) -> None:
        again = {"id": "sub", "action": "workflow.run", "with": {"workflow": "wf_1", "input": {"deep": True}}}
        parts.workflow({**again, "if": "!has(trigger.input.deep)"}, concurrency={})
        (run_id,) = begun(parts, 1)
        while parts.publisher.messages:
            parts.sweep_and_run()
        assert parts.run_row(run_id)["status"] == "succeeded"

    def test_the_sweeper_frees_those_that_wait_for_runs_that_are_gone(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={})
        first, second, _third = begun(parts, 3)
        parts.fill(f"DELETE FROM runs WHERE id = '{first}'")
        result = Sweeper(parts.database, parts.publisher, runs=parts.runs).run_once()
        assert result.stranded == 1
        assert [status for status, _ in states(parts)] == ["queued", "waiting"]
        assert f"{second}.1" in parts.publisher.messages


class TestOthers:
    """Runs that do not wait for a place."""

    def test_drop_new_cancels_the_newcomer_and_says_why(self, parts: Parts, script: SimpleNamespace) -> None:
        parts.workflow(SLEEP, concurrency={"on_limit": "drop_new"})
        _, second = begun(parts, 2)
        assert [status for status, _ in states(parts)] == ["waiting", "cancelled"]
        assert parts.run_row(second)["error"]["code"] == "concurrency_limit"
        assert script.action.contexts == []

    def test_cancel_running_makes_room_by_the_oldest(self, parts: Parts) -> None:
        parts.workflow(SLEEP, concurrency={"limit": 2, "on_limit": "cancel_running"})
        begun(parts, 3)
        assert states(parts) == [("cancelled", None), UNDER_WAY, UNDER_WAY]

    def test_one_that_gives_way_stops_in_the_middle_of_its_work(self, parts: Parts, script: SimpleNamespace) -> None:
        inside = threading.Event()

        def body(context: StepContext, _parameters: Any) -> Json:
            if len(script.action.contexts) == 1:
                inside.set()
                context.wait(60)
            return "newer"

        script.body = body
        parts.workflow(call(), concurrency={"on_limit": "cancel_running"})
        older = threading.Thread(target=parts.executor.run, args=("acme", parts.start("wf_1")))
        older.start()
        assert inside.wait(10)
        begun(parts, 1)
        older.join(10)
        assert not older.is_alive()
        assert [status for status, _ in states(parts)] == ["cancelled", "succeeded"]


def test_a_workflow_without_a_limit_pays_nothing_for_it(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = parts.start(parts.workflow(echo()))

    def refuse(*_arguments: Any) -> None:
        raise AssertionError("asked for a place")

    monkeypatch.setattr("engine.concurrency.relatives.lock_key", refuse)
    assert parts.executor.run("acme", run_id) is RunState.SUCCEEDED


def test_a_parent_is_cancelled_while_its_child_ends_and_neither_waits_for_the_other(parts: Parts) -> None:
    """Both need the limit of the child and the row of the parent; they take them in the same order."""
    parts.workflow(SLEEP, workflow_id="wf_child", concurrency={})
    parts.workflow({"id": "sub", "action": "workflow.run", "with": {"workflow": "wf_child"}})
    (parent,) = begun(parts, 1)
    parts.sweep_and_run()
    (child,) = parts.rows("SELECT id FROM runs WHERE workflow_id = 'wf_child'")
    child_has_limit, parent_waits = threading.Event(), threading.Event()

    def cancel_child() -> None:
        with parts.database.tenant("acme") as session:
            relatives.lock_key(session, "wf_child", "")
            child_has_limit.set()
            parent_waits.wait(10)
            assert parts.runs.cancel(session, child["id"], by="user_ada")

    def cancel_parent() -> None:
        assert child_has_limit.wait(10)
        assert parts.cancel(parent)

    threads = [threading.Thread(target=target) for target in (cancel_child, cancel_parent)]
    for thread in threads:
        thread.start()
    while not parts.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
        assert threads[1].is_alive()
    parent_waits.set()
    for thread in threads:
        thread.join(20)
    assert parts.rows("SELECT DISTINCT status FROM runs") == [{"status": "cancelled"}]
    assert parts.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [{"deadlocks": 0}]
