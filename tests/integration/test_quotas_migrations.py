"""The way into and out of quotas: what plans say afterwards, and what the ledger counts before and after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

import migrations

RUN = (
    "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, finished_at, wait_reason)"
    " VALUES ('acme', :id, 'wf_1', 1, :status, 'api', '{}', CASE WHEN :ended THEN now() END, :reason)"
)
LEDGER = (
    "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, quantity, seconds)"
    " VALUES ('acme', :kind, :run, 'wf_1', :n, :s)"
)
OLD_FREE = {
    "weight": 1, "max_workflows": 20, "max_executions_per_month": 10000, "max_concurrent_runs": 20,
    "max_runs_per_minute": None, "max_queued_runs": 10000, "max_members": 5, "max_credentials": 20,
    "max_run_seconds": 900, "min_poll_interval": 60, "log_retention_days": 7,
}  # fmt: skip


@pytest.fixture
def connection(empty_database_url: str) -> Iterator[Connection]:
    engine = sa.create_engine(empty_database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _workflow(connection: Connection) -> None:
    connection.exec_driver_sql(
        "INSERT INTO tenants (id, name) VALUES ('acme', 'Acme');"
        " INSERT INTO workflows (id, tenant_id, name, trigger_type, version) VALUES ('wf_1', 'acme', 'W', 'manual', 1);"
        " INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
        " VALUES ('acme', 'wf_1', 1, '{}', 'h')"
    )


def _run(connection: Connection, run_id: str, status: str, *, ended: bool = False, reason: str | None = None) -> None:
    connection.execute(sa.text(RUN), {"id": run_id, "status": status, "ended": ended, "reason": reason})


def _used(connection: Connection, run_id: str, kind: str, quantity: int, seconds: float) -> None:
    connection.execute(sa.text(LEDGER), {"kind": kind, "run": run_id, "n": quantity, "s": seconds})


def _ledger(connection: Connection) -> list[tuple[Any, ...]]:
    found = connection.execute(
        sa.text("SELECT kind, run_id, quantity, seconds FROM usage ORDER BY run_id, kind, seconds")
    )
    return [tuple(row) for row in found]


def _limits(connection: Connection) -> dict[str, Any]:
    return {row.name: row.limits for row in connection.execute(sa.text("SELECT name, limits FROM plans"))}


def test_plans_that_nobody_changed_get_the_limits_that_new_ones_have(
    empty_database_url: str, connection: Connection
) -> None:
    migrations.upgrade(empty_database_url, "0014")
    seeded = _limits(connection)
    narrow = {"max_workflows": 200, "max_members": 50, "max_credentials": 200, "min_poll_interval": 30}
    changed = OLD_FREE | {"max_members": 6}
    for name, limits in {
        "free": OLD_FREE,
        "team": seeded["team"] | narrow,
        "enterprise": seeded["enterprise"] | {"min_poll_interval": 10},
        "ours": changed,
    }.items():
        connection.execute(
            sa.text(
                "INSERT INTO plans VALUES (:name, :limits, 1) ON CONFLICT (name) DO UPDATE SET limits = excluded.limits"
            ),
            {"name": name, "limits": json.dumps(limits)},
        )
    migrations.upgrade(empty_database_url, "0015")
    assert _limits(connection) == seeded | {"ours": changed}


def test_back_before_quotas_the_ledger_counts_what_has_ended_and_keeps_its_seconds(
    empty_database_url: str, connection: Connection
) -> None:
    migrations.upgrade(empty_database_url, "0013")
    _workflow(connection)
    _run(connection, "run_1", "succeeded", ended=True)
    _run(connection, "run_2", "waiting", reason="sleeping")
    _used(connection, "run_1", "execution", 1, 2.5)
    _used(connection, "run_2", "execution", 0, 1.5)
    before = _ledger(connection)

    migrations.upgrade(empty_database_url, "0015")
    counted = "SELECT sum(quantity) FROM usage WHERE kind = 'execution'"
    assert connection.execute(sa.text(counted)).scalar_one() == 2
    _run(connection, "run_3", "succeeded", ended=True)
    _run(connection, "run_4", "queued")
    for run_id in ("run_3", "run_4"):
        _used(connection, run_id, "execution", 1, 0)
        _used(connection, run_id, "worker_seconds", 1, 4)

    migrations.downgrade(empty_database_url, "0013")
    assert _ledger(connection) == [
        *before,
        ("execution", "run_3", 1, 0),
        ("execution", "run_3", 0, 4),
        ("execution", "run_4", 0, 4),
    ]


def test_there_is_no_way_back_while_runs_are_held_over_a_quota(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url, "0015")
    _workflow(connection)
    _run(connection, "run_1", "held", reason="quota")
    with pytest.raises(RuntimeError, match="runs are held over a quota"):
        migrations.downgrade(empty_database_url, "0013")
    connection.exec_driver_sql("UPDATE runs SET status = 'cancelled', wait_reason = NULL, finished_at = now()")
    migrations.downgrade(empty_database_url, "0013")
    _run(connection, "run_2", "held", reason="poll_flood")
    migrations.upgrade(empty_database_url, "0015")
    migrations.downgrade(empty_database_url, "0013")


def test_a_ledger_that_nobody_wrote_to_ends_before_its_first_row(
    empty_database_url: str, connection: Connection
) -> None:
    migrations.upgrade(empty_database_url, "0015")
    _workflow(connection)
    settle = sa.text("SELECT settle_usage()")
    assert connection.execute(settle).scalar_one() == 0
    _used(connection, "run_1", "execution", 1, 0)
    assert connection.execute(settle).scalar_one() == 1
