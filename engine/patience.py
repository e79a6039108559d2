"""What a worker does while Postgres is away: it keeps what it has in hand, and asks again until there is an answer.

What a step did must not be thrown away because its checkpoint cannot be stored just now: the step would be done again.
So the worker waits, up to `PATIENCE`. Nobody else can take the run over meanwhile, for that takes the same Postgres;
and should somebody have done so when it is back, the attempt in every write shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from engine.errors import StatementTimeout, TooLarge, Unavailable
from engine.execution import Hold

PATIENCE = timedelta(minutes=10)
LONGEST_PAUSE = timedelta(seconds=2)
MAX_TIMEOUTS = 3
LARGE = 1024 * 1024
"""Bytes. What is smaller and takes Postgres too long does so for other reasons than its size, and those pass."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


def patiently(hold: Hold, call: Callable[[], T], *, size: Callable[[], int] = lambda: 0) -> T:
    """The result of `call`, which is repeated while it raises Unavailable. It must be safe to repeat.

    Raises Cancelled as soon as the run is lost, Unavailable when the patience is at its end, and TooLarge for what
    Postgres cannot take, such as a statement of so large a `size` that it ended MAX_TIMEOUTS times. A wait for a lock
    is none of those: it ends by itself, and sooner (`engine.db`).
    """
    timeouts = 0

    def once() -> T:
        nonlocal timeouts
        try:
            return call()
        except StatementTimeout as error:
            timeouts += 1
            if timeouts >= MAX_TIMEOUTS and size() >= LARGE:
                raise TooLarge(error.detail, code="statement_timeout") from error
            raise

    try:
        return once()
    except Unavailable as error:
        log.warning("waiting_for_postgres", reason=error.detail)
    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE.total_seconds()),
        stop=stop_after_delay(PATIENCE.total_seconds()),
        sleep=hold.wait,
        after=_log,
        reraise=True,
    )
    return retrying(once)


def _log(state: RetryCallState) -> None:
    log.info("asked_postgres_again", times=state.attempt_number, seconds=round(state.seconds_since_start or 0.0, 1))
