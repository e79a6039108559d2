"""Credentials of the organization: shared by its workflows, managed by its admins, shown to nobody."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api.auth import Call, may
from api.openapi import refusals
from api.paging import Page
from api.schemas import Listed
from api.schemas_credentials import Credential, CredentialBody, CredentialRotation
from api.wire import Route
from engine import connections
from engine.db import Row
from engine.errors import Fault, InvalidInput
from engine.permissions import Permission
from engine.repository import credentials as stored

router = APIRouter(route_class=Route, prefix="/api/credentials", tags=["credentials"])

Reader = Annotated[Call, may(Permission.CREDENTIALS_READ)]
Writer = Annotated[Call, may(Permission.CREDENTIALS_WRITE)]


@router.get("", response_model=Listed[Credential])
def list_credentials(call: Reader, page: Page) -> Any:
    """List credentials, without any secret."""
    after = page.after(str)
    with call.transaction() as session:
        rows = stored.listed(session, after=after, limit=page.fetch)
    return page.page(rows, lambda row: [row["id"]])


@router.post(
    "", status_code=201, response_model=Credential, responses=refusals("credential_exists", "quota_credentials")
)
def create(body: CredentialBody, call: Writer) -> Any:
    """Store a secret for workflows to use. Its data is checked against the service's schema of GET /api/actions."""
    connections.check_service(body.service, call.services.actions)
    connections.check(body.data, call.services.actions.credential_schema(body.service))
    with call.transaction() as session:
        row = connections.create(
            session,
            call.services.vault,
            service=body.service,
            name=body.name or body.service,
            data=body.data,
            user_id=call.principal.user_id,
        )
        call.record(session, "credential.created", row["id"], **_described(row))
        return row


@router.put("/{credential_id}", response_model=Credential, responses=refusals("not_found"))
def rotate(credential_id: str, body: CredentialRotation, call: Writer) -> Any:
    """Replace the secret of a credential. Name and service stay; steps that begin from now on use the new one."""
    with call.transaction() as session:
        row = connections.get(session, credential_id)
        for field in ("service", "name"):
            if getattr(body, field) not in (None, row[field]):
                raise InvalidInput(
                    [Fault(f"/{field}", f"is {row[field]!r} and cannot change; make another credential")]
                )
        connections.check(body.data, call.services.actions.credential_schema(row["service"]))
        replaced = connections.replace(session, call.services.vault, credential_id, body.data)
        call.record(session, "credential.replaced", credential_id, **_described(replaced))
        return replaced


@router.delete(
    "/{credential_id}", status_code=204, response_class=Response, responses=refusals("not_found", "credential_in_use")
)
def delete(
    credential_id: str,
    call: Writer,
    force: Annotated[bool, Query(description="Delete it although workflows use it.")] = False,
) -> None:
    """Delete a credential. Refused while a workflow uses it, unless forced."""
    with call.transaction() as session:
        row = connections.get(session, credential_id)
        users = connections.needing(call.services.actions, row["service"])
        connections.delete(session, credential_id, actions=users, force=force)
        call.record(session, "credential.deleted", credential_id, **_described(row))


def _described(row: Row) -> Row:
    """What the audit says of a credential beside its id; the fingerprint tells secrets apart and nothing of them."""
    return {"service": row["service"], "name": row["name"], "fingerprint": row["fingerprint"]}
