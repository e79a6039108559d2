"""``fairlane up``: the whole engine in one command, on embedded servers unless the environment names others.

Order: the folder's lock, what a crash left, Postgres and Redis, the schema, then API, workers and beat under one
supervisor; backwards on the way down. Ctrl-C or SIGTERM ends it with exit code 0 and no process left.
"""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli import commands, schema
from cli.commands import StopRank
from cli.options import DEFAULT_CONCURRENCY, DEFAULT_DATA, Concurrency, Data, Processes, cores
from cli.processes import workers as worker_programs
from embedded.home import DATABASE_URL, REDIS_URL, Home
from embedded.program import Child, Program, ServerChild
from embedded.servers import Servers
from embedded.supervisor import STOP_SIGNALS, Supervisor
from engine.settings import Settings

if TYPE_CHECKING:
    from cli.demo import Demo

HOST = "127.0.0.1"
CONNECTIONS_PER_PROCESS = 25
"""Of Postgres: what one process may hold at most, with its pool of 10 and as many in overflow."""
ALLOWED_NETWORKS = "FAIRLANE_ALLOWED_NETWORKS"
PUBLIC_URL = "FAIRLANE_PUBLIC_URL"


def up(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the API.")] = 8000,
    data: Data = DEFAULT_DATA,
    demo: Annotated[
        bool | None,
        typer.Option("--demo/--no-demo", help="Make an organization to try things with; by default if there is none."),
    ] = None,
    processes: Processes = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
) -> None:
    """Run everything in the foreground: servers, API, workers and beat; Ctrl-C stops all of it."""
    began = time.monotonic()
    home, workers = Home(data), processes or cores()
    commands.require_free(HOST, port)
    commands.use(data)
    os.environ.setdefault(PUBLIC_URL, f"http://{HOST}:{port}")
    with unwound_by_signals() as stopped, home.locked():
        _end_leftovers(home)
        commands.check_given(home)
        with Servers(home, connections=CONNECTIONS_PER_PROCESS * (workers + 3)) as servers:
            typer.echo(f"Data in {home.folder}. {_described(servers)}")
            settings = _prepared()
            stopped.look()
            made = _demo(home, settings, asked=demo)
            children = [*_server_children(servers), *_children(home, port=port, demo=made is not None)]
            children += worker_programs(workers, concurrency=concurrency, marks=home.run)
            typer.echo(f"Starting the API, beat and {workers} worker{'' if workers == 1 else 's'} ...")
            announce = partial(_announce, f"http://{HOST}:{port}", made, began=began)
            supervisor = Supervisor(children, announce=announce, printer=commands.printer(children, settings))
            code = supervisor.run(before=stopped.look)
    raise typer.Exit(code)


class _Stopped(KeyboardInterrupt):
    """A signal came while the engine was starting."""


class Signals:
    """The first of SIGINT, SIGTERM and SIGHUP raises where it meets the program, and is remembered.

    Remembered, because Python drops what is raised in a callback of its own, such as that which gives back the lock of
    a module's import: `look` raises then, a step later.
    """

    def __init__(self) -> None:
        self._came = False

    def receive(self, *_: object) -> None:
        if not self._came:
            self._came = True
            raise _Stopped

    def look(self) -> None:
        if self._came:
            raise _Stopped


@contextmanager
def unwound_by_signals() -> Iterator[Signals]:
    """Until the supervisor takes over, a signal to stop unwinds what was started: exit code 0."""
    signals = Signals()
    before = {sig: signal.signal(sig, signals.receive) for sig in STOP_SIGNALS}
    try:
        yield signals
    except KeyboardInterrupt:
        typer.echo("Stopped before it was ready.")
        raise typer.Exit from None
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _end_leftovers(home: Home) -> None:
    if names := home.end_leftovers():
        typer.echo(f"Ended what a killed Fairlane had left running: {', '.join(names)}.")


def _described(servers: Servers) -> str:
    postgres, redis = servers.postgres, servers.redis
    return " ".join(
        [
            f"Postgres on port {postgres.port}." if postgres else f"Postgres of {DATABASE_URL}.",
            f"Redis on port {redis.port}." if redis else f"Redis of {REDIS_URL}.",
        ]
    )


def _prepared() -> Settings:
    """The settings, once both servers answer, the schema is the newest, and the master keys open what is there."""
    import migrations
    from engine import vault
    from engine.db import Database

    settings = Settings.load()
    commands.require_redis(settings.redis_url)
    schema.refuse_multi_user(settings.database_url)
    migrations.upgrade(settings.database_url)
    with closing(Database(settings.database_url, pool_size=1)) as database, database.system() as session:
        vault.require_fitting(session, settings.master_key_ring)
    typer.echo(f"Schema at revision {migrations.head()}.")
    return settings


def _demo(home: Home, settings: Settings, *, asked: bool | None) -> Demo | None:
    """Make the demo if it is wanted, and let actions reach its receiver although it is on loopback."""
    if asked is False:
        return None
    from cli import demo  # here, because it needs what few commands need

    if asked is None and not demo.is_expected(settings, home.demo_file):
        typer.echo("No demo, because there are organizations already; --demo makes it.")
        return None
    receiver = f"{HOST}:{home.port_of('receiver')}"
    os.environ[ALLOWED_NETWORKS] = ",".join([*settings.allowed_networks, receiver])
    return demo.ensure(settings, home.demo_file, receiver=f"http://{receiver}")


def _server_children(servers: Servers) -> list[Child]:
    children: list[Child] = []
    if servers.postgres is not None:
        children.append(ServerChild("postgres", servers.postgres, StopRank.POSTGRES))
    if servers.redis is not None:
        children.append(ServerChild("redis", servers.redis, StopRank.REDIS))
    return children


def _children(home: Home, *, port: int, demo: bool) -> list[Child]:
    children: list[Child] = []
    if demo:
        command = commands.receiver(home.port_of("receiver"))
        children.append(_program(home, "receiver", command, rank=StopRank.RECEIVER))
    probe = _answers(f"http://{HOST}:{port}/healthz")
    children.append(_program(home, "api", commands.api(HOST, port), rank=StopRank.API, probe=probe))
    children.append(_program(home, "beat", commands.beat(), rank=StopRank.BEAT))
    return children


def _program(
    home: Home, name: str, command: tuple[str, ...], *, rank: StopRank, probe: Callable[[], bool] | None = None
) -> Program:
    environment = commands.environment()
    return Program(name, command, environment=environment, stop_rank=rank, probe=probe, marks=home.run)


def _answers(url: str) -> Callable[[], bool]:
    def probe() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=0.5) as answer:  # noqa: S310 - our own loopback address
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return probe


def _announce(base: str, demo: Demo | None, *, began: float) -> None:
    lines = [
        "",
        f"Fairlane is ready after {time.monotonic() - began:.1f} s.",
        "",
        f"  API            {base}/api",
        f"  Documentation  {base}/api/docs",
        f"  Metrics        {base}/metrics",
        *([demo.described(base)] if demo else []),
        "",
        "Ctrl-C stops everything.",
        "",
    ]
    typer.echo("\n".join(lines))
