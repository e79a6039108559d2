"""What processes need to start: a database that keeps tenants apart, nothing of Redis, and only files of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

import migrations
from cli import commands
from embedded.ports import free_port
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


def refused(installation: Installation, process: str) -> str:
    """Everything that a process says that does not start."""
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
    return ended.stderr.strip()


def refusal(installation: Installation, process: str) -> str:
    """Its last line."""
    return refused(installation, process).splitlines()[-1]


def test_the_stock_commands_name_each_variable_that_is_wrong_and_print_nothing_else(
    installation: Installation,
) -> None:
    installation.environment |= {"FAIRLANE_LOG_FORMAT": "xml", "FAIRLANE_REDIS_URL": "nowhere"}
    for process in ("worker", "beat"):
        said = refused(installation, process)
        assert said.startswith("FAIRLANE_REDIS_URL: want a Redis URL"), process
        assert "FAIRLANE_LOG_FORMAT: " in said
        assert len(said.splitlines()) == 1


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


FOREIGN = (
    *(
        "actions.py",
        "api.py",
        "celeryconfig.py",
        "embedded.py",
        "engine/__init__.py",
        "tasks.py",
        "triggers/__init__.py",
    ),
    *("celery.py", "django.py", "gevent.py", "json.py", "kombu.py", "sitecustomize.py", "uvicorn.py"),
)
"""Names of ours, of libraries that we have, of some that Celery looks for, and of Python's own."""


def test_no_process_imports_a_file_of_the_folder_that_it_is_started_in(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port = tmp_path / "somebodys", free_port()
    for name in FOREIGN:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"print('foreign code in', {name!r}, flush=True)\nraise SystemExit(3)\n")
    with installed(tmp_path, database_url) as installation:
        for variable, value in installation.environment.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{tmp_path}{os.pathsep}")  # its ends mean the present folder
        environment = commands.environment()
        assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path)]
        started = {
            "api": commands.api("127.0.0.1", installation.port),
            "worker": commands.worker(1, concurrency=1),
            "beat": commands.beat(),
            "receiver": commands.receiver(port),
        }
        for name, command in started.items():
            with (installation.folder / f"{name}.log").open("ab") as log:
                installation.processes[name] = subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
                )
        wait_for(installation.answers, "the API to be ready")
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}").is_success, "the receiver to answer")
        tenant = installation.tenant()
        step = {"id": "one", "action": "debug.echo", "with": {}}
        tenant.succeeded(tenant.workflow(step, trigger={"type": "schedule", "every": "1s"}), 1)
        installation.processes["worker"].send_signal(signal.SIGHUP)
        wait_for(lambda: installation.log("worker").count(" ready.") == 2, "the worker to start itself anew")
        assert "foreign code" not in "".join(map(installation.log, started))
