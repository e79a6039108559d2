"""Databases of the multi-user system on Postgres, clean and with every kind of dirt, written as its releases did."""

from __future__ import annotations

import base64
import json
import os
import uuid
from dataclasses import dataclass, field
from typing import Any

import bcrypt
import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import sql

KEY = bytes(range(32))
PASSWORD = "password123"
EARLY = """
CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT UNIQUE NOT NULL, password_hash TEXT NOT NULL,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE credentials (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, service_name TEXT NOT NULL,
    encrypted_key TEXT NOT NULL, created_at TEXT);
CREATE TABLE workflows (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, name TEXT NOT NULL, trigger_type TEXT NOT NULL,
    action_type TEXT NOT NULL, config_json TEXT, is_active INTEGER DEFAULT 1, last_executed_at TEXT, created_at TEXT);
CREATE TABLE logs (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, status TEXT NOT NULL, message TEXT,
    executed_at TEXT);
"""
MIXED = EARLY + "ALTER TABLE workflows ADD COLUMN action_chain TEXT, ADD COLUMN parameters TEXT;"
"""The later form as a tool that copied the file made it."""
LATER = """
CREATE TABLE users (id UUID PRIMARY KEY, email VARCHAR(255) UNIQUE NOT NULL, password_hash VARCHAR(255) NOT NULL,
    created_at TIMESTAMP DEFAULT now());
CREATE TABLE credentials (id UUID PRIMARY KEY, user_id UUID NOT NULL REFERENCES users ON DELETE CASCADE,
    service_name VARCHAR(50) NOT NULL, encrypted_key TEXT NOT NULL, created_at TIMESTAMP);
CREATE TABLE workflows (id UUID PRIMARY KEY, user_id UUID NOT NULL REFERENCES users ON DELETE CASCADE,
    name TEXT NOT NULL, trigger_type TEXT NOT NULL, action_type TEXT NOT NULL, config_json TEXT NOT NULL,
    is_active BOOLEAN DEFAULT true, last_executed_at TIMESTAMPTZ, created_at TIMESTAMP, action_chain TEXT,
    parameters TEXT);
CREATE TABLE logs (id UUID PRIMARY KEY, workflow_id UUID NOT NULL REFERENCES workflows ON DELETE CASCADE,
    status TEXT NOT NULL, message TEXT, executed_at TIMESTAMPTZ);
"""
TABLES = ("users", "credentials", "workflows", "logs")
COLUMNS = {
    "users": ("id", "email", "password_hash", "created_at"),
    "credentials": ("id", "user_id", "service_name", "encrypted_key", "created_at"),
    "workflows": ("id", "user_id", "name", "trigger_type", "action_type", "config_json", "is_active",
                  "last_executed_at", "created_at"),
    "logs": ("id", "workflow_id", "status", "message", "executed_at"),
}  # fmt: skip

FORMS_OF_A_TIME: list[tuple[str | int | float, str]] = [
    ("2026-01-12 10:11:12", "2026-01-12T10:11:12.000000+00:00"),
    ("2026-01-12T10:11:12Z", "2026-01-12T10:11:12.000000+00:00"),
    ("2026-01-12 10:11:12.123456789-05:00", "2026-01-12T15:11:12.123456+00:00"),
    ("2026-01-12T10:11:12.5+0530", "2026-01-12T04:41:12.500000+00:00"),
    ("2026-01-12 10:11:12+00:00 UTC", "2026-01-12T10:11:12.000000+00:00"),
    ("2026-01-12 10:11:12.123456789 -0500 EST m=+0.000012", "2026-01-12T15:11:12.123456+00:00"),
    ("2026-01-12 10:11:12 +0000 UTC", "2026-01-12T10:11:12.000000+00:00"),
    ("2026-01-12 10:11", "2026-01-12T10:11:00.000000+00:00"),
    ("2026-01-12 10:11:12,5", "2026-01-12T10:11:12.500000+00:00"),
    (" 2026-01-12T10:11:12Z ", "2026-01-12T10:11:12.000000+00:00"),
    ("2026-01-12", "2026-01-12T00:00:00.000000+00:00"),
    ("2016-12-31 23:59:60", "2017-01-01T00:00:00.000000+00:00"),
    ("2199-01-01 00:00:00", "2199-01-01T00:00:00.000000+00:00"),
    (1768212672, "2026-01-12T10:11:12.000000+00:00"),
    ("1768212672", "2026-01-12T10:11:12.000000+00:00"),
    (1768212672123, "2026-01-12T10:11:12.123000+00:00"),
    (1768212672123456789, "2026-01-12T10:11:12.123456+00:00"),
    ("1768212672.5", "2026-01-12T10:11:12.500000+00:00"),
    (1768212672.5, "2026-01-12T10:11:12.500000+00:00"),
]
"""As the releases of the system and the tools around it wrote them, and what they mean."""
NO_TIMES = [
    "", "soon", "2026-02-30 00:00:00", "2026-01-12 25:00:00", "0001-01-01 00:00:00", "9999-12-31 23:59:59-12:00",
    "2026-01-12 10:11:12 and more", "٢٠٢٦-01-12",
]  # fmt: skip


def encrypt(plaintext: str, key: bytes = KEY) -> str:
    """As the old system stored a secret."""
    nonce = os.urandom(12)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, plaintext.encode(), None)).decode()


def examples(short: int) -> int:
    """How many random databases are tried: `short`, unless FAIRLANE_TEST_LEGACY_EXAMPLES says how many."""
    return int(os.environ.get("FAIRLANE_TEST_LEGACY_EXAMPLES", short))


def hashed(password: str = PASSWORD) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2a$")


@dataclass
class Legacy:
    """Rows to be written, by table."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table: [] for table in TABLES})

    def add(self, table: str, **values: Any) -> str:
        values.setdefault("id", str(uuid.uuid4()))
        self.rows[table].append(values)
        row_id: str = values["id"]
        return row_id

    def user(self, email: str, **values: Any) -> str:
        return self.add(
            "users", **{"email": email, "password_hash": "x", "created_at": "2026-01-01 10:11:12", **values}
        )

    def credential(self, user_id: str, service: str, plaintext: str, **values: Any) -> str:
        given = {"encrypted_key": encrypt(plaintext), "created_at": "2026-01-05T10:11:12Z", **values}
        return self.add("credentials", user_id=user_id, service_name=service, **given)

    def workflow(self, user_id: str, trigger: str, action: str, config: Any, **values: Any) -> str:
        given = {"name": "W", "is_active": 1, "last_executed_at": None, "created_at": "2026-01-06 10:11:12", **values}
        text = config if isinstance(config, str) else json.dumps(config)
        return self.add(
            "workflows", user_id=user_id, trigger_type=trigger, action_type=action, config_json=text, **given
        )

    def log(self, workflow_id: str, status: str = "success", **values: Any) -> str:
        given = {"message": f"it was a {status}", "executed_at": "2026-01-07 08:00:00", **values}
        return self.add("logs", workflow_id=workflow_id, status=status, **given)

    def write(self, url: str, schema: str = EARLY) -> None:
        """Make the tables and fill them."""
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute(schema)
            for table in TABLES:
                for row in self.rows[table]:
                    values = row | (
                        {"is_active": bool(row["is_active"])} if "BOOLEAN" in schema and table == "workflows" else {}
                    )
                    connection.execute(
                        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                            sql.Identifier(table),
                            sql.SQL(", ").join(map(sql.Identifier, values)),
                            sql.SQL(", ").join([sql.Placeholder()] * len(values)),
                        ),
                        list(values.values()),
                    )


def dump(url: str) -> dict[str, list[Any]]:
    """The four tables, whole: types of the columns and every row as text."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        described = connection.execute(
            "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"
        ).fetchall()
        found: dict[str, list[Any]] = {"columns": described}
        for table in TABLES:
            query = sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier(table))
            found[table] = connection.execute(query).fetchall()
        return found


def clean() -> Legacy:
    """Three users with what `make_sample.py` gives them, in few rows."""
    legacy, password = Legacy(), hashed()
    for number, email in enumerate(["ada@example.com", "grace@example.com", "linus@example.com"]):
        user = legacy.user(email, password_hash=password)
        legacy.credential(user, "slack", f"http://127.0.0.1:9999/slack/{number}")
        legacy.credential(user, "openweather", f"weather-key-{number}")
        last = "2026-01-12 10:11:12.123456789-05:00"
        for trigger, action, config in [
            ("webhook", "slack_message", {"slack_message": "Order {{order.id}} by {{user.name}}"}),
            ("schedule", "weather_check", {"city": "New York", "interval": 60}),
        ]:
            workflow = legacy.workflow(user, trigger, action, config, last_executed_at=last)
            for day in range(1, 5):
                legacy.log(workflow, "failed" if day == 4 else "success", executed_at=f"2026-01-{day:02} 08:00:00")
    return legacy


def spoil(url: str) -> None:
    """Make the server one that alters what it is given: an end of its own to every email that is carried over."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(
            "CREATE FUNCTION spoil() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF to_regclass('fairlane_legacy.users') IS NOT NULL AND to_regclass('public.tenants') IS NOT NULL THEN"
            " UPDATE public.users SET email = email || '!' WHERE email !~ '!'; END IF; END $$"
        )
        connection.execute(
            "CREATE EVENT TRIGGER spoil ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION spoil()"
        )


def spoil_lines(url: str) -> None:
    """Make the server one that alters one line of the execution log while it is written."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(
            "CREATE FUNCTION spoil_line() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.message := NEW.message || '!'; RETURN NEW; END $$;"
            "CREATE FUNCTION spoil() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF to_regclass('public.execution_logs') IS NOT NULL THEN"
            " CREATE OR REPLACE TRIGGER spoil_line BEFORE INSERT ON public.execution_logs FOR EACH ROW"
            " WHEN (NEW.seq = 5) EXECUTE FUNCTION public.spoil_line(); END IF; END $$;"
            "CREATE EVENT TRIGGER spoil ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION spoil()"
        )
