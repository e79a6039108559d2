"""Which failure is tried again, and when: a pure decision over values.

Exponential backoff with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): a
random time below ``initial * 2^(attempt - 1)``, at most `maximum`. When the other side named a time, as `RetryLater`
does with ``Retry-After``, that time counts, however long, up to an hour. `Fatal` is never tried again, nor is another
Fairlane error that says it is not retryable. An exception that nobody classified is: a bug in a connector and a fault
of the network look alike from here, and the attempts are bounded.

tenacity's `wait_random_exponential` is the same curve, but draws from the global generator and reads a `RetryCallState`
that carries the call itself; a decision that is stored with a parked run needs neither, so the one line is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from engine.errors import FairlaneError, RetryLater
from engine.ports import RetryPolicy

IN_PLACE = timedelta(seconds=5)
"""Waits up to this are slept by the worker; longer ones park the run and free the slot."""
LONGEST_WAIT = timedelta(hours=1)
"""The most that a ``Retry-After`` of somebody else may hold up a run."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, not before `after` has passed."""

    after: timedelta


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The step has failed; `reason` is a sentence for the log."""

    reason: str


Decision: TypeAlias = Retry | GiveUp


def decide(policy: RetryPolicy, attempt: int, error: Exception, *, random: Callable[[], float]) -> Decision:
    """What follows the failure of `attempt` (1 is the first). `random` answers numbers in [0, 1)."""
    if not _worth_another(error):
        return GiveUp("another attempt would fail alike")
    if attempt >= policy.attempts:
        return GiveUp(f"all {policy.attempts} attempts failed" if policy.attempts > 1 else "it has one attempt only")
    if isinstance(error, RetryLater) and error.after is not None:
        return Retry(min(max(error.after, timedelta(0)), LONGEST_WAIT))
    return Retry(backoff(policy, attempt) * random())


def backoff(policy: RetryPolicy, attempt: int) -> timedelta:
    """The longest wait after `attempt`: doubles from `initial` up to `maximum`."""
    doublings = min(max(attempt - 1, 0), 62)  # beyond, a timedelta overflows; every maximum is reached long before
    seconds = min(policy.initial.total_seconds() * 2.0**doublings, policy.maximum.total_seconds())
    return timedelta(seconds=seconds)


def in_place(after: timedelta) -> bool:
    """Whether the worker sleeps through the wait, rather than parking the run."""
    return after <= IN_PLACE


def _worth_another(error: Exception) -> bool:
    return error.retryable if isinstance(error, FairlaneError) else True
