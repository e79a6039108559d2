"""Workflows: saved, changed, switched on and off, tried without effect, started, deleted."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Request, Response

from api.auth import Call, may
from api.documents import Sent, shown
from api.openapi import TAKES_YAML, refusals
from api.paging import Page
from api.schemas import Listed
from api.schemas_runs import IdempotencyKey, ReleasedRuns, RunBody, RunStarted
from api.schemas_workflows import (
    DryRun,
    DryRunBody,
    Version,
    VersionDetails,
    Workflow,
    WorkflowBody,
    WorkflowChange,
    WorkflowPatch,
    WorkflowSummary,
)
from api.wire import Route, YamlRequest
from engine import definition, dry_run
from engine.db import Row, TenantSession
from engine.permissions import Permission
from engine.repository import credentials, read_runs
from engine.runs import Start
from engine.workflows import Author
from triggers import fire

router = APIRouter(route_class=Route, prefix="/api/workflows", tags=["workflows"])

Reader = Annotated[Call, may(Permission.WORKFLOWS_READ)]
Writer = Annotated[Call, may(Permission.WORKFLOWS_WRITE)]
Starter = Annotated[Call, may(Permission.RUNS_WRITE)]

DRY_RUNS = 1
"""Dry runs at once: each may keep an evaluator busy for a while, and saving a workflow needs one too."""
GREATEST_VERSION = 2**31 - 1


@router.get("", response_model=Listed[WorkflowSummary])
def list_workflows(call: Reader, page: Page) -> Any:
    """List workflows, the oldest first. Their documents are shown one by one."""
    after = page.after(str)
    with call.transaction() as session:
        rows = call.services.workflows.listed(session, after=after, limit=page.fetch)
    return page.page([_with_url(call, row) for row in rows], lambda row: [row["id"]])


@router.post(
    "",
    status_code=201,
    response_model=Workflow,
    responses=refusals("invalid_input", "quota_workflows", "quota_poll_interval"),
    openapi_extra=TAKES_YAML,
)
def create(body: WorkflowBody, call: Writer, request: Request) -> Any:
    """Save a new workflow, which is active at once."""
    sent = Sent(body, whole=isinstance(request, YamlRequest))
    with sent.faults():
        workflow = sent.read(call.services)
        with call.transaction() as session:
            row = call.services.workflows.create(session, workflow, author=_author(call), legacy=sent.legacy)
            call.record(session, "workflow.created", row["id"], name=row["name"])
            return _shown(session, call, row)


@router.get("/{workflow_id}", response_model=Workflow, responses=refusals("not_found"))
def show(workflow_id: str, call: Reader) -> Any:
    """Show a workflow with its current document."""
    with call.transaction() as session:
        return _shown(session, call, call.services.workflows.get(session, workflow_id))


@router.put(
    "/{workflow_id}",
    response_model=Workflow,
    responses=refusals("invalid_input", "not_found", "version_conflict", "quota_poll_interval"),
    openapi_extra=TAKES_YAML,
)
def update(workflow_id: str, body: WorkflowChange, call: Writer, request: Request) -> Any:
    """Save a changed document as a new version. One that means the same as the current version makes none."""
    sent = Sent(body, whole=isinstance(request, YamlRequest))
    with sent.faults():
        workflow = sent.read(call.services)
        with call.transaction() as session:
            row = call.services.workflows.update(
                session,
                workflow_id,
                workflow,
                author=_author(call),
                legacy=sent.legacy,
                expected_version=body.version,
            )
            call.record(session, "workflow.saved", workflow_id, name=row["name"], version=row["version"])
            return _shown(session, call, row)


@router.patch("/{workflow_id}", response_model=Workflow, responses=refusals("not_found", "conflict"))
def patch(workflow_id: str, body: WorkflowPatch, call: Writer) -> Any:
    """Switch a workflow on or off, or rename it. Runs that were accepted go on."""
    with call.transaction() as session:
        if body.name is not None:
            call.services.workflows.rename(session, workflow_id, body.name)
        if body.is_active is not None:
            call.services.workflows.set_active(session, workflow_id, body.is_active)
        call.record(session, "workflow.changed", workflow_id, **body.model_dump(exclude_none=True))
        return _shown(session, call, call.services.workflows.get(session, workflow_id))


@router.delete("/{workflow_id}", status_code=204, response_class=Response, responses=refusals("not_found"))
def delete(workflow_id: str, call: Writer) -> None:
    """Delete a workflow. Its runs stay to be read; those that wait are cancelled."""
    with call.transaction() as session:
        call.services.workflows.delete(session, workflow_id)
        call.record(session, "workflow.deleted", workflow_id)


@router.get("/{workflow_id}/versions", response_model=Listed[Version], responses=refusals("not_found"))
def versions(workflow_id: str, call: Reader, page: Page) -> Any:
    """List the versions of a workflow, the newest first."""
    before = page.after(int)
    with call.transaction() as session:
        rows = call.services.workflows.versions(session, workflow_id, before=before, limit=page.fetch)
    return page.page(rows, lambda row: [row["version"]])


@router.get("/{workflow_id}/versions/{version}", response_model=VersionDetails, responses=refusals("not_found"))
def show_version(workflow_id: str, version: Annotated[int, Path(ge=1, le=GREATEST_VERSION)], call: Reader) -> Any:
    """Show one version with its document."""
    with call.transaction() as session:
        row = call.services.workflows.definition(session, workflow_id, version)
    return {**row, "definition": shown(row["definition"], row["definition"]["name"])}


@router.post("/{workflow_id}/dry-run", response_model=DryRun, responses=refusals("not_found"))
async def try_out(workflow_id: str, call: Reader, request: Request, body: DryRunBody | None = None) -> Any:
    """Show what a run would do. Nothing is sent, decrypted or stored."""
    limiter: CapacityLimiter = request.app.state.dry_runs
    given = None if body is None else body.input
    return await to_thread.run_sync(partial(_dry_run, call, workflow_id, given), limiter=limiter)


@router.post(
    "/{workflow_id}/runs",
    status_code=202,
    response_model=RunStarted,
    responses=refusals("not_found", "workflow_inactive", "quota_payload", "quota_executions", "quota_queue"),
)
def start(workflow_id: str, call: Starter, body: RunBody | None = None, key: IdempotencyKey = None) -> Any:
    """Start a run. It is stored before the answer; a worker takes it when its turn comes."""
    wish = body or RunBody()
    request = Start(
        workflow_id=workflow_id,
        trigger="api",
        input={"input": {} if wish.input is None else wish.input},
        idempotency_key=None if key is None else f"api:{workflow_id}:{key}",
        priority=wish.priority,
    )
    with call.transaction() as session:
        started = fire(session, call.services.runs, request)
        run = read_runs.get(session, started.run["id"])
    return {"run": run, "idempotent": started.existing}


@router.post("/{workflow_id}/release", response_model=ReleasedRuns, responses=refusals("not_found"))
def release(workflow_id: str, call: Starter) -> Any:
    """Let the runs go on that were held because one poll found very many new items at once."""
    with call.transaction() as session:
        call.services.workflows.get(session, workflow_id)
        released = call.services.runs.release_held(session, workflow_id)
        call.record(session, "workflow.runs_released", workflow_id, runs=released)
        return {"released": released}


def _author(call: Call) -> Author:
    return Author(call.principal.actor, call.principal.user_id)


def _with_url(call: Call, row: Row) -> Row:
    url = f"{call.services.settings.public_url.rstrip('/')}/api/webhooks/{row['id']}"
    return {**row, "webhook_url": url if row["trigger_type"] == "webhook" else None}


def _shown(session: TenantSession, call: Call, row: Row) -> Row:
    """With its current document, under the name that it has now."""
    document = None
    if row["version"]:
        version = call.services.workflows.definition(session, row["id"], row["version"])
        document = shown(version["definition"], row["name"])
    return {**_with_url(call, row), "definition": document}


def _dry_run(call: Call, workflow_id: str, given: Any) -> Row:
    """No transaction is open while expressions are evaluated."""
    services = call.services
    with call.transaction() as session:
        row = services.workflows.get(session, workflow_id)
        stored = services.workflows.definition(session, workflow_id, row["version"])
        names = credentials.names(session)
    walk = dry_run.DryRun(
        workflow=definition.load(stored["definition"]).model_copy(update={"name": row["name"]}),
        workflow_id=workflow_id,
        version=row["version"],
        actions=services.actions,
        credentials=names,
        evaluator=services.evaluator,
    )
    return {"steps": walk.run(dry_run.trigger_of(row["trigger_type"], given))}
