"""What the organization used in a month, out of the ledger."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.auth import Call, may
from api.wire import Route
from engine import usage
from engine.permissions import Permission

router = APIRouter(route_class=Route, tags=["usage"])

Reader = Annotated[Call, may(Permission.RUNS_READ)]


class Used(BaseModel):
    executions: int = Field(description="Runs that were admitted, whatever became of them.")
    action_calls: int = Field(description="Calls of actions, each attempt counted.")
    worker_seconds: float = Field(description="For how long workers had the runs in hand.")
    bytes_in: int = Field(description="What actions answered, as JSON.")
    bytes_out: int = Field(description="What actions were given, as JSON.")
    held: int = Field(description="Runs that were held over a quota; they start later.")
    rejected: int = Field(description="Starts that were refused over a quota.")


class UsedByWorkflow(Used):
    workflow_id: str


class UsedByAction(BaseModel):
    action: str
    calls: int
    seconds: float
    bytes_in: int
    bytes_out: int


class Usage(Used):
    period: str = Field(description="The month, UTC, as YYYY-MM.")
    by_workflow: list[UsedByWorkflow]
    by_action: list[UsedByAction]


@router.get("/api/usage", response_model=Usage)
def show_usage(
    call: Reader,
    period: Annotated[
        str | None, Query(description="A month, UTC, as YYYY-MM; the present one unless given.", max_length=7)
    ] = None,
) -> Any:
    """Show what was used in a month, exact up to now."""
    month = usage.Period.of(datetime.now(UTC)) if period is None else usage.Period.parse(period)
    with call.transaction() as session:
        return asdict(usage.report(session, month))
