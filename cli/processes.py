"""The single processes of an installation, each in the foreground: api, worker, beat; and migrate.

They use the servers named by the environment, or those of a running ``fairlane up``; none of them starts a server,
except `migrate`, which starts the embedded ones for as long as it takes when no other is named.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cli import adoption, commands, schema
from cli.options import (
    DEFAULT_CONCURRENCY,
    DEFAULT_DATA,
    DEFAULT_PLAN,
    Concurrency,
    Data,
    FirstPlan,
    KeepUndecryptable,
    Processes,
    cores,
)
from embedded import ensure
from embedded.program import Program
from embedded.supervisor import Supervisor
from engine.errors import Conflict
from engine.settings import Settings


def api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    data: Data = DEFAULT_DATA,
) -> None:
    """Serve the HTTP API, the webhooks and the metrics."""
    import uvicorn

    commands.configured(data)
    commands.require_free(host, port)
    uvicorn.run("api.app:create_app", factory=True, host=host, port=port, access_log=False, timeout_graceful_shutdown=5)


def worker(
    processes: Processes = None, concurrency: Concurrency = DEFAULT_CONCURRENCY, data: Data = DEFAULT_DATA
) -> None:
    """Run workflows, in several processes of several threads; a process that dies is started again."""
    settings = commands.configured(data)
    children = workers(processes or cores(), concurrency=concurrency)
    raise typer.Exit(Supervisor(children, printer=commands.printer(children, settings)).run())


def workers(processes: int, *, concurrency: int, marks: Path | None = None) -> list[Program]:
    """The worker processes as children of a supervisor; `marks` as in `Program`."""
    return [
        Program(
            f"worker-{number}",
            commands.worker(number, concurrency=concurrency),
            environment=commands.environment(),
            ready_when=commands.worker_is_ready,
            stop_rank=commands.StopRank.WORKER,
            grace=commands.WORKER_GRACE,
            quick_signal=commands.WORKER_QUICK,
            marks=marks,
        )
        for number in range(1, processes + 1)
    ]


def beat(data: Data = DEFAULT_DATA) -> None:
    """Fire what is due: schedules, polls, wake-ups, repairs. Any number of beats may run at once."""
    commands.configured(data)
    command = commands.beat()
    os.execve(command[0], command, commands.environment())  # noqa: S606 - a fixed command of ours


def _known_revision(param: typer.CallbackParam, name: str | None) -> str | None:
    """Before anything is done."""
    import migrations

    known, end = migrations.revisions(), "base" if param.name == "back_to" else "head"
    if name is not None and name not in (*known, end):
        raise typer.BadParameter(f"There is no revision {name!r}; there are {known[0]} to {known[-1]}, and {end}.")
    return name


def migrate(
    to: Annotated[
        str, typer.Option("--to", callback=_known_revision, help="Go no further than this revision.")
    ] = "head",
    back_to: Annotated[
        str | None, typer.Option("--back-to", callback=_known_revision, help="Go back to this revision instead.")
    ] = None,
    adopt: Annotated[bool, typer.Option("--adopt", help="Adopt a database of the multi-user system.")] = False,
    encryption_key: Annotated[
        str | None, typer.Option("--encryption-key", help="With --adopt: the old ENCRYPTION_KEY, in base64.")
    ] = None,
    keep_undecryptable: KeepUndecryptable = False,
    plan: FirstPlan = DEFAULT_PLAN,
    check: Annotated[bool, typer.Option("--check", help="With --adopt: say what would happen, and change nothing.")] = (
        False
    ),
    discard_new: Annotated[
        bool, typer.Option("--discard-new", help="With --back-to: lose runs and changes made since the adoption.")
    ] = False,
    forget_legacy: Annotated[
        bool, typer.Option("--forget-legacy", help="Drop the old tables that an adoption kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --adopt: print JSON.")] = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Bring the database to the newest schema; does nothing when it is there."""
    if sum((adopt, back_to is not None, forget_legacy)) > 1:
        raise typer.BadParameter("give one of --adopt, --back-to and --forget-legacy")
    if (check or keep_undecryptable or encryption_key is not None or plan != DEFAULT_PLAN) and not adopt:
        raise typer.BadParameter("--check, --encryption-key, --keep-undecryptable and --plan go with --adopt")
    with ensure(data) if commands.given_database_url() is None else nullcontext():
        url = commands.given_database_url() or Settings.load().database_url
        if adopt:
            do = adoption.check if check else adoption.carry_over
            do(url, encryption_key, plan=plan, keep_undecryptable=keep_undecryptable, as_json=as_json)
        elif forget_legacy:
            adoption.forget(url)
        else:
            _migrate(url, to=to, back_to=back_to, discard_new=discard_new)


def _migrate(url: str, *, to: str, back_to: str | None, discard_new: bool) -> None:
    import migrations

    if back_to is None:
        schema.refuse_multi_user(url)
    _require_way(_revision(url), back_to)
    if back_to in ("0001", "base") and adoption.take_back_if_adopted(url, discard_new=discard_new):
        return
    if back_to is not None:
        adoption.go_back(url, back_to)
    else:
        migrations.upgrade(url, to)
    typer.echo(f"The schema is at revision {_revision(url)}.")


def _revision(url: str) -> str:
    with schema.connection_to(url) as connection:
        return schema.revision(connection) or "base"


def _require_way(at: str, back_to: str | None) -> None:
    """Raises Conflict where the history that this code knows leads nowhere from."""
    import migrations

    known = ("base", *migrations.revisions())
    if at not in known:
        raise Conflict(
            f"The schema is at revision {at}, and this release knows {known[1]} to {known[-1]}: use the release that"
            " made it. Nothing was changed."
        )
    if back_to is not None and known.index(back_to) > known.index(at):
        raise Conflict(f"There is no way back to {back_to}: the schema is at revision {at}. Nothing was changed.")
