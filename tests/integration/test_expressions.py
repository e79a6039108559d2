"""The evaluator with its real processes: values, limits, and what hostile expressions can do to it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import ExpressionFailed, ExpressionInvalid, Fault, Unavailable
from engine.expressions import Evaluator

CONTEXT: dict[str, Any] = {
    "trigger": {
        "body": {
            "amount": 150,
            "name": "héé😀",
            "items": [1, 2],
            "none": None,
            "snowflake": 2**63 + 1,
            "huge": 2**70,
            "half": "\ud800",
        }
    },
    "steps": {"weather": {"output": {"temp": 26.0}, "status": "succeeded"}},
    "run": {"id": "run_1"},
    "workflow": {"name": "w"},
}


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    with Evaluator(children=2) as evaluator:
        yield evaluator


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("trigger.body.amount > 100 && steps.weather.output.temp > 25.0", True),
        ("trigger.body.amount == 150.0", True),
        ("size(trigger.body.name)", 4),
        ("'a,b'.split(',')", ["a", "b"]),
        ("has(trigger.body.missing)", False),
        ("trigger.body.none", None),
        ("[trigger.body.none][0]", None),
        ("{'all': trigger.body}.all", {**CONTEXT["trigger"]["body"], "half": "?"}),
        ("trigger.body", CONTEXT["trigger"]["body"]),
        ("[trigger.body.snowflake]", [2**63 + 1]),
        ("trigger.body.huge", 2**70),
        ("[trigger.body.huge]", [2**70]),
        ("timestamp('2026-01-02T03:04:05.6Z') + duration('1h')", "2026-01-02T04:04:05.600000Z"),
        ("duration('90s')", "90s"),
        ("duration('-1500ms')", "-1.5s"),
        ("b'\\xff\\x00'", "/wA="),
        ("{1: 'a', 2: 2u}", {"1": "a", "2": 2}),
        ("[1, 'a', null, 1.5]", [1, "a", None, 1.5]),
    ],
)
def test_values_come_back_as_json(evaluator: Evaluator, source: str, value: Any) -> None:
    result = evaluator.value(source, CONTEXT)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("steps.weather.output.wind", "steps.weather.output.wind: no such key 'wind'"),
        ("steps.nope.output.x", "steps.nope: no such key 'nope'"),
        ("trigger.body.items[2]", "trigger.body.items[2]: the list has only 2 items"),
        ("trigger.body.amount.x", "trigger.body.amount.x: trigger.body.amount is a number, which has no 'x'"),
        ("run.nope", "run.nope: no such key 'nope'"),
        ("steps.weather.output.wind + 1", "steps.weather.output.wind: no such key 'wind'"),
        ("size(steps.nope.output)", "steps.nope: no such key 'nope'"),
        ("trigger.body.items[2] + 1", "trigger.body.items[2]: the list has only 2 items"),
        ("-trigger.body.amount.x", "trigger.body.amount.x: trigger.body.amount is a number, which has no 'x'"),
        ("size(run.nope)", "run.nope: no such key 'nope'"),
        ("trigger.body[trigger.body.name]", "key not found"),
        ("trigger.body.huge + 1", "no matching overload"),
        ("1 / 0", "divide by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("1.0 / 0.0", "JSON cannot hold"),
        ("type(1)", "JSON cannot hold"),
        ("nope", "unknown name or function 'nope'"),
        ("", "an expression is missing"),
        ("'" + "x" * 2048 + "'", "longer than 2048 bytes"),
    ],
)
def test_expression_without_a_value_says_why(evaluator: Evaluator, source: str, sentence: str) -> None:
    with pytest.raises(ExpressionFailed) as failure:
        evaluator.value(source, CONTEXT)
    assert sentence in failure.value.detail


@pytest.mark.parametrize(
    ("source", "found"), [("trigger.body.name", "a string"), ("trigger.body.none", "null"), ("1", "a number")]
)
def test_condition_is_true_only_for_the_boolean_true(evaluator: Evaluator, source: str, found: str) -> None:
    assert evaluator.condition("trigger.body.amount > 1", CONTEXT) is True
    assert evaluator.condition("trigger.body.amount < 1", CONTEXT) is False
    with pytest.raises(ExpressionFailed, match=f"must be true or false, this is {found}"):
        evaluator.condition(source, CONTEXT)


def test_render_fills_a_structure(evaluator: Evaluator) -> None:
    template = {
        "typed": "{{ trigger.body.items }}",
        "text": "It is {{ steps.weather.output.temp }} for {{ trigger.body.name }}{{ trigger.body.none }}",
        "deep": [{"x": "{{ {'a': 1} }}"}],
        "plain": "}} {",
        "n": 1,
    }
    assert evaluator.render(template, CONTEXT) == {
        "typed": [1, 2],
        "text": "It is 26.0 for héé😀",
        "deep": [{"x": {"a": 1}}],
        "plain": "}} {",
        "n": 1,
    }


def test_render_without_templates_or_with_plain_paths_starts_no_process() -> None:
    with Evaluator() as evaluator:
        assert evaluator.render({"a": ["b", 1]}, {}) == {"a": ["b", 1]}
        assert evaluator.render({"a": "{{ trigger.x }} {{ trigger['x'][0] }}"}, {"trigger": {"x": [1]}}) == {
            "a": "[1] 1"
        }
        assert evaluator.processes() == []


def test_render_of_an_unclosed_template_fails(evaluator: Evaluator) -> None:
    with pytest.raises(ExpressionFailed, match="no closing"):
        evaluator.render("{{ x", CONTEXT)


def test_check_answers_a_fault_for_each_bad_expression(evaluator: Evaluator) -> None:
    good = [(f"/{n}", f"trigger.body.n{n} == {n}", "condition") for n in range(450)]
    with pytest.raises(ExpressionInvalid) as invalid:
        evaluator.check(
            [
                *good,  # type: ignore[list-item]
                ("/a", "1 +", "value"),
                ("/b", "'text'", "condition"),
                ("/c", "trigger.body.field", "condition"),
                ("/d", "now()", "value"),
                ("/e", "", "condition"),
            ]
        )
    faults = {fault.pointer: fault.message for fault in invalid.value.faults}
    assert faults.keys() == {"/a", "/b", "/d", "/e"}
    assert faults["/a"].startswith("column 4: ")
    assert "must be true or false" in faults["/b"]
    assert "unknown name or function 'now'" in faults["/d"]


def test_check_of_sound_expressions_says_nothing(evaluator: Evaluator) -> None:
    evaluator.check([("/if", "steps.a.output.x > 1", "condition"), ("/with/x", "steps.a", "value")])


def test_context_is_limited_in_size_and_depth_but_only_where_it_is_read(evaluator: Evaluator) -> None:
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    ring: list[Any] = []
    ring.append(ring)
    context = {"trigger": {"big": "x" * 300_000, "deep": deep, "ring": ring, "small": 1, "nan": float("nan")}}
    assert evaluator.value("trigger.small + 1", context) == 2
    for key, sentence in [("big", "more than 256 KiB"), ("deep", "nested deeper"), ("ring", "JSON"), ("nan", "JSON")]:
        with pytest.raises(ExpressionFailed, match=sentence):
            evaluator.value(f"size(trigger.{key})", context)


DOUBLING = "['aaaaaaaaaaaaaaaa']"
TEN = "[1,2,3,4,5,6,7,8,9,10]"
HOSTILE = {
    "memory bomb": DOUBLING + ".map(a, a + a)" * 28 + ".size()",
    "list bomb": "[[1,1,1,1,1,1,1,1]]" + ".map(a, a + a)" * 27 + ".size()",
    "large result": DOUBLING + ".map(a, a + a)" * 16,
    "loop of a thousand million": f"{TEN}.all(a,{TEN}.all(b,{TEN}.all(c,{TEN}.all(d,{TEN}.all(e,true)))))",
    "backtracking": "('a' * 30)".replace("('a' * 30)", "'" + "a" * 40 + "!'") + ".matches('(a|aa)+$')",
    "regex bomb": "'x'.matches('((a{1,100}){1,100}){1,100}')",
    "deep parentheses": "(" * 900 + "1" + ")" * 900,
    "deep lists": "[" * 900 + "]" * 900,
    "long sum": "1" + "+1" * 1000,
    "long selection": "trigger" + ".a" * 1000,
    "nested macros": "[1].map(a," * 60 + "1" + ")" * 60,
    "format bomb": "'%s'.format(['" + "a" * 1000 + "'])",
    "replace bomb": "'" + "a" * 500 + "'" + ".replace('a', 'aaaaaaaaaaaaaaaa')" * 20,
    "join bomb": DOUBLING + ".map(a, a + a)" * 20 + ".join('x')",
    "attribute": "trigger.__class__.__mro__",
    "import": "__import__('os')",
    "null byte": "'\0'",
    "half character": "'\ud800'",
    "unclosed": "'''",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_expression_fails_alone_and_gives_its_memory_back(evaluator: Evaluator, name: str) -> None:
    with contextlib.suppress(ExpressionFailed):
        evaluator.value(HOSTILE[name], CONTEXT)
    assert evaluator.value("trigger.body.amount + 1", CONTEXT) == 151
    assert all(resident_kib(pid) < 100_000 for pid in evaluator.processes())


@pytest.mark.parametrize("name", ["memory bomb", "list bomb", "replace bomb"])
def test_bomb_is_told_what_limit_it_passed(evaluator: Evaluator, name: str) -> None:
    with pytest.raises(ExpressionFailed, match=r"longer than 250 ms|too much memory|larger than 256 KiB"):
        evaluator.value(HOSTILE[name], CONTEXT)


def test_bomb_in_a_check_does_not_hide_the_fault_beside_it(evaluator: Evaluator) -> None:
    with pytest.raises(ExpressionInvalid) as invalid:
        evaluator.check([("/a", "1 +", "value"), ("/b", HOSTILE["deep parentheses"], "value")])
    assert "/a" in {fault.pointer for fault in invalid.value.faults}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.text(st.sampled_from("trigger.body[]{}()'\"\\+-*/%<>=!&|?:, 0123456789aerx\n"), max_size=60))
def test_any_text_is_answered_or_refused(evaluator: Evaluator, source: str) -> None:
    with contextlib.suppress(ExpressionFailed):
        evaluator.value(source, CONTEXT)
    with contextlib.suppress(ExpressionInvalid):
        evaluator.check([("", source, "value")])


def test_nulls_by_the_thousand_do_not_kill_the_evaluator(evaluator: Evaluator) -> None:
    before = evaluator.processes()
    template = [f"{{{{ [{n}, null][1] }}}}" for n in range(100)]
    for _ in range(60):
        assert evaluator.render(template, CONTEXT) == [None] * 100
    assert len(evaluator.processes()) == len(before)


def test_evaluator_is_recycled_after_ten_thousand_evaluations() -> None:
    with Evaluator(children=1) as evaluator:
        template = [f"{{{{ {n} }}}}" for n in range(500)]
        evaluator.render(template, {})
        first = evaluator.processes()
        for _ in range(20):
            assert evaluator.render(template, {}) == list(range(500))
        again = evaluator.processes()
    assert first[0] == again[0], "the zygote stays"
    assert first[1:] != again[1:]


def test_threads_evaluate_at_the_same_time() -> None:
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                context = {"trigger": {"turn": turn}}
                assert shared.value(f"{number} * 1000 + trigger.turn", context) == number * 1000 + turn
        except Exception as error:
            failures.append(error)

    with Evaluator(children=3) as shared:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(shared.processes()) <= 4
    assert failures == []


def test_killed_processes_are_replaced() -> None:
    with Evaluator(children=1) as evaluator:
        assert evaluator.value("1", {}) == 1
        zygote, child = evaluator.processes()
        os.kill(child, signal.SIGKILL)
        assert evaluator.value("2", {}) == 2
        os.kill(zygote, signal.SIGKILL)
        for pid in evaluator.processes():
            os.kill(pid, signal.SIGKILL)
        assert evaluator.value("3", {}) == 3
        assert zygote not in evaluator.processes()


def test_frozen_evaluator_is_killed_by_wall_time() -> None:
    with Evaluator(children=1, deadline=timedelta(milliseconds=20)) as evaluator:
        assert evaluator.value("1", {}) == 1
        os.kill(evaluator.processes()[1], signal.SIGSTOP)
        with pytest.raises(ExpressionFailed, match="longer than 20 ms"):
            evaluator.value("2", {})
        assert evaluator.value("3", {}) == 3


def test_close_leaves_no_process() -> None:
    evaluator = Evaluator()
    evaluator.value("1", {})
    watched = [os.pidfd_open(pid) for pid in evaluator.processes()]
    evaluator.close()
    evaluator.close()
    assert all(has_ended(descriptor) for descriptor in watched)
    with pytest.raises(Unavailable):
        evaluator.value("1", {})


def test_child_has_no_secrets_and_cannot_open_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLANE_MASTER_KEYS", "secret")
    with Evaluator(children=1) as evaluator:
        evaluator.value("1", {})
        for pid in evaluator.processes():
            assert b"FAIRLANE" not in Path(f"/proc/{pid}/environ").read_bytes()
        limits = Path(f"/proc/{evaluator.processes()[1]}/limits").read_text()
        descriptors = list(Path(f"/proc/{evaluator.processes()[1]}/fd").iterdir())
    assert any(line.split()[:5] == ["Max", "open", "files", "0", "0"] for line in limits.splitlines())
    assert len(descriptors) == 4, "null three times, and its own socket"


ORPHAN = """
import sys
from engine.expressions import Evaluator
evaluator = Evaluator(children=1)
evaluator.value("1", {})
print(*evaluator.processes(), flush=True)
sys.stdin.read()
"""

FORKED = """
import os
from engine.expressions import Evaluator
evaluator = Evaluator(children=1)
assert evaluator.value("1", {}) == 1
ours = set(evaluator.processes())
if (pid := os.fork()) == 0:
    assert evaluator.value("2", {}) == 2
    assert not ours & set(evaluator.processes())
    evaluator.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert evaluator.value("3", {}) == 3
assert set(evaluator.processes()) == ours
print("fine")
"""


def test_processes_end_when_their_worker_is_killed() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_path()
    )
    with worker:
        assert worker.stdout is not None
        watched = [os.pidfd_open(int(pid)) for pid in worker.stdout.readline().split()]
        worker.kill()
        assert len(watched) == 2
        assert all(has_ended(descriptor) for descriptor in watched)


def test_forked_worker_has_evaluators_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, env=with_path(), check=False)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")


def test_fault_of_a_run_is_no_fault_of_a_document() -> None:
    """`check` speaks in faults with pointers; a run speaks in sentences."""
    with Evaluator(children=1) as evaluator:
        with pytest.raises(ExpressionInvalid) as invalid:
            evaluator.check([("/steps/0/if", "nope", "condition")])
        assert isinstance(invalid.value.faults[0], Fault)
        with pytest.raises(ExpressionFailed):
            evaluator.condition("nope", {})


def with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


def has_ended(descriptor: int) -> bool:
    """Wait, at most ten seconds, until the process of a pidfd is gone."""
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)
