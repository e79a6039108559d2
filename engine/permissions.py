"""Who may do what: the one table of roles, scopes and permissions, read by the API, the CLI and the docs.

A permission is a thing that a route asks for. A member of an organization has those of the role; an API key has those
of its scopes, exactly: ``runs:write`` starts and cancels runs and does not read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum


class Role(StrEnum):
    """What a member is in an organization; each may do all that those below may."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Scope(StrEnum):
    """What an API key is for."""

    RUNS_WRITE = "runs:write"
    RUNS_READ = "runs:read"
    WORKFLOWS_WRITE = "workflows:write"
    WORKFLOWS_READ = "workflows:read"
    CREDENTIALS_WRITE = "credentials:write"
    ADMIN = "admin"


class Permission(StrEnum):
    """What a route asks for."""

    CATALOG_READ = "catalog:read"
    TENANT_READ = "tenant:read"
    WORKFLOWS_READ = "workflows:read"
    RUNS_READ = "runs:read"
    CREDENTIALS_READ = "credentials:read"
    MEMBERS_READ = "members:read"
    WORKFLOWS_WRITE = "workflows:write"
    RUNS_WRITE = "runs:write"
    CREDENTIALS_WRITE = "credentials:write"
    MEMBERS_MANAGE = "members:manage"
    KEYS_MANAGE = "keys:manage"
    AUDIT_READ = "audit:read"
    BILLING_READ = "billing:read"
    NOTICES_MANAGE = "notices:manage"
    TENANT_WRITE = "tenant:write"


_EVERYBODY = frozenset({Permission.CATALOG_READ, Permission.TENANT_READ})
_VIEWER = _EVERYBODY | {
    Permission.WORKFLOWS_READ,
    Permission.RUNS_READ,
    Permission.CREDENTIALS_READ,
    Permission.MEMBERS_READ,
}
_MEMBER = _VIEWER | {Permission.WORKFLOWS_WRITE, Permission.RUNS_WRITE}
_ADMIN = _MEMBER | {
    Permission.CREDENTIALS_WRITE,
    Permission.MEMBERS_MANAGE,
    Permission.KEYS_MANAGE,
    Permission.AUDIT_READ,
    Permission.BILLING_READ,
    Permission.NOTICES_MANAGE,
}

ROLES: Mapping[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(Permission),
    Role.ADMIN: _ADMIN,
    Role.MEMBER: _MEMBER,
    Role.VIEWER: _VIEWER,
}

SCOPES: Mapping[Scope, frozenset[Permission]] = {
    Scope.RUNS_WRITE: _EVERYBODY | {Permission.RUNS_WRITE},
    Scope.RUNS_READ: _EVERYBODY | {Permission.RUNS_READ},
    Scope.WORKFLOWS_WRITE: _EVERYBODY | {Permission.WORKFLOWS_WRITE},
    Scope.WORKFLOWS_READ: _EVERYBODY | {Permission.WORKFLOWS_READ},
    Scope.CREDENTIALS_WRITE: _EVERYBODY | {Permission.CREDENTIALS_READ, Permission.CREDENTIALS_WRITE},
    Scope.ADMIN: _ADMIN,
}

MEANINGS: Mapping[Permission, str] = {
    Permission.CATALOG_READ: "see which actions there are",
    Permission.TENANT_READ: "see the organization itself",
    Permission.WORKFLOWS_READ: "see workflows, their versions, and what a run would do",
    Permission.RUNS_READ: "see runs, their steps and their log",
    Permission.CREDENTIALS_READ: "see which credentials there are and where they are used, never a secret",
    Permission.MEMBERS_READ: "see who belongs to the organization",
    Permission.WORKFLOWS_WRITE: "make, change, switch and delete workflows, with any credential of the organization",
    Permission.RUNS_WRITE: "start, cancel and replay runs",
    Permission.CREDENTIALS_WRITE: "make, replace and delete credentials",
    Permission.MEMBERS_MANAGE: "invite people, change roles below or like one's own, remove members",
    Permission.KEYS_MANAGE: "make, see and revoke API keys that may no more than oneself",
    Permission.AUDIT_READ: "read the audit, and which run had which credential decrypted",
    Permission.BILLING_READ: "see the invoices",
    Permission.NOTICES_MANAGE: "say where notices go when the month is nearly used up",
    Permission.TENANT_WRITE: "rename the organization",
}
"""A few words for each; shown by the API, by ``fairlane tenants roles`` and in docs/organizations.md."""


def may_hand_out(permissions: frozenset[Permission], role: str) -> bool:
    """Whether who has these may give that role to somebody, or take it away: nobody hands out more than they have."""
    return permissions >= of_role(role)


def of_role(role: str) -> frozenset[Permission]:
    """What the role may do."""
    return ROLES[Role(role)]


def of_scopes(scopes: Iterable[str]) -> frozenset[Permission]:
    """What a key with these scopes may do; a scope that is not known here gives nothing."""
    known = (SCOPES[Scope(scope)] for scope in scopes if scope in set(Scope))
    return frozenset().union(*known)


def as_table() -> str:
    """Roles and permissions as the table of docs/organizations.md, in Markdown."""
    lines = [f"| | {' | '.join(Role)} |", "|---" * (len(Role) + 1) + "|"]
    for permission, meaning in MEANINGS.items():
        marks = " | ".join("yes" if permission in ROLES[role] else "-" for role in Role)
        lines.append(f"| {meaning} | {marks} |")
    return "\n".join(lines)
