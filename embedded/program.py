"""The children of a supervisor: programs whose output it prints, and embedded servers that keep logs of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from embedded.guard import GUARD
from embedded.postgres import PostgresServer
from embedded.processes import ProcessMark
from embedded.redis import RedisServer

LINE_LIMIT = 16 * 1024
"""Bytes after which a line of output is printed although it has not ended."""


class Child(Protocol):
    """Something that a `Supervisor` keeps running."""

    name: str
    stop_rank: int
    """Children stop in this order; equal ranks stop together."""
    silent: bool
    """True once it has closed its output."""
    grace: float
    """Seconds from being asked to stop until being killed."""

    def start(self) -> None:
        """Begin to run; a no-op when it runs already."""
        ...

    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        ...

    def ready(self) -> bool:
        """Whether it can do its work; asked only while it runs."""
        ...

    def output(self) -> int | None:
        """The file descriptor to read its words from, if they are ours to print."""
        ...

    def read(self) -> list[str]:
        """The whole lines that it has said since the last call."""
        ...

    def ask(self, *, quick: bool) -> None:
        """Ask it to stop, finishing what it has begun unless `quick`. Does not wait."""
        ...

    def kill(self) -> None:
        """End it and all that it started, now."""
        ...

    def reap(self) -> None:
        """Forget the ended process."""
        ...


@dataclass
class Program:
    """A command in a process group of its own. `ready_when` is asked with every line it prints until it is true."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: Path | None = None
    ready_when: Callable[[str], bool] | None = None
    probe: Callable[[], bool] | None = None
    stop_rank: int = 0
    grace: float = 10.0
    quick_signal: signal.Signals = signal.SIGTERM
    marks: Path | None = None
    """The folder in which the running process is noted for the next start."""

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said_ready = False
        self._rest = b""
        self.silent = False

    def start(self) -> None:
        if self._process is not None:
            return
        self._said_ready, self._rest, self.silent = self.ready_when is None, b"", False
        self._process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        GUARD.watch(self._process.pid, signal.SIGTERM)
        os.set_blocking(self._stream(), False)
        if self.marks is not None and (mark := ProcessMark.of(self._process.pid)):
            self.marks.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.write(self.marks / f"{self.name}.pid")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def ready(self) -> bool:
        return self._said_ready and (self.probe is None or self.probe())

    def output(self) -> int | None:
        return None if self._process is None else self._stream()

    def _stream(self) -> int:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.stdout.fileno()

    def read(self) -> list[str]:
        if self._process is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._stream(), 64 * 1024):
                self._rest += chunk
            self.silent = True
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > LINE_LIMIT or (self._rest and (self.silent or self._process.poll() is not None)):
            lines, self._rest = [*lines, self._rest], b""
        texts = [line.decode(errors="replace").rstrip("\r") for line in lines]
        if self.ready_when is not None and not self._said_ready:
            self._said_ready = any(self.ready_when(text) for text in texts)
        return texts

    def ask(self, *, quick: bool) -> None:
        self._signal(self.quick_signal if quick else signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _signal(self, sig: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(sig)

    def reap(self) -> None:
        if self._process is None:
            return
        self.kill()  # what it started and left behind goes with it
        GUARD.release(self._process.pid)
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self.marks is not None:
            (self.marks / f"{self.name}.pid").unlink(missing_ok=True)
        self._process = None


@dataclass
class ServerChild:
    """An embedded server as a child: it was started before the supervisor, and is started again when it dies."""

    name: str
    server: PostgresServer | RedisServer
    stop_rank: int
    grace: float = 30.0
    silent: bool = True

    def start(self) -> None:
        if self.server.process is None:
            self.server.start()

    def exit_code(self) -> int | None:
        return 0 if self.server.process is None else self.server.process.poll()

    def ready(self) -> bool:
        return self.server.process is not None

    def output(self) -> int | None:
        return None

    def read(self) -> list[str]:
        return []

    def ask(self, *, quick: bool) -> None:  # noqa: ARG002
        """An orderly stop of a server takes a moment and loses nothing, so `quick` changes nothing."""
        self.server.stop()

    def kill(self) -> None:
        self.server.kill()

    def reap(self) -> None:
        """The servers' own `kill` sweeps up what an ended one left behind."""
        self.server.kill()
