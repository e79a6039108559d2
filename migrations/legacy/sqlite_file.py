"""The SQLite file of a multi-user system, read row by row and never written.

It is opened as immutable, so SQLite makes no file beside it; that would overlook writes that are still in a journal,
so a file with one is refused. `opened` recognises the early and the later form and refuses everything else with one
sentence. Columns and tables beyond those of either form are told by `Source.extra`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from engine.errors import BadRequest
from migrations.legacy.staging import COLUMNS, LATER
from migrations.legacy.values import Raw

MAGIC = b"SQLite format 3\0"
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """An open file. `present` are the known columns of each table that it has; `extra` those that nobody knows."""

    connection: sqlite3.Connection
    form: str
    present: dict[str, tuple[str, ...]]
    extra: dict[str, tuple[str, ...]]
    other_tables: tuple[str, ...]
    changed_at: datetime
    """When the file was last written: what stands for times that nobody can read."""

    def count(self, table: str) -> int:
        """How many rows a table has."""
        return int(self.connection.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0])

    def rows(self, table: str) -> Iterator[tuple[list[Raw], list[Raw]]]:
        """Every row: the columns of `staging.COLUMNS`, and the extra ones. None for what the early form lacks."""
        columns, extra = COLUMNS[table], self.extra[table]
        chosen = [_quoted(column) if column in self.present[table] else "NULL" for column in columns]
        chosen += map(_quoted, extra)
        for row in self.connection.execute(f"SELECT {', '.join(chosen)} FROM {_quoted(table)}"):
            yield list(row[: len(columns)]), list(row[len(columns) :])


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open the file. Raises BadRequest ``not_legacy`` for what is no multi-user database or cannot be read."""
    _require_settled(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            yield _recognised(connection, path)
    except sqlite3.Error as error:
        raise _refused(path, f"SQLite cannot read it ({error})") from error


def _require_settled(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise _refused(path, f"it cannot be opened ({error.strerror})") from error
    if not head:
        raise _refused(path, "it is empty")
    if head != MAGIC:
        raise _refused(path, "it is no SQLite file")
    for ending in ("-wal", "-journal"):
        beside = path.with_name(path.name + ending)
        if beside.exists() and beside.stat().st_size:
            raise _refused(path, f"{beside.name} beside it holds writes that are not in it; stop the old system first")


def _recognised(connection: sqlite3.Connection, path: Path) -> Source:
    tables = _tables(connection)
    present: dict[str, tuple[str, ...]] = {}
    extra: dict[str, tuple[str, ...]] = {}
    for table, columns in COLUMNS.items():
        if table not in tables:
            raise _refused(path, f"it has no table {table}")
        found = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")]
        lower = {name.lower() for name in found}
        if missing := [column for column in columns if column not in lower and column not in LATER]:
            raise _refused(path, f"its table {table} has no column {missing[0]}")
        present[table] = tuple(column for column in columns if column in lower)
        extra[table] = tuple(name for name in found if name.lower() not in columns)
    form = "later" if any(column in present["workflows"] for column in LATER) else "early"
    changed_at = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    return Source(connection, form, present, extra, tuple(sorted(tables - set(COLUMNS))), changed_at)


def _tables(connection: sqlite3.Connection) -> set[str]:
    named = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    )
    return {name.lower() if name.lower() in COLUMNS else name for name in (cast(str, row[0]) for row in named)}


def fingerprint(path: Path) -> str:
    """SHA-256 of the file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refused(path: Path, reason: str) -> BadRequest:
    return BadRequest(
        f"{path.name} is no file of the multi-user system: {reason}. Nothing was changed.", code="not_legacy"
    )
