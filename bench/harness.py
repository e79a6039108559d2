"""Real Celery workers as processes that may be stopped and killed, and a TCP proxy that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fairshare_app import READY
from embedded.guard import GUARD

ROOT = Path(__file__).resolve().parent.parent


def until(condition: Callable[[], bool], *, within: float, what: str) -> float:
    """Seconds until `condition` was true. Raises TimeoutError when it takes longer than `within`."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > within:
            raise TimeoutError(f"{what} did not happen within {within} s")
        time.sleep(0.01)
    return time.monotonic() - begin


@dataclass
class Worker:
    """One Celery worker process; `options` are transport options."""

    broker: str
    log: Path
    journal: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    pool: str = "threads"
    concurrency: int = 4
    prefetch: int = 1
    queues: str = "runs"
    level: str = "INFO"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Worker:
        env = {
            **os.environ,
            "BENCH_BROKER": self.broker,
            "BENCH_OPTIONS": json.dumps(self.options),
            "BENCH_PREFETCH": str(self.prefetch),
            "BENCH_JOURNAL": self.journal,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "celery", "-A", "bench.fairshare_app", "worker", "-l", self.level]
        command += ["-P", self.pool, "-c", str(self.concurrency), "-n", f"w{time.monotonic_ns()}@bench"]
        command += ["-Q", self.queues, "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, process_group=0)
        GUARD.watch(self.process.pid, signal.SIGKILL)
        return self

    def ready(self) -> Worker:
        def says_so() -> bool:
            return READY.encode() in self.log.read_bytes()

        until(says_so, within=30, what=f"a worker ({self.log}) becoming ready")
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> float:
        """As a crash would; returns when."""
        assert self.process is not None
        self.process.kill()
        killed_at = time.time()
        self._ended()
        return killed_at

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()

    def stop(self) -> None:
        """In order; a worker that does not end within 15 s is killed."""
        if self.process is None:
            return
        self.ask_to_stop()
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        if self.process.poll() is None:
            self.process.kill()
        self._ended()

    def _ended(self) -> None:
        assert self.process is not None
        self.process.wait()
        GUARD.release(self.process.pid)


@dataclass
class _Pair:
    client: socket.socket
    server: socket.socket
    held: bool = False
    cutting: bool = False


class Proxy:
    """Passes a TCP stream on to `port` of this machine until it is told to misbehave.

    `hold_after(pattern)`: once a client sends `pattern`, it gets no reply any more; `withheld` is set once the server
    has given one. `cut_after(pattern)`: once, what holds `pattern` is delivered, and then both sides are closed before
    the reply. `cut()` closes everything now. While `refusing`, nobody gets through; while `silent`, connections stay
    open and nothing passes; `delay` is seconds that each piece takes in each direction. `heal()` ends all of it, and
    the connections with it.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.triggered, self.withheld = threading.Event(), threading.Event()
        self.refusing = self.silent = False
        self.delay = 0.0
        self._hold: bytes | None = None
        self._cut: bytes | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_after(self, pattern: bytes) -> None:
        self._hold = pattern

    def cut_after(self, pattern: bytes) -> None:
        self._cut = pattern

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def heal(self) -> None:
        self.refusing = self.silent = False
        self.delay, self._hold, self._cut = 0.0, None, None
        self.cut()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target if not self.refusing else 0))
        except OSError:
            _close(client)  # as if the proxy were not there
            return
        self._pairs.append((client, server))
        pair = _Pair(client, server)
        threading.Thread(target=self._forth, args=(pair,), daemon=True).start()
        threading.Thread(target=self._back, args=(pair,), daemon=True).start()

    def _passes(self) -> bool:
        if self.delay:
            time.sleep(self.delay)
        return not self.silent

    def _forth(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.client.recv(65536):
                if self._hold is not None and self._hold in data:
                    pair.held = True
                    self.triggered.set()
                if self._cut is not None and self._cut in data:
                    self._cut, pair.cutting = None, True
                if self._passes():
                    pair.server.sendall(data)
        _close(pair.client, pair.server)

    def _back(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.server.recv(65536):
                if pair.cutting:
                    self.triggered.set()
                    break
                if pair.held:
                    self.withheld.set()
                elif self._passes():
                    pair.client.sendall(data)
        _close(pair.client, pair.server)


def _close(*sockets: socket.socket) -> None:
    for end in sockets:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
