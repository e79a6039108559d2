"""Invitations: a token, sent to an email, that makes whoever has that email a member once, within a week.

Of the token only a hash is stored. Inviting an email again replaces what was pending; sending it again makes another
token and begins the week anew. Whoever accepts must be logged in, or register, with the very email, in any case. Of
many who accept at once one does.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from engine import allowances, audit, ids, members
from engine.audit import Actor
from engine.db import Row, SystemSession, TenantSession
from engine.errors import Conflict, Forbidden, Gone, NotFound
from engine.permissions import may_hand_out
from engine.repository import invites as stored
from engine.repository import members as stored_members
from engine.tenancy import Principal, hashed, refuse_suspended

LASTS = timedelta(days=7)
TOKEN_BYTES = 32
TOKEN_MARK = "fli_"  # noqa: S105 - what every token begins with


def create(session: TenantSession, caller: Principal, *, email: str, role: str) -> tuple[Row, str]:
    """The invitation, and its token, which nobody can be told again.

    Raises Forbidden for a role that may more than the caller, Conflict ``already_member``, QuotaExceeded
    ``quota_members``: a pending invitation takes a seat.
    """
    if not may_hand_out(caller.permissions, role):
        raise Forbidden(f"You cannot invite somebody as {role}: that is more than you may yourself.")
    stored.lock_email(session, email)
    if stored_members.by_email(session, email) is not None:
        raise Conflict(f"{email} belongs to the organization already.", code="already_member")
    stored.revoke(session, email=email)
    token = _new_token()
    values = {"id": ids.new_id("invite"), "email": email, "role": role, "token_hash": hashed(token)}
    row = stored.insert(session, {**values, "created_by": caller.actor}, lasts=LASTS)
    allowances.check(session, allowances.SEATS)
    audit.record(session, caller.by, "invite.created", row["id"], email=email, role=role)
    return row, token


def resend(session: TenantSession, caller: Principal, invite_id: str) -> tuple[Row, str]:
    """The invitation with another token, for another week. Raises NotFound when it is not pending, Forbidden."""
    pending = _pending(session, caller, invite_id)
    token = _new_token()
    row = stored.replace_token(session, invite_id, hashed(token), lasts=LASTS)
    audit.record(session, caller.by, "invite.resent", invite_id, email=pending["email"])
    return row or pending, token


def revoke(session: TenantSession, caller: Principal, invite_id: str) -> None:
    """Its token opens nothing from now on. Raises NotFound when it is not pending, Forbidden."""
    pending = _pending(session, caller, invite_id)
    stored.revoke(session, invite_id=invite_id)
    audit.record(session, caller.by, "invite.revoked", invite_id, email=pending["email"])


def pending(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """Those that nobody has accepted or revoked, in the order of their making, beginning behind the id `after`."""
    return stored.listed(session, after=after, limit=limit)


def accept(session: SystemSession, token: str, *, user_id: str, email: str, ip: str | None = None) -> Row:
    """The organization that the user belongs to from now on: id, name, role.

    Raises NotFound ``invite_not_found`` (unknown, used or revoked), Forbidden ``invite_for_another_email`` or
    ``tenant_suspended``, Gone ``invite_expired``, QuotaExceeded ``quota_members``.
    """
    invite = stored.take(session, hashed(token))
    if invite is None:
        raise NotFound(
            "There is no such invitation: it was used, revoked or sent again, or the token is not whole.",
            code="invite_not_found",
        )
    if invite["email"].casefold() != email.casefold():
        raise Forbidden(
            "The invitation is for another email; log in, or register, with the one it was sent to.",
            code="invite_for_another_email",
        )
    if invite["expired"]:
        raise Gone("The invitation has expired; ask for another.", code="invite_expired")
    refuse_suspended(invite)
    with session.acting_for(invite["tenant_id"]) as own:
        stored.accept(own, invite["id"], user_id)
        members.join(own, Actor(user_id, ip), user_id, invite["role"])
        member = stored_members.get(own, user_id)
    role = invite["role"] if member is None else member["role"]
    return {"id": invite["tenant_id"], "name": invite["tenant_name"], "role": role}


def _pending(session: TenantSession, caller: Principal, invite_id: str) -> Row:
    row = stored.pending(session, invite_id)
    if row is None:
        raise NotFound(f"There is no pending invitation {invite_id}.")
    if not may_hand_out(caller.permissions, row["role"]):
        raise Forbidden(f"You cannot change an invitation as {row['role']}: that is more than you may yourself.")
    return row


def _new_token() -> str:
    return TOKEN_MARK + secrets.token_hex(TOKEN_BYTES)
