"""Who goes on when runs share a limit: a decision over values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.concurrency import Drop, GoOn, Queue, decide
from engine.workflow import Concurrency

POLICIES = st.sampled_from(["queue", "cancel_running", "drop_new"])
RUNS = st.lists(st.uuids().map(str), unique=True, max_size=12).map(sorted)


def concurrency(limit: int, on_limit: str) -> Concurrency:
    return Concurrency.model_validate({"limit": limit, "on_limit": on_limit})


@given(RUNS, st.integers(1, 6), POLICIES)
def test_after_the_decision_no_more_are_under_way_than_may_be(under_way: list[str], limit: int, on_limit: str) -> None:
    decision = decide(concurrency(limit, on_limit), under_way, waiting=0)
    if isinstance(decision, GoOn):
        assert set(decision.displaced) <= set(under_way)
        assert len(under_way) - len(decision.displaced) + 1 <= limit


@given(RUNS, st.integers(1, 6), POLICIES)
def test_a_free_place_is_always_taken_and_nobody_displaced_for_it(
    under_way: list[str], limit: int, on_limit: str
) -> None:
    decision = decide(concurrency(limit, on_limit), under_way, waiting=0)
    assert (decision == GoOn()) == (len(under_way) < limit)


@given(RUNS, st.integers(1, 6))
def test_the_oldest_give_way(under_way: list[str], limit: int) -> None:
    decision = decide(concurrency(limit, "cancel_running"), under_way, waiting=0)
    assert isinstance(decision, GoOn)
    assert list(decision.displaced) == under_way[: len(decision.displaced)]


@given(RUNS, st.integers(1, 6), st.integers(0, 5))
def test_nobody_overtakes_those_who_wait(under_way: list[str], limit: int, waiting: int) -> None:
    decision = decide(concurrency(limit, "queue"), under_way, waiting=waiting)
    assert decision == (GoOn() if len(under_way) + waiting < limit else Queue())


@given(RUNS, st.integers(1, 6))
def test_a_newcomer_is_dropped_only_at_the_limit(under_way: list[str], limit: int) -> None:
    decision = decide(concurrency(limit, "drop_new"), under_way, waiting=0)
    assert isinstance(decision, Drop) == (len(under_way) >= limit)
