"""Slowing down who guesses passwords, on a real Redis and without one."""

from __future__ import annotations

import pytest

from api.throttle import LOCAL_KEYS, PER_ACCOUNT_AND_ADDRESS, PER_ADDRESS, WINDOW, Throttle
from embedded.ports import free_port
from engine.errors import QuotaExceeded, Unauthenticated


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.seconds = WINDOW.total_seconds() * 1000

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["redis", "no redis", "sentinel"])
def throttle(request: pytest.FixtureRequest, redis_url: str, clock: Clock) -> Throttle:
    urls = {
        "redis": redis_url,
        "no redis": f"redis://127.0.0.1:{free_port()}/0",
        "sentinel": "sentinel://127.0.0.1:1",
    }
    return Throttle(urls[request.param], clock=clock)


def fails(throttle: Throttle, account: str = "ann@example.com", address: str = "192.0.2.1") -> bool:
    """One wrong password; False when it was not even looked at."""
    with pytest.raises((Unauthenticated, QuotaExceeded)) as raised, throttle.attempt(account=account, address=address):
        raise Unauthenticated("wrong")
    if not isinstance(raised.value, QuotaExceeded):
        return True
    assert raised.value.error_code == "too_many_attempts"
    assert raised.value.retry_after is not None
    assert 0 < raised.value.retry_after.total_seconds() <= WINDOW.total_seconds()
    return False


def test_so_many_failures_and_no_more_until_the_window_is_over(throttle: Throttle, clock: Clock) -> None:
    assert [fails(throttle) for _ in range(PER_ACCOUNT_AND_ADDRESS + 2)] == [True] * PER_ACCOUNT_AND_ADDRESS + [
        False
    ] * 2
    assert not fails(throttle, account="ANN@example.com")
    assert fails(throttle, account="bob@example.com")
    assert fails(throttle, address="192.0.2.2")
    clock.seconds += WINDOW.total_seconds()
    assert fails(throttle)


def test_right_passwords_and_our_own_failures_do_not_count(throttle: Throttle) -> None:
    for _ in range(PER_ACCOUNT_AND_ADDRESS * 2):
        with throttle.attempt(account="ann@example.com", address="192.0.2.1"):
            pass
        with pytest.raises(RuntimeError), throttle.attempt(account="ann@example.com", address="192.0.2.1"):
            raise RuntimeError("Postgres is down")
    assert fails(throttle)


def test_one_address_cannot_try_many_accounts(throttle: Throttle) -> None:
    assert all(fails(throttle, account=f"{number}@example.com") for number in range(PER_ADDRESS))
    assert not fails(throttle, account="another@example.com")


def test_what_a_process_counts_for_itself_is_bounded(clock: Clock) -> None:
    throttle = Throttle("sentinel://127.0.0.1:1", clock=clock)
    for number in range(LOCAL_KEYS // 2):
        fails(throttle, account=f"{number}@example.com", address=f"{number}")
    assert len(throttle._local) <= LOCAL_KEYS
