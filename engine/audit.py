"""The audit of an organization: who did what to what, when and from where, in a chain that shows every tampering.

A row is added in the transaction of the change it tells of, so there is neither without the other. The database
numbers, dates and chains it (migration 0008); neither of our roles may change one. `verify` computes the chain again
here, from what it is given: rows of the database, or the lines of an export that somebody kept elsewhere.

    hash = SHA-256(previous hash + text of [number, time, actor, action, object, ip, data])

Whoever owns the database can still cut off the end of a chain, or write all of it anew. Against that helps only what is
kept elsewhere: `Verdict.head` is the number and hash to write down, and to give to the next `verify`.

Credentials are decrypted for steps far too often to wait for a lock each time. Those are recorded in a table of their
own, and the `Sealer` puts them into the chain in batches: one row ``credential.decryptions`` with their number and a
digest of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from engine.db import Database, Row, SystemSession, TenantSession
from engine.ports import Json
from engine.repository import audit as stored
from engine.repository import decryptions

DECRYPTIONS = "credential.decryptions"
SEALER = "sealer"
PAGE = 500
BATCH = 2000
TENANTS = 200
"""How many tenants one pass of the sealer looks after at most."""

FIRST = bytes(32)
"""What stands before the first row of a chain."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and the address that the request came from."""

    id: str
    ip: str | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the number of its last row, and the hash; (0, zeroes) when it is empty."""

    number: int = 0
    hash: bytes = FIRST


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many rows were looked at, where the chain ended, and the first thing that is wrong with it."""

    rows: int
    head: Head
    fault: str | None = None


def record(session: TenantSession, by: Actor, action: str, object_id: str | None = None, **data: Json) -> int:
    """Add to the audit that `by` did `action` (``thing.verb``) to `object_id`; never with a secret in `data`."""
    return stored.append(session, actor=by.id, action=action, object=object_id, ip=by.ip, data=data)


def record_for(
    session: SystemSession, tenant_id: str, by: Actor, action: str, object_id: str | None = None, **data: Json
) -> int:
    """The same out of a session over all tenants."""
    with session.acting_for(tenant_id) as own:
        return record(own, by, action, object_id, **data)


def entries(session: TenantSession) -> Iterator[Row]:
    """The whole chain in its order; a row that vouches for decryptions has them in ``decryptions``."""
    after = 0
    while rows := stored.chain(session, after=after, limit=PAGE):
        for row in rows:
            vouched = {"decryptions": list(decryptions.sealed(session, row["id"]))}
            yield {**row, **(vouched if row["action"] == DECRYPTIONS else {})}
        after = rows[-1]["id"]


def exported(session: TenantSession) -> Iterator[str]:
    """The chain as JSON lines, which `imported` reads back."""
    for row in entries(session):
        yield json.dumps(row, default=_exported, ensure_ascii=False)


def imported(lines: Iterable[str]) -> Iterator[Row]:
    """Rows as `entries` gives them. Raises ValueError for what no export wrote."""
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            for name in ("previous_hash", "hash"):
                row[name] = bytes.fromhex(row[name])
            for dated in (row, *row.get("decryptions", ())):
                dated["at"] = datetime.fromisoformat(dated["at"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"Line {number} is not of an export of an audit.") from None
        yield row


def verify(rows: Iterable[Row], *, known: Head | None = None) -> Verdict:
    """Walk a chain from its first row. `known` is an earlier head, which must stand in it."""
    head, count = Head(), 0
    for row in rows:
        fault = _fault(row, head)
        if fault is None and known is not None and row["id"] == known.number and bytes(row["hash"]) != known.hash:
            fault = f"row {row['id']} has another hash than it had: the chain was written anew"
        if fault is not None:
            return Verdict(count, head, fault)
        head, count = Head(row["id"], bytes(row["hash"])), count + 1
    if known is not None and head.number < known.number:
        return Verdict(count, head, f"the chain ends at row {head.number}, and it had {known.number}: its end is gone")
    return Verdict(count, head)


def _fault(row: Row, before: Head) -> str | None:
    number = row["id"]
    if number != before.number + 1:
        return f"row {before.number + 1} is missing"
    if bytes(row["previous_hash"]) != before.hash:
        return f"row {number} does not follow the row before it"
    if bytes(row["hash"]) != chained(before.hash, row):
        return f"row {number} is not what was written"
    if row["action"] == DECRYPTIONS and digest(row["decryptions"]) != row["data"]["digest"]:
        return f"the decryptions that row {number} vouches for are not those that were recorded"
    return None


def chained(previous: bytes, row: Mapping[str, Any]) -> bytes:
    """The hash of a row behind `previous`."""
    fields = [row["id"], _moment(row["at"]), row["actor"], row["action"], row["object"], row["ip"], row["data"]]
    return hashlib.sha256(previous + canonical(fields).encode()).digest()


def digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a row of the audit keeps of the decryptions that it vouches for."""
    lines = (
        [row["id"], _moment(row["at"]), row["credential_id"], row["run_id"], row["step_id"], row["attempt"]]
        for row in rows
    )
    return hashlib.sha256("\n".join(map(canonical, lines)).encode()).hexdigest()


def canonical(value: Json) -> str:
    """The text that Postgres makes of a jsonb value: keys by length and then by bytes, a space behind each mark."""
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ", ".join(f"{canonical(key)}: {canonical(value[key])}" for key in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(canonical, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class Sealer:
    """Puts the recorded decryptions into the chains of their tenants. Any number of them may run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run_once(self) -> int:
        """Seal what there is, a batch for each tenant, each in a transaction of its own; how many were sealed."""
        with self._database.system() as session:
            tenants = decryptions.tenants_with_unsealed(session, limit=TENANTS)
        return sum(map(self._seal, tenants))

    def _seal(self, tenant_id: str) -> int:
        with self._database.system() as session:
            rows = decryptions.take_unsealed(session, tenant_id, limit=BATCH)
            if not rows:
                return 0
            numbers = [row["id"] for row in rows]
            data = {"count": len(rows), "first": numbers[0], "last": numbers[-1], "digest": digest(rows)}
            by = record_for(session, tenant_id, Actor(SEALER), DECRYPTIONS, **data)
            decryptions.mark_sealed(session, tenant_id, numbers, by=by)
        return len(rows)


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _exported(value: Any) -> str:
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    raise TypeError(f"an audit holds no {type(value).__name__}")
