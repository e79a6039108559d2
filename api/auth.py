"""Who is calling: login tokens, API keys, and the permission that each route asks for.

Routes are closed unless they stand in `OPEN`: `api.wire.Route` authenticates before it reads a byte of the body, and
`require_permissions` refuses to start an app with a route that neither is open nor names its permission with `may`.
Whatever is wrong with a token (forged, expired, another algorithm, no expiry) is a 401 that says what to do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import jwt
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import iter_route_contexts

from api.services import Services
from engine import audit, tenancy
from engine.db import TenantSession
from engine.errors import Forbidden, NotFound, Unauthenticated
from engine.permissions import Permission
from engine.ports import Json
from engine.settings import Settings
from engine.tenancy import KEY_MARK, Principal

ALGORITHM = "HS256"

OPEN = frozenset(
    {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/api/openapi.json"),
        ("GET", "/api/docs"),
        ("GET", "/api/workflow-schema"),
        ("POST", "/api/auth/register"),
        ("POST", "/api/auth/login"),
        ("POST", "/api/webhooks/{workflow_id}"),
        ("GET", "/api/runs/{run_id}/resume"),
        ("POST", "/api/runs/{run_id}/resume"),
    }
)
"""The routes that anybody may call. A webhook checks its own signature, and `api.answering` who answers a run."""


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated request: the parts of the engine, and who is calling."""

    services: Services
    principal: Principal

    def transaction(self) -> AbstractContextManager[TenantSession]:
        """The one transaction of the request, bound to the caller's organization."""
        return self.services.database.tenant(self.principal.tenant_id)

    def record(self, session: TenantSession, action: str, object_id: str, **data: Json) -> None:
        """Add to the audit, in the transaction of the change itself, what the caller did."""
        audit.record(session, self.principal.by, action, object_id, **data)

    @property
    def user_id(self) -> str:
        """The person who calls. Raises Forbidden when it is an API key, which stands for no person."""
        if self.principal.user_id is None:
            raise Forbidden("An API key cannot do this; log in as a person.", code="needs_person")
        return self.principal.user_id


def issue_token(settings: Settings, *, user_id: str, tenant_id: str, version: int = 0) -> str:
    """A login token for one organization. It holds as long as the user's tokens are of that version."""
    now = datetime.now(UTC)
    claims: dict[str, Any] = {"user_id": user_id, "tenant_id": tenant_id, "iat": now, "exp": now + settings.token_ttl}
    if version:
        claims["ver"] = version
    return jwt.encode(claims, settings.secret_key.get_secret_value(), algorithm=ALGORITHM)


def authenticate(
    services: Services, *, authorization: str | None, tenant_id: str | None, ip: str | None = None
) -> Principal:
    """Who sends these headers; `tenant_id` is ``X-Tenant-ID``. Raises Unauthenticated, Forbidden ``not_a_member``."""
    scheme, _, credential = (authorization or "").partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not credential:
        raise Unauthenticated("Send the header Authorization: Bearer with a login token or an API key.")
    if credential.startswith(KEY_MARK):
        return replace(_key_holder(services, credential, tenant_id), ip=ip)
    claims = _claims(services.settings, credential)
    wanted = tenant_id or claims["tenant_id"]
    with services.database.system() as session:
        caller = tenancy.caller_by_token(
            session, user_id=claims["user_id"], tenant_id=wanted, version=claims.get("ver", 0)
        )
    return replace(caller, ip=ip)


def _key_holder(services: Services, secret: str, tenant_id: str | None) -> Principal:
    with services.database.system() as session:
        principal = tenancy.caller_by_key(session, secret)
    if tenant_id and tenant_id != principal.tenant_id:
        raise Forbidden(f"This API key is not one of the organization {tenant_id}.", code="not_a_member")
    return principal


def _claims(settings: Settings, token: str) -> dict[str, Any]:
    """What a genuine token says: user_id and tenant_id, not empty, and perhaps ``ver``."""
    try:
        claims = jwt.decode(
            token, settings.secret_key.get_secret_value(), algorithms=[ALGORITHM], options={"require": ["exp"]}
        )
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("The token has expired; log in again.", code="token_expired") from None
    except jwt.InvalidTokenError:
        raise Unauthenticated("The token is not valid; log in again.", code="invalid_token") from None
    for claim in ("tenant_id", "user_id"):
        if not isinstance(claims.get(claim), str) or not claims[claim]:
            raise Unauthenticated(f"Invalid {claim} in token", code="invalid_token")
    return dict(claims)


@dataclass(frozen=True, slots=True)
class _Asks:
    """A dependency that lets a call through when it has the permission."""

    permission: Permission


class _May(_Asks):
    """In the organization of the token, or of ``X-Tenant-ID``."""

    async def __call__(self, request: Request) -> Call:
        call: Call = request.state.call  # set by Route; without it the request fails, closed
        require(self.permission, call.principal)
        return call


@dataclass(frozen=True, slots=True)
class _Inside(_Asks):
    """In the organization of the path, which need not be the one of the token."""

    or_self: bool

    async def __call__(self, request: Request, tenant_id: str) -> Call:
        call: Call = request.state.call
        there = await run_in_threadpool(self._there, call, tenant_id)
        oneself = self.or_self and request.path_params["user_id"] == there.user_id
        if self.permission not in there.permissions and not oneself:
            raise _lacking(self.permission, there)
        return replace(call, principal=there)

    @staticmethod
    def _there(call: Call, tenant_id: str) -> Principal:
        if tenant_id == call.principal.tenant_id:
            return call.principal
        try:
            with call.services.database.system() as session:
                return tenancy.caller_in(session, call.principal, tenant_id)
        except Forbidden as error:
            if error.error_code != "not_a_member":
                raise
        raise NotFound(f"There is no organization {tenant_id}.")


def require(permission: Permission, principal: Principal) -> None:
    """Raises Forbidden when the caller does not have the permission."""
    if permission not in principal.permissions:
        raise _lacking(permission, principal)


def _lacking(permission: Permission, principal: Principal) -> Forbidden:
    have = f"role {principal.role}" if principal.role else f"scopes {', '.join(principal.scopes)}"
    return Forbidden(f"This needs the permission {permission}, which the {have} does not give.")


def may(permission: Permission) -> Any:
    """``Annotated[Call, may(Permission.X)]``: the parameter by which a route gets its call and names its permission."""
    return Depends(_May(permission))


def inside(permission: Permission, *, or_self: bool = False) -> Any:
    """`may` for routes under ``/api/tenants/{tenant_id}``: the call is made in that organization.

    Who does not belong to it is told that there is none. With `or_self`, a member may always do it to ``{user_id}``
    when that is themselves.
    """
    return Depends(_Inside(permission, or_self=or_self))


def permission_of(route: Any) -> Permission | None:
    """The permission that a route asks for."""
    for dependency in getattr(getattr(route, "dependant", None), "dependencies", ()):
        if isinstance(dependency.call, _Asks):
            return dependency.call.permission
    return None


def require_permissions(app: FastAPI) -> None:
    """Refuse an app in which a route is neither open nor asks for a permission."""
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or set()) - {"HEAD"}:
            if (method, route.path) not in OPEN and permission_of(route) is None:
                raise RuntimeError(f"{method} {route.path} has no permission: use api.auth.may, or list it in OPEN")
