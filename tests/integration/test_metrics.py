"""The totals behind the Prometheus series: what is counted when, once, and under whose name."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg import errors as pg

from engine import metrics
from engine.db import Database
from engine.errors import Unavailable
from engine.ports import Json, StepContext
from engine.repository import metrics as stored
from engine.tallies import Flusher
from engine.usage import RollUp
from tests.engine_parts import Parts, parts_for
from tests.fairshare_waiting import until
from tests.scripted import WorkerDied, call, scripted

ROOT = Path(__file__).parents[2]
Labels = tuple[str | None, tuple[str, ...]]
ECHO = {"id": "a", "action": "debug.echo", "with": {"text": "hello"}}


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def roll_up(parts: Parts, *, labels: int = 50) -> int:
    return RollUp(parts.database, labels=labels).run_once().rows


def totals(parts: Parts) -> dict[str, dict[Labels, float]]:
    """By series, then by tenant (None: others) and labels."""
    found: dict[str, dict[Labels, float]] = {}
    with parts.database.system() as session:
        for row in stored.totals(session):
            found.setdefault(row["series"], {})[(row["tenant"], tuple(row["labels"]))] = row["value"]
    return found


def use(parts: Parts, tenant: str, seconds: float, runs: int = 1) -> None:
    """A tenant's runs, as far as metrics know of them."""
    with parts.database.system() as session:
        session.execute(sa.text(f"INSERT INTO tenants (id, name) VALUES ('{tenant}', 'T') ON CONFLICT DO NOTHING"))
        with session.acting_for(tenant) as own:
            own.execute(
                sa.text(
                    "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, seconds)"
                    f" VALUES ('{tenant}', 'worker_seconds', 'r', 'w', {seconds})"
                )
            )
            own.execute(
                sa.text(
                    "INSERT INTO metric_events (tenant, kind, seconds, status, trigger)"
                    f" SELECT '{tenant}', 'ended', 1, 'succeeded', 'api' FROM generate_series(1, {runs})"
                )
            )


def runs_of(parts: Parts) -> dict[str | None, float]:
    return {tenant: value for (tenant, _), value in totals(parts).get("runs", {}).items()}


def test_a_run_counts_with_its_state_its_times_and_its_calls(parts: Parts) -> None:
    parts.execute(ECHO)
    roll_up(parts)
    found = totals(parts)
    assert found["runs"] == {("acme", ("succeeded", "api")): 1}
    assert found["action_calls"] == {(None, ("debug.echo", "succeeded")): 1}
    assert sum(found["run_seconds"].values()) == sum(found["queue_wait_seconds"].values()) == 1
    row = parts.rows("SELECT extract(epoch FROM finished_at - queued_at)::float8 AS took FROM runs")[0]
    assert found["run_seconds_sum"] == {(None, ()): pytest.approx(row["took"])}
    assert found["worker_seconds"][("acme", ())] == pytest.approx(
        parts.rows("SELECT sum(seconds) AS s FROM usage WHERE kind = 'worker_seconds'")[0]["s"]
    )


def test_a_run_that_is_cancelled_before_anybody_had_it_has_waited_for_nothing(parts: Parts) -> None:
    parts.workflow(ECHO)
    assert parts.cancel(parts.start())
    roll_up(parts)
    found = totals(parts)
    assert found["runs"] == {("acme", ("cancelled", "api")): 1}
    assert "queue_wait_seconds" not in found


def test_a_run_whose_worker_died_counts_once(parts: Parts, script: SimpleNamespace) -> None:
    def die(_context: StepContext, _parameters: Any) -> Json:
        raise WorkerDied

    script.body = die
    parts.workflow(call("a"))
    run_id = parts.start()
    with pytest.raises(WorkerDied):
        parts.executor.run("acme", run_id)
    roll_up(parts)
    script.body = lambda _context, _parameters: {"ok": True}
    parts.silence()
    parts.publisher.messages.clear()
    parts.sweep_and_run()
    assert parts.run_row(run_id)["attempt"] == 2
    roll_up(parts)
    found = totals(parts)
    assert sum(found["runs"].values()) == 1
    assert sum(found["queue_wait_seconds"].values()) == 1


@pytest.mark.parametrize("limit", ["max_queued_runs", "max_executions_per_month"])
def test_a_held_run_counts_with_the_limit_that_it_is_over(parts: Parts, limit: str) -> None:
    parts.workflow(ECHO)
    parts.fill(f"UPDATE tenants SET limits = jsonb_build_object('{limit}', 1)")
    for _ in range(4):
        parts.start(trigger="schedule")
    roll_up(parts)
    assert totals(parts)["quota_held"] == {("acme", (limit,)): 3}


def test_a_run_that_is_held_for_others_alone_is_over_no_limit(parts: Parts) -> None:
    parts.workflow(ECHO)
    parts.fill("""UPDATE tenants SET limits = '{"max_executions_per_month": 1, "max_queued_runs": null}'""")
    for _ in range(2):
        parts.start(trigger="schedule")
    parts.fill("UPDATE quota_counters SET monthly = -1")
    parts.start(trigger="schedule")
    for limits in ('"max_executions_per_month": 9', '"max_queued_runs": 2, "max_executions_per_month": null'):
        parts.fill(f"UPDATE tenants SET limits = '{{{limits}}}'")
        parts.start(trigger="schedule")
    roll_up(parts)
    assert totals(parts)["quota_held"] == {
        ("acme", ("max_executions_per_month",)): 2,
        ("acme", ("line",)): 1,
        ("acme", ("max_queued_runs",)): 1,
    }


def test_what_a_transaction_undoes_was_never_counted(parts: Parts) -> None:
    parts.workflow(ECHO)
    run_id = parts.start()
    with contextlib.suppress(LookupError), parts.database.tenant("acme") as session:
        assert parts.runs.cancel(session, run_id, by="user_ada")
        raise LookupError
    assert parts.run_row(run_id)["status"] == "queued"
    roll_up(parts)
    assert "runs" not in totals(parts)


def test_roll_ups_at_once_count_once(parts: Parts) -> None:
    for _ in range(5):
        use(parts, "acme", 2.0, runs=20)
    with ThreadPoolExecutor(8) as crew:
        list(crew.map(lambda _: roll_up(parts), range(8)))
    roll_up(parts)
    assert totals(parts)["runs"] == {("acme", ("succeeded", "api")): 100}
    assert totals(parts)["worker_seconds"] == {("acme", ()): 10}


def test_a_database_that_came_from_another_cluster_counts_nothing_twice(parts: Parts) -> None:
    use(parts, "acme", 2.0, runs=3)
    roll_up(parts)
    parts.fill("UPDATE usage_rollups SET cluster = 7")
    use(parts, "acme", 4.0)  # before the first roll-up there: in the books, and not in this
    assert roll_up(parts) == 2
    use(parts, "acme", 8.0)
    roll_up(parts)
    assert totals(parts)["worker_seconds"] == {("acme", ()): 10}
    assert totals(parts)["runs"] == {("acme", ("succeeded", "api")): 5}


def test_a_bucket_holds_what_took_as_long_as_its_bound_and_none_holds_the_rest(parts: Parts) -> None:
    with parts.database.tenant("acme") as session:
        for seconds in (0.05, 0.0500001, 1e9):
            session.execute(
                sa.text(
                    "INSERT INTO metric_events (tenant, kind, seconds, status, trigger)"
                    f" VALUES ('acme', 'ended', {seconds}, 'failed', 'api')"
                )
            )
    roll_up(parts)
    assert totals(parts)["run_seconds"] == {(None, ("0.05",)): 1, (None, ("0.1",)): 1, (None, ("",)): 1}


def test_no_more_tenants_have_a_label_than_may_and_nothing_ever_goes_down(parts: Parts) -> None:
    tenants = [f"t{n}" for n in range(5)]
    before: dict[str | None, float] = {}
    for round_, busy in enumerate((0, 1, 2, 3, 4, 0)):
        for n, tenant in enumerate(tenants):
            use(parts, tenant, 1000 * 10**round_ if n == busy else 1)
        roll_up(parts, labels=2)
        now = runs_of(parts)
        assert len(now) == 3
        assert f"t{busy}" in now
        assert all(now[tenant] >= before.get(tenant, 0) for tenant in now)
        before |= now
    assert sum(before.values()) == 30
    assert before["t0"] == 3  # in the first two rounds, when it was among the first, and now that it is again


def test_without_labels_all_are_the_others(parts: Parts) -> None:
    use(parts, "acme", 1)
    roll_up(parts, labels=0)
    assert runs_of(parts) == {None: 1}


def test_what_was_used_long_ago_fades(parts: Parts) -> None:
    use(parts, "once", 3600)
    roll_up(parts, labels=1)
    with parts.database.system() as session:
        session.execute(sa.text("UPDATE metric_tenants SET score = score - 24 / 6.0"))  # a day passes
    use(parts, "now", 100)
    roll_up(parts, labels=1)
    assert set(runs_of(parts)) == {"now"}


def test_an_erased_organization_takes_its_label_along(parts: Parts) -> None:
    use(parts, "acme", 1)
    use(parts, "gone", 1)
    roll_up(parts)
    use(parts, "gone", 1)
    with parts.database.system() as session:
        session.execute(sa.text("DELETE FROM tenants WHERE id = 'gone'"))
    roll_up(parts)
    assert runs_of(parts) == {"acme": 1, None: 1}  # what was not folded yet belongs to nobody
    with parts.database.system() as session:
        for table in ("metric_tenants", "metric_totals", "metric_events"):
            assert "gone" not in set(session.execute(sa.text(f"SELECT tenant FROM {table}")).scalars())


def test_a_tenant_sees_no_metrics_and_notes_nothing_of_another(parts: Parts) -> None:
    for statement in (
        "SELECT * FROM metric_events",
        "SELECT * FROM metric_tenants",
        "SELECT * FROM metric_totals",
        "INSERT INTO metric_events (tenant, kind, seconds) VALUES ('other', 'begun', 1)",
    ):
        with pytest.raises(sa.exc.ProgrammingError) as caught, parts.database.tenant("acme") as session:
            session.execute(sa.text(statement))
        assert isinstance(caught.value.orig, pg.InsufficientPrivilege)


def test_what_came_from_the_older_system_is_not_counted(parts: Parts) -> None:
    parts.workflow(ECHO)
    run_id = parts.start()
    parts.fill("UPDATE runs SET trigger = 'legacy'")
    assert parts.cancel(run_id)
    roll_up(parts)
    assert "runs" not in totals(parts)


WOKEN: metrics.Key = ("sweeper_repairs", ("woken",))
SILENT: metrics.Key = ("sweeper_repairs", ("silent",))


def repairs(parts: Parts) -> dict[str, float]:
    return {labels[0]: value for (_, labels), value in totals(parts).get("sweeper_repairs", {}).items()}


def test_tallies_of_many_threads_and_processes_add_up(parts: Parts) -> None:
    def process(_: int) -> None:
        tallies = metrics.Tallies()

        def thread(_: int) -> None:
            for _ in range(50):
                tallies.add(WOKEN, 1)
                tallies.add(SILENT, 2)
                Flusher(parts.database, tallies).run_once()

        with ThreadPoolExecutor(2) as crew:
            list(crew.map(thread, range(2)))
        assert Flusher(parts.database, tallies).run_once() == 0

    with ThreadPoolExecutor(2) as crew:
        list(crew.map(process, range(2)))
    assert repairs(parts) == {"woken": 200, "silent": 400}


def test_tallies_are_kept_while_postgres_is_away(parts: Parts) -> None:
    tallies = metrics.Tallies()
    tallies.add(WOKEN, 3)
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(Unavailable):
        Flusher(away, tallies).run_once()
    tallies.add(WOKEN, 1)
    Flusher(parts.database, tallies).run_once()
    assert repairs(parts) == {"woken": 4}


def test_a_flusher_flushes_by_itself_and_once_more_when_it_is_stopped(parts: Parts) -> None:
    tallies = metrics.Tallies()
    flusher = Flusher(parts.database, tallies).start(every=timedelta(milliseconds=1))
    tallies.add(WOKEN, 1)
    until(lambda: repairs(parts) == {"woken": 1})
    flusher.stop()
    flusher = Flusher(parts.database, tallies).start(every=timedelta(hours=1))
    tallies.add(WOKEN, 1)
    flusher.stop()
    assert repairs(parts) == {"woken": 2}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_flushes_nothing_of_its_parent() -> None:
    tallies = metrics.Tallies()
    tallies.add(WOKEN, 1)
    child = os.fork()
    if child == 0:
        os._exit(len(tallies.take()))
    assert os.waitpid(child, 0)[1] == 0
    assert tallies.take() == {WOKEN: 1}


def test_a_child_of_prefork_flushes_at_its_end(parts: Parts) -> None:
    """It ends by `os._exit`, as celery's pool has it."""
    ends = (
        "import os, tasks\n"
        "from celery import signals\n"
        "from engine.metrics import HANDED_BACK\n"
        "tasks.services()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    HANDED_BACK.inc(reason='newer')\n"
        "    signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)\n"
        "    os._exit(0)\n"
        "os._exit(os.waitpid(child, 0)[1])\n"
    )
    environment = {
        **os.environ,
        "FAIRLANE_DATABASE_URL": parts.url,
        "FAIRLANE_REDIS_URL": "redis://127.0.0.1:1/0",
        "FAIRLANE_SECRET_KEY": "s" * 40,
        "FAIRLANE_MASTER_KEYS": f"k:{b64encode(b'1' * 32).decode()}",
    }
    subprocess.run([sys.executable, "-c", ends], cwd=ROOT, env=environment, check=True, timeout=60)
    assert totals(parts)["handed_back"] == {(None, ("newer",)): 1}
