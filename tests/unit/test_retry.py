"""Decisions about failures, without waiting for any."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ActionError, ExpressionFailed, Fatal, RetryLater, Unavailable
from engine.ports import RetryPolicy
from engine.retry import IN_PLACE, LONGEST_WAIT, GiveUp, Retry, backoff, decide, in_place

POLICY = RetryPolicy(attempts=5, initial=timedelta(seconds=1), maximum=timedelta(seconds=10))


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10), (10_000, 10)])
def test_wait_doubles_up_to_the_maximum(attempt: int, seconds: float) -> None:
    assert backoff(POLICY, attempt) == timedelta(seconds=seconds)


def test_jitter_takes_any_part_of_the_wait() -> None:
    assert decide(POLICY, 3, ValueError(), random=lambda: 0.0) == Retry(timedelta(0))
    assert decide(POLICY, 3, ValueError(), random=lambda: 0.25) == Retry(timedelta(seconds=1))


@pytest.mark.parametrize("error", [Fatal("no"), ActionError("no"), ExpressionFailed("no")])
def test_what_would_fail_alike_is_not_tried_again(error: Exception) -> None:
    assert isinstance(decide(POLICY, 1, error, random=lambda: 0.5), GiveUp)


@pytest.mark.parametrize("error", [RetryLater("busy"), Unavailable("down"), TimeoutError(), KeyError("bug")])
def test_what_may_pass_is_tried_again_until_the_attempts_are_used_up(error: Exception) -> None:
    assert isinstance(decide(POLICY, 4, error, random=lambda: 0.5), Retry)
    assert isinstance(decide(POLICY, 5, error, random=lambda: 0.5), GiveUp)
    assert isinstance(decide(RetryPolicy(), 1, error, random=lambda: 0.5), GiveUp)


@pytest.mark.parametrize(
    ("after", "waited"),
    [
        (timedelta(seconds=30), timedelta(seconds=30)),
        (timedelta(0), timedelta(0)),
        (timedelta(seconds=-1), timedelta(0)),
        (timedelta(days=1), LONGEST_WAIT),
    ],
)
def test_time_named_by_the_other_side_counts_for_up_to_an_hour(after: timedelta, waited: timedelta) -> None:
    assert decide(POLICY, 1, RetryLater("busy", after=after), random=lambda: 0.5) == Retry(waited)


def test_short_waits_keep_the_slot_and_long_ones_free_it() -> None:
    assert in_place(IN_PLACE)
    assert not in_place(IN_PLACE + timedelta(milliseconds=1))


@given(
    attempt=st.integers(1, 10**6),
    initial=st.timedeltas(timedelta(0), timedelta(days=30)),
    extra=st.timedeltas(timedelta(0), timedelta(days=30)),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_wait_is_never_negative_nor_beyond_the_maximum(
    attempt: int, initial: timedelta, extra: timedelta, chance: float
) -> None:
    policy = RetryPolicy(attempts=10**7, initial=initial, maximum=initial + extra)
    decision = decide(policy, attempt, OSError(), random=lambda: chance)
    assert isinstance(decision, Retry)
    assert timedelta(0) <= decision.after <= policy.maximum


def test_a_thousand_runs_that_meet_an_outage_of_an_hour_come_back_as_a_trickle_and_all_end() -> None:
    """F36. Together they fail in the same second; without jitter they would come back together each time."""
    policy = RetryPolicy(attempts=20, initial=timedelta(seconds=10), maximum=timedelta(minutes=20))
    chance, outage, calls, ended = random.Random(36), 3600.0, Counter({0: 1000}), 0
    for _ in range(1000):
        at, attempt = 0.0, 1
        while at < outage:
            decision = decide(policy, attempt, RetryLater("away"), random=chance.random)
            assert isinstance(decision, Retry)
            at, attempt = at + decision.after.total_seconds(), attempt + 1
            calls[int(at)] += 1
        ended += at < outage + 1200
    assert ended == 1000
    assert max(calls[second] for second in range(1, 11)) < 200  # a tenth of them in each of the first ten seconds
    busiest = max(calls[second] for second in range(1200, 4800))
    assert busiest <= 12  # 1,000 runs that wait 10 minutes on average: 1.7 a second
    assert sum(calls[second] for second in range(3600, 4800)) == 1000
