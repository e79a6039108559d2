"""Postgres and Redis out of their wheels: what they keep, whom they let in, and what a crash leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from embedded import binaries, ensure
from embedded.home import DATA_DIR, DATABASE_URL, MASTER_KEYS, REDIS_URL, SECRET_KEY, Home
from embedded.postgres import PostgresServer
from embedded.processes import ProcessMark, wait_until
from embedded.redis import RedisServer
from embedded.servers import Servers
from engine.errors import ConfigurationError
from engine.settings import Settings
from tests.ordinary_user import AS_NOBODY, NOBODY, can_be_nobody

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")


def connect(server: PostgresServer) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path / "postgres", fast=True).start()
    yield server
    server.stop()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_postgres_keeps_what_was_committed(postgres: PostgresServer, end: str) -> None:
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        getattr(postgres, end)()
    postgres.start()
    with connect(postgres) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]


def test_postgres_wants_its_password_and_listens_on_loopback_only(postgres: PostgresServer) -> None:
    wrong = postgres.url.replace("+psycopg", "").replace(postgres.password, "guessed")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    with connect(postgres) as connection:
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("listen_addresses", "fsync")]
    assert shown == [("127.0.0.1",), ("off",)]
    assert stat.S_IMODE((postgres.folder / "password").stat().st_mode) == 0o600


def test_postgres_of_up_is_durable(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "durable").start()
    try:
        with connect(server) as connection:
            names = ("fsync", "synchronous_commit", "full_page_writes")
            assert [connection.execute(f"SHOW {name}").fetchone() for name in names] == [("on",)] * 3
    finally:
        server.stop()


def test_a_postgres_left_on_the_folder_gives_way_to_the_next(postgres: PostgresServer) -> None:
    assert postgres.process is not None
    left = ProcessMark.of(postgres.process.pid)
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    following = PostgresServer(postgres.folder, fast=True)
    postgres.process.poll()
    following.start()
    try:
        assert left is not None
        assert not left.alive
        with connect(following) as connection:
            assert connection.execute("SELECT one FROM kept").fetchall() == [(1,)]
    finally:
        following.stop()


def test_a_torn_setup_is_done_again(tmp_path: Path) -> None:
    draft = tmp_path / "postgres" / "data.new"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    server = PostgresServer(tmp_path / "postgres", fast=True).start()
    with connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    server.stop()


@needs_root
def test_as_root_postgres_is_an_ordinary_user_and_no_folder_is_opened_for_it(tmp_path: Path) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    server = PostgresServer(closed / "postgres", fast=True).start()
    try:
        assert server.process is not None
        assert Path(f"/proc/{server.process.pid}").stat().st_uid != 0
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        with connect(server) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()


@pytest.fixture
def everybodys_folder() -> Iterator[Path]:
    """One that any user can walk to, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fairlane-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@needs_root
def test_programs_that_the_other_user_cannot_reach_are_copied_once_and_run(
    tmp_path: Path, everybodys_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = binaries.account(tmp_path / "absent")
    assert user is not None
    packages = binaries.postgres_home(None).parent.parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in (f"{binaries.POSTGRES_PACKAGE}/{binaries.POSTGRES_FOLDER}", binaries.LIBRARIES):
        if (packages / name).is_dir():
            shutil.copytree(packages / name, closed / name)
    installed = closed / binaries.POSTGRES_PACKAGE / binaries.POSTGRES_FOLDER
    monkeypatch.setattr(binaries, "SHARED_COPIES", everybodys_folder)
    copy = binaries.reachable_for(user, installed)
    assert binaries.reachable_for(user, installed) == copy
    assert copy.is_relative_to(everybodys_folder)
    shutil.rmtree(installed)  # so that nothing is found there any more
    for program in ("postgres", "initdb"):
        command = [str(copy / "bin" / program), "--version"]
        run = subprocess.run(
            command, user=user.uid, group=user.gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=True
        )
        assert "(PostgreSQL) 18" in run.stdout
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(not can_be_nobody(), reason="only root, with setpriv, can become an ordinary user")
def test_an_ordinary_user_runs_both_servers() -> None:
    folder = Path(f"/tmp/fairlane-test-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from embedded.postgres import PostgresServer\n"
        "from embedded.redis import RedisServer\n"
        "postgres = PostgresServer(Path('p'), fast=True).start()\n"
        "postgres.stop(); postgres.start(); postgres.kill()\n"
        "RedisServer(Path('r'), durable=True).start().stop()\n"
        "print(os.geteuid(), {place.stat().st_uid for place in Path('.').rglob('*')})"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*AS_NOBODY, sys.executable, "-c", script]
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert run.stdout == f"{NOBODY} {{{NOBODY}}}\n", run.stderr
    finally:
        shutil.rmtree(folder)


def test_a_program_that_does_not_run_here_names_the_way_out(tmp_path: Path) -> None:
    program = tmp_path / "postgres"
    program.write_bytes(b"\x7fELF not for this machine")
    program.chmod(0o755)
    with pytest.raises(ConfigurationError) as refusal:
        binaries.check_runs(program, "Postgres")
    assert "FAIRLANE_DATABASE_URL" in refusal.value.detail
    assert "FAIRLANE_REDIS_URL" in refusal.value.detail


def test_a_durable_redis_keeps_its_data_and_wants_its_password(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", durable=True).start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "1")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("kept")
        server.stop()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"1"
    finally:
        server.stop()
    assert stat.S_IMODE((server.folder / "redis.conf").stat().st_mode) == 0o600


def test_a_redis_left_on_the_folder_gives_way_to_the_next(tmp_path: Path) -> None:
    left = RedisServer(tmp_path / "redis", durable=True).start()
    assert left.process is not None
    with redis.Redis.from_url(left.url) as client:
        client.set("kept", "1")
    following = RedisServer(tmp_path / "redis", durable=True).start()
    try:
        assert left.process.wait(5) == 0
        with redis.Redis.from_url(following.url) as client:
            assert client.get("kept") == b"1"
    finally:
        following.stop()
        left.stop()


def test_servers_do_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    script = (
        "import signal; from pathlib import Path; from embedded.postgres import PostgresServer\n"
        "from embedded.redis import RedisServer\n"
        f"p = PostgresServer(Path({str(tmp_path)!r}) / 'p', fast=True).start()\n"
        f"r = RedisServer(Path({str(tmp_path)!r}) / 'r').start()\n"
        "print(p.process.pid, r.process.pid, flush=True); signal.pause()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        marks = [ProcessMark.of(int(pid)) for pid in owner.stdout.readline().split()]
        assert all(mark is not None and mark.alive for mark in marks)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert wait_until(lambda: not any(mark is not None and mark.alive for mark in marks), 20.0)


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in (DATABASE_URL, REDIS_URL, SECRET_KEY, MASTER_KEYS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(DATA_DIR, "")
    return tmp_path / "data"


def test_a_command_starts_servers_for_as_long_as_it_runs(unconfigured: Path) -> None:
    with ensure(unconfigured) as embedded:
        assert embedded
        settings = Settings.load()
        with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with redis.Redis.from_url(settings.redis_url) as client:
            assert client.ping()
    with pytest.raises(ConfigurationError, match=DATABASE_URL):
        Settings.load()


def test_a_command_uses_the_servers_of_a_running_up(unconfigured: Path) -> None:
    home = Home(unconfigured)
    with home.locked(), Servers(home) as servers, ensure(unconfigured):
        assert servers.postgres is not None
        assert Settings.load().database_url == servers.postgres.url


def test_a_command_leaves_configured_servers_alone(unconfigured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_URL, "postgresql://elsewhere/fairlane")
    monkeypatch.setenv(REDIS_URL, "redis://elsewhere/0")
    with ensure(unconfigured) as embedded:
        assert not embedded
    assert not unconfigured.exists()


def test_servers_keep_their_ports_over_restarts(unconfigured: Path) -> None:
    home = Home(unconfigured)
    with home.locked():
        assert {home.port_of("postgres") for _ in range(3)} == {home.port_of("postgres")}
        assert home.port_of("postgres") != home.port_of("redis")
