"""API keys: made, shown once, revoked. A key acts in one organization, with its scopes, as nobody in particular.

Of a key its SHA-256 is stored, and its first characters to recognise it by. Every request looks it up, so a revoked or
expired one opens nothing from the next request on, everywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from engine import audit, ids
from engine.db import Row, TenantSession
from engine.errors import Fault, Forbidden, InvalidInput, NotFound
from engine.permissions import Scope, of_scopes
from engine.repository import api_keys as stored
from engine.tenancy import KEY_MARK, Principal, hashed

SECRET_BYTES = 32
PREFIX_LENGTH = len(KEY_MARK) + 8
"""How much of a key is kept in clear."""


def create(
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
    secret = KEY_MARK + secrets.token_hex(SECRET_BYTES)
    row = stored.insert(
        session,
        key_id=ids.new_id("key"),
        name=name,
        prefix=secret[:PREFIX_LENGTH],
        secret_hash=hashed(secret),
        scopes=list(dict.fromkeys(scopes)),
        created_by=created_by,
        expires_at=expires_at,
    )
    return row, secret


def issue(
    session: TenantSession, caller: Principal, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> tuple[Row, str]:
    """The same for a caller, who cannot hand out more than they may. Raises InvalidInput, Forbidden."""
    if not caller.permissions >= of_scopes(scopes):
        raise Forbidden("A key cannot be given more than you may yourself.")
    if expires_at is not None and expires_at <= stored.now(session):
        raise InvalidInput([Fault("/expires_at", "must be in the future")])
    row, secret = create(session, name=name, scopes=scopes, created_by=caller.actor, expires_at=expires_at)
    audit.record(session, caller.by, "key.created", row["id"], name=name, scopes=row["scopes"])
    return row, secret


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """All that ever were, in the order of their making, beginning behind the id `after`."""
    return stored.listed(session, after=after, limit=limit)


def revoke(session: TenantSession, caller: Principal, key_id: str) -> None:
    """It opens nothing from now on. Raises NotFound, also for one that was revoked before."""
    row = stored.revoke(session, key_id)
    if row is None:
        raise NotFound(f"There is no API key {key_id} that could be revoked.")
    audit.record(session, caller.by, "key.revoked", key_id, name=row["name"])
