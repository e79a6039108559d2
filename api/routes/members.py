"""Members of an organization, and invitations into it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from api.auth import Call, inside, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Listed
from api.schemas_organizations import (
    AcceptBody,
    Accepted,
    Invite,
    InviteBody,
    Invited,
    Member,
    RoleBody,
)
from api.throttle import Throttle
from api.wire import Route
from engine import invites, members, rollout
from engine.db import Row
from engine.mail import Mailer
from engine.permissions import Permission
from engine.repository import identity

router = APIRouter(route_class=Route, tags=["organizations"])

Anybody = Annotated[Call, may(Permission.TENANT_READ)]
Reader = Annotated[Call, inside(Permission.MEMBERS_READ)]
Manager = Annotated[Call, inside(Permission.MEMBERS_MANAGE)]
ManagerOrSelf = Annotated[Call, inside(Permission.MEMBERS_MANAGE, or_self=True)]

MOST_INVITES = 200
"""Of an organization in the throttle's window: nobody mails the world through us."""
MOST_ATTEMPTS = 100
"""To accept, of a user in the throttle's window."""

LETTER = """\
{inviter} invites you to the organization "{tenant}" on Fairlane, as {role}.

Accept here, before {expires:%Y-%m-%d %H:%M} UTC:
{link}

Or send the token to POST {api}/api/invites/accept; without an account, to POST {api}/api/auth/register as "invite":
{token}

If you do not know {inviter}, do nothing.
"""


@router.get("/api/tenants/{tenant_id}/members", response_model=Listed[Member], responses=refusals("not_found"))
def list_members(call: Reader, page: Page) -> Any:
    """List who belongs to the organization."""
    after = page.after(str)
    with call.transaction() as session:
        rows = members.listed(session, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["user_id"]])


@router.put(
    "/api/tenants/{tenant_id}/members/{user_id}/role",
    response_model=Member,
    responses=refusals("not_found", "last_owner", "organizations_off"),
)
def change_role(user_id: str, body: RoleBody, call: Manager) -> Any:
    """Give a member another role. Nobody gives or takes a role that may more than their own."""
    with call.transaction() as session:
        rollout.require(session, call.services.settings.organizations)
        return members.change_role(session, call.principal, user_id, body.role)


@router.delete(
    "/api/tenants/{tenant_id}/members/{user_id}",
    status_code=204,
    response_class=Response,
    responses=refusals("not_found", "last_owner"),
)
def remove(user_id: str, call: ManagerOrSelf) -> None:
    """Remove a member; everybody may remove themselves. API keys that they made stay until they are revoked."""
    with call.services.database.system() as session:
        members.remove(session, call.principal, user_id)


@router.post(
    "/api/tenants/{tenant_id}/invite",
    status_code=201,
    response_model=Invited,
    responses=refusals("not_found", "already_member", "organizations_off", "too_many_requests", "quota_members"),
)
def invite(body: InviteBody, call: Manager, request: Request) -> Any:
    """Invite somebody by email, for a week. An earlier invitation of theirs is replaced."""
    _slow_down(request, call)
    with call.transaction() as session:
        rollout.require(session, call.services.settings.organizations)
        row, token = invites.create(session, call.principal, email=body.email, role=body.role)
        tenant = identity.tenant(session)
    return _sent(call, row, token, tenant or {})


@router.get("/api/tenants/{tenant_id}/invites", response_model=Listed[Invite], responses=refusals("not_found"))
def list_invites(call: Manager, page: Page) -> Any:
    """List the invitations that nobody has accepted or revoked."""
    after = page.after(str)
    with call.transaction() as session:
        rows = invites.pending(session, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.post(
    "/api/tenants/{tenant_id}/invites/{invite_id}/resend",
    response_model=Invited,
    responses=refusals("not_found", "too_many_requests"),
)
def resend(invite_id: str, call: Manager, request: Request) -> Any:
    """Send an invitation again: with another token, for another week."""
    _slow_down(request, call)
    with call.transaction() as session:
        row, token = invites.resend(session, call.principal, invite_id)
        tenant = identity.tenant(session)
    return _sent(call, row, token, tenant or {})


@router.delete(
    "/api/tenants/{tenant_id}/invites/{invite_id}",
    status_code=204,
    response_class=Response,
    responses=refusals("not_found"),
)
def revoke(invite_id: str, call: Manager) -> None:
    """Revoke an invitation; its token opens nothing from now on."""
    with call.transaction() as session:
        invites.revoke(session, call.principal, invite_id)


@router.post(
    "/api/invites/accept",
    response_model=Accepted,
    responses=refusals(
        "invite_not_found", "invite_expired", "invite_for_another_email", "too_many_requests", "quota_members"
    ),
)
def accept(body: AcceptBody, call: Anybody, request: Request) -> Any:
    """Join the organization that you were invited to. The token works once."""
    user_id = call.user_id
    throttle: Throttle = request.app.state.throttle
    throttle.spend("accept", user_id, most=MOST_ATTEMPTS)
    with call.services.database.system() as session:
        email = call.principal.email or ""
        tenant = invites.accept(session, body.token, user_id=user_id, email=email, ip=call.principal.ip)
    return {"tenant": tenant, "role": tenant["role"]}


def _slow_down(request: Request, call: Call) -> None:
    throttle: Throttle = request.app.state.throttle
    throttle.spend("invite", call.principal.tenant_id, most=MOST_INVITES)


def _sent(call: Call, row: Row, token: str, tenant: Row) -> Row:
    """The answer, after the mail; no transaction is open while a mail server is spoken to."""
    settings = call.services.settings
    api = settings.public_url.rstrip("/")
    link = f"{api}/invite#{token}"  # behind the #, so that no server on the way logs it
    name = tenant.get("name", "")
    letter = LETTER.format(
        inviter=call.principal.email or name,
        tenant=name,
        role=row["role"],
        expires=row["expires_at"],
        link=link,
        api=api,
        token=token,
    )
    mailed = Mailer(settings).send(to=row["email"], subject=f"Invitation to {name}", text=letter)
    return {"invite": row, "token": token, "link": link, "mailed": mailed}
