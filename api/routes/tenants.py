"""Organizations of the caller."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request

from api.auth import Call, inside, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Listed, TenantBody, TenantDetails
from api.throttle import Throttle
from api.wire import Route
from engine import rollout, tenancy
from engine.permissions import Permission
from engine.repository import identity

router = APIRouter(route_class=Route, prefix="/api/tenants", tags=["organizations"])

Anybody = Annotated[Call, may(Permission.TENANT_READ)]
Member = Annotated[Call, inside(Permission.TENANT_READ)]
Owner = Annotated[Call, inside(Permission.TENANT_WRITE)]


MOST_TENANTS = 50
"""Made by a user in the throttle's window."""


@router.post(
    "",
    status_code=201,
    response_model=TenantDetails,
    responses=refusals("needs_person", "organizations_off", "too_many_requests"),
)
def create(body: TenantBody, call: Anybody, request: Request) -> Any:
    """Make an organization; you become its owner. Reach it with X-Tenant-ID, or by switching."""
    user_id = call.user_id
    throttle: Throttle = request.app.state.throttle
    throttle.spend("tenant", user_id, most=MOST_TENANTS)
    with call.services.database.system() as session:
        with session.acting_for(call.principal.tenant_id) as own:
            rollout.require(own, call.services.settings.organizations)
        return tenancy.create_tenant(session, user_id=user_id, name=body.name, ip=call.principal.ip)


@router.get("", response_model=Listed[TenantDetails])
def list_tenants(call: Anybody, page: Page) -> Any:
    """List the organizations that you belong to."""
    after = page.after(str)
    if call.principal.user_id is None:
        with call.transaction() as tenant_session:
            return page.page([tenancy.own_tenant(tenant_session)], lambda row: [row["id"]])
    with call.services.database.system() as session:
        rows = identity.tenants_of(session, call.user_id, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.get("/{tenant_id}", response_model=TenantDetails, responses=refusals("not_found"))
def show(call: Member) -> Any:
    """Show an organization of yours."""
    with call.transaction() as session:
        return {**tenancy.own_tenant(session), "role": call.principal.role}


@router.patch("/{tenant_id}", response_model=TenantDetails, responses=refusals("not_found"))
def rename(body: TenantBody, call: Owner) -> Any:
    """Rename an organization; for its owners."""
    with call.transaction() as session:
        return {**tenancy.rename_tenant(session, call.principal.by, body.name), "role": call.principal.role}
