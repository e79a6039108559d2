"""The circuit breaker: who waits for what has died, and how it comes back."""

from __future__ import annotations

import threading

import pytest

from engine.breaker import Breaker
from engine.errors import Unavailable

PATIENCE = 10.0


class Server:
    """Something that can be gone. A probe takes until it is allowed to end."""

    def __init__(self) -> None:
        self.gone = False
        self.calls = 0
        self.probes = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.probed_by: set[str] = set()

    def call(self) -> str:
        self.calls += 1
        if self.gone:
            raise OSError("timed out")
        return "done"

    def probe(self) -> None:
        self.probed_by.add(threading.current_thread().name)
        self.probes.release()
        if self.gone:
            raise OSError("timed out")
        assert self.may_answer.wait(PATIENCE)


def breaker_over(server: Server, name: str = "The server") -> Breaker:
    return Breaker(name, failures=(OSError,), probe=server.probe, pause=0.001)


def test_calls_go_through_while_the_server_answers() -> None:
    server = Server()
    assert breaker_over(server).call(server.call) == "done"
    assert server.probed_by == set()


def test_after_the_first_failure_nobody_calls_a_server_that_is_gone() -> None:
    server = Server()
    breaker = breaker_over(server)
    server.gone = True
    for _ in range(5):
        with pytest.raises(Unavailable):
            breaker.call(server.call)
    assert (server.calls, breaker.is_open) == (1, True)


def test_one_thread_probes_however_many_callers_failed_at_once() -> None:
    server = Server()
    breaker = breaker_over(server, "Something of its own")
    together = threading.Barrier(8)

    def fail() -> None:
        together.wait(PATIENCE)
        raise OSError("timed out")

    def call() -> None:
        with pytest.raises(Unavailable):
            breaker.call(fail)

    callers = [threading.Thread(target=call) for _ in range(8)]
    server.gone = True
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    for _ in range(3):
        assert server.probes.acquire(timeout=PATIENCE)
    assert [thread.name for thread in threading.enumerate()].count("probe Something of its own") == 1
    server.gone = False
    server.may_answer.set()
    assert breaker.wait_closed(PATIENCE)


def test_the_first_answer_lets_calls_through_again_and_not_before() -> None:
    server = Server()
    breaker = breaker_over(server)
    server.gone = True
    with pytest.raises(Unavailable):
        breaker.call(server.call)
    server.gone = False
    assert server.probes.acquire(timeout=PATIENCE)
    with pytest.raises(Unavailable):
        breaker.call(server.call)
    server.may_answer.set()
    assert breaker.wait_closed(PATIENCE)
    assert breaker.call(server.call) == "done"


def test_other_errors_are_the_callers_own_and_open_nothing() -> None:
    server = Server()
    breaker = breaker_over(server)
    with pytest.raises(ZeroDivisionError):
        breaker.call(lambda: 1 // 0)
    assert not breaker.is_open


def test_a_probe_with_a_fault_of_its_own_leaves_nobody_locked_out() -> None:
    server = Server()
    breaker = Breaker("The server", failures=(OSError,), probe=lambda: 1 // 0, pause=0.001)
    server.gone = True
    with pytest.raises(Unavailable):
        breaker.call(server.call)
    assert breaker.wait_closed(PATIENCE)
