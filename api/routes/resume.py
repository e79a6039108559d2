"""Answering a run that waits for somebody: as a member of the organization, or by a signed link without an account.

GET shows what is asked and changes nothing; only POST answers.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api import answer_page
from api.answering import Answerer, answerer
from api.openapi import refusals
from api.routes.runs import existing
from api.schemas import Identifier
from api.schemas_runs import Answered, Question, ResumeBody
from api.wire import Route
from engine import audit
from engine.answers import Answer
from engine.db import Row, TenantSession
from engine.permissions import Permission
from engine.repository import read_runs

router = APIRouter(route_class=Route, prefix="/api/runs", tags=["runs"])

WITHOUT_LINK = ("unauthenticated", "forbidden")


@router.get("/{run_id}/resume", response_model=Question, responses=refusals("not_found", "link_expired", *WITHOUT_LINK))
def ask(run_id: str, request: Request, who: Annotated[Answerer, answerer(Permission.RUNS_READ)]) -> Any:
    """Show what a run asks. With `token` of a signed link nothing else is needed; a browser gets a page."""
    with who.transaction() as session:
        asked = _question(session, existing(session, run_id))
    return answer_page.question(request, asked) if answer_page.wanted(request) else asked


@router.post(
    "/{run_id}/resume",
    response_model=Answered,
    responses=refusals(
        "not_found", "run_not_waiting", "answer_ambiguous", "approval_expired", "link_expired", *WITHOUT_LINK
    ),
)
def resume(
    run_id: str,
    request: Request,
    who: Annotated[Answerer, answerer(Permission.RUNS_WRITE)],
    body: ResumeBody | None = None,
    approved: Annotated[bool, Query(description="instead of a body")] = True,
    step: Annotated[Identifier | None, Query(description="instead of a body")] = None,
    item: Annotated[str, Query(max_length=20, description="instead of a body")] = "",
) -> Any:
    """Answer what a run waits for; it goes on when its turn comes. With `token` of a signed link nothing else is
    needed."""
    said = body or ResumeBody(approved=approved, step=step, item=item)
    answer = Answer(approved=said.approved, by=who.by.id, data=said.data, step_id=said.step, item=said.item)
    with who.transaction() as session:
        made = who.services.runs.resume(session, run_id, answer)
        facts = {"step": made.step_id, "item": made.item or None, "approved": made.approved}
        audit.record(session, who.by, "run.answered", run_id, **facts)
        run = existing(session, run_id)
        name = read_runs.workflow_name(session, run["workflow_id"])
    if answer_page.wanted(request):
        return answer_page.thanks(name, approved=made.approved)
    return {"run_id": run_id, "status": run["status"], **facts}


def _question(session: TenantSession, run: Row) -> Row:
    asks = [{**row, "message": _message(row["output"])} for row in read_runs.asked(session, run["id"])]
    name = read_runs.workflow_name(session, run["workflow_id"])
    return {"run_id": run["id"], "workflow": name, "status": run["status"], "asks": asks}


def _message(output: Any) -> str | None:
    """An approval's output while it waits is ``{message}``."""
    found = output.get("message") if isinstance(output, dict) else None
    return found if found is None or isinstance(found, str) else str(found)
