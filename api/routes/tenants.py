"""Organizations of the caller."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter

from api.auth import Call, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Listed, TenantBody, TenantDetails
from api.wire import Route
from engine import tenancy
from engine.db import SystemSession
from engine.errors import Forbidden, NotFound
from engine.permissions import Permission
from engine.repository import identity
from engine.tenancy import Principal

router = APIRouter(route_class=Route, prefix="/api/tenants", tags=["organizations"])

Anybody = Annotated[Call, may(Permission.TENANT_READ)]


@router.post("", status_code=201, response_model=TenantDetails, responses=refusals("needs_person"))
def create(body: TenantBody, call: Anybody) -> Any:
    """Make an organization; you become its owner. Reach it with X-Tenant-ID, or by switching."""
    with call.services.database.system() as session:
        return tenancy.create_tenant(session, user_id=call.user_id, name=body.name)


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
def show(tenant_id: str, call: Anybody) -> Any:
    """Show an organization of yours."""
    with call.services.database.system() as session:
        there = _inside(session, call, tenant_id)
        with session.acting_for(tenant_id) as tenant_session:
            return {**tenancy.own_tenant(tenant_session), "role": there.role}


@router.patch("/{tenant_id}", response_model=TenantDetails, responses=refusals("not_found"))
def rename(tenant_id: str, body: TenantBody, call: Anybody) -> Any:
    """Rename an organization; for its owners."""
    with call.services.database.system() as session:
        there = _inside(session, call, tenant_id)
        if Permission.TENANT_WRITE not in there.permissions:
            raise Forbidden("Only an owner may rename the organization.")
        with session.acting_for(tenant_id) as tenant_session:
            return {**tenancy.rename_tenant(tenant_session, body.name), "role": there.role}


def _inside(session: SystemSession, call: Call, tenant_id: str) -> Principal:
    """What the caller is in that organization, which need not be the one of the token."""
    if tenant_id == call.principal.tenant_id:
        return call.principal
    if call.principal.user_id is not None:
        try:
            return tenancy.caller_by_token(session, user_id=call.principal.user_id, tenant_id=tenant_id)
        except Forbidden as error:
            if error.error_code != "not_a_member":
                raise
    raise NotFound(f"There is no organization {tenant_id}.")
