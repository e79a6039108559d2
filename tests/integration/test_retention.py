"""Runs are kept as long as the plan says, on a real Postgres: what goes, what stays, and what others see of it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from engine import audit, db
from engine.audit import Sealer
from engine.db import Database, Row
from engine.errors import NotFound, Unavailable
from engine.replay import Replays, Wish
from engine.repository import replays
from engine.retention import Result, Retention
from engine.runs import Runs, Start
from engine.sql import QUERIES
from tests.engine_parts import ListPublisher

NOW = datetime(2027, 3, 31, 12, tzinfo=UTC)


class World:
    """Organizations ``acme`` and ``beta`` that keep runs for 30 days, with a workflow each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url)
        for tenant in ("acme", "beta"):
            self.fill(
                f"INSERT INTO tenants (id, name, limits) VALUES ('{tenant}', 'T', '{{\"log_retention_days\": 30}}');"
                "INSERT INTO workflows (id, tenant_id, name, trigger_type, version)"
                f" VALUES ('wf_{tenant}', '{tenant}', 'W', 'manual', 1);"
                "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
                f" VALUES ('{tenant}', 'wf_{tenant}', 1, '{{}}', 'h')"
            )

    def fill(self, statements: str) -> None:
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statements)
        engine.dispose()

    def ended(self, *run_ids: str, days: float = 31, tenant: str = "acme", **more: str | None) -> None:
        """Runs that ended so long ago, each with a step and a line."""
        values: dict[str, Any] = {"trigger": "api", "status": "succeeded", "parent_run_id": None, **more}
        with self.database.system() as session:
            for run_id in run_ids:
                session.execute(
                    sa.text(
                        "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, finished_at,"
                        f" idempotency_key, parent_run_id) VALUES ('{tenant}', :id, 'wf_{tenant}', 1, :status,"
                        " :trigger, '{}', :at, :id, :parent_run_id)"
                    ),
                    {"id": run_id, "at": NOW - timedelta(days=days), **values},
                )
                step = f"VALUES ('{tenant}', :id, 's', 'succeeded', 1, '1', now())"
                line = f"VALUES ('{tenant}', :id, 'info', 'm')"
                for statement in (
                    f"INSERT INTO steps (tenant_id, run_id, step_id, status, attempt, output, finished_at) {step}",
                    f"INSERT INTO execution_logs (tenant_id, run_id, level, message) {line}",
                ):
                    session.execute(sa.text(statement), {"id": run_id})

    def under_way(self, run_id: str, **more: str) -> None:
        names = ", ".join(["tenant_id", "id", "workflow_id", "version", "input", "trigger", *more])
        values = ", ".join(f"'{value}'" for value in more.values())
        self.fill(f"INSERT INTO runs ({names}) VALUES ('acme', '{run_id}', 'wf_acme', 1, '{{}}', 'api', {values})")

    def limit(self, value: str, tenant: str = "acme") -> None:
        self.fill(f"UPDATE tenants SET limits = '{{\"log_retention_days\": {value}}}' WHERE id = '{tenant}'")

    def expire(self, **options: Any) -> Result:
        return Retention(self.database, **options).run_once(NOW)

    def rows(self, statement: str) -> list[Row]:
        with self.database.system() as session:
            return session.rows(sa.text(statement))

    def runs(self, tenant: str = "acme") -> list[str]:
        return [row["id"] for row in self.rows(f"SELECT id FROM runs WHERE tenant_id = '{tenant}' ORDER BY id")]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    world = World(database_url)
    yield world
    world.database.close()


def test_a_run_that_ended_before_the_days_of_the_plan_goes_with_all_that_is_its_own(world: World) -> None:
    world.ended("old", days=30.1)
    world.ended("young", days=29.9)
    with capture_logs() as lines:
        assert world.expire() == Result(runs=1)
    assert [{k: line[k] for k in ("event", "tenant", "count")} for line in lines] == [
        {"event": "runs_expired", "tenant": "acme", "count": 1}
    ]
    for table in ("runs", "steps", "execution_logs"):
        column = "id" if table == "runs" else "run_id"
        assert world.rows(f"SELECT {column} AS id FROM {table}") == [{"id": "young"}], table
    assert world.expire() == Result()


def test_each_organization_has_its_own_days_and_without_the_limit_runs_stay(world: World) -> None:
    world.ended("a1", days=400)
    world.ended("b1", days=400, tenant="beta")
    world.ended("b2", days=100, tenant="beta")
    world.limit("null")
    world.limit("365", tenant="beta")
    assert world.expire() == Result(runs=1)
    assert (world.runs(), world.runs("beta")) == (["a1"], ["b2"])
    world.limit("1000000000")
    assert world.expire() == Result()
    world.limit("399")
    assert world.expire() == Result(runs=1)


def test_the_days_of_the_plan_count_where_the_organization_has_none_of_its_own(world: World) -> None:
    world.fill("UPDATE tenants SET limits = '{}'; UPDATE plans SET limits = limits || '{\"log_retention_days\": 7}'")
    world.ended("old", days=8)
    world.ended("young", days=6)
    assert world.expire() == Result(runs=1)
    assert world.runs() == ["young"]


def test_what_is_under_way_stays_with_the_runs_that_it_reads(world: World) -> None:
    world.under_way("asleep", status="waiting", wait_reason="sleeping", queued_at="2020-01-01")
    world.under_way("held", status="held", wait_reason="quota", queued_at="2020-01-01")
    world.ended("child", parent_run_id="asleep")
    world.ended("parent")
    world.ended("orphan", "child_of_ended", parent_run_id="parent")
    assert world.expire() == Result(runs=3)
    assert world.runs() == ["asleep", "child", "held"]
    world.fill(
        "UPDATE runs SET status = 'cancelled', wait_reason = NULL, finished_at = '2020-02-01' WHERE id = 'asleep'"
    )
    assert world.expire() == Result(runs=2)
    assert world.runs() == ["held"]


def test_imported_runs_the_ledger_and_the_log_of_the_older_system_stay(world: World) -> None:
    world.ended("imported", trigger="legacy", days=4000)
    world.ended("own")
    world.fill(
        "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, at)"
        " VALUES ('acme', 'execution', 'own', 'wf_acme', '2026-01-01');"
        "INSERT INTO logs (id, workflow_id, tenant_id, status, executed_at)"
        " VALUES ('log_1', 'wf_acme', 'acme', 'success', '2020-01-01')"
    )
    assert world.expire() == Result(runs=1)
    assert world.runs() == ["imported"]
    assert world.rows("SELECT run_id FROM usage") == [{"run_id": "own"}]
    assert world.rows("SELECT id FROM logs") == [{"id": "log_1"}]


def test_the_audit_vouches_for_decryptions_of_runs_that_are_gone(world: World) -> None:
    world.ended("old", "older")
    for run_id in ("old", "older"):  # one sealed before, one after its run is gone
        world.fill(
            "INSERT INTO decryptions (tenant_id, credential_id, run_id, step_id, attempt)"
            f" VALUES ('acme', 'cred_1', '{run_id}', 's', 1)"
        )
        assert (run_id == "older") or Sealer(world.database).run_once() == 1
    assert world.expire() == Result(runs=2)
    assert Sealer(world.database).run_once() == 1
    with world.database.tenant("acme") as session:
        entries = list(audit.entries(session))
    assert audit.verify(entries).fault is None
    assert [row["run_id"] for entry in entries for row in entry["decryptions"]] == ["old", "older"]


def test_a_deleted_organization_loses_nothing_before_it_is_erased(world: World) -> None:
    world.ended("old")
    world.fill("UPDATE tenants SET status = 'deleted', erase_after = now() + interval '1 day'")
    assert world.expire() == Result()
    world.fill("UPDATE tenants SET status = 'suspended', erase_after = NULL")
    assert world.expire() == Result(runs=1)


def test_two_at_once_delete_everything_once_and_in_batches(world: World) -> None:
    for tenant in ("acme", "beta"):
        world.ended(*(f"{tenant}_{n:02}" for n in range(30)), tenant=tenant)
    with ThreadPoolExecutor(2) as crew:
        results = list(crew.map(lambda _: world.expire(batch=7), range(2)))
    results.append(world.expire(batch=7))
    assert sum(result.runs for result in results) == 60
    assert (world.runs(), world.runs("beta")) == ([], [])


def test_a_pass_deletes_the_oldest_first_and_leaves_the_rest_to_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.retention.MAX_BATCHES", 2)
    for n in range(6):
        world.ended(f"run_{n}", days=40 - n)
    assert world.expire(batch=2, clock=_over_at(1)) == Result(runs=4)
    assert world.runs() == ["run_4", "run_5"]
    assert world.expire(batch=2) == Result(runs=2)


def _over_at(looks: int) -> Callable[[], float]:
    """A clock by which the time of a pass is over at that look after the first."""
    times = itertools.chain([0.0] * looks, itertools.repeat(1000.0))
    return lambda: next(times)


def test_while_there_is_time_whoever_has_more_gets_it_after_everybody_had_his_share(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.retention.MAX_BATCHES", 2)
    world.ended(*(f"run_{n}" for n in range(11)))
    world.ended(*(f"theirs_{n}" for n in range(5)), tenant="beta")
    with capture_logs() as lines:
        assert world.expire(batch=2) == Result(runs=16)
    assert [(line["tenant"], line["count"]) for line in lines] == [
        ("acme", 4), ("beta", 4), ("acme", 4), ("beta", 1), ("acme", 3),
    ]  # fmt: skip


def test_a_pass_ends_when_its_time_is_over_and_the_next_begins_with_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.retention.MAX_BATCHES", 1)
    world.ended(*(f"run_{n}" for n in range(9)))
    world.ended(*(f"theirs_{n}" for n in range(9)), tenant="beta")
    retention = Retention(world.database, batch=1, clock=_over_at(2))
    with capture_logs() as lines:
        assert retention.run_once(NOW) == Result(runs=3)
        assert retention.run_once(NOW).runs > 10
    assert [line["tenant"] for line in lines][:5] == ["acme", "beta", "acme", "beta", "acme"]


def test_rows_that_somebody_else_holds_stop_no_other_organization(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ended("a")
    world.ended("b", tenant="beta")
    monkeypatch.setitem(db.CONNECT, "options", "-c lock_timeout=50ms")
    with contextlib.closing(Database(world.url)) as hasty, world.database.tenant("acme") as holder:
        holder.execute(sa.text("UPDATE steps SET output = '2'"))
        assert Retention(hasty).run_once(NOW) == Result(runs=1, failed=1)
    assert (world.runs(), world.runs("beta")) == (["a"], [])


REFUSES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {body} RETURN OLD; END $$;
CREATE TRIGGER refuse BEFORE DELETE ON runs FOR EACH ROW WHEN (OLD.tenant_id = 'acme') EXECUTE FUNCTION refuse();
"""


def test_the_error_of_one_organization_does_not_stop_the_others(world: World) -> None:
    world.fill(REFUSES.format(body="RAISE EXCEPTION 'no';"))
    world.ended("a")
    world.ended("b", tenant="beta")
    with capture_logs() as lines:
        assert world.expire() == Result(runs=1, failed=1)
    assert [(line["event"], line["tenant"]) for line in lines] == [
        ("retention_failed", "acme"),
        ("runs_expired", "beta"),
    ]
    assert (world.runs(), world.runs("beta")) == (["a"], [])


def test_a_batch_that_takes_too_long_is_tried_with_fewer_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(REFUSES.format(body="PERFORM pg_sleep(0.03);"))
    world.ended(*(f"run_{n:02}" for n in range(20)))
    monkeypatch.setitem(db.CONNECT, "options", "-c statement_timeout=300ms")
    with contextlib.closing(Database(world.url)) as hasty:
        assert Retention(hasty, batch=16).run_once(NOW) == Result(runs=20)


def test_while_postgres_is_away_the_pass_ends(world: World) -> None:
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable):
        Retention(away).run_once(NOW)


def test_a_run_that_somebody_replays_now_is_left_for_the_next_pass(world: World) -> None:
    world.ended("old")
    with world.database.tenant("acme") as session:
        assert replays.original(session, "old") is not None
        assert world.expire() == Result()
        assert len(replays.steps_of(session, "old")) == 1
    assert world.expire() == Result(runs=1)
    gone = pytest.raises(NotFound, match="no run old, or no more: runs are kept as long as the plan says")
    with gone, world.database.tenant("acme") as session:
        Replays(Runs(ListPublisher()), {}).start(session, Wish(run_id="old"))


def test_a_key_is_known_as_long_as_its_run(world: World) -> None:
    world.ended("webhook:young", days=29)
    world.ended("webhook:old")
    world.expire()
    runs = Runs(ListPublisher())
    with world.database.tenant("acme") as session:
        for key, existing in (("webhook:young", True), ("webhook:old", False)):
            request = Start(workflow_id="wf_acme", trigger="webhook", input={}, idempotency_key=key)
            assert runs.start(session, request).existing is existing


def test_expired_runs_are_found_by_their_index(world: World) -> None:
    parameters = {"tenant_id": "acme", "at": NOW, "limit": 100}
    with world.database.system() as session:
        driver: Any = session._connection.connection.driver_connection
        for name in ("tenants_with_expired_runs", "delete_expired_runs"):
            rows = driver.execute(f"EXPLAIN {QUERIES[name].text}", parameters).fetchall()
            plan = "\n".join(row[0] for row in rows)
            assert "Index Scan using ix_runs_ended on runs r" in plan, plan
            assert "Seq Scan on runs" not in plan, plan
