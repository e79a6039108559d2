"""What ends a run before its steps do: its deadline, and somebody who cancels it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import RetryLater
from engine.heartbeat import Heartbeat
from engine.ports import Json, StepContext
from engine.states import RunState
from tests.engine_parts import Parts, parts_for
from tests.scripted import call, echo, scripted


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def allow(parts: Parts, seconds: int | None) -> None:
    """The plan's `max_run_seconds` for runs that start from now on."""
    value = "null" if seconds is None else seconds
    parts.fill(f"""UPDATE tenants SET limits = '{{"max_run_seconds": {value}}}'""")


class TestDeadline:
    """A run has so many seconds of workers, and so long in all."""

    @pytest.mark.parametrize("honours", [True, False], ids=["ends by itself", "hangs"])
    def test_a_step_that_takes_too_long_is_ended(self, parts: Parts, script: SimpleNamespace, honours: bool) -> None:
        forever = threading.Event()

        def body(context: StepContext, _parameters: Any) -> Json:
            if not honours:
                return forever.wait(30)
            context.wait(context.remaining())
            raise RetryLater("no time left", code="timeout")

        allow(parts, 1)
        script.action.honours_deadline = honours
        script.body = body
        began = time.monotonic()
        run = parts.execute(call(retry={"attempts": 5}, on_error="continue"), echo("two"))
        forever.set()
        assert time.monotonic() - began < 5
        assert (run["status"], run["error"]["code"]) == ("failed", "run_timeout")
        assert "max_run_seconds" in run["error"]["message"]
        assert set(parts.steps_of(run["id"])) == {"one"}, "no step begins after the deadline"

    def test_a_backoff_is_not_slept_beyond_it(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(_context: StepContext, _parameters: Any) -> Json:
            raise RetryLater("busy", after=timedelta(seconds=5))

        allow(parts, 1)
        script.body = body
        began = time.monotonic()
        run = parts.execute(call(retry={"attempts": 5}))
        assert time.monotonic() - began < 4
        assert run["error"]["code"] == "run_timeout"

    def test_the_time_that_a_run_waits_is_not_counted_by_the_plan(self, parts: Parts) -> None:
        allow(parts, 60)
        run = parts.execute({"id": "sleep", "wait": {"for": "2h"}}, echo())
        columns = ("heartbeat_at", "started_at", "deadline_at")
        earlier = ", ".join(f"{column} = {column} - interval '2 hours'" for column in columns)
        parts.fill(f"UPDATE runs SET {earlier}")
        parts.let_pass(hours=2)
        parts.sweep_and_run()
        assert parts.run_row(run["id"])["status"] == "succeeded"

    def test_the_time_of_a_worker_that_died_is_counted(self, parts: Parts) -> None:
        allow(parts, 60)
        run_id = parts.start(parts.workflow(echo()))
        parts.fill(
            "UPDATE runs SET status = 'running', attempt = 1, started_at = now() - interval '2 minutes',"
            " heartbeat_at = now() - interval '1 minute', deadline_at = now() - interval '1 minute'"
        )
        assert parts.executor.run("acme", run_id) is RunState.FAILED
        assert parts.run_row(run_id)["error"]["code"] == "run_timeout"

    def test_the_timeout_of_the_workflow_ends_a_run_that_waits(self, parts: Parts) -> None:
        run_id = parts.start(parts.workflow({"id": "ask", "wait": {"approval": {}}}, timeout="1h"))
        parts.executor.run("acme", run_id)
        wakes_in = parts.rows("SELECT extract(epoch FROM wake_at - now())::int AS seconds FROM runs")[0]["seconds"]
        assert 3590 <= wakes_in <= 3600
        parts.fill("UPDATE runs SET started_at = started_at - interval '1 hour', wake_at = now()")
        parts.sweep_and_run()
        row = parts.run_row(run_id)
        assert (row["status"], row["error"]["code"]) == ("failed", "run_timeout")
        assert "did not end within 1h" in row["error"]["message"]

    def test_a_run_that_has_done_everything_in_time_is_not_failed_afterwards(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        def body(context: StepContext, _parameters: Any) -> Json:
            context.wait(context.remaining())
            return "just done"

        allow(parts, 1)
        script.body = body
        assert parts.execute(call())["status"] == "succeeded"


class TestCancel:
    """A run that is cancelled stops within two seconds, whatever it does."""

    @pytest.fixture
    def silent_server(self) -> Iterator[str]:
        """A server that accepts connections and never says a word."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"

    def _cancelled_within(self, parts: Parts, run_id: str, inside: threading.Event) -> float:
        """Seconds from the cancel to the moment when the worker is free again. The heartbeat is the worker's own."""
        worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
        worker.start()
        assert inside.wait(10)
        began = time.monotonic()
        assert parts.cancel(run_id)
        worker.join(20)
        assert not worker.is_alive()
        assert parts.run_row(run_id)["status"] == "cancelled"
        return time.monotonic() - began

    def test_in_the_middle_of_a_wait(self, parts: Parts, script: SimpleNamespace) -> None:
        inside = threading.Event()

        def body(context: StepContext, _parameters: Any) -> Json:
            inside.set()
            context.wait(60)
            return "too late"

        script.body = body
        run_id = parts.start(parts.workflow(call(), echo("two")))
        assert self._cancelled_within(parts, run_id, inside) < 2
        steps = parts.steps_of(run_id)
        assert set(steps) == {"one"}
        assert (steps["one"]["status"], steps["one"]["error"]["code"]) == ("failed", "cancelled")
        assert [line["message"] for line in parts.lines_of(run_id)].count("The run was cancelled by user_ada.") == 1

    def test_in_the_middle_of_an_http_call(
        self, parts: Parts, silent_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside = threading.Event()
        http = parts.registry["http.request"]
        original = http.run

        def run(context: StepContext, parameters: Any) -> Json:
            inside.set()
            return original(context, parameters)

        monkeypatch.setattr(http, "run", run, raising=False)
        run_id = parts.start(parts.workflow({"id": "one", "action": "http.request", "with": {"url": silent_server}}))
        assert self._cancelled_within(parts, run_id, inside) < 2

    def test_in_the_middle_of_an_action_that_does_not_look(self, parts: Parts, script: SimpleNamespace) -> None:
        inside, forever = threading.Event(), threading.Event()

        def body(_context: StepContext, _parameters: Any) -> Json:
            inside.set()
            return forever.wait(30)

        script.action.honours_deadline = False
        script.body = body
        run_id = parts.start(parts.workflow(call()))
        assert self._cancelled_within(parts, run_id, inside) < 2
        forever.set()

    def test_between_attempts(self, parts: Parts, script: SimpleNamespace) -> None:
        inside = threading.Event()

        def body(_context: StepContext, _parameters: Any) -> Json:
            inside.set()
            raise RetryLater("busy", after=timedelta(seconds=5))

        script.body = body
        run_id = parts.start(parts.workflow(call(retry={"attempts": 5})))
        assert self._cancelled_within(parts, run_id, inside) < 2
        assert len(script.action.contexts) == 1

    @pytest.mark.parametrize("state", ["queued", "waiting"])
    def test_one_without_a_worker_ends_at_once_and_no_step_begins(self, parts: Parts, state: str) -> None:
        run_id = parts.start(parts.workflow({"id": "sleep", "wait": {"for": "1h"}}, echo()))
        if state == "waiting":
            parts.executor.run("acme", run_id)
        assert parts.run_row(run_id)["status"] == state
        assert parts.cancel(run_id)
        assert parts.run_row(run_id)["status"] == "cancelled"
        assert not parts.cancel(run_id), "it has ended"
        assert parts.executor.run("acme", run_id) is None
        assert parts.another_worker().run("acme", run_id) is None

    def test_cancel_races_the_end_and_exactly_one_of_them_counts(self, parts: Parts) -> None:
        workflow = parts.workflow(echo("a"), echo("b"))
        outcomes = set()
        for _ in range(200):
            run_id = parts.start(workflow)
            worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
            worker.start()
            won = parts.cancel(run_id)
            worker.join(20)
            status = parts.run_row(run_id)["status"]
            assert status == ("cancelled" if won else "succeeded")
            assert all(step["finished_at"] is not None for step in parts.steps_of(run_id).values())
            assert sum(line["message"].startswith("The run was cancelled") for line in parts.lines_of(run_id)) == won
            outcomes.add(status)
        executions = parts.rows("SELECT run_id FROM usage WHERE kind = 'execution' GROUP BY 1 HAVING count(*) > 1")
        assert executions == []
        assert outcomes <= {"cancelled", "succeeded"}

    def test_nothing_is_asked_while_only_young_runs_are_in_hand_and_then_once_a_second(
        self, parts: Parts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        now = [time.monotonic()]

        run_id = parts.start(parts.workflow(echo()))
        with parts.database.tenant("acme") as session:
            begun = parts.executor._begin(session, run_id)
        assert begun is not None
        heartbeat = Heartbeat(parts.database, lease_seconds=30, clock=lambda: now[0])
        monkeypatch.setattr(heartbeat, "look", lambda: asked.append("look"))
        monkeypatch.setattr(heartbeat, "run_once", lambda older_than: asked.append(f"beat {older_than}"))
        with heartbeat.holding(begun[0]):
            heartbeat.tick()
            assert asked == []
            for _ in range(2 * 11):  # eleven seconds in ticks of half a second
                now[0] += 0.5
                heartbeat.tick()
        assert asked.count("beat 0") == 2
        assert 10 <= len(asked) <= 12
