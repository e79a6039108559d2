"""Runs: what was started, how far it came, what it said; and ending one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.auth import Call, may
from api.paging import Page
from api.schemas import Identifier, Listed, LogLine, Run, Step
from api.wire import Route
from engine.db import Row, TenantSession
from engine.errors import Conflict, Fault, InvalidInput, NotFound
from engine.permissions import Permission
from engine.repository import read_runs
from engine.states import RunState

router = APIRouter(route_class=Route, prefix="/api/runs", tags=["runs"])

Reader = Annotated[Call, may(Permission.RUNS_READ)]
Writer = Annotated[Call, may(Permission.RUNS_WRITE)]


def _filter(
    workflow_id: Annotated[Identifier | None, Query()] = None,
    status: Annotated[list[RunState] | None, Query(description="One state, or several.")] = None,
    since: Annotated[datetime | None, Query(description="Queued at or after; RFC 3339, UTC unless it says.")] = None,
) -> read_runs.RunFilter:
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    return read_runs.RunFilter(workflow_id=workflow_id, statuses=status or (), since=since)


Wanted = Annotated[read_runs.RunFilter, Depends(_filter)]


@router.get("", response_model=Listed[Run])
def list_runs(call: Reader, page: Page, wanted: Wanted) -> Any:
    """Newest first."""
    before = page.after(str)
    with call.transaction() as session:
        rows = read_runs.listed(session, wanted, before=before, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.get("/{run_id}", response_model=Run)
def show(run_id: str, call: Reader) -> Any:
    """One run."""
    with call.transaction() as session:
        return existing(session, run_id)


@router.get("/{run_id}/steps", response_model=Listed[Step])
def steps(run_id: str, call: Reader, page: Page) -> Any:
    """Its steps so far, in the order of their beginning."""
    after = page.after(str, str, str)
    if after is not None:
        _moment(after[0])
    with call.transaction() as session:
        existing(session, run_id)
        rows = read_runs.steps_of(session, run_id, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["began"].isoformat(), row["id"], row["item"] or ""])


@router.get("/{run_id}/logs", response_model=Listed[LogLine])
def logs(run_id: str, call: Reader, page: Page) -> Any:
    """Its log."""
    after = page.after(int)
    with call.transaction() as session:
        existing(session, run_id)
        rows = read_runs.log_of(session, run_id, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["seq"]])


@router.post("/{run_id}/cancel", response_model=Run)
def cancel(run_id: str, call: Writer) -> Any:
    """End it: at once when it is not running, else before its next step. What a step has done stays done."""
    with call.transaction() as session:
        ended = call.services.runs.cancel(session, run_id)
        run = existing(session, run_id)
        if not ended and run["status"] != RunState.CANCELLED:
            raise Conflict(f"The run {run_id} has {run['status']} already.", code="run_finished")
        return run


def existing(session: TenantSession, run_id: str) -> Row:
    """The run. Raises NotFound."""
    run = read_runs.get(session, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run


def _moment(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput([Fault("/cursor", "not a cursor of this list")]) from None
