"""Members: who belongs to an organization and in which role.

Two rules hold under any concurrency: an organization always has an owner, and nobody gives or takes a role that may
more than they may themselves. A change acts on the member's next request.
"""

from __future__ import annotations

from engine import allowances, audit
from engine.audit import Actor
from engine.db import Row, SystemSession, TenantSession
from engine.errors import Conflict, Forbidden, NotFound
from engine.permissions import Role, may_hand_out
from engine.repository import identity
from engine.repository import members as stored
from engine.tenancy import Principal


def listed(session: TenantSession, *, after: str | None, limit: int) -> list[Row]:
    """user_id, email, role, joined_at; in the order of the users' ids, beginning behind `after`."""
    return stored.listed(session, after=after, limit=limit)


def change_role(session: TenantSession, caller: Principal, user_id: str, role: str) -> Row:
    """The member in the new role. Raises NotFound, Forbidden, Conflict ``last_owner``."""
    member = _changeable(session, caller, user_id, keeps_owner=role == Role.OWNER)
    if not may_hand_out(caller.permissions, role):
        raise Forbidden(f"You cannot make somebody {role}: that is more than you may yourself.")
    if member["role"] != role:
        stored.set_role(session, user_id, role)
        audit.record(session, caller.by, "member.role_changed", user_id, before=member["role"], after=role)
    return {**member, "role": role}


def remove(session: SystemSession, caller: Principal, user_id: str) -> None:
    """Out of the caller's organization; also oneself. Raises NotFound, Forbidden, Conflict ``last_owner``."""
    # The account's row before the audit, as everywhere: in the other order two transactions could wait for each other.
    identity.forget_home(session, user_id, caller.tenant_id)
    with session.acting_for(caller.tenant_id) as own:
        member = _changeable(own, caller, user_id, keeps_owner=False)
        stored.delete(own, user_id)
        what = "member.left" if user_id == caller.user_id else "member.removed"
        audit.record(own, caller.by, what, user_id, email=member["email"], role=member["role"])


def join(session: TenantSession, by: Actor, user_id: str, role: str) -> bool:
    """Let an existing account belong to the session's organization; False, and nothing changed, when it does.

    Raises QuotaExceeded ``quota_members``.
    """
    joined = stored.insert(session, user_id, role)
    if joined:
        allowances.check(session, allowances.MEMBERS)
        audit.record(session, by, "member.joined", user_id, role=role)
    return joined


def set_role(session: TenantSession, by: Actor, user_id: str, role: str) -> None:
    """The same as `change_role` for an operator, who may give any role. Raises NotFound, Conflict ``last_owner``."""
    owners, member = stored.lock_owners(session), stored.get(session, user_id)
    if member is None:
        raise NotFound(f"There is no member {user_id} in the organization.")
    if list(owners) == [user_id] and role != Role.OWNER:
        raise _last_owner()
    if member["role"] != role:
        stored.set_role(session, user_id, role)
        audit.record(session, by, "member.role_changed", user_id, before=member["role"], after=role)


def _changeable(session: TenantSession, caller: Principal, user_id: str, *, keeps_owner: bool) -> Row:
    """The member, who stays what they are until the transaction ends."""
    owners = stored.lock_owners(session)
    member = stored.get(session, user_id)
    if member is None:
        raise NotFound(f"There is no member {user_id} in the organization.")
    if user_id != caller.user_id and not may_hand_out(caller.permissions, member["role"]):
        raise Forbidden(f"You cannot change a member who is {member['role']}: that is more than you are.")
    if list(owners) == [user_id] and not keeps_owner:
        raise _last_owner()
    return member


def _last_owner() -> Conflict:
    return Conflict("This is the only owner of the organization; make somebody else an owner first.", code="last_owner")
