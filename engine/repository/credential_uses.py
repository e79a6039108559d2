"""Which workflows use a credential, read from the current version of each."""

from __future__ import annotations

from collections.abc import Sequence

from engine.db import Row, TenantSession


def workflows(session: TenantSession, name: str, *, service: str, actions: Sequence[str]) -> list[Row]:
    """Id and name of the workflows, by name, whose current version has a step that would use the credential `name`.

    A step of one of `actions` (those of the service) that names none uses it while it is the service's only one.
    """
    return session.query("credential_uses", name=name, service=service, actions=list(actions))
