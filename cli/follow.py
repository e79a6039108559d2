"""``fairlane runs show --follow``: a run's events as they come, until it has ended; a line each.

Read from Postgres as `engine.live` has it. While Postgres does not answer this waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime

import pydantic_core
import typer

from cli.installation import Installation
from cli.output import cell, warn
from engine.db import Row
from engine.errors import Unavailable
from engine.live import INTERVAL, Cursor, Event, news


def follow(here: Installation, tenant_id: str, run_id: str, *, as_json: bool) -> None:
    """Print until the run has ended. With `as_json` one document a line: kind and data."""
    for event in _events(here, tenant_id, run_id):
        if as_json:
            typer.echo(pydantic_core.to_json({"event": event.kind, "data": event.data}).decode())
        else:
            typer.echo(_line(event))


def _events(here: Installation, tenant_id: str, run_id: str) -> Iterator[Event]:
    """Raises NotFound."""
    cursor = Cursor()
    pause = threading.Event()
    while not cursor.is_at_the_end:
        found: list[Event] = []
        try:
            with here.database.tenant(tenant_id) as session:
                found = news(session, run_id, cursor)
        except Unavailable as error:
            warn(error.detail)
        for event in found:
            cursor = event.cursor
            yield event
        if not found:
            pause.wait(INTERVAL)


def _line(event: Event) -> str:
    match event.kind:
        case "log":
            return _row(event.data["at"], event.data["level"], event.data["step"], event.data["message"])
        case "step":
            step = event.data
            name = step["id"] if step["item"] is None else f"{step['id']}[{step['item']}]"
            return _row(step["finished_at"] or step["started_at"], "step", name, _became(step))
        case _:
            return _row(event.data["finished_at"], "run", None, _became(event.data))


def _row(at: datetime | None, kind: str, step: str | None, text: str) -> str:
    return f"{cell(at):<20}  {kind:<7}  {cell(step):<12}  {text}".rstrip()


def _became(row: Row) -> str:
    reason = row["wait_reason"] or (row["error"] or {}).get("message")
    return f"{row['status']}: {reason}" if reason else str(row["status"])
