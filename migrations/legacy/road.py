"""The road itself: from the tables of `staging` to a converted database at head, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from engine.ports import Action
from engine.workflows import TriggerKinds
from migrations.legacy.findings import Conversion, Progress

if TYPE_CHECKING:
    from engine.vault import Vault


@dataclass(frozen=True, slots=True)
class Parts:
    """What the conversion must know of the engine: ``Parts(Vault(MasterKeyRing(...)), actions.build(), KINDS)``."""

    vault: Vault
    actions: Mapping[str, Action]
    kinds: TriggerKinds
    old_key: bytes | None
    """The 32 bytes of the old ENCRYPTION_KEY; without it no credential decrypts, and all are kept as broken."""


def travel(connection: Connection, parts: Parts, progress: Progress) -> Conversion:
    """Go the whole road. Schema ``fairlane_legacy`` is filled; schema public has nothing of Fairlane, or only a schema
    without users, which is replaced. `connection` is in a transaction and may roll back afterwards: a dry run does.
    """
    raise NotImplementedError
