"""How long an adoption takes, and how much memory the command needs: ``python bench/adoption.py [LOG ROWS]``.

A multi-user database of 1,000 workflows and so many log rows (a million unless given) is adopted on an embedded
Postgres of its own, and taken back. The peak is that of this process; the rows are made by Postgres.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import psycopg

import actions
from embedded.postgres import PostgresServer
from engine.vault import MasterKeyRing, Vault
from migrations.legacy import adopt
from migrations.legacy.road import Parts
from triggers import KINDS

ROWS = """
CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT UNIQUE NOT NULL, password_hash TEXT NOT NULL, created_at TEXT);
CREATE TABLE credentials (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, service_name TEXT NOT NULL,
    encrypted_key TEXT NOT NULL, created_at TEXT);
CREATE TABLE workflows (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, name TEXT NOT NULL, trigger_type TEXT NOT NULL,
    action_type TEXT NOT NULL, config_json TEXT, is_active INTEGER, last_executed_at TEXT, created_at TEXT);
CREATE TABLE logs (id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL, status TEXT NOT NULL, message TEXT,
    executed_at TEXT);
INSERT INTO users SELECT gen_random_uuid(), 'user' || n || '@example.com', 'x', '2026-01-01 10:11:12'
    FROM generate_series(1, 500) n;
INSERT INTO workflows SELECT gen_random_uuid(), id, 'W', 'webhook', 'slack_message', '{"slack_message": "{{a}}"}', 1,
    NULL, '2026-01-01 10:11:12' FROM users, generate_series(1, 2);
INSERT INTO logs SELECT gen_random_uuid(), w.id, CASE WHEN n % 4 = 3 THEN 'failed' ELSE 'success' END,
    'Daily weather: it was done', '2026-01-12 10:11:12.123456789-05:00'
    FROM (SELECT id FROM workflows) w, generate_series(1, {each}) n;
"""


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder), fast=True).start()
        try:
            with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
                connection.execute(ROWS.replace("{each}", str(rows // 1000)).encode())
            measure(server.url)
        finally:
            server.stop()


def measure(url: str) -> None:
    """Adopt and take back; print how long each stage took."""
    stages: dict[str, float] = {}
    last = began = time.perf_counter()

    def note(stage: str, _done: int, _total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = stages.get(stage, 0.0) + now - last
        last = now

    parts = Parts(Vault(MasterKeyRing({"k": b"1" * 32})), actions.build(), KINDS, None)
    conversion = adopt.adopt(url, parts, note)
    took = time.perf_counter() - began
    began = time.perf_counter()
    adopt.take_back(url, discard_new=False, progress=lambda *_: None)
    back = time.perf_counter() - began
    for stage, seconds in stages.items():
        print(f"{stage:<28} {seconds:>8.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    logs = conversion.counts["logs"]
    print(f"RESULT adoption rows={logs.carried} seconds={took:.0f} back_seconds={back:.1f} peak_mib={peak}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
