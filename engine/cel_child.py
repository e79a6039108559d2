"""The process in which tenants' expressions are evaluated: a zygote that forks ready evaluators, and the evaluators.

Started by `engine.cel_pool` as ``python -P -m engine.cel_child DEADLINE_MS`` with a clean environment. It imports only
the standard library, CEL and the constants of `engine.cel_wire`, because everything in this address space is within
reach of a hostile expression.

The zygote pays for the import once, then forks on request in about a millisecond. It speaks on its standard input (a
socket): ``F`` with a socket attached forks an evaluator that serves that socket and answers its pid; ``K`` and a pid
kills and reaps that evaluator and answers its wait status. Only the zygote reaps, so a pid cannot be reused under its
owner. At end of file, which is also how it learns that its worker was killed, it takes its evaluators along.

An evaluator answers frames (4 bytes of length, then JSON) until end of file, under limits that the kernel keeps, since
CEL's C++ code cannot be interrupted: address space, no new file descriptors (so no network and no files), no core file,
and a timer of CPU time that kills it at the deadline. It leaves after RECYCLE_AFTER evaluations, and when one made its
memory grow; then the last byte of its answer says so. Dying in the middle of a request is its normal answer to a bomb.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import signal
import socket
import sys
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

from engine.cel_wire import DEPTH_LIMIT, FORK, GOOD, NUMBER, RESULT_LIMIT, RETIRING, ROOTS, receive, send

MEMORY_LIMIT = 512 << 20
"""Bytes of address space that an evaluator may use above what it has when it starts."""
MEMORY_GROWTH_LIMIT_KIB = 64 << 10
"""An evaluator whose resident memory ever grew by this much is replaced, so that what it took is given back."""
RECYCLE_AFTER = 10_000
COMPILED_KEPT = 2_000
MESSAGE_LIMIT = 300
"""Characters of a complaint of CEL, which may quote what it complains of."""
BIG_INTEGER = "integer beyond 64 bits"
"""Key of the stand-in for such an integer, which CEL does not have: it can be passed on, not computed with."""


class _NoJson(Exception):
    """The result is of a type, depth or size that JSON or our limits do not allow."""


# ---------------------------------------------------------------------------------------------- values in and out


def _integer(digits: str) -> int | dict[str, str]:
    if len(digits) < 19:
        return int(digits)
    if len(digits) <= 20 and -(2**63) <= (value := int(digits)) < 2**64:
        return value
    return {BIG_INTEGER: digits}


_decode = json.JSONDecoder(parse_int=_integer).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _timestamp(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _duration(value: timedelta) -> str:
    microseconds = value // timedelta(microseconds=1)
    whole, part = divmod(abs(microseconds), 1_000_000)
    fraction = f".{part:06d}".rstrip("0") if part else ""
    return f"{'-' if microseconds < 0 else ''}{whole}{fraction}s"


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, str | int):
        return str(key)
    raise _NoJson(f"a map key of type {type(key).__name__} cannot be a JSON key")


def _double(value: float) -> float:
    if not math.isfinite(value):
        raise _NoJson(f"the result is {value}, which JSON cannot hold")
    return value


def _json(value: Any, depth: int = 0) -> Any:
    """A plain CEL value as JSON, the way CEL's own JSON mapping does it (bytes as base64, durations as seconds)."""
    if depth > DEPTH_LIMIT:
        raise _NoJson(f"the result is nested deeper than {DEPTH_LIMIT} levels")
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return _double(value)
        case dict():
            if len(value) == 1 and isinstance(digits := value.get(BIG_INTEGER), str):
                return int(digits)
            return {_key(key): _json(item, depth + 1) for key, item in value.items()}
        case list():
            return [_json(item, depth + 1) for item in value]
        case datetime():
            return _timestamp(value)
        case timedelta():
            return _duration(value)
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
    raise _NoJson("the result is a type or message, which JSON cannot hold")


# ----------------------------------------------------------------------------------------------------- evaluation


class Evaluation:
    """Compiles (keeping the last COMPILED_KEPT) and evaluates; every answer is a JSON list, never an exception."""

    def __init__(self) -> None:
        variables = dict.fromkeys(ROOTS, cel.Type.DYN)
        self._environment = cel.NewEnv(variables=variables, extensions=[ext_strings.ExtStrings()])
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def _compile(self, source: str) -> Any:
        expression = self._compiled.get(source)
        if expression is None:
            expression = self._compiled[source] = self._environment.compile(source)
            if len(self._compiled) > COMPILED_KEPT:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(source)
        return expression

    def check(self, source: str) -> list[Any]:
        """``["type", name]`` of the static type, or ``["invalid", message]``."""
        try:
            return ["type", self._compile(source).return_type().name()]
        except (RuntimeError, ValueError, TypeError) as error:
            return ["invalid", str(error)[:MESSAGE_LIMIT]]

    def evaluate(self, source: str, activation: Any) -> list[Any]:
        """``["value", json]``, ``["invalid", message]`` or ``["failed", message]``."""
        try:
            expression = self._compile(source)
        except (RuntimeError, ValueError, TypeError) as error:
            return ["invalid", str(error)[:MESSAGE_LIMIT]]
        try:
            value = expression.eval(activation)
            kind = value.type()
            # Errors come back as values whose plain form is a truthy string: the type must be looked at first.
            if kind == cel.Type.ERROR or kind == cel.Type.UNKNOWN:
                return ["failed", str(value.plain_value())[:MESSAGE_LIMIT]]
            return ["value", _json(value.plain_value())]
        except _NoJson as error:
            return ["failed", str(error)[:MESSAGE_LIMIT]]
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            return ["failed", str(error)[:MESSAGE_LIMIT]]

    def answer(self, request: list[Any]) -> list[Any]:
        """Answers for all sources of one request: ``["check", sources]`` or ``["eval", sources, context]``."""
        if request[0] == "check":
            return [self.check(source) for source in request[1]]
        activation = self._environment.Activation(request[2])
        return [self.evaluate(source, activation) for source in request[1]]


def _serve(connection: socket.socket, evaluation: Evaluation, deadline: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = 0
    while (frame := receive(connection)) is not None:
        signal.setitimer(signal.ITIMER_PROF, deadline)
        try:
            request = _decode(frame.decode())
            answer = _encode(evaluation.answer(request)).encode(errors="replace")
            done += len(request[1])
        except MemoryError:
            # What the failed evaluation took is lost to fragmentation; a fresh process is cheap.
            _exit_after(connection, b'["memory"]')
        signal.setitimer(signal.ITIMER_PROF, 0)
        if len(answer) > RESULT_LIMIT:
            answer = b'["large"]'
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak > MEMORY_GROWTH_LIMIT_KIB
        if grown or done >= RECYCLE_AFTER:
            _exit_after(connection, answer)
        send(connection, answer + GOOD)


def _exit_after(connection: socket.socket, answer: bytes) -> NoReturn:
    send(connection, answer + RETIRING)
    os._exit(0)


# --------------------------------------------------------------------------------------------------------- limits


def _confine() -> None:
    """Take away what an evaluator does not need; each limit is inherited by nothing, as it starts nothing."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(quiet, standard)
    os.close(quiet)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        limit = _address_space() + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _address_space() -> int:
    """Bytes of address space in use; 0 where the kernel does not say (not Linux), which makes the limit absolute."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - this process stays lean
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _keep_none_alive() -> None:
    """cel-expr-python 0.1.3 hands out None without taking a reference, so a few thousand nulls would free it.

    Python 3.12 made None immortal; before, give it more references than one evaluator can lose.
    """
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


# --------------------------------------------------------------------------------------------------------- zygote


class Zygote:
    """Forks evaluators and reaps them, until its worker closes the control socket or dies."""

    def __init__(self, control: socket.socket, deadline: float) -> None:
        self._control = control
        self._deadline = deadline
        self._evaluation = Evaluation()
        self._evaluation.evaluate("trigger.a == 1", {"trigger": {"a": 1}})  # first use loads tables: share them
        self._children: set[int] = set()

    def run(self) -> None:
        """Serve until end of file; leaves no evaluator behind."""
        try:
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._control, 5, 1)
                if not message:
                    return
                if message[:1] == FORK:
                    number = self._fork(descriptors[0])
                else:
                    number = self._end(NUMBER.unpack(message[1:])[0])
                self._control.sendall(NUMBER.pack(number))
        finally:
            for pid in tuple(self._children):
                self._end(pid)

    def _fork(self, descriptor: int) -> int:
        connection = socket.socket(fileno=descriptor)
        pid = os.fork()
        if pid == 0:
            self._become_evaluator(connection)
        connection.close()
        self._children.add(pid)
        return pid

    def _become_evaluator(self, connection: socket.socket) -> NoReturn:
        try:
            self._control.detach()  # descriptor 0, replaced by _confine
            _confine()
            _serve(connection, self._evaluation, self._deadline)
        finally:
            os._exit(1)

    def _end(self, pid: int) -> int:
        """Kill and reap one evaluator; the wait status says whether it had ended by itself, and how."""
        if pid not in self._children:
            return 0
        self._children.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]


def main() -> None:
    """Entry of the process: argument 1 is the deadline of a request in milliseconds of CPU time."""
    _keep_none_alive()
    zygote = Zygote(socket.socket(fileno=0), int(sys.argv[1]) / 1000)
    gc.collect()
    gc.freeze()
    zygote.run()


if __name__ == "__main__":
    main()
