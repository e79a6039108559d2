"""Notices that the month is nearly used up: which there were, and where they go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field, StringConstraints

from api.auth import Call, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Answer, Body, Listed, Moment
from api.wire import Route
from engine import notices
from engine.errors import ActionError, Fault, InvalidInput
from engine.permissions import Permission

router = APIRouter(route_class=Route, prefix="/api/quotas/notices", tags=["usage"])

Reader = Annotated[Call, may(Permission.TENANT_READ)]
Manager = Annotated[Call, may(Permission.NOTICES_MANAGE)]


class Delivery(Answer):
    channel: Literal["webhook", "mail"]
    target: str = Field(description="of a mail the user; empty for the organization's URL")
    state: Literal["pending", "sent", "given_up"]
    attempts: int
    due_at: Moment = Field(description="while it is pending, when it is tried next")
    sent_at: Moment | None
    error: str | None = Field(description="why the last attempt came to nothing")


class Notice(Answer):
    period: str = Field(description="the month")
    percent: int = Field(description="of the executions that the plan allows: 80 or 100")
    used: int
    limit: int
    at: Moment
    deliveries: list[Delivery]


class NoticeUrl(Answer):
    url: str | None = Field(description="null: notices go nowhere but into the audit, and by mail to the owners")
    updated_at: Moment | None


class NoticeUrlSet(NoticeUrl):
    secret: str = Field(description="shown once; verifies the requests (Standard Webhooks)")


class NoticeUrlBody(Body):
    url: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]


@router.get("", response_model=Listed[Notice])
def list_notices(call: Reader, page: Page) -> Any:
    """List the notices that there were, the newest first, with what became of sending them."""
    after = page.after(str, int)
    with call.transaction() as session:
        rows = notices.listed(session, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["period"], row["percent"]])


@router.get("/url", response_model=NoticeUrl)
def show_url(call: Manager) -> Any:
    """Show where the organization wants to be told."""
    with call.transaction() as session:
        return notices.target(session)


@router.put("/url", response_model=NoticeUrlSet)
def set_url(body: NoticeUrlBody, call: Manager) -> Any:
    """Let notices be posted to a URL, signed with a new secret."""
    try:
        call.services.actions.client.check(body.url)
    except ActionError as error:
        raise InvalidInput([Fault("/url", error.detail)]) from None
    key = call.services.settings.secret_key.get_secret_value()
    with call.transaction() as session:
        return notices.set_target(session, call.principal.by, body.url, key=key)


@router.delete("/url", status_code=204, response_class=Response, responses=refusals("not_found"))
def remove_url(call: Manager) -> None:
    """Post notices nowhere any more."""
    with call.transaction() as session:
        notices.delete_target(session, call.principal.by)
