"""What a run does from its first message to its last row: on the real database, with the real evaluator and actions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

import migrations
from embedded.postgres import PostgresServer
from engine import execution
from engine.db import SystemSession, TenantSession
from engine.errors import Fatal, RetryLater, Suspend
from engine.ports import Json, StepContext
from engine.repository import runs
from engine.states import RunState
from engine.sweeper import Result, Sweeper
from tests.engine_parts import Parts, parts_for
from tests.scripted import WorkerDied, echo, scripted


@pytest.fixture
def script() -> SimpleNamespace:
    """`script.body` is what the action ``test.script`` does."""
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def test_a_one_step_run_succeeds_with_output_lines_and_ledger(parts: Parts) -> None:
    run = parts.execute(echo(with_={"text": "hello {{ trigger.input.name }}"}), input={"input": {"name": "Ada"}})
    assert (run["status"], run["output"], run["attempt"]) == ("succeeded", {"text": "hello Ada"}, 1)
    assert run["queued_at"] <= run["started_at"] <= run["finished_at"]
    assert parts.steps_of(run["id"])["one"]["status"] == "succeeded"
    assert [line["level"] for line in parts.lines_of(run["id"])] == ["info", "info", "info"]
    usage = parts.rows("SELECT kind, action, quantity FROM usage ORDER BY kind")
    assert usage == [
        {"kind": "action_call", "action": "debug.echo", "quantity": 1},
        {"kind": "execution", "action": None, "quantity": 1},
        {"kind": "worker_seconds", "action": None, "quantity": 1},
    ]


def test_a_run_without_effects_costs_the_worker_two_transactions(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = parts.start(parts.workflow(echo()))
    seen: list[str] = []
    original = parts.database.tenant

    def counted(tenant_id: str) -> AbstractContextManager[TenantSession]:
        seen.append(tenant_id)
        return original(tenant_id)

    monkeypatch.setattr(parts.database, "tenant", counted)
    parts.executor.run("acme", run_id)
    assert seen == ["acme", "acme"]


def test_a_condition_that_is_not_true_skips_its_step_and_the_next_goes_on(parts: Parts) -> None:
    run = parts.execute(
        echo("a"), echo("b", if_="steps.a.output.at == 'z'"), echo("c", if_="steps.b.status == 'skipped'")
    )
    assert {k: s["status"] for k, s in parts.steps_of(run["id"]).items()} == {
        "a": "succeeded",
        "b": "skipped",
        "c": "succeeded",
    }


def test_a_missing_path_fails_the_step_and_names_the_path(parts: Parts) -> None:
    run = parts.execute(echo(with_={"x": "{{ trigger.input.nope.deep }}"}))
    assert run["status"] == "failed"
    assert "trigger.input.nope" in run["error"]["message"]
    assert run["error"]["step"] == "one"


def test_a_failed_step_ends_the_run_and_later_steps_do_not_begin(parts: Parts, script: SimpleNamespace) -> None:
    def body(_context: StepContext, _parameters: Any) -> Json:
        raise Fatal("the other side said no", code="refused", data={"status": 403})

    script.body = body
    run = parts.execute({"id": "one", "action": "test.script"}, echo("two"))
    assert run["status"] == "failed"
    assert run["error"] == {
        "code": "refused",
        "message": "the other side said no",
        "step": "one",
        "data": {"status": 403},
    }
    assert set(parts.steps_of(run["id"])) == {"one"}


def test_independent_steps_run_at_the_same_time(parts: Parts, script: SimpleNamespace) -> None:
    meeting = threading.Barrier(3)
    script.body = lambda _context, _parameters: meeting.wait(10)
    run = parts.execute(*({"id": i, "action": "test.script", "needs": []} for i in ("a", "b", "c")))
    assert run["status"] == "succeeded"


def test_a_short_backoff_retries_in_place_with_the_same_key(parts: Parts, script: SimpleNamespace) -> None:
    def body(context: StepContext, _parameters: Any) -> Json:
        if context.attempt < 3:
            raise RetryLater("not yet")
        return context.attempt

    script.body = body
    run = parts.execute(
        {"id": "one", "action": "test.script", "retry": {"attempts": 3, "initial": "1ms", "max": "2ms"}}
    )
    assert (run["status"], run["output"], run["attempt"]) == ("succeeded", 3, 1)
    assert {context.idempotency_key for context in script.action.contexts} == {f"{run['id']}:one"}
    assert parts.rows("SELECT sum(quantity) AS n FROM usage WHERE kind = 'action_call'") == [{"n": 3}]


def test_a_long_backoff_parks_the_run_and_it_goes_on_when_woken(parts: Parts, script: SimpleNamespace) -> None:
    def body(context: StepContext, _parameters: Any) -> Json:
        if context.attempt == 1:
            raise RetryLater("come back", after=timedelta(minutes=10))
        return "done"

    script.body = body
    run = parts.execute(echo("first"), {"id": "one", "action": "test.script", "retry": {"attempts": 2}})
    assert (run["status"], run["wait_reason"]) == ("waiting", "retry_backoff")
    parts.let_pass(minutes=10)
    parts.publisher.messages.clear()
    assert Sweeper(parts.database, parts.publisher, runs=parts.runs).run_once().woken == 1
    assert list(parts.publisher.messages) == [f"{run['id']}.1"]
    assert parts.another_worker().run("acme", run["id"]) is RunState.SUCCEEDED
    assert [context.attempt for context in script.action.contexts] == [1, 2]


def test_a_suspended_step_holds_no_worker(parts: Parts, script: SimpleNamespace) -> None:
    def body(_context: StepContext, _parameters: Any) -> Json:
        raise Suspend("approval")

    script.body = body
    run = parts.execute({"id": "one", "action": "test.script"})
    assert (run["status"], run["wait_reason"], run["wake_at"]) == ("waiting", "approval", None)


def test_a_run_taken_over_continues_behind_its_last_finished_step(parts: Parts, script: SimpleNamespace) -> None:
    def die(_context: StepContext, _parameters: Any) -> Json:
        raise WorkerDied

    calls: list[str] = []
    script.body = die
    run_id = parts.start(parts.workflow(echo("first"), {"id": "one", "action": "test.script"}))
    with pytest.raises(WorkerDied):
        parts.executor.run("acme", run_id)
    script.body = lambda _context, _parameters: calls.append("second worker")
    assert parts.another_worker().run("acme", run_id) is None, "its worker may be alive: the heartbeat is fresh"
    with parts.database.system() as session:
        session.execute(sa.text("UPDATE runs SET heartbeat_at = now() - interval '1 minute'"))
    first_finished = parts.steps_of(run_id)["first"]["finished_at"]
    assert parts.another_worker().run("acme", run_id) is RunState.SUCCEEDED
    assert parts.steps_of(run_id)["first"]["finished_at"] == first_finished
    assert (parts.run_row(run_id)["attempt"], calls) == (2, ["second worker"])


def test_a_zombies_writes_change_nothing(parts: Parts, script: SimpleNamespace) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def body(context: StepContext, _parameters: Any) -> Json:
        if len(script.action.contexts) == 1:
            inside.set()
            go_on.wait(10)
            return "zombie"
        return "successor"

    script.body = body
    run_id = parts.start(parts.workflow({"id": "one", "action": "test.script"}))
    zombie = threading.Thread(target=parts.executor.run, args=("acme", run_id))
    zombie.start()
    inside.wait(10)
    with parts.database.system() as session:
        session.execute(sa.text("UPDATE runs SET heartbeat_at = now() - interval '1 minute'"))
    assert parts.another_worker().run("acme", run_id) is RunState.SUCCEEDED
    after = parts.run_row(run_id), parts.steps_of(run_id), parts.lines_of(run_id), parts.rows("SELECT * FROM usage")
    go_on.set()
    zombie.join(10)
    assert after == (
        parts.run_row(run_id),
        parts.steps_of(run_id),
        parts.lines_of(run_id),
        parts.rows("SELECT * FROM usage"),
    )
    assert parts.run_row(run_id)["output"] == "successor"


def test_a_cancelled_run_stops_in_the_middle_of_a_wait(parts: Parts, script: SimpleNamespace) -> None:
    inside = threading.Event()

    def body(context: StepContext, _parameters: Any) -> Json:
        inside.set()
        context.wait(60)
        return "too late"

    script.body = body
    run_id = parts.start(parts.workflow({"id": "one", "action": "test.script"}, echo("two")))
    worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
    worker.start()
    inside.wait(10)
    with parts.database.tenant("acme") as session:
        assert parts.runs.cancel(session, run_id, by="user_ada")
    parts.executor.heartbeat.run_once(older_than=0)
    worker.join(10)
    assert not worker.is_alive()
    assert parts.run_row(run_id)["status"] == "cancelled"
    assert set(parts.steps_of(run_id)) == {"one"}


def test_a_run_that_kills_its_worker_again_and_again_fails_with_the_reason(parts: Parts) -> None:
    run_id = parts.start(parts.workflow(echo()))
    with parts.database.system() as session:
        session.execute(
            sa.text(
                "UPDATE runs SET status = 'running', attempt = 3, crashes = 2, started_at = now(),"
                " heartbeat_at = now() - interval '1 minute'"
            )
        )
    assert parts.executor.run("acme", run_id) is RunState.FAILED
    run = parts.run_row(run_id)
    assert (run["status"], run["error"]["code"]) == ("failed", "crashed")


def test_a_finished_run_that_is_delivered_again_is_dropped(parts: Parts) -> None:
    run = parts.execute(echo())
    assert parts.executor.run("acme", run["id"]) is None
    assert parts.run_row(run["id"]) == run


def test_a_run_of_another_tenant_is_not_executed(parts: Parts) -> None:
    run_id = parts.start(parts.workflow(echo()))
    assert parts.executor.run("other", run_id) is None
    assert parts.run_row(run_id)["status"] == "queued"


def test_a_long_output_is_cut_and_marked_and_never_an_error(parts: Parts, script: SimpleNamespace) -> None:
    script.body = lambda _context, _parameters: "x" * (execution.MAX_OUTPUT_BYTES + 1)
    run = parts.execute({"id": "one", "action": "test.script"})
    assert run["status"] == "succeeded"
    assert (run["output"]["cut"], run["output"]["bytes"]) == (True, execution.MAX_OUTPUT_BYTES + 3)


def test_the_log_of_a_run_is_bounded_in_lines_and_in_their_length(parts: Parts, script: SimpleNamespace) -> None:
    def body(context: StepContext, _parameters: Any) -> Json:
        for _ in range(execution.MAX_LINES + 50):
            context.log("info", "y" * 20_000, value="z" * 20_000)
        return None

    script.body = body
    lines = parts.lines_of(parts.execute({"id": "one", "action": "test.script"})["id"])
    assert len(lines) == execution.MAX_LINES
    assert lines[-1]["message"] == "The log is full at 1000 lines; the rest is cut."
    assert all(len(line["message"]) + len(str(line["data"])) <= execution.MAX_LINE_BYTES + 100 for line in lines)


def test_an_unexpected_crash_of_an_action_fails_the_step_not_the_worker(parts: Parts, script: SimpleNamespace) -> None:
    def body(_context: Any, _parameters: Any) -> None:
        raise KeyError("missing")

    script.body = body
    run = parts.execute({"id": "one", "action": "test.script"})
    assert (run["status"], run["error"]["code"]) == ("failed", "action_crashed")


def test_an_action_that_does_not_end_by_itself_is_left_behind(parts: Parts, script: SimpleNamespace) -> None:
    forever = threading.Event()
    script.action.honours_deadline = False
    script.body = lambda _context, _parameters: forever.wait(30)
    run = parts.execute({"id": "one", "action": "test.script", "timeout": "100ms"})
    forever.set()
    assert (run["status"], run["error"]["code"]) == ("failed", "timeout")


def test_wrong_input_names_the_field(parts: Parts) -> None:
    run = parts.execute(
        {"id": "one", "action": "debug.sleep", "with": {"seconds": "{{ trigger.input.long }}"}},
        input={"input": {"long": "ages"}},
    )
    assert run["error"]["code"] == "invalid_input"
    assert run["error"]["message"].startswith("with.seconds: ")


def test_what_an_action_says_of_its_input_is_told_as_it_says_it(parts: Parts) -> None:
    run = parts.execute(
        {
            "id": "one",
            "action": "http.request",
            "with": {"url": "https://x/", "headers": {"x": "{{ trigger.input.v }}"}},
        },
        input={"input": {"v": "a\nb"}},
    )
    assert run["error"]["message"].startswith("with.headers")
    assert run["error"]["message"].endswith(": a header value cannot hold line breaks")


class TestCredentials:
    """A step's credential is found, decrypted, handed over masked, and never stored in clear."""

    @pytest.fixture(autouse=True)
    def _uses_http(self, script: SimpleNamespace) -> None:
        script.action.service = "http"
        script.action.credential_required = True

    def test_the_only_one_of_its_service_is_found_and_masked_everywhere(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        def body(context: StepContext, _parameters: Any) -> Json:
            assert context.credential is not None
            token = context.credential.get_secret_value()["bearer"]
            context.log("info", f"using {token}", token=token)
            return {"echo": f"Bearer {token}", token: [token]}

        script.body = body
        parts.credential("http", {"bearer": "canary-4711"})
        run = parts.execute({"id": "one", "action": "test.script"})
        assert run["status"] == "succeeded"
        stored = parts.rows("SELECT * FROM runs") + parts.rows("SELECT * FROM steps") + parts.lines_of(run["id"])
        assert "canary-4711" not in str(stored)
        assert run["output"] == {"echo": "Bearer [redacted]", "[redacted]": ["[redacted]"]}

    def test_a_secret_in_an_error_is_masked(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(context: StepContext, _parameters: Any) -> Json:
            assert context.credential is not None
            raise Fatal(f"401 for {context.credential.get_secret_value()['bearer']}")

        script.body = body
        parts.credential("http", {"bearer": "canary-4711"})
        run = parts.execute({"id": "one", "action": "test.script"})
        assert run["error"]["message"] == "401 for [redacted]"
        assert "canary" not in str(parts.lines_of(run["id"]))

    def test_a_missing_one_fails_the_step_and_says_what_to_do(self, parts: Parts) -> None:
        run = parts.execute({"id": "one", "action": "test.script"})
        assert run["error"]["code"] == "credential_missing"

    def test_two_of_a_service_must_be_told_apart_by_name(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = lambda context, _parameters: len(context.credential.get_secret_value()["bearer"])
        for name in ("x", "y"):
            parts.credential("http", {"bearer": f"token-{name}"}, name=name)
        assert parts.execute({"id": "one", "action": "test.script"})["error"]["code"] == "credential_ambiguous"
        run_id = parts.start(
            parts.workflow({"id": "one", "action": "test.script", "credential": "y"}, workflow_id="wf_2")
        )
        parts.executor.run("acme", run_id)
        assert parts.run_row(run_id)["status"] == "succeeded"

    def test_one_of_another_service_is_refused(self, parts: Parts) -> None:
        parts.credential("slack", {"bot_token": "xoxb-1"}, name="team")
        run = parts.execute({"id": "one", "action": "test.script", "credential": "team"})
        assert run["error"]["code"] == "credential_of_another_service"


def test_the_intent_of_an_effect_is_stored_before_it_is_tried(parts: Parts, script: SimpleNamespace) -> None:
    seen: list[str] = []
    script.body = lambda context, _parameters: seen.append(parts.steps_of(context.run_id)["one"]["status"])
    parts.execute({"id": "one", "action": "test.script"})
    assert seen == ["running"]


def test_an_output_that_is_no_json_fails_its_step_and_repeats_no_effect(parts: Parts, script: SimpleNamespace) -> None:
    deep: Json = []
    for _ in range(5000):
        deep = [deep]
    script.body = lambda _context, _parameters: deep
    run = parts.execute({"id": "one", "action": "test.script", "retry": {"attempts": 3}})
    assert (run["status"], run["error"]["code"], run["crashes"]) == ("failed", "bad_output", 0)
    assert len(script.action.contexts) == 1


def test_data_of_a_failure_that_is_no_json_is_marked_and_harms_nothing(parts: Parts, script: SimpleNamespace) -> None:
    deep: Json = []
    for _ in range(5000):
        deep = [deep]

    def body(context: StepContext, _parameters: Any) -> None:
        context.log("info", "looks so", deep=deep)
        raise Fatal("no", data={"deep": deep})

    script.body = body
    run = parts.execute({"id": "one", "action": "test.script"})
    assert (run["status"], run["error"]["code"]) == ("failed", "action_fatal")
    assert run["error"]["data"]["cut"] is True


def test_a_checkpoint_whose_answer_was_lost_is_stored_once(parts: Parts) -> None:
    run_id = parts.start(parts.workflow(echo()))
    line = {"step_id": None, "level": "info", "message": "once", "data": None, "at": "2026-01-01T00:00:00Z"}
    used = {"kind": "action_call", "action": "debug.echo", "quantity": 1, "seconds": 0.5}
    with parts.database.tenant("acme") as session:
        assert runs.begin(session, run_id, stale_seconds=15) is not None
    for _ in range(2):
        with parts.database.tenant("acme") as session:
            assert runs.save_progress(session, run_id, attempt=1, checkpoint=1, lines=[line], usage=[used])
    assert len(parts.lines_of(run_id)) == 1
    assert len(parts.rows("SELECT 1 FROM usage WHERE kind = 'action_call'")) == 1
    with parts.database.tenant("acme") as session:
        assert not runs.save_progress(session, run_id, attempt=1, checkpoint=3), "the second was never stored"
        assert not runs.save_progress(session, run_id, attempt=2, checkpoint=2), "another attempt's"


def test_a_worker_waits_for_a_postgres_that_restarts_and_repeats_no_step(
    tmp_path: Path, script: SimpleNamespace
) -> None:
    server = PostgresServer(tmp_path, fast=True).start()
    restarts: list[threading.Thread] = []

    def stop_postgres(context: StepContext, _parameters: Any) -> Json:
        if context.step_id == "two":
            server.stop()
            restarts.append(threading.Timer(0.5, server.start))
            restarts[-1].start()
        return {"step": context.step_id}

    try:
        migrations.upgrade(server.url)
        with parts_for(server.url, script=script.action) as parts:
            script.body = stop_postgres
            run = parts.execute(*({"id": step, "action": "test.script"} for step in ("one", "two", "three")))
            assert (run["status"], run["attempt"], run["crashes"]) == ("succeeded", 1, 0)
            assert [context.step_id for context in script.action.contexts] == ["one", "two", "three"]
    finally:
        for restart in restarts:
            restart.join()
        server.stop()


class TestSweeper:
    """What the broker does not hold is published again; what it holds is left alone."""

    @pytest.fixture
    def sweeper(self, parts: Parts) -> Sweeper:
        return Sweeper(parts.database, parts.publisher, runs=parts.runs, queued_seconds=0, silent_seconds=20)

    def test_a_run_that_was_never_published_is_published(self, parts: Parts, sweeper: Sweeper) -> None:
        run_id = parts.start(parts.workflow(echo()))
        parts.publisher.messages.clear()
        assert sweeper.run_once().unpublished == 1
        assert sweeper.run_once().unpublished == 0
        assert list(parts.publisher.messages) == [run_id]

    def test_a_backlog_longer_than_a_sweep_is_looked_through_to_its_end(
        self, parts: Parts, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engine.sweeper.BATCH", 2)
        monkeypatch.setattr("engine.sweeper.MAX_BATCHES", 1)
        workflow = parts.workflow(echo())
        run_ids = [parts.start(workflow) for _ in range(7)]
        del parts.publisher.messages[run_ids[-1]]
        repaired = [sweeper.run_once().unpublished for _ in range(4)]
        assert repaired == [0, 0, 0, 1]
        del parts.publisher.messages[run_ids[0]]
        assert sweeper.run_once().unpublished == 1, "then it begins again"

    def test_a_run_whose_worker_fell_silent_is_published_under_its_next_id(
        self, parts: Parts, sweeper: Sweeper
    ) -> None:
        run_id = parts.start(parts.workflow(echo()))
        with parts.database.system() as session:
            session.execute(
                sa.text(
                    "UPDATE runs SET status = 'running', attempt = 1, started_at = now(),"
                    " heartbeat_at = now() - interval '1 minute'"
                )
            )
        assert sweeper.run_once().silent == 0, "the broker still has its message leased"
        parts.publisher.messages.clear()
        assert sweeper.run_once().silent == 1
        assert list(parts.publisher.messages) == [f"{run_id}.1"]
        assert parts.executor.run("acme", run_id) is RunState.SUCCEEDED

    def test_a_sweep_without_anything_to_do_is_two_statements(
        self, parts: Parts, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts.execute(echo())
        parts.publisher.messages.clear()
        sweeper.run_once()
        asked: list[str] = []
        original = SystemSession.query

        def counted(session: SystemSession, name: str, /, **parameters: Any) -> Any:
            asked.append(name)
            return original(session, name, **parameters)

        monkeypatch.setattr(SystemSession, "query", counted)
        assert sweeper.run_once() == Result()
        assert asked == ["wake_runs", "overdue_runs"]

    def test_runs_are_woken_in_the_order_of_their_time_and_all_in_one_sweep(
        self, parts: Parts, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engine.sweeper.BATCH", 2)
        workflow = parts.workflow({"id": "sleep", "wait": {"for": "1h"}})
        run_ids = [parts.start(workflow) for _ in range(5)]
        for run_id in run_ids:
            parts.executor.run("acme", run_id)
        order = [run_ids[n] for n in (3, 0, 4, 1, 2)]
        for minute, run_id in enumerate(order):
            parts.fill(f"UPDATE runs SET wake_at = now() - interval '{9 - minute} min' WHERE id = '{run_id}'")
        parts.publisher.messages.clear()
        assert sweeper.run_once().woken == 5
        assert [message.run_id for message in parts.publisher.messages.values()] == order

    def test_a_parent_whose_child_is_gone_is_woken(self, parts: Parts, sweeper: Sweeper) -> None:
        parts.workflow({"id": "sleep", "wait": {"for": "1h"}}, workflow_id="wf_child")
        run = parts.execute({"id": "sub", "action": "workflow.run", "with": {"workflow": "wf_child"}})
        assert sweeper.run_once().stranded == 0, "its child lives"
        parts.fill("DELETE FROM runs WHERE parent_run_id IS NOT NULL")
        sweeper.look_again()
        assert sweeper.run_once().stranded == 1
        parts.executor.run("acme", run["id"])
        assert parts.run_row(run["id"])["error"]["code"] == "workflow_gone"

    def test_finished_and_held_runs_are_left_alone(self, parts: Parts, sweeper: Sweeper) -> None:
        parts.execute(echo())
        parts.start("wf_1", hold="quota")
        parts.publisher.messages.clear()
        assert sweeper.run_once() == Result()
        assert parts.publisher.messages == {}
