"""SQLite files of the multi-user system, in both forms, written as its releases did."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.legacy_database import Legacy

SCHEMA = """
CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT UNIQUE NOT NULL, password_hash TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE credentials (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, service_name TEXT NOT NULL,
  encrypted_key TEXT NOT NULL, created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
  FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE);
CREATE TABLE workflows (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, name TEXT NOT NULL, trigger_type TEXT NOT NULL,
  action_type TEXT NOT NULL, config_json TEXT NOT NULL, {later} is_active BOOLEAN DEFAULT 1,
  last_executed_at DATETIME, created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
  FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE);
CREATE TABLE logs (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, status TEXT NOT NULL, message TEXT,
  executed_at DATETIME DEFAULT CURRENT_TIMESTAMP,
  FOREIGN KEY (workflow_id) REFERENCES workflows(id) ON DELETE CASCADE);
"""
LATER = "action_chain TEXT, parameters TEXT,"
LOOSE = """
CREATE TABLE users (id, email, password_hash, created_at);
CREATE TABLE credentials (id, user_id, service_name, encrypted_key, created_at);
CREATE TABLE workflows (id, user_id, name, trigger_type, action_type, config_json, action_chain, parameters, is_active,
  last_executed_at, created_at);
CREATE TABLE logs (id, workflow_id, status, message, executed_at);
"""
"""The same columns without a type or a constraint: what tools leave behind that copy tables."""


def write(path: Path, legacy: Legacy, *, later: bool = True, schema: str | None = None) -> Path:
    """Make the file and fill it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(schema or SCHEMA.format(later=LATER if later else ""))
        for table, rows in legacy.rows.items():
            for row in rows:
                holes = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({holes})", list(row.values()))
        connection.commit()
    return path


def write_loose(path: Path, rows: Mapping[str, Sequence[Sequence[Any]]]) -> Path:
    """Make a file without types from rows in the order of its columns."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(LOOSE)
        for table, found in rows.items():
            for row in found:
                connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        connection.commit()
    return path
