"""Failures that are dealt with, choices, lists of items, and workflows that run workflows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from engine.db import dump_json
from engine.errors import Fatal, RetryLater, Suspend
from engine.execution import MAX_OUTPUT_BYTES, StepResult
from engine.ports import Json, StepContext
from engine.progress import MAX_KEPT_BYTES, Items
from engine.states import RunState
from engine.sweeper import Sweeper
from engine.workflows import Workflows
from tests.engine_parts import Parts, parts_for
from tests.scripted import WorkerDied, call, echo, scripted
from triggers import KINDS


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def fail(_context: StepContext, _parameters: Any) -> Json:
    raise Fatal("the other side said no", code="refused")


class TestOnError:
    """What a failure leads to."""

    def test_continue_goes_on_and_shows_what_went_wrong(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = fail
        run = parts.execute(
            call(on_error="continue"),
            echo("two", with_={"was": "{{ steps.one.status }}", "why": "{{ steps.one.error.code }}"}),
        )
        assert run["status"] == "succeeded"
        assert run["output"] == {"was": "failed", "why": "refused"}
        assert parts.statuses(run["id"]) == {"one": "failed", "two": "succeeded"}

    def test_another_step_deals_with_it_and_what_lies_between_is_skipped(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        script.body = fail
        run = parts.execute(
            call("try", on_error="catch"),
            echo("then"),
            echo("and_then"),
            echo("catch", with_={"why": "{{ steps.try.error.message }}"}),
            echo("after"),
        )
        assert run["status"] == "succeeded"
        assert parts.statuses(run["id"]) == {
            "try": "failed",
            "then": "skipped",
            "and_then": "skipped",
            "catch": "succeeded",
            "after": "succeeded",
        }
        assert parts.steps_of(run["id"])["catch"]["output"] == {"why": "the other side said no"}

    def test_that_step_is_skipped_when_nothing_failed(self, parts: Parts) -> None:
        run = parts.execute(call("try", on_error="catch"), echo("then"), echo("catch"), echo("after"))
        assert parts.statuses(run["id"]) == {
            "try": "succeeded",
            "then": "succeeded",
            "catch": "skipped",
            "after": "succeeded",
        }

    def test_a_failure_of_that_step_fails_the_run(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = fail
        run = parts.execute(call("try", on_error="catch"), call("catch"), echo("after"))
        assert (run["status"], run["error"]["step"]) == ("failed", "catch")

    def test_a_branch_that_does_not_rely_on_what_failed_goes_on(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = fail
        run = parts.execute(
            call("try", needs=[], on_error="catch"),
            echo("then", needs=["try"]),
            echo("other", needs=[]),
            echo("catch", needs=["try"]),
            echo("join", needs=["catch", "other", "then"]),
        )
        assert parts.statuses(run["id"]) == {
            "try": "failed",
            "then": "skipped",
            "other": "succeeded",
            "catch": "succeeded",
            "join": "succeeded",
        }

    def test_a_worker_that_takes_the_run_over_decides_alike(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(context: StepContext, _parameters: Any) -> Json:
            if context.step_id == "try":
                raise Fatal("no")
            raise WorkerDied

        script.body = body
        run_id = parts.start(parts.workflow(call("try", on_error="catch"), echo("then"), call("catch"), echo("after")))
        with pytest.raises(WorkerDied):
            parts.executor.run("acme", run_id)
        script.body = lambda _context, _parameters: "caught"
        parts.silence()
        assert parts.another_worker().run("acme", run_id) is RunState.SUCCEEDED
        assert parts.statuses(run_id)["then"] == "skipped"


class TestOnFailure:
    """The workflow that gets the failed run."""

    def test_it_is_started_with_the_failed_run(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = fail
        parts.workflow(echo(with_={"failed": "{{ trigger.input }}"}), workflow_id="wf_tell")
        run_id = parts.start(parts.workflow(call(), on_failure={"workflow": "wf_tell"}), input={"body": {"n": 1}})
        parts.publisher.messages.clear()
        parts.executor.run("acme", run_id)
        (other,) = parts.rows("SELECT * FROM runs WHERE workflow_id = 'wf_tell'")
        assert other["trigger"] == "on_failure"
        assert list(parts.publisher.messages) == [other["id"]], "published with the failure, not by a sweep"
        parts.sweep_and_run()
        failed = parts.run_row(other["id"])["output"]["failed"]
        assert (failed["id"], failed["workflow_id"], failed["status"]) == (run_id, "wf_1", "failed")
        assert failed["input"] == {"body": {"n": 1}}
        assert (failed["error"]["code"], failed["error"]["step"]) == ("refused", "one")

    def test_it_never_goes_round(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = fail
        parts.workflow(call(), workflow_id="wf_a", on_failure={"workflow": "wf_b"})
        parts.workflow(call(), workflow_id="wf_b", on_failure={"workflow": "wf_a"})
        parts.workflow(call(), workflow_id="wf_own", on_failure={"workflow": "wf_own"})
        parts.start("wf_a")
        parts.start("wf_own")
        while parts.publisher.messages:
            parts.sweep_and_run()
        assert parts.rows("SELECT workflow_id FROM runs ORDER BY 1") == [
            {"workflow_id": "wf_a"},
            {"workflow_id": "wf_b"},
            {"workflow_id": "wf_own"},
        ]

    def test_one_that_does_not_exist_changes_nothing_else(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = fail
        run_id = parts.start(parts.workflow(call(), on_failure={"workflow": "wf_gone"}))
        assert parts.executor.run("acme", run_id) is RunState.FAILED
        assert parts.run_row(run_id)["error"]["code"] == "refused"

    def test_a_step_of_its_name_that_has_a_child_does_not_stand_for_it(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        script.body = fail
        parts.workflow(call(), workflow_id="wf_child")
        parts.workflow(echo(), workflow_id="wf_tell")
        parts.start(parts.workflow({**PARENT, "id": "on_failure"}, on_failure={"workflow": "wf_tell"}))
        while parts.publisher.messages:
            parts.sweep_and_run()
        assert parts.rows("SELECT trigger FROM runs WHERE workflow_id = 'wf_tell'") == [{"trigger": "on_failure"}]

    def test_a_run_that_succeeds_or_is_cancelled_starts_none(self, parts: Parts) -> None:
        parts.workflow(echo(), workflow_id="wf_tell")
        workflow = parts.workflow(echo(), on_failure={"workflow": "wf_tell"})
        parts.executor.run("acme", parts.start(workflow))
        parts.cancel(parts.start(workflow))
        assert parts.rows("SELECT 1 FROM runs WHERE workflow_id = 'wf_tell'") == []


SWITCH = {
    "id": "kind",
    "switch": {
        "cases": [
            {"if": "trigger.input.kind == 'order'", "then": ["order"]},
            {"if": "trigger.input.kind == 'refund'", "then": ["refund", "tell"]},
        ],
        "else": ["tell"],
    },
}


@pytest.mark.parametrize(
    ("kind", "case", "chosen"),
    [("order", 0, ["order"]), ("refund", 1, ["refund", "tell"]), ("other", None, ["tell"])],
)
def test_a_switch_chooses_and_skips_the_others(parts: Parts, kind: str, case: int | None, chosen: list[str]) -> None:
    run = parts.execute(
        SWITCH, echo("order"), echo("refund"), echo("tell"), echo("end"), input={"input": {"kind": kind}}
    )
    assert run["status"] == "succeeded"
    statuses = parts.statuses(run["id"])
    assert [name for name in ("order", "refund", "tell") if statuses[name] == "succeeded"] == chosen
    assert statuses["end"] == "succeeded"
    assert parts.steps_of(run["id"])["kind"]["output"] == {"case": case, "chosen": chosen}


def test_a_switch_that_is_skipped_chooses_nothing(parts: Parts) -> None:
    run = parts.execute(
        {**SWITCH, "if": "false"}, echo("order"), echo("refund"), echo("tell"), input={"input": {"kind": "order"}}
    )
    assert set(parts.statuses(run["id"]).values()) == {"skipped"}


def test_a_case_that_has_no_value_fails_the_switch(parts: Parts) -> None:
    run = parts.execute(SWITCH, echo("order"), echo("refund"), echo("tell"))
    assert (run["status"], run["error"]["step"]) == ("failed", "kind")
    assert run["error"]["message"].startswith("switch.cases.0.if: trigger.input.kind")


def each(items: Any = "trigger.input.list", **keys: Any) -> dict[str, Any]:
    return call("each", for_each=items, with_={"n": "{{ item.n }}", "place": "{{ index }}"}, **keys)


NUMBERS = {"input": {"list": [{"n": n} for n in range(6)]}}


class TestForEach:
    """An action for each item of a list."""

    def test_a_list_of_large_outputs_is_cut_and_is_not_held_in_memory(
        self, parts: Parts, script: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also not by the worker that takes the run over; each item's row has all of its output."""
        large = "x" * (MAX_OUTPUT_BYTES - 1000)
        kept: list[int] = []
        original = Items.result

        def watched(items: Items, in_hand: Collection[int]) -> StepResult | None:
            kept.append(len(dump_json([result.output for result in items.done.values()])))
            return original(items, in_hand)

        def body(_context: Any, parameters: Any) -> Json:
            if parameters.n == 15 and not parts.rows("SELECT 1 FROM runs WHERE attempt > 1"):
                raise Suspend("rest", wake_at=datetime.now(UTC) + timedelta(hours=1))
            return large

        monkeypatch.setattr(Items, "result", watched)
        script.body = body
        run = parts.execute(each(), input={"input": {"list": [{"n": n} for n in range(20)]}})
        assert run["status"] == "waiting"
        parts.let_pass(hours=2)
        Sweeper(parts.database, parts.publisher, runs=parts.runs).run_once()
        parts.another_worker().run("acme", run["id"])
        assert parts.run_row(run["id"])["status"] == "succeeded"
        assert max(kept) < MAX_KEPT_BYTES + 20_000
        outputs = parts.rows("SELECT octet_length(output::text) AS n, item FROM steps WHERE step_id = 'each'")
        assert {row["n"] > len(large) for row in outputs if row["item"]} == {True}
        assert next(row["n"] for row in outputs if not row["item"]) < MAX_OUTPUT_BYTES

    def test_outputs_come_in_order_and_each_item_has_its_key(self, parts: Parts, script: SimpleNamespace) -> None:
        script.body = lambda _context, parameters: parameters.n * 10 + parameters.place
        run = parts.execute(each(), echo("sum", with_={"all": "{{ steps.each.output }}"}), input=NUMBERS)
        assert run["output"] == {"all": [0, 11, 22, 33, 44, 55]}
        keys = [context.idempotency_key for context in script.action.contexts]
        assert keys == [f"{run['id']}:each:{n}" for n in range(6)]
        assert parts.statuses(run["id"]) == {
            "each": "succeeded",
            "sum": "succeeded",
            **{f"each:{n}": "succeeded" for n in range(6)},
        }

    def test_as_many_at_once_as_allowed_and_no_more(self, parts: Parts, script: SimpleNamespace) -> None:
        meeting = threading.Barrier(3)
        lock, now, most = threading.Lock(), [0], [0]

        def body(_context: StepContext, parameters: Any) -> Json:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            meeting.wait(10)
            with lock:
                now[0] -= 1
            return parameters.n

        script.body = body
        run = parts.execute(each({"items": "trigger.input.list", "parallel": 3}), input=NUMBERS)
        assert (run["output"], most[0]) == ([0, 1, 2, 3, 4, 5], 3)

    def test_an_empty_list_is_done_at_once(self, parts: Parts) -> None:
        run = parts.execute(each("[]"), echo("two"))
        assert run["status"] == "succeeded"
        assert parts.steps_of(run["id"])["each"]["output"] == []

    @pytest.mark.parametrize(
        ("items", "word"), [("'text'", "want a list"), ("trigger.input.list", "no such key"), ("{'a': 1}", "want a")]
    )
    def test_what_is_no_list_fails_the_step(self, parts: Parts, items: str, word: str) -> None:
        run = parts.execute(each(items))
        assert run["status"] == "failed"
        assert word in run["error"]["message"]

    def test_a_longer_list_than_is_allowed_fails_the_step(self, parts: Parts) -> None:
        run = parts.execute(each(), input={"input": {"list": [{"n": 0}] * 1001}})
        assert run["error"]["code"] == "invalid_items"

    def test_a_failed_item_stops_the_list_and_is_named(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(_context: StepContext, parameters: Any) -> Json:
            if parameters.n == 2:
                raise Fatal("two is too many", code="refused")
            return parameters.n

        script.body = body
        run = parts.execute(each(), echo("never"), input=NUMBERS)
        assert (run["status"], len(script.action.contexts)) == ("failed", 3)
        assert run["error"] == {
            "code": "refused",
            "message": "Item 2: two is too many",
            "step": "each",
            "item": 2,
        }

    def test_with_continue_every_item_is_tried(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(_context: StepContext, parameters: Any) -> Json:
            if parameters.n % 2:
                raise Fatal("odd")
            return parameters.n

        script.body = body
        run = parts.execute(
            each(on_error="continue"), echo("then", with_={"all": "{{ steps.each.output }}"}), input=NUMBERS
        )
        assert run["status"] == "succeeded"
        assert run["output"] == {"all": [0, None, 2, None, 4, None]}
        assert "3 of 6 failed" in parts.steps_of(run["id"])["each"]["error"]["message"]

    def test_each_item_has_its_own_retries(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(context: StepContext, parameters: Any) -> Json:
            if parameters.n == 1 and context.attempt == 1:
                raise RetryLater("wait", after=timedelta(minutes=5))
            return parameters.n

        script.body = body
        run = parts.execute(each({"items": "trigger.input.list", "parallel": 2}, retry={"attempts": 2}), input=NUMBERS)
        assert (run["status"], run["wait_reason"]) == ("waiting", "retry_backoff")
        assert Counter(parts.statuses(run["id"]).values()) == {"succeeded": 5, "running": 1}
        parts.let_pass(minutes=5)
        parts.sweep_and_run()
        assert parts.run_row(run["id"])["output"] == [0, 1, 2, 3, 4, 5]

    def test_a_condition_is_asked_once_for_the_whole_list(self, parts: Parts, script: SimpleNamespace) -> None:
        run = parts.execute(each(if_="false"), input=NUMBERS)
        assert (parts.statuses(run["id"]), script.action.contexts) == ({"each": "skipped"}, [])

    def test_finished_items_are_not_done_again_when_a_worker_dies(self, parts: Parts, script: SimpleNamespace) -> None:
        def body(_context: StepContext, parameters: Any) -> Json:
            if parameters.n == 3:
                raise WorkerDied
            return parameters.n

        script.body = body
        run_id = parts.start(parts.workflow(each()), input=NUMBERS)
        with pytest.raises(WorkerDied):
            parts.executor.run("acme", run_id)
        script.body = lambda _context, parameters: parameters.n
        parts.silence()
        assert parts.another_worker().run("acme", run_id) is RunState.SUCCEEDED
        assert parts.run_row(run_id)["output"] == [0, 1, 2, 3, 4, 5]
        done = Counter(context.idempotency_key for context in script.action.contexts)
        assert done == {f"{run_id}:each:{n}": 2 if n == 3 else 1 for n in range(6)}


PARENT = {"id": "sub", "action": "workflow.run", "with": {"workflow": "wf_child", "input": {"n": 5}}}


class TestWorkflowRun:
    """A run that starts another and waits for it."""

    def test_the_parent_waits_without_a_worker_and_gets_the_output(self, parts: Parts) -> None:
        parts.workflow(echo(with_={"n": "{{ trigger.input.n }}"}), workflow_id="wf_child")
        run = parts.execute(PARENT, echo("after", with_={"got": "{{ steps.sub.output.output.n }}"}))
        assert (run["status"], run["wait_reason"], run["wake_at"]) == ("waiting", "workflow", None)
        (child,) = parts.rows("SELECT * FROM runs WHERE workflow_id = 'wf_child'")
        assert (child["parent_run_id"], child["trigger"], child["depth"]) == (run["id"], "workflow", 1)
        assert child["id"] in parts.publisher.messages
        parts.publisher.messages.clear()
        parts.another_worker().run("acme", child["id"])
        assert parts.run_row(run["id"])["status"] == "queued"
        assert list(parts.publisher.messages) == [f"{run['id']}.1"], "woken by the child's end, not by a sweep"
        parts.sweep_and_run()
        assert parts.run_row(run["id"])["output"] == {"got": 5}
        assert parts.steps_of(run["id"])["sub"]["output"] == {"run_id": child["id"], "output": {"n": 5}}

    @pytest.mark.parametrize("end", ["failed", "cancelled"])
    def test_a_child_that_does_not_succeed_fails_the_step(
        self, parts: Parts, script: SimpleNamespace, end: str
    ) -> None:
        script.body = fail
        parts.workflow(call(), workflow_id="wf_child")
        run = parts.execute(PARENT)
        (child,) = parts.rows("SELECT id FROM runs WHERE workflow_id = 'wf_child'")
        if end == "cancelled":
            parts.cancel(child["id"])
        while parts.publisher.messages:
            parts.sweep_and_run()
        row = parts.run_row(run["id"])
        assert (row["status"], row["error"]["code"]) == ("failed", f"workflow_{end}")
        assert row["error"]["data"]["run_id"] == child["id"]

    def test_a_child_that_ends_before_its_parent_is_put_aside_wakes_it(
        self, parts: Parts, script: SimpleNamespace
    ) -> None:
        inside, go_on = threading.Event(), threading.Event()

        def body(_context: StepContext, _parameters: Any) -> Json:
            inside.set()
            return go_on.wait(20)

        script.body = body
        parts.workflow(echo(), workflow_id="wf_child")
        run_id = parts.start(parts.workflow({**PARENT, "needs": []}, call("slow", needs=[])))
        worker = threading.Thread(target=parts.executor.run, args=("acme", run_id))
        worker.start()
        assert inside.wait(10)
        child: list[Any] = []
        while not child:
            child = parts.rows("SELECT id FROM runs WHERE workflow_id = 'wf_child'")
        assert parts.another_worker().run("acme", child[0]["id"]) is RunState.SUCCEEDED
        go_on.set()
        worker.join(10)
        while parts.publisher.messages or parts.run_row(run_id)["status"] == "waiting":
            parts.sweep_and_run()
        assert parts.run_row(run_id)["status"] == "succeeded"

    def test_a_parent_that_dies_after_starting_it_waits_for_the_same_child(
        self, parts: Parts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts.workflow(echo(), workflow_id="wf_child")
        run_id = parts.start(parts.workflow(PARENT))

        def die(*_arguments: Any, **_keys: Any) -> None:
            raise WorkerDied

        with monkeypatch.context() as patch:
            patch.setattr("engine.checkpoints.save", die)
            with pytest.raises(WorkerDied):
                parts.executor.run("acme", run_id)
        (child,) = parts.rows("SELECT id FROM runs WHERE workflow_id = 'wf_child'")
        parts.another_worker().run("acme", child["id"])
        parts.silence()
        parts.publisher.messages.clear()
        assert parts.another_worker().run("acme", run_id) is RunState.SUCCEEDED
        assert parts.rows("SELECT id FROM runs WHERE workflow_id = 'wf_child'") == [child]

    def test_for_each_item_a_child_as_many_at_once_as_allowed(self, parts: Parts) -> None:
        parts.workflow(echo(with_={"n": "{{ trigger.input }}"}), workflow_id="wf_child")
        step = {
            **PARENT,
            "for_each": {"items": "[1, 2, 3, 4, 5]", "parallel": 2},
            "with": {"workflow": "wf_child", "input": "{{ item }}"},
        }
        run = parts.execute({**step}, echo("after", with_={"all": "{{ steps.sub.output.map(s, s.output.n) }}"}))
        assert len(parts.rows("SELECT 1 FROM runs WHERE workflow_id = 'wf_child'")) == 2
        while parts.publisher.messages:
            parts.sweep_and_run()
            live = parts.rows("SELECT 1 FROM runs WHERE workflow_id = 'wf_child' AND finished_at IS NULL")
            assert len(live) <= 2
        assert parts.run_row(run["id"])["output"] == {"all": [1, 2, 3, 4, 5]}

    def test_cancelling_the_parent_cancels_what_it_waits_for(self, parts: Parts) -> None:
        parts.workflow({"id": "sleep", "wait": {"for": "1d"}}, workflow_id="wf_grandchild")
        parts.workflow({**PARENT, "with": {"workflow": "wf_grandchild"}}, workflow_id="wf_child")
        run = parts.execute(PARENT)
        while parts.publisher.messages:
            parts.sweep_and_run()
        assert parts.cancel(run["id"])
        assert parts.rows("SELECT DISTINCT status FROM runs") == [{"status": "cancelled"}]
        assert parts.sweep_and_run() == []

    def test_deleting_a_workflow_takes_what_its_runs_wait_for_along_and_tells_who_waits_for_them(
        self, parts: Parts
    ) -> None:
        parts.workflow({"id": "sleep", "wait": {"for": "1d"}}, workflow_id="wf_grandchild")
        parts.workflow({**PARENT, "with": {"workflow": "wf_grandchild"}}, workflow_id="wf_child")
        run = parts.execute(PARENT)
        while parts.publisher.messages:
            parts.sweep_and_run()
        with parts.database.tenant("acme") as session:
            assert Workflows(parts.registry, KINDS, parts.vault).delete(session, "wf_child") == 1
        assert parts.rows("SELECT workflow_id, status FROM runs ORDER BY 1") == [
            {"workflow_id": "wf_1", "status": "queued"},
            {"workflow_id": "wf_child", "status": "cancelled"},
            {"workflow_id": "wf_grandchild", "status": "cancelled"},
        ]
        parts.executor.run("acme", run["id"])
        assert parts.run_row(run["id"])["error"]["code"] == "workflow_cancelled"

    def test_a_workflow_that_runs_itself_ends(self, parts: Parts) -> None:
        run_id = parts.start(parts.workflow({**PARENT, "with": {"workflow": "wf_1"}}))
        for _ in range(40):
            parts.sweep_and_run()
        assert parts.run_row(run_id)["status"] == "failed"
        assert parts.rows("SELECT count(*) AS n, max(depth) AS deepest FROM runs") == [{"n": 9, "deepest": 8}]
        (last,) = parts.rows("SELECT error FROM runs WHERE depth = 8")
        assert last["error"]["code"] == "too_deep"

    def test_one_that_does_not_exist_fails_the_step(self, parts: Parts) -> None:
        run = parts.execute(PARENT)
        assert (run["status"], run["error"]["code"]) == ("failed", "not_found")

    def test_a_run_cancelled_meanwhile_starts_no_child(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        parts.workflow(echo(), workflow_id="wf_child")
        run_id = parts.start(parts.workflow(PARENT))
        original = parts.registry["workflow.run"].run

        def cancel_first(context: StepContext, parameters: Any) -> Json:
            parts.cancel(run_id)
            return original(context, parameters)

        monkeypatch.setattr(parts.registry["workflow.run"], "run", cancel_first, raising=False)
        assert parts.executor.run("acme", run_id) is None
        assert parts.rows("SELECT status FROM runs") == [{"status": "cancelled"}]
