"""Who did what, and who may do what."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.auth import Call, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Identifier, Listed, Since
from api.schemas_organizations import AuditEntry, Decryption, Roles, UsedBy
from api.wire import Route
from engine import connections
from engine.permissions import MEANINGS, ROLES, SCOPES, Permission
from engine.repository import audit as stored
from engine.repository import decryptions
from engine.repository.audit import AuditFilter

router = APIRouter(route_class=Route, tags=["audit"])

Auditor = Annotated[Call, may(Permission.AUDIT_READ)]
CredentialReader = Annotated[Call, may(Permission.CREDENTIALS_READ)]
Anybody = Annotated[Call, may(Permission.CATALOG_READ)]


def _filter(
    action: Annotated[Identifier | None, Query(description="Such as credential.created.")] = None,
    actor: Annotated[Identifier | None, Query(description="Id of a user or an API key.")] = None,
    object_id: Annotated[Identifier | None, Query(alias="object", description="Id of what it was done to.")] = None,
    since: Annotated[Since | None, Query(description="At or after; RFC 3339, UTC unless it says.")] = None,
) -> AuditFilter:
    return AuditFilter(action=action, actor=actor, object=object_id, since=since)


@router.get("/api/audit", response_model=Listed[AuditEntry])
def list_audit(call: Auditor, page: Page, wanted: Annotated[AuditFilter, Depends(_filter)]) -> Any:
    """List who did what to what, when, and from where; the newest first."""
    before = page.after(int)
    with call.transaction() as session:
        rows = stored.listed(session, wanted, before=before, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.get(
    "/api/credentials/{credential_id}/decryptions",
    response_model=Listed[Decryption],
    responses=refusals("not_found"),
)
def list_decryptions(credential_id: str, call: Auditor, page: Page) -> Any:
    """List which steps of which runs had a credential decrypted; the newest first."""
    before = page.after(int)
    with call.transaction() as session:
        connections.get(session, credential_id)
        rows = decryptions.listed(session, credential_id, before=before, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.get(
    "/api/credentials/{credential_id}/workflows", response_model=Listed[UsedBy], responses=refusals("not_found")
)
def list_workflows(credential_id: str, call: CredentialReader) -> Any:
    """List the workflows that use a credential, at most twenty, by name."""
    with call.transaction() as session:
        row = connections.get(session, credential_id)
        users = connections.uses(session, row, actions=connections.needing(call.services.actions, row["service"]))
    return {"items": users, "next_cursor": None}


@router.get("/api/roles", response_model=Roles)
def roles(call: Anybody) -> Any:  # noqa: ARG001 - the permission is all that is needed of it
    """Show what each role, and each scope of an API key, may do."""
    return {
        "roles": [{"role": role, "permissions": sorted(may)} for role, may in ROLES.items()],
        "scopes": [{"role": scope, "permissions": sorted(may)} for scope, may in SCOPES.items()],
        "permissions": MEANINGS,
    }
