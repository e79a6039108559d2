"""Waits without a worker: time that passes, people who agree, and what is left when a worker dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import Conflict, Gone, NotFound, RetryLater
from engine.ports import Json, StepContext
from engine.repository import runs
from engine.states import RunState
from tests.engine_parts import Parts, parts_for
from tests.scripted import WorkerDied, call, echo, scripted


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


SLEEP = {"id": "sleep", "wait": {"for": "2h"}}
ASK = {"id": "ask", "wait": {"approval": {"message": "Pay {{ trigger.input.amount }}?"}}}


def test_a_wait_holds_no_worker_and_is_charged_nothing(parts: Parts) -> None:
    run = parts.execute(echo("before"), SLEEP, echo("after"))
    assert (run["status"], run["wait_reason"]) == ("waiting", "sleeping")
    assert timedelta(minutes=119) < run["wake_at"] - datetime.now(UTC) <= timedelta(hours=2)
    step = parts.steps_of(run["id"])["sleep"]
    assert (step["status"], step["wait_reason"]) == ("running", "sleeping")
    assert abs(step["wake_at"] - run["wake_at"]) < timedelta(seconds=1)
    assert parts.sweep_and_run() == []
    parts.let_pass(hours=2)
    assert parts.sweep_and_run() == [run["id"]]
    assert parts.run_row(run["id"])["output"] == {"at": "after"}
    calls = parts.rows("SELECT action FROM usage WHERE kind = 'action_call'")
    assert calls == [{"action": "debug.echo"}, {"action": "debug.echo"}]
    assert parts.rows("SELECT sum(seconds) < 5 AS little FROM usage") == [{"little": True}]


def test_a_wait_until_a_moment_ends_then_and_one_that_has_passed_is_none(parts: Parts) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    run = parts.execute(
        {"id": "past", "wait": {"until": "timestamp('2020-01-01T00:00:00Z')"}},
        {"id": "later", "wait": {"until": "trigger.input.at"}},
        input={"input": {"at": moment.isoformat()}},
    )
    assert parts.statuses(run["id"]) == {"past": "succeeded", "later": "running"}
    assert abs(run["wake_at"] - moment) < timedelta(seconds=5)


def test_the_clock_of_the_worker_does_not_matter(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from a worker that is ten minutes slow, Postgres is ten minutes ahead."""
    original = runs.begin

    def ahead(*arguments: Any, **keys: Any) -> Any:
        row = original(*arguments, **keys)
        return row and {**row, "now": row["now"] + timedelta(minutes=10)}

    monkeypatch.setattr("engine.executor.runs.begin", ahead)
    moment = datetime.now(UTC) + timedelta(hours=1)
    run = parts.execute({"id": "w", "wait": {"until": "trigger.input.at"}}, input={"input": {"at": moment.isoformat()}})
    wakes_in = parts.rows("SELECT extract(epoch FROM wake_at - now())::int AS seconds FROM runs")[0]["seconds"]
    assert 2990 <= wakes_in <= 3000
    assert run["status"] == "waiting"


def test_a_moment_that_is_none_fails_the_step(parts: Parts) -> None:
    run = parts.execute({"id": "later", "wait": {"until": "trigger.input.at"}}, input={"input": {"at": "tomorrow"}})
    assert (run["status"], run["error"]["code"]) == ("failed", "expression_failed")
    assert run["error"]["message"].startswith("wait: trigger.input.at: want a timestamp")


def test_a_wait_in_one_branch_does_not_hold_up_another(parts: Parts) -> None:
    run = parts.execute(
        {**SLEEP, "needs": []}, echo("other", needs=[]), echo("more"), echo("last", needs=["sleep", "more"])
    )
    assert parts.statuses(run["id"]) == {"sleep": "running", "other": "succeeded", "more": "succeeded"}
    assert run["status"] == "waiting"
    parts.let_pass(hours=2)
    parts.sweep_and_run()
    assert parts.run_row(run["id"])["status"] == "succeeded"


def test_of_several_waits_the_first_wakes_the_run_and_the_others_keep_their_time(parts: Parts) -> None:
    run = parts.execute(
        {"id": "long", "wait": {"for": "3h"}, "needs": []}, {"id": "short", "wait": {"for": "1h"}, "needs": []}
    )
    parts.let_pass(hours=1)
    parts.sweep_and_run()
    row = parts.run_row(run["id"])
    assert (row["status"], parts.statuses(run["id"])) == ("waiting", {"long": "running", "short": "succeeded"})
    assert timedelta(minutes=119) < row["wake_at"] - datetime.now(UTC) <= timedelta(hours=2)
    parts.let_pass(hours=2)
    parts.sweep_and_run()
    assert parts.run_row(run["id"])["status"] == "succeeded"


def test_a_backoff_keeps_its_time_when_something_else_wakes_the_run(parts: Parts, script: SimpleNamespace) -> None:
    def body(_context: StepContext, _parameters: Any) -> Json:
        raise RetryLater("later", after=timedelta(minutes=30))

    script.body = body
    run = parts.execute(
        call("busy", needs=[], retry={"attempts": 3}), {"id": "short", "wait": {"for": "1m"}, "needs": []}
    )
    parts.let_pass(minutes=1)
    parts.sweep_and_run()
    assert len(script.action.contexts) == 1, "its half hour is not over"
    parts.let_pass(minutes=29)
    parts.sweep_and_run()
    assert [context.attempt for context in script.action.contexts] == [1, 2]
    assert parts.run_row(run["id"])["wait_reason"] == "retry_backoff"


def test_a_worker_that_dies_does_not_make_a_wait_begin_anew(parts: Parts, script: SimpleNamespace) -> None:
    def die(_context: StepContext, _parameters: Any) -> Json:
        raise WorkerDied

    run_id = parts.start(parts.workflow({**SLEEP, "needs": []}, echo("first", needs=[]), call("one")))
    script.body = die
    with pytest.raises(WorkerDied):
        parts.executor.run("acme", run_id)
    wake_at = parts.steps_of(run_id)["sleep"]["wake_at"]
    script.body = lambda _context, _parameters: None
    parts.silence()
    assert parts.another_worker().run("acme", run_id) is RunState.WAITING
    assert parts.steps_of(run_id)["sleep"]["wake_at"] == wake_at


class TestApproval:
    """Somebody agrees, refuses, is too late, or is asked twice."""

    def test_an_approved_run_goes_on_with_the_answer(self, parts: Parts) -> None:
        run = parts.execute(
            ASK, echo("pay", with_={"by": "{{ steps.ask.output.data.account }}"}), input={"input": {"amount": 7}}
        )
        assert (run["status"], run["wait_reason"], run["wake_at"]) == ("waiting", "approval", None)
        assert parts.steps_of(run["id"])["ask"]["output"] == {"message": "Pay 7?"}
        parts.publisher.messages.clear()
        answered = parts.resume(run["id"], data={"account": "main"})
        assert (answered.step_id, answered.item, answered.approved) == ("ask", "", True)
        assert parts.run_row(run["id"])["status"] == "queued"
        assert list(parts.publisher.messages) == [f"{run['id']}.1"], "published with the answer, not by a sweep"
        parts.executor.run("acme", run["id"])
        assert parts.run_row(run["id"])["output"] == {"by": "main"}
        output = parts.steps_of(run["id"])["ask"]["output"]
        assert (output["approved"], output["by"]) == (True, "user_ada")

    def test_a_refusal_fails_the_step(self, parts: Parts) -> None:
        run = parts.execute(ASK, echo("pay"), input={"input": {"amount": 7}})
        parts.resume(run["id"], approved=False)
        parts.sweep_and_run()
        row = parts.run_row(run["id"])
        assert (row["status"], row["error"]["code"]) == ("failed", "approval_refused")
        assert "user_ada" in row["error"]["message"]

    def test_no_answer_in_time_fails_the_step_and_a_late_one_is_told_so(self, parts: Parts) -> None:
        run = parts.execute({"id": "ask", "wait": {"approval": {"expires": "1h"}}})
        parts.let_pass(hours=1)
        with pytest.raises(Gone) as late:
            parts.resume(run["id"])
        assert late.value.error_code == "approval_expired"
        said = [line["message"] for line in parts.lines_of(run["id"])]
        assert "Waits without a worker for 1h at most (approval)." in said
        parts.sweep_and_run()
        assert parts.run_row(run["id"])["error"]["code"] == "approval_expired"

    def test_an_answer_is_taken_once(self, parts: Parts) -> None:
        run = parts.execute(ASK, input={"input": {"amount": 7}})
        parts.resume(run["id"])
        with pytest.raises(Conflict) as again:
            parts.resume(run["id"], approved=False)
        assert again.value.error_code == "run_not_waiting"

    def test_what_does_not_wait_for_an_answer_takes_none(self, parts: Parts) -> None:
        sleeping = parts.execute(SLEEP)
        done = parts.start(parts.workflow(echo(), workflow_id="wf_2"))
        parts.executor.run("acme", done)
        for run_id in (sleeping["id"], done):
            with pytest.raises(Conflict):
                parts.resume(run_id)
        with pytest.raises(NotFound):
            parts.resume("run_nope")

    def test_one_of_several_is_named(self, parts: Parts) -> None:
        asks: list[dict[str, Any]] = [
            {"id": name, "wait": {"approval": {}}, "needs": []} for name in ("legal", "money")
        ]
        run = parts.execute(*asks)
        with pytest.raises(Conflict) as unclear:
            parts.resume(run["id"])
        assert unclear.value.error_code == "answer_ambiguous"
        parts.resume(run["id"], step_id="money")
        parts.sweep_and_run()
        assert parts.statuses(run["id"]) == {"legal": "running", "money": "succeeded"}
        parts.resume(run["id"])
        parts.sweep_and_run()
        assert parts.run_row(run["id"])["status"] == "succeeded"

    def test_an_answer_that_comes_while_another_branch_runs_is_not_lost(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        inside, go_on = threading.Event(), threading.Event()

        def body(_context: StepContext, _parameters: Any) -> Json:
            inside.set()
            return go_on.wait(20)

        script.body = body
        run_id = parts.start(
            parts.workflow({"id": "ask", "wait": {"approval": {}}, "needs": []}, echo("first", needs=[]), call("slow"))
        )
        worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
        worker.start()
        assert inside.wait(10)
        parts.resume(run_id)
        go_on.set()
        worker.join(10)
        assert parts.run_row(run_id)["status"] == "waiting"
        parts.sweep_and_run()
        assert parts.run_row(run_id)["status"] == "succeeded"

    def test_a_hundred_answers_at_once_are_one(self, parts: Parts) -> None:
        run = parts.execute(ASK, input={"input": {"amount": 7}})
        taken: list[bool] = []

        def answer(approved: bool) -> None:
            try:
                parts.resume(run["id"], approved=approved)
            except Conflict:
                return
            taken.append(approved)

        threads = [threading.Thread(target=answer, args=(n % 2 == 0,)) for n in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        parts.sweep_and_run()
        assert parts.run_row(run["id"])["status"] == ("succeeded" if taken[0] else "failed")

    def test_the_signed_link_stands_in_expressions_and_names_the_run(self, parts: Parts) -> None:
        run = parts.execute(
            echo("tell", with_={"link": "{{ run.resume_url }}"}), {"id": "ask", "wait": {"approval": {}}}
        )
        link = parts.steps_of(run["id"])["tell"]["output"]["link"]
        assert link.startswith(f"https://fairlane.example/api/runs/{run['id']}/resume?token=")
        found = parts.links.read(link.partition("token=")[2])
        assert (found.tenant_id, found.run_id) == ("acme", run["id"])


class TestUnknownOutcome:
    """A worker died in the middle of an effect."""

    @pytest.fixture
    def crashed(self, parts: Parts, script: SimpleNamespace, request: pytest.FixtureRequest) -> str:
        """A run whose worker died in the step ``one``, given to another worker."""

        def die(_context: StepContext, _parameters: Any) -> Json:
            raise WorkerDied

        script.body = die
        run_id = parts.start(parts.workflow(call(on_unknown=request.param), echo("two")))
        with pytest.raises(WorkerDied):
            parts.executor.run("acme", run_id)
        script.body = lambda _context, _parameters: "done"
        parts.silence()
        parts.another_worker().run("acme", run_id)
        return run_id

    @pytest.mark.parametrize("crashed", ["retry"], indirect=True)
    def test_it_is_tried_again_with_the_same_key(self, parts: Parts, crashed: str, script: SimpleNamespace) -> None:
        assert parts.run_row(crashed)["status"] == "succeeded"
        assert [context.attempt for context in script.action.contexts] == [1, 2]
        assert {context.idempotency_key for context in script.action.contexts} == {f"{crashed}:one"}

    @pytest.mark.parametrize("crashed", ["fail"], indirect=True)
    def test_it_fails(self, parts: Parts, crashed: str, script: SimpleNamespace) -> None:
        row = parts.run_row(crashed)
        assert (row["status"], row["error"]["code"]) == ("failed", "outcome_unknown")
        assert len(script.action.contexts) == 1

    @pytest.mark.parametrize("crashed", ["ask"], indirect=True)
    def test_somebody_is_asked_and_yes_tries_again(self, parts: Parts, crashed: str, script: SimpleNamespace) -> None:
        assert parts.run_row(crashed)["wait_reason"] == "outcome_unknown"
        assert len(script.action.contexts) == 1
        parts.resume(crashed)
        parts.sweep_and_run()
        assert parts.run_row(crashed)["status"] == "succeeded"
        assert [context.attempt for context in script.action.contexts] == [1, 2]

    @pytest.mark.parametrize("crashed", ["ask"], indirect=True)
    def test_somebody_is_asked_and_no_fails_the_step(self, parts: Parts, crashed: str, script: SimpleNamespace) -> None:
        parts.resume(crashed, approved=False)
        parts.sweep_and_run()
        assert parts.run_row(crashed)["error"]["code"] == "outcome_unknown"
        assert len(script.action.contexts) == 1

    @pytest.mark.parametrize("crashed", ["ask"], indirect=True)
    def test_each_death_is_asked_about(self, parts: Parts, crashed: str, script: SimpleNamespace) -> None:
        def die(_context: StepContext, _parameters: Any) -> Json:
            raise WorkerDied

        script.body = die
        parts.resume(crashed)
        with pytest.raises(WorkerDied):
            parts.sweep_and_run()
        parts.silence()
        parts.another_worker().run("acme", crashed)
        assert parts.run_row(crashed)["wait_reason"] == "outcome_unknown"
        script.body = lambda _context, _parameters: "done"
        parts.resume(crashed)
        parts.sweep_and_run()
        assert parts.run_row(crashed)["status"] == "succeeded"
        assert len(script.action.contexts) == 3


def test_a_hundred_thousand_waiting_runs_cost_a_sweep_nothing(parts: Parts) -> None:
    parts.workflow(SLEEP)
    parts.fill(
        "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, attempt, wait_reason, wake_at)"
        " SELECT 'acme', 'run_' || n, 'wf_1', 1, 'waiting', 'api', '{}', 1, 'sleeping', now() + interval '1 day'"
        " FROM generate_series(1, 100000) n"
    )
    parts.fill("ANALYZE runs")
    began = datetime.now(UTC)
    assert parts.sweep_and_run() == []
    assert datetime.now(UTC) - began < timedelta(seconds=1)
