"""Envelope encryption of credentials: AES-256-GCM under a data key per tenant, itself wrapped by a master key.

What is promised: a ciphertext opens only in the row that it was written for, because tenant, credential id and key
version are its associated data; deleting a tenant's data keys makes its secrets unreadable for ever; both levels rotate
while runs go on. Anything moved, altered or written under an unknown key is a `VaultError` and never a wrong plaintext.

Plaintext exists as `pydantic.Secret` only, whose ``repr`` is masked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Secret

from engine.db import SystemSession, TenantSession, dump_json
from engine.errors import ConfigurationError, VaultError
from engine.ports import KeyProvider
from engine.repository import credentials as stored
from engine.repository import triggers
from engine.repository.operator import samples_of_data_keys

NONCE_BYTES = 12
KEY_BYTES = 32
FINGERPRINT_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted credential, ready to be stored in its row."""

    ciphertext: bytes
    key_version: int
    fingerprint: str
    """Equal for equal secrets of one tenant under one data key; tells nothing about the secret."""


class MasterKeyRing:
    """The `KeyProvider` whose keys come from the environment; the first of the ring encrypts, all decrypt."""

    def __init__(self, ring: Mapping[str, bytes]) -> None:
        self._ring = dict(ring)
        self._current = next(iter(self._ring))

    @property
    def current(self) -> str:
        return self._current

    def wrap(self, plaintext: bytes, *, context: bytes) -> tuple[str, bytes]:
        return self._current, _encrypt(self._ring[self._current], plaintext, context)

    def unwrap(self, key_id: str, wrapped: bytes, *, context: bytes) -> bytes:
        if key_id not in self._ring:
            raise VaultError(
                f"The master key {key_id!r} is not in FAIRLANE_MASTER_KEYS; add it again, after the first."
            )
        return _decrypt(self._ring[key_id], wrapped, context)


class Vault:
    """Seals and opens the credentials of whatever tenant the session is bound to."""

    def __init__(self, keys: KeyProvider) -> None:
        self._keys = keys
        # Unwrapping is deterministic, so the wrapped bytes are a safe cache key: a shredded key's row is gone.
        self._unwrap = lru_cache(maxsize=4096)(self._unwrap_uncached)

    def seal(self, session: TenantSession, credential_id: str, data: Mapping[str, Any]) -> Sealed:
        """Encrypt `data` for the row `credential_id`, under the tenant's newest data key, made now if it has none."""
        stored.lock_keys(session, exclusive=False)
        version, key = self._newest_key(session)
        return self._seal(session.tenant_id, credential_id, data, version=version, key=key)

    def open(self, session: TenantSession, row: Mapping[str, Any]) -> Secret[dict[str, Any]]:
        """Decrypt a row of `repository.credentials.get`. Raises VaultError naming the credential."""
        if row["ciphertext"] is None or row["wrapped"] is None:
            reason = row["broken_reason"] or "its data key is gone"
            raise VaultError(f"The credential {row['name']!r} cannot be read: {reason}.")
        version = row["key_version"]
        try:
            key = self._unwrap(session.tenant_id, version, row["master_key_id"], bytes(row["wrapped"]))
            plaintext = _decrypt(key, bytes(row["ciphertext"]), _place(session.tenant_id, row["id"], version))
        except VaultError as error:
            raise VaultError(f"The credential {row['name']!r} cannot be read: {error.detail}") from None
        return Secret[dict[str, Any]](json.loads(plaintext))

    def rotate(self, session: TenantSession) -> int:
        """Give the tenant a new data key and re-encrypt all its secrets under it; the old keys are shredded.

        Returns how many credentials and webhook secrets were re-encrypted. Broken ones are left as they are. Readers
        are not disturbed: they fetch ciphertext and key in one statement.
        """
        stored.lock_keys(session, exclusive=True)
        rows = stored.all_with_keys(session)
        version = stored.newest_key_version(session) + 1
        key = self._make_key(session, version)
        done = 0
        for row in rows:
            try:
                data = self.open(session, row).get_secret_value()
            except VaultError:
                continue
            sealed = self._seal(session.tenant_id, row["id"], data, version=version, key=key)
            stored.replace_secret(
                session, row["id"], sealed.ciphertext, key_version=version, fingerprint=sealed.fingerprint
            )
            done += 1
        done += self._rotate_webhooks(session, version=version, key=key)
        stored.delete_unused_keys(session, keep=version)
        return done

    def _rotate_webhooks(self, session: TenantSession, *, version: int, key: bytes) -> int:
        done = 0
        for row in triggers.sealed_secrets(session):
            try:
                data = self.open(session, row).get_secret_value()
            except VaultError:
                continue
            sealed = self._seal(session.tenant_id, row["id"], data, version=version, key=key)
            triggers.replace_sealed(
                session, row["workflow_id"], sealed.ciphertext, key_version=version, fingerprint=sealed.fingerprint
            )
            done += 1
        return done

    def rewrap(self, session: TenantSession) -> int:
        """Wrap the tenant's data keys under the current master key; returns how many were under another."""
        stored.lock_keys(session, exclusive=True)
        done = 0
        for row in stored.wrapped_keys(session):
            if row["master_key_id"] == self._keys.current:
                continue
            key = self._unwrap(session.tenant_id, row["version"], row["master_key_id"], bytes(row["wrapped"]))
            master, wrapped = self._keys.wrap(key, context=_place(session.tenant_id, "data-key", row["version"]))
            stored.replace_wrapping(session, row["version"], master_key_id=master, wrapped=wrapped)
            done += 1
        return done

    def _newest_key(self, session: TenantSession) -> tuple[int, bytes]:
        rows = stored.wrapped_keys(session)
        if not rows:
            return 1, self._make_key(session, 1)
        newest = rows[-1]
        key = self._unwrap(session.tenant_id, newest["version"], newest["master_key_id"], bytes(newest["wrapped"]))
        return newest["version"], key

    def _make_key(self, session: TenantSession, version: int) -> bytes:
        key = os.urandom(KEY_BYTES)
        master, wrapped = self._keys.wrap(key, context=_place(session.tenant_id, "data-key", version))
        if stored.insert_key(session, version, master_key_id=master, wrapped=wrapped):
            return key
        return self._newest_key(session)[1]  # another session made the first key at the same moment

    def _unwrap_uncached(self, tenant_id: str, version: int, master_key_id: str, wrapped: bytes) -> bytes:
        return self._keys.unwrap(master_key_id, wrapped, context=_place(tenant_id, "data-key", version))

    @staticmethod
    def _seal(tenant_id: str, credential_id: str, data: Mapping[str, Any], *, version: int, key: bytes) -> Sealed:
        plaintext = dump_json(data).encode()
        return Sealed(
            ciphertext=_encrypt(key, plaintext, _place(tenant_id, credential_id, version)),
            key_version=version,
            fingerprint=hmac.new(key, plaintext, hashlib.sha256).hexdigest()[:FINGERPRINT_CHARACTERS],
        )


def require_fitting(session: SystemSession, ring: Mapping[str, bytes]) -> None:
    """Try each master key that is in use on one data key. Raises ConfigurationError for another key of the same id.

    One that is missing is no fault here.
    """
    keys, wrong = MasterKeyRing(ring), list[str]()
    for row in samples_of_data_keys(session):
        key_id, place = row["master_key_id"], _place(row["tenant_id"], "data-key", row["version"])
        try:
            if key_id in ring:
                keys.unwrap(key_id, bytes(row["wrapped"]), context=place)
        except VaultError:
            wrong.append(key_id)
    if wrong:
        raise ConfigurationError(
            f"FAIRLANE_MASTER_KEYS: the master key {', '.join(wrong)} is not the one that these data keys were made "
            "with; no secret can be read until that one is back."
        )


def _place(tenant_id: str, row: str, version: int) -> bytes:
    """The associated data: where a ciphertext belongs. JSON, so that no two places spell alike."""
    return json.dumps([tenant_id, row, version]).encode()


def _encrypt(key: bytes, plaintext: bytes, place: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, place)


def _decrypt(key: bytes, ciphertext: bytes, place: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], place)
    except (InvalidTag, ValueError):
        raise VaultError("it was altered, moved to another row or tenant, or written under another key.") from None
