"""Runs: what was started, how far it came, what it said, why it waits; and ending one."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api import waiting
from api.auth import Call, may
from api.openapi import refusals
from api.paging import PAGE_BYTES, Page
from api.schemas import Identifier, Listed, Since
from api.schemas_runs import IdempotencyKey, LogLine, ReplayBody, ReplayedRun, Run, Step, Waiting
from api.wire import Route
from engine.db import Row, TenantSession
from engine.errors import Conflict, Fault, InvalidInput, NotFound
from engine.permissions import Permission
from engine.replay import ABSENT, Replays, Wish
from engine.repository import read_runs
from engine.states import RunState

router = APIRouter(route_class=Route, prefix="/api/runs", tags=["runs"])

Reader = Annotated[Call, may(Permission.RUNS_READ)]
Writer = Annotated[Call, may(Permission.RUNS_WRITE)]


def _filter(
    workflow_id: Annotated[Identifier | None, Query()] = None,
    status: Annotated[list[RunState] | None, Query(description="One state, or several.")] = None,
    since: Annotated[Since | None, Query(description="Queued at or after; RFC 3339, UTC unless it says.")] = None,
) -> read_runs.RunFilter:
    return read_runs.RunFilter(workflow_id=workflow_id, statuses=status or (), since=since)


Wanted = Annotated[read_runs.RunFilter, Depends(_filter)]


@router.get("", response_model=Listed[Run])
def list_runs(call: Reader, page: Page, wanted: Wanted) -> Any:
    """List runs, the newest first."""
    before = page.after(str)
    with call.transaction() as session:
        rows = read_runs.listed(session, wanted, before=before, limit=page.fetch, max_bytes=PAGE_BYTES)
    return page.page(rows, lambda row: [row["id"]])


@router.get("/{run_id}", response_model=Run, responses=refusals("not_found"))
def show(run_id: str, call: Reader) -> Any:
    """Show a run."""
    with call.transaction() as session:
        return existing(session, run_id)


@router.get("/{run_id}/steps", response_model=Listed[Step], responses=refusals("not_found"))
def steps(run_id: str, call: Reader, page: Page) -> Any:
    """List the steps of a run so far, in the order of their beginning."""
    after = page.after(str, str, str)
    if after is not None:
        _moment(after[0])
    with call.transaction() as session:
        existing(session, run_id)
        rows = read_runs.steps_of(session, run_id, after=after, limit=page.fetch, max_bytes=PAGE_BYTES)
    return page.page(rows, lambda row: [row["began"].isoformat(), row["id"], row["item"] or ""])


@router.get("/{run_id}/logs", response_model=Listed[LogLine], responses=refusals("not_found"))
def logs(run_id: str, call: Reader, page: Page) -> Any:
    """List the log lines of a run."""
    after = page.after(int)
    with call.transaction() as session:
        existing(session, run_id)
        rows = read_runs.log_of(session, run_id, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["seq"]])


@router.get("/{run_id}/waiting", response_model=Waiting, responses=refusals("not_found", "run_not_waiting"))
def show_waiting(run_id: str, call: Reader) -> Any:
    """Say why a run waits, and since when."""
    with call.transaction() as session:
        run = existing(session, run_id)
    return asdict(waiting.why(run, tenant_id=call.principal.tenant_id, lanes=call.services.lanes))


@router.post("/{run_id}/cancel", response_model=Run, responses=refusals("not_found", "run_finished"))
def cancel(run_id: str, call: Writer) -> Any:
    """End a run. One that is not running ends at once, else before its next step; what a step has done stays done."""
    with call.transaction() as session:
        ended = call.services.runs.cancel(session, run_id, by=call.principal.by.id)
        run = existing(session, run_id)
        if not ended and run["status"] != RunState.CANCELLED:
            raise Conflict(f"The run {run_id} has {run['status']} already.", code="run_finished")
        if ended:
            call.record(session, "run.cancelled", run_id, workflow_id=run["workflow_id"])
        return run


@router.post(
    "/{run_id}/replay",
    status_code=202,
    response_model=ReplayedRun,
    responses=refusals(
        "not_found",
        "run_not_ended",
        "nothing_failed",
        "step_not_reached",
        "version_unreadable",
        "workflow_inactive",
        "quota_payload",
        "quota_executions",
        "quota_queue",
    ),
)
def replay(run_id: str, call: Writer, body: ReplayBody | None = None, key: IdempotencyKey = None) -> Any:
    """Start a run again that has ended. Steps before the starting point are carried over, not run again."""
    wish = body or ReplayBody()
    given = wish.input if "input" in wish.model_fields_set else ABSENT
    with call.transaction() as session:
        made = Replays(call.services.runs, call.services.actions).start(
            session, Wish(run_id=run_id, start=wish.start, version=wish.version, input=given, key=key)
        )
        run = existing(session, made.run["id"])
        if not made.existing:
            call.record(session, "run.replayed", run_id, run_id=run["id"], workflow_id=run["workflow_id"])
    return {**run, **asdict(made.plan), "version": run["version"], "idempotent": made.existing}


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
