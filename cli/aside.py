"""``fairlane lanes aside``: messages that could not be delivered, or were rejected for good, and what to do with them.

What is set aside is a message, not a run: a run that waits in Postgres is published again by the sweeper in any case.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from cli.installation import Installation, opened
from cli.options import DEFAULT_DATA, AsJson, Data, group
from cli.output import fail, show_items
from engine.fairshare import SetAside

app = group("Messages that were set aside, because they could not be delivered.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Ids of the messages.")]
All = Annotated[bool, typer.Option("--all", help="Every message that is set aside.")]

COLUMNS: dict[str, Any] = {
    "id": lambda message: message["id"],
    "since": lambda message: message["at"],
    "reason": lambda message: message["reason"],
    "bytes": lambda message: len(message["payload"]),
}


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """List messages that were set aside, in no particular order; --json shows what they hold."""
    with opened(data) as here:
        messages = map(_shown, here.lanes.set_aside(limit=limit))
        show_items(messages, COLUMNS, as_json=as_json, none="Nothing is set aside.")


@app.command()
def revive(message: Ids = None, every: All = False, data: Data = DEFAULT_DATA) -> None:
    """Put messages back into their lanes, behind the others."""
    with opened(data) as here:
        wanted = _chosen(here, message, every=every)
        revived = here.lanes.revive(wanted)
    typer.echo(f"Put back {len(revived):,}.")
    left = [id_ for id_ in wanted if id_ not in set(revived)]
    for id_ in left:
        fail(f"{id_} stays aside: there is none of that id, or it never was a message of this queue.")
    if left:
        raise typer.Exit(1)


@app.command()
def forget(message: Ids = None, every: All = False, data: Data = DEFAULT_DATA) -> None:
    """Delete messages that were set aside."""
    with opened(data) as here:
        wanted = _chosen(here, message, every=every)
        gone = here.lanes.forget(wanted)
    typer.echo(f"Deleted {gone:,}.")
    if gone < len(wanted):
        fail(f"{len(wanted) - gone:,} of them were not there.")
        raise typer.Exit(1)


def _chosen(here: Installation, ids: list[str] | None, *, every: bool) -> list[str]:
    if bool(ids) == every:
        raise typer.BadParameter("want ids, or --all.", param_hint="ID")
    return ids or [message.id for message in here.lanes.set_aside(limit=max(here.lanes.total().set_aside, 1))]


def _shown(message: SetAside) -> dict[str, Any]:
    return {
        "id": message.id,
        "at": datetime.fromtimestamp(message.at, UTC),
        "reason": message.reason,
        "payload": message.payload.decode(errors="replace"),
    }
