"""All that an organization has, as one archive to take away: a zip of JSON lines, one file for each kind of thing.

``manifest.json`` says what is in it, with the number of rows and the SHA-256 of each file. ``audit.jsonl`` can be
verified without us (`engine.audit.imported`). Not in it are hashes of passwords, tokens and keys, and the secrets of
credentials, unless `secrets` asks for them. Each file is as of the moment it was read; while the organization works on,
one file may know a little more than another.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, Any

from engine import audit
from engine.audit import Actor
from engine.db import Database, Row, TenantSession, dump_json
from engine.errors import VaultError
from engine.repository import credentials as stored_credentials
from engine.repository import leaving as stored
from engine.vault import Vault

FORMAT = "fairlane-organization-1"
PAGE = 1000


def write(
    database: Database, tenant_id: str, file: IO[bytes], by: Actor, *, secrets: Vault | None = None
) -> dict[str, Any]:
    """Write the archive; its manifest. With `secrets` it also holds every credential in clear."""
    files: dict[str, dict[str, Any]] = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, database.tenant(tenant_id) as session:
        for name, lines in _files(session, secrets):
            with archive.open(f"{name}.jsonl", "w", force_zip64=True) as entry:
                files[f"{name}.jsonl"] = _written(entry, lines)
        manifest = {"format": FORMAT, "tenant": tenant_id, "at": datetime.now(UTC).isoformat(), "files": files}
        archive.writestr("manifest.json", dump_json(manifest))
        audit.record(session, by, "tenant.exported", tenant_id, secrets=secrets is not None)
    return manifest


def _files(session: TenantSession, secrets: Vault | None) -> Iterator[tuple[str, Iterable[str]]]:
    for table in stored.ARCHIVED:
        yield table, map(dump_json, stored.rows_of(session, table, page=PAGE))
    yield "audit", audit.exported(session)
    if secrets is not None:
        yield "secrets", map(dump_json, _secrets(session, secrets))


def _secrets(session: TenantSession, vault: Vault) -> Iterator[Row]:
    for row in stored_credentials.all_with_keys(session):
        with suppress(VaultError):  # one that cannot be read here cannot be taken along either
            yield {"id": row["id"], "name": row["name"], "data": vault.open(session, row).get_secret_value()}


def _written(entry: IO[bytes], lines: Iterable[str]) -> dict[str, Any]:
    digest, rows = hashlib.sha256(), 0
    for line in lines:
        data = line.encode() + b"\n"
        digest.update(data)
        entry.write(data)
        rows += 1
    return {"rows": rows, "sha256": digest.hexdigest()}
