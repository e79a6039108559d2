"""Who answers a run that waits: a caller with a token as everywhere, or whoever holds a signed link.

A link stands for one run of one organization until it expires, and gives no right but to see what is asked and to
answer it; see `engine.resume_links`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from api.auth import require
from api.services import Services
from api.wire import address_of, call_of
from engine.audit import Actor
from engine.db import TenantSession
from engine.errors import NotFound
from engine.permissions import Permission

LINK = "link"
"""Who answered, where all that is known is that they had the link."""

Token = Annotated[
    str | None, Query(max_length=512, description="of a signed link; nothing else is needed with it", alias="token")
]


@dataclass(frozen=True, slots=True)
class Answerer:
    """Somebody who may answer the run in the path."""

    services: Services
    tenant_id: str
    by: Actor

    def transaction(self) -> AbstractContextManager[TenantSession]:
        return self.services.database.tenant(self.tenant_id)


def answerer(permission: Permission) -> Any:
    """The parameter by which a route gets its `Answerer`; who has no link needs the permission."""
    return Depends(_finder(permission))


def _finder(permission: Permission) -> Callable[..., Answerer]:
    def find(request: Request, run_id: str, token: Token = None) -> Answerer:
        services: Services = request.app.state.services
        if token is not None:
            link = services.links.read(token)
            if link.run_id != run_id:
                raise NotFound("This link belongs to another run.")
            return Answerer(services, link.tenant_id, Actor(LINK, address_of(request)))
        call = call_of(request)
        require(permission, call.principal)
        return Answerer(services, call.principal.tenant_id, call.principal.by)

    return find
