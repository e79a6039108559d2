"""Registering, logging in and out, and choosing an organization."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response

from api.auth import Call, issue_token, may
from api.openapi import refusals
from api.schemas import LoggedIn, Login, Me, Registered, Switch, Switched
from api.schemas_organizations import Register
from api.services import Services
from api.throttle import Throttle
from api.wire import Route, address_of
from engine import audit, invites, passwords, tenancy
from engine.audit import Actor
from engine.db import Row
from engine.errors import NotFound, Unauthenticated
from engine.permissions import Permission
from engine.repository import identity

router = APIRouter(route_class=Route, tags=["identity"])

Anybody = Annotated[Call, may(Permission.TENANT_READ)]

log = structlog.get_logger(__name__)

HASHERS = max(2, os.cpu_count() or 2)
"""Passwords hashed at once: each takes 64 MiB and a core. The others wait outside the thread pool of the requests."""


MOST_REGISTRATIONS = 500
"""From an address in the throttle's window."""
MOST_SWITCHES = 300
"""Of a user in the throttle's window."""


@router.post(
    "/api/auth/register",
    status_code=201,
    response_model=Registered,
    responses=refusals(
        "email_taken", "invite_not_found", "invite_expired", "invite_for_another_email", "too_many_requests"
    ),
)
async def register(body: Register, request: Request) -> Any:
    """Make an account, and a personal organization that it owns. With an invitation it also joins that organization."""
    throttle: Throttle = request.app.state.throttle
    return await _slowly(request, partial(_register, request.app.state.services, throttle, body, address_of(request)))


@router.post(
    "/api/auth/login",
    response_model=LoggedIn,
    responses=refusals("bad_credentials", "tenant_suspended", "too_many_attempts"),
)
async def login(body: Login, request: Request) -> Any:
    """Get a token. It is for the organization that comes first; choose another by switching, or by X-Tenant-ID."""
    throttle: Throttle = request.app.state.throttle
    return await _slowly(request, partial(_login, request.app.state.services, throttle, body, address_of(request)))


@router.post("/api/auth/switch", response_model=Switched, responses=refusals("needs_person", "too_many_requests"))
def switch(body: Switch, call: Anybody, request: Request) -> Any:
    """Get a token for another of your organizations."""
    user_id = call.user_id
    throttle: Throttle = request.app.state.throttle
    throttle.spend("switch", user_id, most=MOST_SWITCHES)
    with call.services.database.system() as session:
        there = tenancy.caller_in(session, call.principal, body.tenant_id)
        version = identity.token_version(session, user_id) or 0
        with session.acting_for(body.tenant_id) as own:
            chosen = {**tenancy.own_tenant(own), "role": there.role}
            audit.record(own, there.by, "user.switched_here", user_id)
    return {"token": _token(call.services, user_id, chosen, version), "tenant": chosen}


@router.post(
    "/api/auth/logout-everywhere", status_code=204, response_class=Response, responses=refusals("needs_person")
)
def log_out_everywhere(call: Anybody) -> None:
    """Revoke every login token that you have, this one too. API keys are not yours but the organization's, and stay."""
    user_id = call.user_id
    with call.services.database.system() as session:
        identity.revoke_tokens(session, user_id)
        audit.record_for(session, call.principal.tenant_id, call.principal.by, "user.logged_out_everywhere", user_id)


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


def _register(services: Services, throttle: Throttle, body: Register, ip: str | None) -> Row:
    throttle.spend("register", ip, most=MOST_REGISTRATIONS)
    password_hash = passwords.hash_password(body.password.get_secret_value())
    with services.database.system() as session:
        made = tenancy.register(
            session, email=body.email, password_hash=password_hash, organization=body.organization, ip=ip
        )
        user_id, tenant = made.user["id"], made.tenant
        if body.invite is not None:
            tenant = invites.accept(session, body.invite, user_id=user_id, email=body.email, ip=ip)
            identity.set_home(session, user_id, tenant["id"])
    return {"token": _token(services, user_id, tenant, 0), "user": made.user, "tenant": tenant}


def _login(services: Services, throttle: Throttle, body: Login, ip: str | None) -> Row:
    """No transaction is open while the password is compared."""
    email = body.email.strip()
    with throttle.attempt(account=email, address=ip or ""):
        with services.database.system() as session:
            # Old emails may have blanks around them: who types these means that account.
            account = identity.account(session, body.email) or identity.account(session, email)
        stored = account["password_hash"] if account else None
        verdict = passwords.verify(body.password.get_secret_value(), stored)
        if account is None or stored is None or not verdict.right:
            log.warning("login_failed", ip=ip, account=account and account["id"])
            raise Unauthenticated("Email or password is wrong.", code="bad_credentials")
    with services.database.system() as session:
        if verdict.better_hash is not None:
            identity.set_password_hash(session, account["id"], verdict.better_hash, instead_of=stored)
        tenants = tenancy.organizations(session, account)
        first = tenants[0]
        tenancy.refuse_suspended({"tenant_status": first["status"], "tenant_name": first["name"]})
        audit.record_for(session, first["id"], Actor(account["id"], ip), "user.logged_in", account["id"])
    return {
        "token": _token(services, account["id"], first, account["token_version"]),
        "user": account,
        "tenants": tenants,
    }


def _token(services: Services, user_id: str, tenant: Row, version: int) -> str:
    return issue_token(services.settings, user_id=user_id, tenant_id=tenant["id"], version=version)
