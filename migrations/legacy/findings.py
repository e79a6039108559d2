"""What the road tells about the rows that it carried: counts for each table, and every row that is not as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

TABLES = ("users", "credentials", "workflows", "logs")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how many rows of it are done, and of how many."""


class Kind(StrEnum):
    """What became of a row."""

    SET_ASIDE = "set_aside"
    """It is in ``fairlane_legacy.rejects`` and in no table of the engine: its owner is gone, or it has no id."""
    CHANGED = "changed"
    """It was carried over with another value where the old one could not be stored, such as a time nobody can read."""
    BROKEN = "broken"
    """A credential that was carried over and cannot be used."""
    INACTIVE = "inactive"
    """A workflow that was carried over and cannot run; the reason stands on the workflow."""
    NOTED = "noted"
    """It was carried over whole; an operator should know of it nevertheless, such as emails that differ by case."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that somebody should know of. `needed_by` are the workflows that need a broken credential."""

    table: str
    id: str
    kind: Kind
    reason: str
    needed_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Count:
    """Rows of one table. They add up when ``read == carried + set_aside``; for logs, `carried` counts the runs."""

    read: int
    carried: int
    set_aside: int

    @property
    def adds_up(self) -> bool:
        return self.read == self.carried + self.set_aside


@dataclass(frozen=True, slots=True)
class Checksums:
    """Of the contents of one table, whatever the order: of the rows read, and of those carried over or set aside."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """The outcome of the road."""

    counts: dict[str, Count]
    """By the names in `TABLES`, as `checksums` are."""
    checksums: dict[str, Checksums]
    findings: list[Finding] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """Whether every row that was read was carried over or set aside, with the same contents."""
        same = all(sums.before == sums.after for sums in self.checksums.values())
        return same and all(count.adds_up for count in self.counts.values())
