"""Runs that a worker lets go for no fault of theirs: they go back in line with what they have done, and end later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from bench.harness import Proxy
from engine import checkpoints, db, leaving, patience
from engine.audit import Actor
from engine.errors import PutBack, TooLarge, Unavailable, WrittenByNewer
from engine.execution import Hold, StepResult
from engine.executor import Executor
from engine.expressions import Evaluator
from engine.patience import LARGE, MAX_TIMEOUTS, patiently
from engine.ports import Json, StepContext
from engine.states import RunState, StepState
from engine.tools import Tools
from tests.engine_parts import Parts, parts_for
from tests.scripted import call, echo, scripted

TRIES = 2
"""Of a statement, where there is no patience."""


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def suspend(parts: Parts) -> None:
    parts.fill("UPDATE tenants SET status = 'suspended'")


def resume(parts: Parts) -> None:
    parts.fill("UPDATE tenants SET status = 'active'")


def delete(parts: Parts) -> None:
    with parts.database.system() as session:
        leaving.delete(session, Actor("operator:ada"), "acme")


class TestSuspendedOrDeletedInMidRun:
    """F27: no further effect within five seconds, and nothing is lost."""

    @pytest.mark.parametrize("leave", [suspend, delete], ids=["suspended", "deleted"])
    def test_a_call_is_broken_off_what_finished_is_kept_and_the_run_goes_on_afterwards(
        self, parts: Parts, script: SimpleNamespace, leave: Callable[[Parts], None]
    ) -> None:
        inside, begun = threading.Event(), threading.Event()

        def body(context: StepContext, _parameters: Any) -> Json:
            if context.step_id == "long" and not begun.is_set():
                begun.set()
                inside.set()
                context.wait(60)
            return context.step_id

        script.body = body
        run_id = parts.start(parts.workflow(call("short"), call("long"), call("last", needs=["short", "long"])))
        parts.publisher.messages.clear()
        worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
        worker.start()
        assert inside.wait(20)
        leave(parts)
        began = time.monotonic()
        worker.join(20)
        assert time.monotonic() - began < 5
        run = parts.run_row(run_id)
        assert (run["status"], run["crashes"], run["finished_at"]) == ("queued", 0, None)
        assert parts.steps_of(run_id)["short"]["status"] == "succeeded"
        assert parts.sweep_and_run() == []
        assert parts.another_worker().run("acme", run_id) is None
        resume(parts)
        parts.fill("UPDATE runs SET queued_at = now() - interval '1 minute'")
        assert parts.sweep_and_run() == [run_id]
        run = parts.run_row(run_id)
        assert (run["status"], run["crashes"]) == ("succeeded", 0)
        calls = [context.step_id for context in script.action.contexts]
        assert sorted(calls) == ["last", "long", "long", "short"]
        keys = {context.idempotency_key for context in script.action.contexts if context.step_id == "long"}
        assert keys == {f"{run_id}:long"}

    def test_no_effect_begins_once_the_suspension_is_stored_however_short_ago(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        def body(context: StepContext, _parameters: Any) -> Json:
            if context.step_id == "one":
                suspend(parts)
            return context.step_id

        script.body = body
        run_id = parts.start(parts.workflow(call("one"), call("two")))
        parts.publisher.messages.clear()
        assert parts.executor.run("acme", run_id) is None
        assert [context.step_id for context in script.action.contexts] == ["one"]
        assert parts.steps_of(run_id)["one"]["output"] == "one"
        resume(parts)
        parts.fill("UPDATE runs SET queued_at = now() - interval '1 minute'")
        assert parts.sweep_and_run() == [run_id]
        assert parts.run_row(run_id)["status"] == "succeeded"
        assert [context.step_id for context in script.action.contexts] == ["one", "two"]

    def test_a_zombie_of_a_suspended_tenant_does_not_put_back_what_another_worker_has(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        other: list[Any] = []

        def body(context: StepContext, _parameters: Any) -> Json:
            if not other:
                parts.silence()
                with parts.database.tenant("acme") as session:
                    other.append(parts.another_worker()._begin(session, context.run_id))
                suspend(parts)
                context.wait(60)
            return None

        script.body = body
        run_id = parts.start(parts.workflow(call()))
        assert parts.executor.run("acme", run_id) is None
        run = parts.run_row(run_id)
        assert (run["status"], run["attempt"]) == ("running", 2)


class TestOldAndNewWorkersSideBySide:
    """F23: what only a newer worker can read is left for one."""

    def test_a_document_of_a_newer_format_is_left_untouched_and_a_newer_worker_runs_it(self, parts: Parts) -> None:
        run_id = parts.start(parts.workflow(echo()))
        parts.fill("""UPDATE workflow_versions SET definition = definition || '{"format": 2}'""")
        for _ in range(4):  # more often than a run may crash
            with pytest.raises(WrittenByNewer):
                parts.executor.run("acme", run_id)
        run = parts.run_row(run_id)
        assert (run["status"], run["attempt"], run["crashes"]) == ("queued", 0, 0)
        parts.fill("""UPDATE workflow_versions SET definition = definition || '{"format": 1}'""")
        parts.another_worker().run("acme", run_id)
        assert parts.run_row(run_id)["status"] == "succeeded"

    def test_a_document_without_a_format_is_one_of_the_first_and_runs(self, parts: Parts) -> None:
        assert parts.execute(echo())["status"] == "succeeded"
        assert parts.rows("SELECT definition FROM workflow_versions WHERE definition ? 'format'") == []


def test_an_evaluator_that_goes_away_in_mid_run_counts_as_no_crash_and_repeats_no_effect(
    parts: Parts, script: SimpleNamespace
) -> None:
    with Evaluator(children=1) as evaluator:
        worker = Executor(Tools(parts.database, parts.vault, parts.registry, evaluator, parts.runs, parts.links))
        script.body = lambda _context, _parameters: evaluator.close()
        run_id = parts.start(parts.workflow(call("one"), call("two", if_="size([1, 2]) == 2")))
        parts.publisher.messages.clear()
        for _ in range(4):  # more often than a run may crash
            with pytest.raises(PutBack):
                worker.run("acme", run_id)
            run = parts.run_row(run_id)
            assert (run["status"], run["crashes"]) == ("queued", 0)
    script.body = lambda _context, _parameters: None
    assert parts.executor.run("acme", run_id) == "succeeded"
    assert [context.step_id for context in script.action.contexts] == ["one", "two"]


class TestWhatPostgresCannotTake:
    """A limit of Postgres is no outage: the run fails and says so, instead of being tried for ever."""

    def test_what_passes_a_limit_of_postgres_ends_its_run_with_that_reason(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        with pytest.raises(TooLarge), parts.database.tenant("acme") as session:
            session.execute(sa.text("SELECT cast(repeat('[', 100000) || repeat(']', 100000) AS jsonb)"))
        parts.fill(f"ALTER TABLE steps ADD CONSTRAINT fits CHECK (length(repeat(output::text, {10**9})) > 0)")
        script.body = lambda _context, _parameters: "large"
        run_id = parts.start(parts.workflow(call(), echo("two")))
        assert parts.executor.run("acme", run_id) == "failed"
        run = parts.run_row(run_id)
        assert (run["error"]["code"], run["crashes"]) == ("too_large", 0)

    def test_a_large_checkpoint_that_is_ended_for_its_length_three_times_fails_its_run(
        self, parts: Parts, script: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts.fill("ALTER TABLE execution_logs ADD CONSTRAINT slow CHECK (data IS NULL OR pg_sleep(60)::text = '')")
        monkeypatch.setitem(db.CONNECT, "options", "-c statement_timeout=1s")
        database = db.Database(parts.url)
        worker = Executor(Tools(database, parts.vault, parts.registry, parts.evaluator, parts.runs, parts.links))

        def body(context: StepContext, _parameters: Any) -> None:
            for _ in range(LARGE // 8000 + 1):
                context.log("info", "a line", text="x" * 8000)

        script.body = body
        run_id = parts.start(parts.workflow(call()))
        assert worker.run("acme", run_id) == "failed"
        run = parts.run_row(run_id)
        assert (run["error"]["code"], run["crashes"]) == ("statement_timeout", 0)
        database.close()

    @pytest.mark.parametrize("limit", ["lock_timeout", "statement_timeout"])
    def test_what_is_held_by_somebody_else_is_waited_for_however_often_that_takes_too_long(
        self, parts: Parts, limit: str
    ) -> None:
        asked: list[bool] = []
        other = sa.create_engine(parts.url)

        def statement() -> str:
            asked.append(True)
            if len(asked) > MAX_TIMEOUTS + 1:
                holder.rollback()
            with parts.database.tenant("acme") as session:
                session.execute(sa.text(f"SET LOCAL {limit} = 20"))
                return str(session.execute(sa.text("UPDATE tenants SET name = 'Mine' RETURNING name")).scalar())

        with other.connect() as holder:
            holder.execute(sa.text("UPDATE tenants SET name = 'Theirs'"))
            assert patiently(Hold(), statement) == "Mine"
        other.dispose()
        assert len(asked) >= MAX_TIMEOUTS + 2

    def test_a_wait_for_a_lock_ends_sooner_than_a_statement_may_take(self, parts: Parts) -> None:
        with parts.database.system() as session:
            settings = "SELECT name, setting::int FROM pg_settings WHERE name LIKE '%_timeout' AND unit = 'ms'"
            limits = {row["name"]: row["setting"] for row in session.rows(sa.text(settings))}
        assert 0 < 5 * limits["lock_timeout"] < limits["statement_timeout"], "some statements need several locks"

    def test_a_run_that_is_cancelled_before_its_failure_is_stored_stays_cancelled(self, parts: Parts) -> None:
        run_id = parts.start(parts.workflow(call()))
        worker = parts.another_worker()
        with parts.database.tenant("acme") as session:
            begun = worker._begin(session, run_id)
        assert begun is not None
        assert parts.cancel(run_id)
        assert worker._end_unstorable(begun[0], time.perf_counter(), TooLarge("It is too large.")) is None
        assert parts.run_row(run_id)["status"] == "cancelled"


class TestCheckpointThatNobodyAnswers:
    """What a step did is stored with the run that is put back, and charged once, also when it was stored before."""

    @pytest.fixture(autouse=True)
    def no_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patience, "PATIENCE", timedelta())

    def test_a_step_whose_checkpoint_was_refused_is_not_run_again(self, parts: Parts, script: SimpleNamespace) -> None:
        parts.fill(
            "CREATE SEQUENCE refusals;"
            " CREATE FUNCTION taken() RETURNS bool LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
            f" IF nextval('refusals') > {TRIES} THEN RETURN true; END IF;"
            " RAISE EXCEPTION 'not now' USING ERRCODE = 'lock_not_available'; END $$;"
            " ALTER TABLE steps ADD CONSTRAINT refused CHECK (output IS NULL OR taken())"
        )
        script.body = lambda context, _parameters: context.step_id
        run_id = parts.start(parts.workflow(call(), echo("two")))
        with pytest.raises(PutBack):
            parts.executor.run("acme", run_id)
        assert (parts.run_row(run_id)["status"], parts.steps_of(run_id)["one"]["output"]) == ("queued", "one")
        assert parts.another_worker().run("acme", run_id) == "succeeded"
        assert len(script.action.contexts) == 1
        messages = [line["message"] for line in parts.lines_of(run_id)]
        assert messages.count("test.script succeeded.") == 1

    @pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
    def test_what_was_stored_without_an_answer_is_not_stored_twice(self, parts: Parts, stored: bool) -> None:
        run_id = parts.start(parts.workflow(call()))
        url = sa.make_url(parts.url)
        proxy = Proxy(url.port or 5432)
        database = db.Database(url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False))
        tools = Tools(database, parts.vault, parts.registry, parts.evaluator, parts.runs)
        with database.tenant("acme") as session:
            begun = Executor(tools)._begin(session, run_id)
        assert begun is not None
        proxy.refusing = True
        if stored:
            proxy.cut_after(b"COMMIT")
        else:
            proxy.cut()
        now = datetime.now(UTC)
        done = [
            StepResult("one", StepState.SUCCEEDED, 1, "done", None, now, now, action="test.script", calls=1),
        ]
        with pytest.raises(Unavailable):
            checkpoints.save(begun[0], tools, RunState.RUNNING, done)
        assert proxy.triggered.is_set() == stored
        proxy.heal()
        with pytest.raises(PutBack):
            checkpoints.put_back(begun[0], tools, Unavailable("Postgres does not answer."))
        assert (parts.run_row(run_id)["status"], parts.steps_of(run_id)["one"]["output"]) == ("queued", "done")
        assert [row["quantity"] for row in parts.rows("SELECT quantity FROM usage WHERE kind = 'action_call'")] == [1]
        begins = [line for line in parts.lines_of(run_id) if line["message"].startswith("The run begins")]
        assert len(begins) == 1
        database.close()
        proxy.close()
