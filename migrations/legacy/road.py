"""The road itself: from the tables of `staging` to a converted database at head, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

import migrations
from engine.db import SYSTEM_ROLE
from engine.ports import Action
from engine.vault import Vault
from engine.workflows import TriggerKinds
from migrations.legacy import conversion, filling, history, plans, secrets, sorting, staging, sums
from migrations.legacy.conversion import Converter
from migrations.legacy.findings import TABLES, Conversion, Count, Finding, Kind, Progress

PERSONAL = "0003"
"""The revision that makes the personal organizations, before anything notes a change of plan."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the conversion must know of the engine: ``Parts(Vault(...), actions.build(), triggers.KINDS, old_key)``."""

    vault: Vault
    actions: Mapping[str, Action]
    kinds: TriggerKinds
    old_key: bytes | None
    """The 32 bytes of the old ENCRYPTION_KEY; without it no credential decrypts, and all are kept as broken."""
    keep_undecryptable: bool = False
    """Go on with a key that opens none of the credentials."""
    plan: str = plans.FREE
    """That the personal organizations begin on."""

    def require_known_plan(self, connection: Connection) -> None:
        """Raises BadRequest ``unknown_plan``."""
        plans.require_known(self.plan, plans.offered(connection))

    def require_fitting_key(self, encrypted: Iterable[str | None]) -> None:
        """Raises BadRequest ``wrong_key`` when there are credentials and the key opens none of them."""
        if self.old_key is not None and not self.keep_undecryptable:
            secrets.require_fitting(encrypted, self.old_key)


def travel(
    connection: Connection, parts: Parts, progress: Progress, *, loaded: Mapping[str, int] | None = None
) -> Conversion:
    """Go the whole road. Schema ``fairlane_legacy`` is filled; schema public has nothing of Fairlane, or only a schema
    without users, which is replaced except for its plans. `connection` is in a transaction and may roll back
    afterwards: a dry run does.

    What stands for the rows in the end is compared with the sums of what was `loaded` into ``fairlane_legacy``, if
    somebody took them, and otherwise with what is there.
    """
    progress("Sorting rows", 0, 1)
    sorting.sort(connection, staging.SCHEMA)
    filling.keep_rejects(connection)
    progress("Sorting rows", 1, 1)
    progress("Summing up what was read", 0, 1)
    before = sums.before(connection) if loaded is None else loaded
    progress("Summing up what was read", 1, 1)
    kept = None
    if migrations.current(connection) is not None:
        kept = plans.keep(connection)
        connection.execute(text("TRUNCATE public.plans CASCADE"))  # or those that were altered stop the way back
        migrations.downgrade(connection, "base")
    migrations.upgrade(connection, "0001")
    filling.fill(connection, progress)
    progress("Upgrading the schema", 0, 1)
    migrations.upgrade(connection, PERSONAL)
    connection.execute(text("UPDATE tenants SET plan = :plan"), {"plan": parts.plan})
    migrations.upgrade(connection)
    if kept is not None:
        plans.restore(connection, kept)
    progress("Upgrading the schema", 1, 1)
    found = _convert(connection, parts, progress)
    progress("Comparing", 0, 1)
    compared = sums.compared(before, sums.after(connection))
    progress("Comparing", 1, 1)
    return Conversion(counts(connection), compared, [*findings(connection), *found])


def _convert(connection: Connection, parts: Parts, progress: Progress) -> list[Finding]:
    act = text("SELECT set_config('role', :role, true), now()")
    now: datetime = connection.execute(act, {"role": SYSTEM_ROLE}).one()[1]
    opened = secrets.convert(connection, parts.vault, parts.old_key, progress)
    notes = conversion.convert(connection, Converter(parts.actions, parts.kinds, opened, now), progress)
    history.convert(connection, progress)
    connection.execute(act, {"role": "none"})
    return [*secrets.findings(opened, notes.used_by), *notes.findings(parts.plan, plans.offered(connection))]


def counts(connection: Connection) -> dict[str, Count]:
    """Rows in the old tables, in the new ones, and set aside; the runs of the old log are counted for it."""
    connection.execute(text(f"SELECT set_config('role', '{SYSTEM_ROLE}', true)"))
    carried = {table: int(connection.execute(text(_CARRIED[table])).scalar_one()) for table in TABLES}
    connection.execute(text("SELECT set_config('role', 'none', true)"))
    return {
        table: Count(
            read=_number(connection, f"SELECT count(*) FROM {staging.SCHEMA}.{table}"),
            carried=carried[table],
            set_aside=_number(
                connection, f"SELECT count(*) FROM {staging.SCHEMA}.rejects WHERE table_name = '{table}'"
            ),
        )
        for table in TABLES
    }


_CARRIED = {
    "users": "SELECT count(*) FROM users",
    "credentials": "SELECT count(*) FROM credentials",
    "workflows": "SELECT count(*) FROM workflows",
    "logs": f"SELECT count(*) FROM runs WHERE trigger = '{history.TRIGGER}'",
}


def findings(connection: Connection) -> list[Finding]:
    """What `sorting` found."""
    rows = connection.execute(text("SELECT table_name, id, kind, reason FROM legacy_sorted ORDER BY table_name, place"))
    return [Finding(row.table_name, row.id or "", Kind(row.kind), row.reason) for row in rows]


def _number(connection: Connection, query: str) -> int:
    return int(connection.execute(text(query)).scalar_one())
