"""Sockets under guard: every byte of an outbound call passes here, so this is where its limits hold.

`GuardedBackend` is the network backend of an `httpcore.ConnectionPool`. It connects only to addresses that the policy
passed, and wraps each socket in a `GuardedStream` which waits in slices of at most half a second. Between slices it
asks the `Call` that the thread is making: is its deadline over (`httpcore.ReadTimeout`), is the run cancelled
(`engine.errors.Cancelled`)? Because name lookup, connect, TLS handshake, headers and body all wait through it, a server
that sends one byte a second, or headers without end, cannot hold a worker longer than the call may last.

A pooled connection serves many calls, one after another, so the limits belong to the call and not to the stream. The
call is found through the thread: httpcore's blocking pool does all work of a request in the thread that made it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpcore

from actions.guard import AddressPolicy, Resolver, literal

T = TypeVar("T")

SLICE_SECONDS = 0.5
CONNECT_SECONDS = 5.0
MAX_ADDRESSES = 4
"""How many addresses of a name are tried; a name with hundreds must not become a port scan."""

_active = threading.local()


class Call:
    """The limits of one outbound call, whatever connections and redirects it takes, and what it saw on the wire."""

    def __init__(self, *, seconds: float, pulse: Callable[[], None] | None = None) -> None:
        now = time.monotonic()
        self._deadline = now + seconds
        self._pulse = pulse
        self._next_pulse = now + SLICE_SECONDS
        self.connected = False
        """True once a new connection was opened for the request in hand; False while it rides on a pooled one."""
        self.received = 0
        """Bytes that arrived for the request in hand."""

    def turn(self) -> float:
        """Seconds to wait next: a slice, or what is left of the call. Raises when the call is over or cancelled."""
        now = time.monotonic()
        if self._pulse is not None and now >= self._next_pulse:
            self._pulse()
            self._next_pulse = now + SLICE_SECONDS
        left = self._deadline - now
        if left <= 0:
            raise httpcore.ReadTimeout("the call took too long")
        return min(SLICE_SECONDS, left)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Makes this the call of the current thread for one request of it."""
        self.connected = False
        self.received = 0
        _active.call = self
        try:
            yield
        finally:
            _active.call = None


def current_call() -> Call:
    """The call that this thread is making. Guarded sockets cannot be used outside of one."""
    call: Call | None = getattr(_active, "call", None)
    if call is None:
        raise RuntimeError("a guarded connection was used outside of a guarded call")
    return call


class GuardedStream(httpcore.NetworkStream):
    """A connected socket that waits in slices. Timeouts given by httpcore are ignored: the call's deadline rules."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 (see the class)
        call = current_call()
        data = self._patiently(call, lambda: self._sock.recv(max_bytes), httpcore.ReadError)
        call.received += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 (see the class)
        call = current_call()
        view = memoryview(buffer)
        while view:
            part = view
            view = view[self._patiently(call, lambda: self._sock.send(part), httpcore.WriteError) :]  # noqa: B023

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 (see the class)
    ) -> httpcore.NetworkStream:
        try:
            secured = ssl_context.wrap_socket(
                self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            self._sock.close()
            raise httpcore.ConnectError(str(error)) from error
        stream = GuardedStream(secured)
        try:
            self._patiently_on(secured, current_call(), secured.do_handshake, httpcore.ConnectError)
        except BaseException:
            secured.close()
            raise
        return stream

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._sock, ssl.SSLSocket):
            return self._sock
        if info == "socket":
            return self._sock
        if info == "is_readable":
            return _readable(self._sock)
        return None

    def _patiently(self, call: Call, operation: Callable[[], T], failure: type[Exception]) -> T:
        return self._patiently_on(self._sock, call, operation, failure)

    @staticmethod
    def _patiently_on(sock: socket.socket, call: Call, operation: Callable[[], T], failure: type[Exception]) -> T:
        """Repeat until it works. A timed-out `recv`, `send` or handshake did nothing, so repeating it is safe."""
        while True:
            sock.settimeout(call.turn())
            try:
                return operation()
            except TimeoutError:
                continue
            except OSError as error:
                raise failure(str(error)) from error


class GuardedBackend(httpcore.NetworkBackend):
    """Opens connections to addresses that passed the policy, and to nothing else; no unix sockets."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 (CONNECT_SECONDS and the call's deadline rule)
        local_address: str | None = None,  # noqa: ARG002 (no caller chooses one)
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 (no caller sets any)
    ) -> httpcore.NetworkStream:
        call = current_call()
        call.connected = True
        addresses = self._addresses(host, port, call)
        until = time.monotonic() + CONNECT_SECONDS
        candidates = addresses[:MAX_ADDRESSES]
        failure: Exception = httpcore.ConnectError("no address")
        for position, address in enumerate(candidates):
            share = (until - time.monotonic()) / (len(candidates) - position)
            try:
                return GuardedStream(_connect(address, port, call, seconds=share))
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise httpcore.ConnectTimeout("the connection took too long") from failure
        raise httpcore.ConnectError(str(failure)) from failure

    def _addresses(self, host: str, port: int, call: Call) -> list[str]:
        def judge() -> list[str]:
            return self._policy.addresses(host, port, resolver=self._resolver)

        return judge() if literal(host) is not None else _in_background(judge, call)

    def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 (refused whatever it is)
        timeout: float | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        raise httpcore.UnsupportedProtocol("unix sockets are not supported")


def _connect(address: str, port: int, call: Call, *, seconds: float) -> socket.socket:
    """A connected TCP socket. Raises OSError, which TimeoutError is one of."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        until = time.monotonic() + seconds
        started = sock.connect_ex((address, port))
        if started not in (0, errno.EINPROGRESS):
            raise OSError(started, os.strerror(started))
        while not _writable(sock, min(call.turn(), max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise TimeoutError("connect")
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _in_background(lookup: Callable[[], T], call: Call) -> T:
    """Run a name lookup, which cannot be interrupted, so that the call's deadline and a cancel still hold."""
    outcome: list[T] = []
    errors: list[Exception] = []
    done = threading.Event()

    def work() -> None:
        try:
            outcome.append(lookup())
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="lookup", daemon=True).start()
    while not done.wait(call.turn()):
        pass
    if errors:
        raise errors[0]
    return outcome[0]


def _poll(sock: socket.socket, event: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(sock, event)
    return bool(poller.poll(seconds * 1000))


def _writable(sock: socket.socket, seconds: float) -> bool:
    return _poll(sock, select.POLLOUT, seconds)


def _readable(sock: socket.socket) -> bool:
    """True when an idle connection has something to say, which can only be that the server closed it."""
    return sock.fileno() < 0 or _poll(sock, select.POLLIN, 0)
