"""API keys of the organization."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from api.auth import Call, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Listed
from api.schemas_organizations import ApiKey, KeyBody, KeyMade
from api.wire import Route
from engine import api_keys
from engine.permissions import Permission

router = APIRouter(route_class=Route, prefix="/api/keys", tags=["API keys"])

Manager = Annotated[Call, may(Permission.KEYS_MANAGE)]


@router.get("", response_model=Listed[ApiKey])
def list_keys(call: Manager, page: Page) -> Any:
    """List the API keys, revoked ones too, without their secrets."""
    after = page.after(str)
    with call.transaction() as session:
        rows = api_keys.listed(session, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.post("", status_code=201, response_model=KeyMade)
def create(body: KeyBody, call: Manager) -> Any:
    """Make an API key. Its secret is in this answer and nowhere else. It may no more than you."""
    with call.transaction() as session:
        key, secret = api_keys.issue(
            session, call.principal, name=body.name, scopes=body.scopes, expires_at=body.expires_at
        )
    return {"key": key, "secret": secret}


@router.delete("/{key_id}", status_code=204, response_class=Response, responses=refusals("not_found"))
def revoke(key_id: str, call: Manager) -> None:
    """Revoke an API key; the next request with it is refused."""
    with call.transaction() as session:
        api_keys.revoke(session, call.principal, key_id)
