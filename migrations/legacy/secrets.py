"""Credentials: opened with the old key, sealed under their organization's new one. One that does not open is kept.

The old plaintext is a bare text; what it is called now depends on its service.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, text

from engine.db import SystemSession
from engine.errors import BadRequest
from engine.repository import credentials as stored
from engine.vault import NONCE_BYTES, Vault
from migrations.legacy.findings import Finding, Kind, Progress

FIELDS = {"slack": "webhook_url", "discord": "webhook_url", "openweather": "api_key"}
OTHER_FIELD = "secret"
"""What the text of a service is called that Fairlane does not know."""
_NO_KEY = "it was encrypted with the old key, which was not given"


class Unreadable(Exception):
    """A credential that does not decrypt; the message says why."""


class NoText(Unreadable):
    """The key is right, and the plaintext is nothing that could be used."""


@dataclass(slots=True)
class Secrets:
    """What workflows must know of the credentials: for each organization and service their names, the oldest first."""

    names: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    """(name, id) of each."""
    broken: dict[str, str] = field(default_factory=dict)
    """Id to reason."""

    def choice(self, tenant_id: str, service: str) -> tuple[str, str] | None:
        """The credential that workflows use: the oldest that can be read, else the oldest."""
        candidates = self.names.get((tenant_id, service), [])
        return next((found for found in candidates if found[1] not in self.broken), next(iter(candidates), None))

    def several(self, tenant_id: str, service: str) -> bool:
        """Whether a workflow must say which one it means."""
        return len(self.names.get((tenant_id, service), [])) > 1


def decrypt(encrypted: str, key: bytes | None) -> str:
    """The old plaintext. Raises Unreadable."""
    if key is None:
        raise Unreadable(_NO_KEY)
    try:
        raw = base64.b64decode(encrypted, validate=True)
        return AESGCM(key).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None).decode()
    except UnicodeDecodeError:
        raise NoText("it decrypts to something that is no text") from None
    except (binascii.Error, ValueError):
        raise Unreadable("it is not base64 of a nonce and a ciphertext") from None
    except InvalidTag:
        raise Unreadable("it does not decrypt with the old key") from None


def encrypted(connection: Connection, schema: str) -> list[str | None]:
    """Every secret of the old table in `schema`."""
    return list(connection.execute(text(f"SELECT encrypted_key::text FROM {schema}.credentials")).scalars())


def require_fitting(encrypted: Iterable[str | None], key: bytes) -> None:
    """Raises BadRequest ``wrong_key`` when there are credentials and the key opens none of them."""
    number = 0
    for each in encrypted:
        number += 1
        try:
            decrypt(each or "", key)
        except NoText:
            return
        except Unreadable:
            continue
        return
    if number:
        raise BadRequest(
            f"None of the {number} credentials decrypts with this key: is it the right one? "
            "With --keep-undecryptable all are kept, marked broken. Nothing was changed.",
            code="wrong_key",
        )


def data_of(service: str, plaintext: str) -> dict[str, str]:
    """The credential as Fairlane's actions of that service read it."""
    return {FIELDS.get(service, OTHER_FIELD): plaintext}


def convert(connection: Connection, vault: Vault, old_key: bytes | None, progress: Progress) -> Secrets:
    """Seal every credential, organization by organization. The system role is set."""
    query = text(
        "SELECT id, tenant_id, service_name, name, encrypted_key FROM credentials"
        " ORDER BY tenant_id, service_name, created_at, id"
    )
    rows = [dict(row) for row in connection.execute(query).mappings()]
    secrets, done = Secrets(), 0
    for tenant_id, own in groupby(rows, key=lambda row: str(row["tenant_id"])):
        with SystemSession(connection).acting_for(tenant_id) as session:
            for row in own:
                secrets.names.setdefault((tenant_id, row["service_name"]), []).append((row["name"], row["id"]))
                try:
                    data = data_of(row["service_name"], decrypt(row["encrypted_key"], old_key))
                except Unreadable as error:
                    secrets.broken[row["id"]] = str(error)
                    session.execute(
                        text("UPDATE credentials SET broken_reason = :reason WHERE id = :id"),
                        {"reason": str(error), "id": row["id"]},
                    )
                else:
                    sealed = vault.seal(session, row["id"], data)
                    stored.replace_secret(
                        session,
                        row["id"],
                        sealed.ciphertext,
                        key_version=sealed.key_version,
                        fingerprint=sealed.fingerprint,
                    )
                done += 1
        progress("Encrypting credentials", done, len(rows))
    return secrets


def findings(secrets: Secrets, needed_by: Mapping[str, list[str]]) -> list[Finding]:
    """Each broken credential with the workflows that need it."""
    return [
        Finding("credentials", credential_id, Kind.BROKEN, reason, tuple(needed_by.get(credential_id, ())))
        for credential_id, reason in secrets.broken.items()
    ]
