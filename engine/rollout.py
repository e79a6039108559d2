"""Who has the features of organizations: everybody, or, while they are rolled out, new sign-ups and who was let in.

With ``FAIRLANE_ORGANIZATIONS=new`` the personal organizations that came out of the multi-user system stay what their
users know, until an operator switches them on one by one (``fairlane tenants organizations TENANT on``) or all at once
with ``all``. Until then nobody is invited into them or changes roles there, and who is at home there founds no other.
What they have goes on working, and who is invited into another organization may join it.
"""

from __future__ import annotations

from typing import Literal

from engine import audit
from engine.audit import Actor
from engine.db import SystemSession, TenantSession
from engine.errors import Forbidden, NotFound
from engine.repository import identity

Mode = Literal["new", "all"]


def require(session: TenantSession, mode: Mode) -> None:
    """Raises Forbidden ``organizations_off`` when the session's organization does not have the features yet."""
    if mode == "all":
        return
    tenant = identity.tenant(session)
    if tenant is not None and not tenant["organizations"]:
        raise Forbidden(
            "Working together in an organization is not switched on for you yet; ask the operator.",
            code="organizations_off",
        )


def switch(session: SystemSession, by: Actor, tenant_id: str, *, on: bool) -> None:
    """Let one organization have the features, or not. Raises NotFound."""
    if not identity.set_organizations(session, tenant_id, on):
        raise NotFound(f"There is no organization {tenant_id!r}.")
    audit.record_for(session, tenant_id, by, "tenant.organizations_switched", tenant_id, on=on)
