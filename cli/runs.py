"""``fairlane runs``: what ran, what waits and why, of one organization or of all; ending runs, and replaying them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from redis.exceptions import RedisError

from cli import answers, replays
from cli.follow import follow as follow_run
from cli.installation import Installation, opened, operator_here
from cli.options import DEFAULT_DATA, AsJson, Data, OfTenant, group
from cli.output import fail, show_items, show_json, show_record, warn
from cli.paging import PAGE, pages
from cli.whose import no_run, tenant_of
from engine import audit
from engine.db import Row
from engine.durations import parse_duration
from engine.errors import NotFound
from engine.ports import PollMessage, RunMessage
from engine.replay import ABSENT
from engine.repository import operator, read_runs
from engine.repository.operator import RunFilter
from engine.repository.replays import Ended
from engine.runs import Runs
from engine.states import RunState

app = group("Runs: what ran, what waits, ending them, and starting them again.")

MANY = 100_000
"""Steps or log lines of one run; there are never so many."""


def _seconds(row: Row) -> float | None:
    if row["started_at"] is None or row["finished_at"] is None:
        return None
    took: timedelta = row["finished_at"] - row["started_at"]
    return round(took.total_seconds(), 3)


COLUMNS: dict[str, Any] = {
    "id": lambda run: run["id"],
    "organization": lambda run: run["tenant_id"],
    "workflow": lambda run: run["workflow_id"],
    "status": lambda run: run["status"],
    "trigger": lambda run: run["trigger"],
    "attempt": lambda run: run["attempt"],
    "queued": lambda run: run["queued_at"],
    "seconds": _seconds,
    "why": lambda run: run["wait_reason"] or (run["error"] or {}).get("code"),
}
STEP_COLUMNS: dict[str, Any] = {
    "step": lambda step: step["id"] if step["item"] is None else f"{step['id']}[{step['item']}]",
    "status": lambda step: step["status"],
    "attempt": lambda step: step["attempt"],
    "seconds": _seconds,
    "error": lambda step: (step["error"] or {}).get("message"),
}
LOG_COLUMNS: dict[str, Any] = {
    "at": lambda line: line["at"],
    "level": lambda line: line["level"],
    "step": lambda line: line["step"],
    "message": lambda line: line["message"],
    "data": lambda line: line["data"],
}


def _since(text: str) -> datetime:
    """A moment, or a duration before now."""
    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a moment such as 2026-01-31T12:00:00Z nor a duration such as 2h."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Since = Annotated[
    datetime | None,
    typer.Option("--since", parser=_since, metavar="WHEN", help="Queued since: 2h, 7d, or a moment (UTC)."),
]


class Version(StrEnum):
    """Which version of its workflow a replay has."""

    original = "original"
    latest = "latest"


@app.command("list")
def list_(
    tenant: OfTenant = None,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="WORKFLOW", help="Only of this one.")] = None,
    status: Annotated[list[RunState] | None, typer.Option("--status", help="Only in this state; repeatable.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 for all.")] = 100,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    wanted = RunFilter(tenant_id=tenant, workflow_id=workflow, statuses=status or (), since=since)
    with opened(data) as here:
        found = _listed(here, wanted, limit or None)
        show_items(found, COLUMNS, as_json=as_json, none="There are no such runs.")


def _listed(here: Installation, wanted: RunFilter, limit: int | None) -> Iterator[Row]:
    if wanted.tenant_id is None and (limit is None or limit > PAGE):
        with here.database.system() as session:
            yield from operator.every_run(session, wanted, limit=limit)
        return
    yield from pages(
        here.database,
        lambda session, last, count: operator.runs_listed(
            session, wanted, before=last["id"] if last else None, limit=count
        ),
        limit=limit,
    )


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    tenant: OfTenant = None,
    logs: Annotated[bool, typer.Option("--logs", help="Show what it logged, too.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show what happens as it comes, until it ends.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Show one run, its steps, and what it waits for."""
    with opened(data) as here:
        tenant_id = tenant or tenant_of(here, run)
        if follow:
            follow_run(here, tenant_id, run, as_json=as_json)
            return
        with here.database.tenant(tenant_id) as session:
            row = read_runs.get(session, run)
            if row is None:
                raise no_run(run)
            steps = read_runs.steps_of(session, run, after=None, limit=MANY)
            lines = read_runs.log_of(session, run, after=None, limit=MANY) if logs else None
        whole = {"tenant_id": tenant_id, **row, "waits_for": _waits_for(here, tenant_id, row)}
    if as_json:
        show_json(whole | {"steps": steps} | ({} if lines is None else {"logs": lines}))
        return
    show_record(whole)
    typer.echo()
    show_items(steps, STEP_COLUMNS, as_json=False, none="No step has finished, nor begun an effect outside.")
    if lines is not None:
        typer.echo()
        show_items(lines, LOG_COLUMNS, as_json=False, none="It has logged nothing.")


@app.command()
def cancel(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of the runs.")],
    tenant: OfTenant = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """End runs: what waits at once, what runs before its next step. What a step has done stays done."""
    ended = []
    with opened(data) as here:
        for run_id in run:
            try:
                ended.append(_cancel(here, run_id, tenant or tenant_of(here, run_id), as_json=as_json))
            except NotFound as error:
                fail(error.detail)
    if as_json:
        show_json(ended)
    if len(ended) < len(run) or any(each["status"] != RunState.CANCELLED for each in ended):
        raise typer.Exit(1)


app.command("resume")(answers.resume)


@app.command()
def replay(
    run: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Ids; else use options.")] = None,
    tenant: OfTenant = None,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="WORKFLOW", help="All of this one.")] = None,
    status: Annotated[
        list[RunState] | None, typer.Option("--status", help="All in this state; repeatable. failed unless given.")
    ] = None,
    since: Since = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="start, failed, or the id of a step.")
    ] = "failed",
    version: Annotated[Version, typer.Option("--version", help="Of the workflow.")] = Version.original,
    given: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="Another input than the runs had.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="NAME", help="Replay each run once under this name.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Start runs again that have ended: those named, or all that the options choose. Finished steps are kept."""
    by_option = workflow is not None or since is not None or bool(status)
    if bool(run) == by_option:
        raise typer.BadParameter("name runs, or choose them by --workflow, --status or --since.")
    if any(not state.is_terminal for state in status or ()):
        raise typer.BadParameter("only runs that have ended can be replayed.", param_hint="--status")
    other = ABSENT if given is None else replays.read_json(given, "--input")
    how = replays.How(start=start, version=version.value, input=other, batch=batch, dry_run=dry_run)
    with opened(data) as here:
        if run:
            fine = replays.replay_named(here, _with_tenants(here, run, tenant), how, as_json=as_json)
        else:
            statuses = status or [RunState.FAILED]
            wanted = Ended(tenant_id=tenant, workflow_id=workflow, statuses=statuses, since=since)
            fine = replays.replay_many(here, wanted, how, as_json=as_json)
    if not fine:
        raise typer.Exit(1)


def _with_tenants(here: Installation, run_ids: list[str], tenant: str | None) -> list[tuple[str, str]]:
    return [(tenant or tenant_of(here, run_id), run_id) for run_id in run_ids]


def _cancel(here: Installation, run_id: str, tenant_id: str, *, as_json: bool) -> dict[str, str]:
    """What it is now and what it was, said in a sentence unless JSON is wanted."""
    with here.database.tenant(tenant_id) as session:
        row = read_runs.get(session, run_id)
        ended = Runs(LeftToSweeper()).cancel(session, run_id, by=operator_here().id)
        if ended:
            audit.record(session, operator_here(), "run.cancelled", run_id)
        else:
            row = read_runs.get(session, run_id)  # it may have ended since it was read
    if row is None:
        raise no_run(run_id)
    was = row["status"]
    if not ended and was != RunState.CANCELLED:
        fail(f"{run_id} has ended already: {was}.")
        return {"id": run_id, "status": was, "was": was}
    _take_from_lane(here, tenant_id, row)
    if not as_json:
        typer.echo(f"{run_id} is cancelled; it was {was}." if ended else f"{run_id} was cancelled before.")
    return {"id": run_id, "status": RunState.CANCELLED, "was": was}


class LeftToSweeper:
    """The `engine.ports.Publisher` of a command: what it queues is in Postgres, and the sweeper publishes it."""

    def publish(self, messages: Iterable[RunMessage]) -> None:
        """Nothing to do: the sweeper looks for what the broker does not hold every few seconds."""

    def publish_poll(self, message: PollMessage) -> None:
        """Nothing to do: a poll that is not published falls due again."""

    def holds(self, message_ids: Sequence[str]) -> set[str]:  # noqa: ARG002
        """None of them, as far as this one knows."""
        return set()


def _take_from_lane(here: Installation, tenant_id: str, run: Row) -> None:
    """So that it counts as waiting no more; a worker that got the message would only drop it."""
    try:
        here.lanes.cancel(_message(tenant_id, run).id)
    except RedisError as error:
        warn(f"Redis does not answer ({error}): its message stays in the lane, and a worker drops it.")


def _waits_for(here: Installation, tenant_id: str, run: Row) -> str | None:
    """One word for a run that waits. Of what is queued the lanes know it."""
    if run["status"] != RunState.QUEUED:
        wait_reason: str | None = run["wait_reason"]
        return wait_reason
    try:
        position = here.lanes.position(_message(tenant_id, run).id)
        if position is not None and position.reason == "paused":
            return "paused"
        return "no_worker" if here.lanes.no_worker else "fair_turn" if position is None else position.reason
    except RedisError:
        return "unknown, because Redis does not answer"


def _message(tenant_id: str, run: Row) -> RunMessage:
    return RunMessage(run["id"], tenant_id, run["workflow_id"], run["priority"], run["attempt"])
