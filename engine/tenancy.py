"""Organizations and the people in them: registering, logging in, belonging, and API keys.

An account belongs to any number of organizations, with a role in each; registering makes a personal one, so nobody is
without. Emails are compared without regard to case, except that two accounts of the multi-user system whose emails
differ by case only remain two. Nothing here hashes a password: that takes long, and no transaction may wait for it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from engine import ids
from engine.db import Row, SystemSession, TenantSession
from engine.errors import Conflict, Fault, Forbidden, InvalidInput, NotFound, Unauthenticated
from engine.permissions import Permission, Role, Scope, of_role, of_scopes
from engine.repository import identity

KEY_MARK = "fl_"
KEY_SECRET_BYTES = 32
KEY_PREFIX_LENGTH = len(KEY_MARK) + 8
"""How much of a key is kept in clear, to recognise it by."""


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

    @property
    def actor(self) -> str:
        """How the caller is named where something says who did it."""
        return self.user_id or self.key_id or ""


@dataclass(frozen=True, slots=True)
class Registered:
    user: Row
    tenant: Row
    """With the role of the user in it."""


def register(session: SystemSession, *, email: str, password_hash: str, organization: str | None = None) -> Registered:
    """A new account with an organization of its own. Raises Conflict ``email_taken``."""
    identity.lock_email(session, email)
    if identity.account(session, email) is not None:
        raise Conflict(f"There is an account for {email} already; log in instead.", code="email_taken")
    user_id = ids.new_id("user")
    identity.insert_user(session, user_id=user_id, email=email, password_hash=password_hash)
    tenant = create_tenant(session, user_id=user_id, name=organization or personal_name(email))
    identity.set_home(session, user_id, tenant["id"])
    return Registered({"id": user_id, "email": email}, tenant)


def personal_name(email: str) -> str:
    """What the organization is called that an account gets by registering."""
    return f"{email}'s Organization"


def create_tenant(session: SystemSession, *, user_id: str, name: str) -> Row:
    """A new organization whose owner is the user; with ``role``."""
    tenant = identity.insert_tenant(session, tenant_id=ids.new_id("tenant"), name=name)
    identity.insert_member(session, tenant_id=tenant["id"], user_id=user_id, role=Role.OWNER)
    return {**tenant, "role": Role.OWNER.value}


def organizations(session: SystemSession, account: Row) -> list[Row]:
    """Those of an account, the one that a login leads to first. An account that lost its last one gets a new one."""
    found = identity.tenants_of(session, account["id"])
    if not found:
        found = [create_tenant(session, user_id=account["id"], name=personal_name(account["email"]))]
        identity.set_home(session, account["id"], found[0]["id"])
    return sorted(found, key=lambda tenant: tenant["id"] != account["tenant_id"])


def caller_by_token(session: SystemSession, *, user_id: str, tenant_id: str) -> Principal:
    """Who a login token stands for. Raises Unauthenticated (no such user) or Forbidden ``not_a_member``."""
    row = identity.caller_by_user(session, user_id, tenant_id)
    if row is None:
        raise Unauthenticated("The account of this token does not exist any more.")
    if row["role"] is None:
        raise Forbidden(f"You are not a member of the organization {tenant_id}.", code="not_a_member")
    _refuse_suspended(row)
    role = Role(row["role"])
    return Principal(tenant_id=tenant_id, permissions=of_role(role), user_id=user_id, email=row["email"], role=role)


def caller_by_key(session: SystemSession, secret: str) -> Principal:
    """Who an API key stands for. Raises Unauthenticated when it is unknown, expired or revoked."""
    row = identity.caller_by_key(session, _key_hash(secret))
    if row is None:
        raise Unauthenticated("This API key is unknown, expired or revoked.", code="invalid_token")
    _refuse_suspended(row)
    scopes = tuple(row["scopes"])
    return Principal(tenant_id=row["tenant_id"], permissions=of_scopes(scopes), key_id=row["id"], scopes=scopes)


def create_key(
    session: TenantSession,
    *,
    name: str,
    scopes: Sequence[str],
    created_by: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[Row, str]:
    """The stored key as it may be shown, and its secret, which nobody can be told again."""
    unknown = [scope for scope in scopes if scope not in set(Scope)]
    if unknown or not scopes:
        raise InvalidInput([Fault("/scopes", f"want some of {', '.join(Scope)}, not {', '.join(unknown) or 'none'}")])
    secret = KEY_MARK + secrets.token_hex(KEY_SECRET_BYTES)
    row = identity.insert_key(
        session,
        key_id=ids.new_id("key"),
        name=name,
        prefix=secret[:KEY_PREFIX_LENGTH],
        secret_hash=_key_hash(secret),
        scopes=scopes,
        created_by=created_by,
        expires_at=expires_at,
    )
    return row, secret


def own_tenant(session: TenantSession) -> Row:
    """The session's organization. Raises NotFound."""
    return _found(identity.tenant(session), session.tenant_id)


def rename_tenant(session: TenantSession, name: str) -> Row:
    """The organization with its new name. Raises NotFound."""
    return _found(identity.rename_tenant(session, name), session.tenant_id)


def _found(row: Row | None, tenant_id: str) -> Row:
    if row is None:
        raise NotFound(f"There is no organization {tenant_id}.")
    return row


def _refuse_suspended(row: Row) -> None:
    if row["tenant_status"] != "active":
        raise Forbidden(
            f"The organization {row['tenant_name']!r} is {row['tenant_status']}; ask its owner or the operator.",
            code="tenant_suspended",
        )


def _key_hash(secret: str) -> bytes:
    """Plain SHA-256: the secret has 256 random bits, so there is nothing that a slow hash would protect."""
    return hashlib.sha256(secret.encode()).digest()
