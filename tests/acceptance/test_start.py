"""What processes need to start: a database that keeps tenants apart, and nothing of Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import migrations
from embedded.postgres import PostgresServer
from tests.installation import ROOT, Installation, installed, wait_for

PROCESSES = {
    "worker": ("celery", "-A", "tasks", "worker", "-P", "threads"),
    "beat": ("celery", "-A", "tasks", "beat", "--pidfile="),
    "api": ("uvicorn", "api.app:create_app", "--factory", "--port", "0"),
}


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server whose roles may be spoilt: roles belong to the whole server."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"), fast=True).start()
    yield server
    server.stop()


@pytest.fixture
def installation(tmp_path: Path, own_postgres: PostgresServer) -> Iterator[Installation]:
    with installed(tmp_path, own_postgres.url) as installation:
        yield installation


def refusal(installation: Installation, process: str) -> str:
    """What a process says that does not start."""
    ended = subprocess.run(
        [sys.executable, "-m", *PROCESSES[process]],
        cwd=ROOT,
        env=installation.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    return ended.stderr.strip().splitlines()[-1]


def test_without_a_schema_every_process_says_how_to_make_it(installation: Installation) -> None:
    for process in PROCESSES:
        assert "run `fairlane migrate`" in refusal(installation, process)


def test_no_process_serves_over_roles_that_bypass_row_level_security(
    installation: Installation, own_postgres: PostgresServer
) -> None:
    migrations.upgrade(own_postgres.url)
    with psycopg.connect(own_postgres.url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("ALTER ROLE fairlane_tenant BYPASSRLS")
    for process in PROCESSES:
        sentence = refusal(installation, process)
        assert "fairlane_tenant bypasses row-level security" in sentence, process


def test_beat_repairs_and_fires_also_when_redis_is_down_at_its_start(tmp_path: Path, database_url: str) -> None:
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        workflow = installation.tenant().workflow(
            {"id": "one", "action": "debug.echo", "with": {}}, trigger={"type": "schedule", "every": "1s"}
        )
        installation.redis.stop()
        installation.start_beat()

        def stored() -> bool:
            with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
                row = connection.execute("SELECT count(*) FROM runs WHERE workflow_id = %s", (workflow,)).fetchone()
                return row is not None and row[0] >= 2

        wait_for(stored, "two fires to be stored while there is no Redis")
