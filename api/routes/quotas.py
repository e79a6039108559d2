"""What the organization may use, and how much of it is used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.auth import Call, may
from api.schemas import Listed
from api.wire import Route
from engine import allowances
from engine.permissions import Permission

router = APIRouter(route_class=Route, tags=["usage"])

Reader = Annotated[Call, may(Permission.TENANT_READ)]


class Quota(BaseModel):
    name: str = Field(description="As the operator sets it, such as max_workflows.")
    limit: int | None = Field(description="Of the plan, or of the organization alone; null is unlimited.")
    used: int = Field(description="Pending invitations count as members.")
    resets_at: datetime | None = Field(description="When it begins anew; null for what is counted as it is now.")


class Quotas(Listed[Quota]):
    over_quota: Literal["hold", "reject"] = Field(
        description="What becomes of runs over max_executions_per_month: they wait until there is room, or get 429."
    )


@router.get("/api/quotas", response_model=Quotas)
def list_quotas(call: Reader) -> Any:
    """Show every limit that is counted, and what is used of it now."""
    with call.transaction() as session:
        items = allowances.quotas(session, datetime.now(UTC))
        return {"items": items, "next_cursor": None, "over_quota": allowances.policy(session)}
