"""Registering, logging in, and choosing an organization."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request

from api.auth import Call, issue_token, may
from api.openapi import refusals
from api.schemas import LoggedIn, Login, Me, Register, Registered, Switch, Switched
from api.services import Services
from api.throttle import Throttle
from api.wire import Route
from engine import passwords, tenancy
from engine.db import Row
from engine.errors import NotFound, Unauthenticated
from engine.permissions import Permission
from engine.repository import identity

router = APIRouter(route_class=Route, tags=["identity"])

Anybody = Annotated[Call, may(Permission.TENANT_READ)]

HASHERS = max(2, os.cpu_count() or 2)
"""Passwords hashed at once: each takes 64 MiB and a core. The others wait outside the thread pool of the requests."""


@router.post("/api/auth/register", status_code=201, response_model=Registered, responses=refusals("email_taken"))
async def register(body: Register, request: Request) -> Any:
    """Make an account, and a personal organization that it owns."""
    return await _slowly(request, partial(_register, request.app.state.services, body))


@router.post("/api/auth/login", response_model=LoggedIn, responses=refusals("bad_credentials", "too_many_attempts"))
async def login(body: Login, request: Request) -> Any:
    """Get a token. It is for the organization that comes first; choose another by switching, or by X-Tenant-ID."""
    throttle: Throttle = request.app.state.throttle
    address = request.client.host if request.client else ""
    return await _slowly(request, partial(_login, request.app.state.services, throttle, body, address))


@router.post("/api/auth/switch", response_model=Switched, responses=refusals("needs_person"))
def switch(body: Switch, call: Anybody) -> Any:
    """Get a token for another of your organizations."""
    with call.services.database.system() as session:
        tenancy.caller_by_token(session, user_id=call.user_id, tenant_id=body.tenant_id)
        tenants = identity.tenants_of(session, call.user_id)
    chosen = next(tenant for tenant in tenants if tenant["id"] == body.tenant_id)
    return {"token": _token(call.services, call.user_id, chosen), "tenant": chosen}


@router.get("/api/me", response_model=Me)
def me(call: Anybody) -> Any:
    """Say who you are, where you are, and where you could be."""
    principal = call.principal
    if principal.user_id is None:
        with call.transaction() as tenant_session:
            own = tenancy.own_tenant(tenant_session)
        key = {"id": principal.key_id, "scopes": principal.scopes}
        return {"user": None, "tenant": own, "tenants": [own], "role": None, "key": key}
    with call.services.database.system() as session:
        tenants = identity.tenants_of(session, principal.user_id)
    user = {"id": principal.user_id, "email": principal.email}
    current = next((tenant for tenant in tenants if tenant["id"] == principal.tenant_id), None)
    if current is None:
        raise NotFound(f"There is no organization {principal.tenant_id} any more.")
    return {"user": user, "tenant": current, "tenants": tenants, "role": principal.role}


async def _slowly(request: Request, work: Any) -> Row:
    """Run what hashes a password in a thread, few at a time."""
    limiter: CapacityLimiter = request.app.state.hashers
    answer: Row = await to_thread.run_sync(work, limiter=limiter)
    return answer


def _register(services: Services, body: Register) -> Row:
    password_hash = passwords.hash_password(body.password.get_secret_value())
    with services.database.system() as session:
        made = tenancy.register(session, email=body.email, password_hash=password_hash, organization=body.organization)
    token = _token(services, made.user["id"], made.tenant)
    return {"token": token, "user": made.user, "tenant": made.tenant}


def _login(services: Services, throttle: Throttle, body: Login, address: str) -> Row:
    """No transaction is open while the password is compared."""
    email = body.email.strip()
    with throttle.attempt(account=email, address=address):
        with services.database.system() as session:
            account = identity.account(session, email)
        stored = account["password_hash"] if account else None
        verdict = passwords.verify(body.password.get_secret_value(), stored)
        if account is None or stored is None or not verdict.right:
            raise Unauthenticated("Email or password is wrong.", code="bad_credentials")
    with services.database.system() as session:
        if verdict.better_hash is not None:
            identity.set_password_hash(session, account["id"], verdict.better_hash, instead_of=stored)
        tenants = tenancy.organizations(session, account)
    return {"token": _token(services, account["id"], tenants[0]), "user": account, "tenants": tenants}


def _token(services: Services, user_id: str, tenant: Row) -> str:
    return issue_token(services.settings, user_id=user_id, tenant_id=tenant["id"])
