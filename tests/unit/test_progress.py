"""Lists of items under way: how many at once, in which order, and what the step comes to."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.execution import StepResult
from engine.progress import Progress
from engine.states import StepState
from engine.step import Step


def step(parallel: int, on_error: str = "fail") -> Step:
    for_each = {"items": "x", "parallel": parallel}
    return Step.model_validate({"id": "each", "action": "a.b", "for_each": for_each, "on_error": on_error})


def result(index: int, *, fails: bool = False, waits: float | None = None) -> StepResult:
    if waits is not None:
        return StepResult(
            "each", StepState.RUNNING, 1, item=str(index), wait_reason="retry_backoff", wake_seconds=waits
        )
    status = StepState.FAILED if fails else StepState.SUCCEEDED
    error = {"code": "no", "message": f"not {index}"} if fails else None
    return StepResult("each", status, 1, output=index, error=error, item=str(index))


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 30))
    indexes = st.integers(0, max(count - 1, 0))
    return {
        "count": count,
        "parallel": draw(st.integers(1, 20)),
        "failing": draw(st.sets(indexes, max_size=3)) if count else set(),
        "finished_before": draw(st.sets(indexes)) if count else set(),
        "on_error": draw(st.sampled_from(["fail", "continue"])),
    }


@given(plans(), st.data())
def test_items_are_begun_once_each_within_the_bound_and_the_step_ends(
    plan: dict[str, Any], data: st.DataObject
) -> None:
    progress = Progress()
    before = plan["finished_before"] - plan["failing"]
    progress.done_items["each"] = {index: result(index) for index in before}
    progress.open_items(step(plan["parallel"], plan["on_error"]), list(range(plan["count"])))
    busy: set[tuple[str, str]] = set()
    begun: list[int] = []
    while not (settled := progress.settle_items(busy)):
        for _, index in progress.next_items(busy):
            busy.add(("each", str(index)))
            begun.append(index)
        assert 0 < len(busy) <= plan["parallel"]
        key = data.draw(st.sampled_from(sorted(busy)))
        busy.remove(key)
        progress.add([result(int(key[1]), fails=int(key[1]) in plan["failing"])])
    (whole,) = settled
    assert begun == sorted(set(begun)), "in order, and none twice"
    assert not set(begun) & before
    if plan["on_error"] == "continue" or not plan["failing"]:
        assert len(begun) + len(before) == plan["count"]
    failed = set(begun) & plan["failing"]
    assert (whole.status is StepState.FAILED) == bool(failed)
    assert len(whole.output) == plan["count"]
    for index, output in enumerate(whole.output):
        assert output == (index if index in {*begun, *before} - failed else None)


def test_a_waiting_item_keeps_its_place_in_the_hand() -> None:
    progress = Progress()
    progress.open_items(step(2), ["a", "b", "c"])
    assert [index for _, index in progress.next_items(set())] == [0, 1]
    progress.add([result(0, waits=60)])
    assert [index for _, index in progress.next_items({("each", "1")})] == []
    progress.add([result(1)])
    assert [index for _, index in progress.next_items(set())] == [2]
    progress.add([result(2)])
    assert progress.settle_items(set()) == [], "one still waits"
    first = progress.wakes_first()
    assert first is not None
    assert first.reason == "retry_backoff"


@given(st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=10))
def test_what_wakes_first_is_that_with_the_shortest_wait(waits: list[float | None]) -> None:
    progress = Progress()
    for index, seconds in enumerate(waits):
        progress.wait((f"s{index}", ""), f"r{index}", seconds)
    first = progress.wakes_first()
    assert first is not None
    shortest = min((w for w in waits if w is not None), default=None)
    assert (first.wake_seconds is None) == (shortest is None)
    if shortest is not None and first.wake_seconds is not None:
        assert shortest - 1 <= first.wake_seconds <= shortest
