"""The plans of the hot statements: one run is found by its primary key, also while the tables have no statistics.

Postgres keeps the plan of a prepared statement until it gathers statistics. On a new installation that is the plan for
empty tables, with which thousands of runs may be executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from engine.db import Database, Session
from engine.sql import QUERIES

RUN = {"tenant_id": "a", "run_id": "run_1"}
PROGRESS: dict[str, Any] = {
    **RUN,
    "attempt": 1,
    "checkpoint": 1,
    "status": "running",
    "terminal": False,
    "output": None,
    "error": None,
    "wait_reason": None,
    "wake_seconds": None,
    "begins": True,
    "steps": "[]",
    "lines": "[]",
    "usage": "[]",
}


FILL = """
INSERT INTO tenants (id, name) SELECT 't' || n, 'T' FROM generate_series(1, 300) n;
INSERT INTO workflows (id, tenant_id, name, trigger_type, version)
    SELECT 'wf' || n, 't' || 1 + mod(n, 300), 'W', 'schedule', 1 FROM generate_series(1, 5000) n;
INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)
    SELECT tenant_id, id, 1, '{}', 'h' FROM workflows;
INSERT INTO triggers (tenant_id, workflow_id, type, config, next_fire_at)
    SELECT tenant_id, id, 'schedule', '{}', now() + random() * interval '1 day' FROM workflows;
INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, finished_at, wait_reason, wake_at)
    SELECT w.tenant_id, 'run_' || w.id || '_' || n, w.id, 1, s, 'api', '{}',
           CASE WHEN s = 'succeeded' THEN now() END, CASE WHEN s = 'waiting' THEN 'sleeping' END,
           CASE WHEN s = 'waiting' THEN now() + n * interval '1 hour' END
    FROM workflows w, generate_series(1, 3) n,
         LATERAL (SELECT CASE mod(hashtext(w.id || n), 20)
                             WHEN 0 THEN 'queued' WHEN 1 THEN 'waiting' ELSE 'succeeded' END) states (s);
ANALYZE;
"""


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    database = Database(module_database_url)
    yield database
    database.close()


@pytest.fixture
def filled(database_url: str) -> Iterator[Database]:
    """300 tenants with 15,000 runs, of which most have ended."""
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(FILL)
    engine.dispose()
    database = Database(database_url)
    yield database
    database.close()


def plan(session: Session, name: str, **parameters: Any) -> str:
    """What Postgres would do, as text."""
    driver: Any = session._connection.connection.driver_connection
    rows = driver.execute(f"EXPLAIN {QUERIES[name].text}", parameters).fetchall()
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("begin_run", {**RUN, "stale_seconds": 15.0}), ("save_progress", PROGRESS)],
    ids=["begin_run", "save_progress"],
)
def test_a_run_is_found_by_its_primary_key(database: Database, name: str, parameters: dict[str, Any]) -> None:
    with database.tenant("a") as session:
        text = plan(session, name, **parameters)
    assert "Index Scan using pk_runs on runs" in text, text
    assert "Seq Scan on runs" not in text


def test_what_a_worker_holds_is_found_by_primary_keys(database: Database) -> None:
    with database.system() as session:
        text = plan(session, "heartbeat", tenant_ids=["a"], run_ids=["run_1"], attempts=[1])
    assert "Index Scan using pk_runs on runs" in text, text


def test_what_is_watched_is_found_by_primary_keys(filled: Database) -> None:
    with filled.system() as session:
        text = plan(session, "watched_runs", tenant_ids=["a"] * 10, run_ids=[f"run_{n}" for n in range(10)])
    assert "Index Scan using pk_runs on runs" in text, text
    assert "Seq Scan on runs" not in text


def test_what_was_used_before_a_limit_is_looked_for_by_the_index(database: Database) -> None:
    month = {
        "period": date(2027, 3, 1),
        "start": datetime(2027, 3, 1, tzinfo=UTC),
        "end": datetime(2027, 4, 1, tzinfo=UTC),
    }
    with database.system() as session:
        text = plan(session, "stale_counters", limit=1000, **month)
    assert "Index Scan using ix_usage_tenant_id_at on usage" in text, text


def test_what_a_worker_may_have_lost_is_found_by_primary_keys(database: Database) -> None:
    with database.system() as session:
        text = plan(session, "lost_runs", tenant_ids=["a"], run_ids=["run_1"], attempts=[1])
    assert "Index Scan using pk_runs on runs" in text, text


def test_what_runs_do_to_each_other_is_found_by_indexes(filled: Database) -> None:
    with filled.tenant("t1") as session:
        signal = plan(session, "signal_run", tenant_id="t1", run_id="run_1")
        places = plan(session, "places", tenant_id="t1", workflow_id="wf1", key="", but="run_1")
        place = plan(session, "hand_over", tenant_id="t1", workflow_id="wf1", key="", ending="run_1")
    assert "Index Scan using pk_runs on runs" in signal, signal
    for index in ("ix_runs_places", "ix_runs_line"):
        assert index in place
        assert index in places
    assert "Seq Scan on runs" not in places
    for text in (signal, place):
        assert "Seq Scan on runs" not in text
    with filled.system() as session:
        stranded = plan(session, "stranded_runs", after="", limit=500)
    assert "ix_runs_waits_for_runs" in stranded
    assert "ix_runs_places" in stranded


def test_ticks_look_only_at_what_may_be_due(filled: Database) -> None:
    sweep = {"queued_seconds": 5.0, "silent_seconds": 20.0, "after": "", "limit": 500}
    with filled.system() as session:
        assert "ix_runs_live" in plan(session, "overdue_runs", **sweep)
        assert "ix_runs_wake_at" in plan(session, "wake_runs", limit=500)
        assert "ix_triggers_next_fire_at" in plan(session, "due_triggers", limit=1000, window=20_000)
        assert "pk_triggers" in plan(session, "lock_due_triggers", tenant_ids=["a"] * 50, workflow_ids=["wf"] * 50)
