"""Credentials as their organization manages them: made, replaced, and removed only when nothing uses them.

The secret goes straight into the vault; nothing here returns, logs or quotes it. `uses` says which workflows would stop
working without a credential: those that name it, and, when it is the only one of its service, those that leave the
choice to Fairlane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from engine import allowances, ids
from engine.db import Row, TenantSession, dump_json
from engine.definition_faults import faults_of, suggestion
from engine.errors import Conflict, Fault, InvalidInput, NotFound
from engine.ports import Action
from engine.redaction import texts
from engine.repository import credential_uses
from engine.repository import credentials as stored
from engine.vault import Vault

MAX_BYTES = 64 * 1024
MAX_TEXTS = 100
"""In one credential: each is searched for in all that a step stores."""


def check(data: Mapping[str, Any], model: type[BaseModel] | None) -> None:
    """Raises InvalidInput with a fault for each field that does not fit the service; it never quotes a value."""
    if len(dump_json(data)) > MAX_BYTES:
        raise InvalidInput([Fault("/data", f"is larger than {MAX_BYTES // 1024} KiB")])
    if sum(1 for _ in texts(data)) > MAX_TEXTS:
        raise InvalidInput([Fault("/data", f"holds more than {MAX_TEXTS} texts")])
    if model is None:
        return
    try:
        model.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(faults_of(error, data, "/data", model=model)) from None


def check_service(service: str, actions: Mapping[str, Action]) -> None:
    """Raises InvalidInput when no action is of the service: nothing could ever use such a credential."""
    known = {action.service for action in actions.values() if action.service is not None}
    if service not in known:
        raise InvalidInput([Fault("/service", f"no action uses {service!r}{suggestion(service, known)}")])


def create(
    session: TenantSession, vault: Vault, *, service: str, name: str, data: Mapping[str, Any], user_id: str | None
) -> Row:
    """The public row. Raises Conflict ``credential_exists``, QuotaExceeded ``quota_credentials``."""
    credential_id = ids.new_id("cred")
    sealed = vault.seal(session, credential_id, data)
    row = stored.insert_credential(
        session,
        {
            "id": credential_id,
            "service_name": service,
            "name": name,
            "user_id": user_id,
            "ciphertext": sealed.ciphertext,
            "key_version": sealed.key_version,
            "fingerprint": sealed.fingerprint,
        },
    )
    if row is None:
        raise Conflict(
            f"There is a credential {name!r} already; replace its secret with PUT, or choose another name.",
            code="credential_exists",
        )
    allowances.check(session, allowances.CREDENTIALS)
    return row


def replace(session: TenantSession, vault: Vault, credential_id: str, data: Mapping[str, Any]) -> Row:
    """Put another secret in its place; runs that start a step from now on use it. Raises NotFound."""
    sealed = vault.seal(session, credential_id, data)
    stored.replace_secret(
        session, credential_id, sealed.ciphertext, key_version=sealed.key_version, fingerprint=sealed.fingerprint
    )
    return get(session, credential_id)


def get(session: TenantSession, credential_id: str) -> Row:
    """The public row. Raises NotFound."""
    row = stored.get(session, credential_id)
    if row is None:
        raise NotFound(f"There is no credential {credential_id}.")
    return row


def delete(session: TenantSession, credential_id: str, *, actions: Sequence[str], force: bool) -> None:
    """Remove it. `actions` are those of its service. Raises NotFound, or Conflict ``credential_in_use``."""
    row = get(session, credential_id)
    users = [] if force else uses(session, row, actions=actions)
    if users:
        names = ", ".join(f"{user['name']!r} ({user['id']})" for user in users)
        raise Conflict(
            f"The credential {row['name']!r} is used by {names}; change them first, or delete it with ?force=true.",
            code="credential_in_use",
            workflows=users,
        )
    stored.delete(session, credential_id)


def uses(session: TenantSession, credential: Row, *, actions: Sequence[str]) -> list[Row]:
    """Id and name of the workflows that would stop working without it, by name; `actions` are those that need it."""
    return credential_uses.workflows(session, credential["name"], service=credential["service"], actions=actions)


def needing(actions: Mapping[str, Action], service: str) -> list[str]:
    """The names of the actions that do not work without a credential of the service."""
    return [action.name for action in actions.values() if action.service == service and action.credential_required]
