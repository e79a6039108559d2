"""A worker's side of the evaluator processes: starts the zygote, keeps a few evaluators, replaces those that die.

`Pool.call` may be used from many threads at once. It survives whatever an expression does to its evaluator: that
expression alone fails, and the next call finds a fresh process. After a fork of the worker (Celery's prefork pool) the
child drops the inherited processes, which are its parent's, and starts its own. Everything ends at `close`, at
interpreter exit, or, when the worker is killed, at the end of file that the zygote sees.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

from engine.cel_wire import END, FORK, NUMBER, RETIRING, receive, send
from engine.errors import Unavailable

_T = TypeVar("_T")

START_TIMEOUT = 30.0
"""Seconds until a zygote must have answered: it imports CEL first, on a machine that may be busy."""


class EvaluatorDied(Exception):
    """The evaluator ended in the middle of a request. `slow` says that it was stopped at the deadline."""

    def __init__(self, *, slow: bool) -> None:
        super().__init__("deadline" if slow else "crash")
        self.slow = slow


@dataclass(frozen=True, slots=True)
class _Evaluator:
    pid: int
    connection: socket.socket


def _environment() -> dict[str, str]:
    """Where to find Python's modules and libraries, and nothing else: the worker's environment holds its keys."""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        environment["LD_LIBRARY_PATH"] = libraries
    return environment


class _Zygote:
    """The process that forks evaluators for us, and the conversation with it."""

    def __init__(self, deadline: timedelta) -> None:
        ours, theirs = socket.socketpair()
        self.control = ours
        self.control.settimeout(START_TIMEOUT)
        milliseconds = str(max(1, deadline // timedelta(milliseconds=1)))
        with theirs:
            # By exec, since a fork of a threaded worker may deadlock; a session of its own keeps Ctrl-C away from it.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.cel_child", milliseconds],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )

    def fork(self) -> _Evaluator:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [FORK], [theirs.fileno()])
            return _Evaluator(self._reply(), ours)

    def end(self, evaluator: _Evaluator) -> int:
        """Kill and reap; the wait status tells how it ended if it was dead already."""
        evaluator.connection.close()
        self.control.sendall(END + NUMBER.pack(evaluator.pid))
        return self._reply()

    def _reply(self) -> int:
        data = self.control.recv(NUMBER.size)
        if len(data) != NUMBER.size:
            raise ConnectionError("the evaluator's parent process ended")
        number: int = NUMBER.unpack(data)[0]
        return number

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Processes:
    """What belongs to one operating-system process; apart from `Pool` so that a finalizer can hold it."""

    def __init__(self, size: int, deadline: timedelta) -> None:
        self.size = size
        self.deadline = deadline
        self.reset()

    def reset(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.zygote: _Zygote | None = None
        self.evaluators: set[_Evaluator] = set()
        self.closed = False
        self.free: queue.SimpleQueue[_Evaluator | None] = queue.SimpleQueue()
        for _ in range(self.size):
            self.free.put(None)

    def fork(self) -> _Evaluator:
        """A fresh evaluator, starting the zygote if there is none; one that does not answer is replaced once."""
        evaluator = self._converse(lambda zygote: zygote.fork())
        self.evaluators.add(evaluator)
        return evaluator

    def end(self, evaluator: _Evaluator) -> int:
        self.evaluators.discard(evaluator)
        try:
            return self._converse(lambda zygote: zygote.end(evaluator))
        finally:
            evaluator.connection.close()

    def _converse(self, command: Callable[[_Zygote], _T]) -> _T:
        with self.lock:
            for last in (False, True):
                if self.closed:
                    raise Unavailable("the expression evaluator is closed")
                try:
                    self.zygote = self.zygote or _Zygote(self.deadline)
                    return command(self.zygote)
                except OSError as error:
                    if self.zygote is not None:
                        self.zygote.close()
                        self.zygote = None
                    if last:
                        raise Unavailable(f"the expression evaluator does not start: {error}") from error
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End every process; nothing is left running and no zombie. Calls in progress fail with Unavailable."""
        if self.owner != os.getpid():
            return
        with self.lock:
            self.closed = True
            for evaluator in self.evaluators:
                evaluator.connection.close()
            if self.zygote is not None:
                self.zygote.close()
                self.zygote = None

    def forget(self) -> None:
        """After a fork: let go of what is the parent's, so that its evaluators see the end when the parent ends."""
        for evaluator in self.evaluators:
            evaluator.connection.close()
        if self.zygote is not None:
            self.zygote.control.close()
        self.reset()


def _forget_in(processes: weakref.ref[_Processes]) -> None:
    alive = processes()
    if alive is not None:
        alive.forget()


class Pool:
    """At most `size` evaluators, each started when first needed. `deadline` is CPU time per call."""

    def __init__(self, *, size: int, deadline: timedelta) -> None:
        # CPU time is what counts; wall time only catches a frozen evaluator, so that a busy machine blames nobody.
        self._patience = max(4 * deadline.total_seconds(), 2.0)
        self._processes = _Processes(size, deadline)
        os.register_at_fork(after_in_child=partial(_forget_in, weakref.ref(self._processes)))
        self.close = weakref.finalize(self, self._processes.close)

    def processes(self) -> list[int]:
        """Pids of the zygote and the evaluators that are running."""
        processes = self._processes
        with processes.lock:
            zygote = [] if processes.zygote is None else [processes.zygote.process.pid]
            return zygote + sorted(evaluator.pid for evaluator in processes.evaluators)

    def call(self, request: bytes) -> bytes:
        """The answer to one request. Raises EvaluatorDied for what the request did, Unavailable for what it did not.

        An evaluator that is found dead may have been killed before, so the request gets a second one.
        """
        try:
            return self._call(request)
        except EvaluatorDied as death:
            if death.slow:
                raise
        return self._call(request)

    def _call(self, request: bytes) -> bytes:
        free = self._processes.free
        try:
            evaluator = free.get(timeout=START_TIMEOUT)
        except queue.Empty:
            raise Unavailable("every expression evaluator has been busy for too long") from None
        keep: _Evaluator | None = None
        try:
            if evaluator is None:
                evaluator = self._processes.fork()
                evaluator.connection.settimeout(self._patience)
            answer = self._converse(evaluator, request)
            if answer[-1:] != RETIRING:
                keep = evaluator
            else:
                self._processes.end(evaluator)
            return answer[:-1]
        finally:
            free.put(keep)

    def _converse(self, evaluator: _Evaluator, request: bytes) -> bytes:
        silent = False
        try:
            send(evaluator.connection, request)
            answer = receive(evaluator.connection)
            if answer is not None:
                return answer
        except TimeoutError:
            silent = True
        except OSError:  # it ended before it had read everything
            pass
        status = self._processes.end(evaluator)
        raise EvaluatorDied(slow=silent or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF))
