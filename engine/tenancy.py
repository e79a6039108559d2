"""Accounts and organizations: registering, logging in, and who is calling.

An account belongs to any number of organizations, with a role in each; registering makes a personal one, so nobody is
without. Emails are compared without regard to case, except that two accounts of the multi-user system whose emails
differ by case only remain two. Nothing here hashes a password: that takes long, and no transaction may wait for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from engine import audit, ids
from engine.audit import Actor
from engine.db import Row, SystemSession, TenantSession
from engine.errors import Conflict, Forbidden, NotFound, Unauthenticated
from engine.permissions import Permission, Role, of_role, of_scopes
from engine.repository import identity

KEY_MARK = "fl_"
"""What every API key begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is calling, in which organization, and what they may do there. Exactly one of the two ids is set."""

    tenant_id: str
    permissions: frozenset[Permission]
    user_id: str | None = None
    email: str | None = None
    role: Role | None = None
    key_id: str | None = None
    scopes: tuple[str, ...] = ()
    ip: str | None = None
    """The address that the request came from."""

    @property
    def actor(self) -> str:
        """How the caller is named where something says who did it."""
        return self.user_id or self.key_id or ""

    @property
    def by(self) -> Actor:
        """The caller, for the audit."""
        return Actor(self.actor, self.ip)


@dataclass(frozen=True, slots=True)
class Registered:
    user: Row
    tenant: Row
    """With the role of the user in it."""


def register(
    session: SystemSession,
    *,
    email: str,
    password_hash: str,
    organization: str | None = None,
    ip: str | None = None,
) -> Registered:
    """A new account with an organization of its own. Raises Conflict ``email_taken``."""
    identity.lock_email(session, email)
    if identity.is_taken(session, email):
        raise Conflict(f"There is an account for {email} already; log in instead.", code="email_taken")
    user_id = ids.new_id("user")
    identity.insert_user(session, user_id=user_id, email=email, password_hash=password_hash)
    tenant = create_tenant(session, user_id=user_id, name=organization or personal_name(email), ip=ip)
    identity.set_home(session, user_id, tenant["id"])
    return Registered({"id": user_id, "email": email}, tenant)


def personal_name(email: str) -> str:
    """What the organization is called that an account gets by registering."""
    return f"{email}'s Organization"


def create_tenant(session: SystemSession, *, user_id: str, name: str, ip: str | None = None) -> Row:
    """A new organization whose owner is the user; with ``role``."""
    tenant = identity.insert_tenant(session, tenant_id=ids.new_id("tenant"), name=name)
    identity.insert_member(session, tenant_id=tenant["id"], user_id=user_id, role=Role.OWNER)
    audit.record_for(session, tenant["id"], Actor(user_id, ip), "tenant.created", tenant["id"], name=name)
    return {**tenant, "role": Role.OWNER.value}


def organizations(session: SystemSession, account: Row) -> list[Row]:
    """Those of an account, the one that a login leads to first: an active one, if there is any.

    An account that lost its last one gets a new one.
    """
    found = identity.tenants_of(session, account["id"])
    if not found:
        found = [create_tenant(session, user_id=account["id"], name=personal_name(account["email"]))]
        identity.set_home(session, account["id"], found[0]["id"])
    return sorted(found, key=lambda tenant: (tenant["status"] != "active", tenant["id"] != account["tenant_id"]))


def caller_by_token(session: SystemSession, *, user_id: str, tenant_id: str, version: int) -> Principal:
    """Who a login token stands for; `version` is that of the token.

    Raises Unauthenticated (no such user; the token was revoked) or Forbidden ``not_a_member``, ``tenant_suspended``.
    """
    row = identity.caller_by_user(session, user_id, tenant_id)
    if row is None:
        raise Unauthenticated("The account of this token does not exist any more.")
    if row["token_version"] != version:
        raise Unauthenticated("You have logged out everywhere; log in again.", code="token_revoked")
    return _member(row, user_id, tenant_id)


def caller_in(session: SystemSession, caller: Principal, tenant_id: str) -> Principal:
    """The same caller in another organization of theirs. Raises Forbidden as `caller_by_token` does."""
    if tenant_id == caller.tenant_id:
        return caller
    row = None if caller.user_id is None else identity.caller_by_user(session, caller.user_id, tenant_id)
    if row is None or caller.user_id is None:
        raise Forbidden(f"You do not belong to the organization {tenant_id}.", code="not_a_member")
    return replace(_member(row, caller.user_id, tenant_id), ip=caller.ip)


def _member(row: Row, user_id: str, tenant_id: str) -> Principal:
    if row["role"] is None:
        raise Forbidden(f"You are not a member of the organization {tenant_id}.", code="not_a_member")
    refuse_suspended(row)
    role = Role(row["role"])
    return Principal(tenant_id=tenant_id, permissions=of_role(role), user_id=user_id, email=row["email"], role=role)


def caller_by_key(session: SystemSession, secret: str) -> Principal:
    """Who an API key stands for. Raises Unauthenticated when it is unknown, expired or revoked."""
    row = identity.caller_by_key(session, hashed(secret))
    if row is None:
        raise Unauthenticated("This API key is unknown, expired or revoked.", code="invalid_token")
    refuse_suspended(row)
    scopes = tuple(row["scopes"])
    return Principal(tenant_id=row["tenant_id"], permissions=of_scopes(scopes), key_id=row["id"], scopes=scopes)


def own_tenant(session: TenantSession) -> Row:
    """The session's organization. Raises NotFound."""
    return _found(identity.tenant(session), session.tenant_id)


def rename_tenant(session: TenantSession, by: Actor, name: str) -> Row:
    """The organization with its new name. Raises NotFound."""
    before = own_tenant(session)["name"]
    audit.record(session, by, "tenant.renamed", session.tenant_id, before=before, after=name)
    return _found(identity.rename_tenant(session, name), session.tenant_id)


def _found(row: Row | None, tenant_id: str) -> Row:
    if row is None:
        raise NotFound(f"There is no organization {tenant_id}.")
    return row


def refuse_suspended(row: Row) -> None:
    """Raises Forbidden ``tenant_suspended`` unless the organization (``tenant_status``, ``tenant_name``) is active."""
    if row["tenant_status"] != "active":
        raise Forbidden(
            f"The organization {row['tenant_name']!r} is {row['tenant_status']}; ask its owner or the operator.",
            code="tenant_suspended",
        )


def hashed(secret: str) -> bytes:
    """Of an API key or token. Plain SHA-256: it has 256 random bits, so a slow hash would protect nothing."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
