"""The operator's commands by their entry point: exit codes, a sentence per fault, nothing started that need not be."""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import cli
import migrations
from embedded.home import Home

KEYS = {
    "FAIRLANE_SECRET_KEY": "s" * 48,
    "FAIRLANE_MASTER_KEYS": "k1:" + base64.b64encode(b"m" * 32).decode(),
}


@dataclass(frozen=True)
class Run:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def fairlane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run the entry point in an empty folder, with no FAIRLANE variable but those given."""
    for name in [name for name in os.environ if name.startswith("FAIRLANE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **variables: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["fairlane", *words])
        with monkeypatch.context() as patch:
            patch.setenv("FAIRLANE_DATA_DIR", str(tmp_path / ".fairlane"))  # commands set it: have it restored
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return Run(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run


def test_every_command_says_in_help_what_it_does(fairlane: Callable[..., Run], tmp_path: Path) -> None:
    listed = fairlane("--help")
    assert listed.returncode == 0
    for command in ("up", "api", "worker", "beat", "migrate", "doctor"):
        assert command in listed.stdout
        assert fairlane(command, "--help").returncode == 0


def test_wrong_usage_is_exit_code_two(fairlane: Callable[..., Run], tmp_path: Path) -> None:
    assert fairlane("up", "--port", "many").returncode == 2
    assert fairlane("upp").returncode == 2


@pytest.mark.parametrize("command", ["api", "worker", "beat"])
def test_a_process_without_configuration_names_every_missing_variable_and_starts_nothing(
    fairlane: Callable[..., Run], command: str, tmp_path: Path
) -> None:
    run = fairlane(command)
    assert run.returncode == 1
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "MASTER_KEYS"):
        assert f"FAIRLANE_{name} is not set" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_named_with_the_option_that_chooses_another(
    fairlane: Callable[..., Run], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = fairlane("up", "--port", str(port))
    assert run.returncode == 1
    assert f"Port {port}" in run.stderr
    assert "--port" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "wants"),
    [
        ("FAIRLANE_LOG_FORMAT", "yaml", "json"),
        ("FAIRLANE_SECRET_KEY", "short", "32"),
        ("FAIRLANE_DATABASE_URL", "mysql://localhost/fairlane", "postgresql://"),
        ("FAIRLANE_STRIPE_KEY", "pk_live_1", "sk_... or rk_..."),
        ("FAIRLANE_METRICS_TOKEN", "", "is empty"),
        ("FAIRLANE_METRICS_TOKEN", "two words", "has a space"),
    ],
)
def test_up_refuses_a_bad_variable_before_any_server_starts(
    fairlane: Callable[..., Run], tmp_path: Path, name: str, value: str, wants: str
) -> None:
    run = fairlane("up", "--port", "18766", **{name: value})
    assert run.returncode == 1
    assert name in run.stderr
    assert wants in run.stderr
    assert not (tmp_path / ".fairlane" / "postgres").exists()


EXTRAS = [
    (
        "FAIRLANE_OTEL_ENDPOINT",
        "http://127.0.0.1:4318",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "otel",
    ),
    ("FAIRLANE_STRIPE_KEY", "sk_test_1", "stripe", "stripe"),
]


@pytest.mark.parametrize(("name", "value", "module", "extra"), EXTRAS)
def test_a_variable_without_its_extra_is_refused_before_any_server_starts_and_by_the_doctor(
    fairlane: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    module: str,
    extra: str,
) -> None:
    for loaded in ("exporters.stripe_meter", module):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    run = fairlane("up", "--port", "18766", **{name: value})
    assert run.returncode == 1
    assert f"{name} is set" in run.stderr
    assert f"pip install 'fairlane[{extra}]'" in run.stderr.replace("\n", " ")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / ".fairlane" / "postgres").exists()

    urls = {"FAIRLANE_DATABASE_URL": "postgresql://127.0.0.1:1/nothing", "FAIRLANE_REDIS_URL": "redis://127.0.0.1:1/0"}
    report = fairlane("doctor", **{name: value}, **urls, **KEYS)
    assert report.returncode == 1
    assert report.stdout.startswith("fault settings      no process can start\n")
    assert f"pip install 'fairlane[{extra}]'" in report.stderr


def test_up_says_what_to_do_about_a_server_that_does_not_answer(
    fairlane: Callable[..., Run], tmp_path: Path, empty_database_url: str
) -> None:
    redis_down = fairlane(
        "up", "--port", "18767", FAIRLANE_DATABASE_URL=empty_database_url, FAIRLANE_REDIS_URL="redis://127.0.0.1:1/0"
    )
    database_down = fairlane(
        "up", "--port", "18767", FAIRLANE_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing",
    )  # fmt: skip
    for run, name in ((redis_down, "FAIRLANE_REDIS_URL"), (database_down, "FAIRLANE_DATABASE_URL")):
        assert run.returncode == 1
        assert name in run.stderr
        assert "runs a server of its own" in run.stderr.replace("\n", " ")
        assert "Traceback" not in run.stderr


def test_a_second_up_on_the_folder_is_refused(fairlane: Callable[..., Run], tmp_path: Path) -> None:
    with Home(tmp_path / ".fairlane").locked():
        run = fairlane("up", "--port", "18765")
    assert run.returncode == 1
    assert "is in use by a running Fairlane" in run.stderr
    assert f"process {os.getpid()}" in run.stderr.replace("\n", " ")


def test_migrate_on_a_fresh_machine_uses_embedded_servers_and_leaves_none(
    fairlane: Callable[..., Run], tmp_path: Path
) -> None:
    first = fairlane("migrate")
    again = fairlane("migrate")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert migrations.head() in again.stdout
    assert not (tmp_path / ".fairlane" / "postgres" / "data" / "postmaster.pid").exists()
    assert "FAIRLANE_DATABASE_URL" not in Home(tmp_path / ".fairlane").read_env()


def test_migrate_needs_only_the_database(fairlane: Callable[..., Run], tmp_path: Path, empty_database_url: str) -> None:
    url = empty_database_url.replace("+psycopg", "")
    assert fairlane("migrate", FAIRLANE_DATABASE_URL=url).returncode == 0
    assert list(tmp_path.iterdir()) == []
    down = fairlane("migrate", FAIRLANE_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert down.returncode == 1
    assert "Postgres does not answer at FAIRLANE_DATABASE_URL" in down.stderr
    assert "Traceback" not in down.stderr
    wrong = fairlane("migrate", FAIRLANE_DATABASE_URL="mysql://localhost/fairlane")
    assert wrong.returncode == 1
    assert "postgresql://" in wrong.stderr


def test_the_doctor_is_content_with_a_whole_installation(
    fairlane: Callable[..., Run], tmp_path: Path, database_url: str, redis_url: str
) -> None:
    variables = {"FAIRLANE_DATABASE_URL": database_url, "FAIRLANE_REDIS_URL": redis_url, **KEYS}
    run = fairlane("doctor", "--json", **variables)
    report = json.loads(run.stdout)
    assert run.returncode == 0, report
    assert report["ok"] is True
    assert {one["check"] for one in report["checks"]} >= {"settings", "postgres", "schema", "isolation", "redis"}


def test_the_doctor_has_a_sentence_for_each_fault(
    fairlane: Callable[..., Run], tmp_path: Path, empty_database_url: str, redis_url: str
) -> None:
    incomplete = fairlane("doctor")
    assert incomplete.returncode == 1
    assert "FAIRLANE_SECRET_KEY is not set" in incomplete.stderr

    variables = {"FAIRLANE_DATABASE_URL": empty_database_url, "FAIRLANE_REDIS_URL": "redis://127.0.0.1:1/0", **KEYS}
    run = fairlane("doctor", **variables)
    assert run.returncode == 1
    assert "run `fairlane migrate`" in run.stderr
    assert "Redis does not answer at FAIRLANE_REDIS_URL" in run.stderr
    assert "Traceback" not in run.stderr

    bad_keys = {**KEYS, "FAIRLANE_MASTER_KEYS": "k1:short"}
    report = fairlane(
        "doctor", "--json",
        FAIRLANE_DATABASE_URL=empty_database_url, FAIRLANE_REDIS_URL=redis_url, **bad_keys,
    )  # fmt: skip
    assert report.returncode == 1
    assert "FAIRLANE_MASTER_KEYS" in json.loads(report.stdout)["checks"][0]["fault"]


def test_the_doctor_says_where_the_urls_of_embedded_servers_are_that_do_not_run(
    fairlane: Callable[..., Run], tmp_path: Path
) -> None:
    home = Home(tmp_path / "data")
    with home.locked():
        home.generate_keys()
    run = fairlane("doctor", "--data", str(home.folder))
    assert run.returncode == 1
    assert f"start `fairlane up`, which runs those of {home.folder}" in run.stderr
    assert "fairlane up" not in fairlane("doctor", "--data", str(tmp_path / "nothing")).stderr


def test_the_doctor_refuses_a_redis_that_may_drop_work(
    fairlane: Callable[..., Run], tmp_path: Path, database_url: str, redis_url: str
) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            variables = {"FAIRLANE_DATABASE_URL": database_url, "FAIRLANE_REDIS_URL": redis_url, **KEYS}
            run = fairlane("doctor", **variables)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert run.returncode == 1
    assert "set maxmemory-policy to noeviction" in run.stderr


def test_the_doctor_tells_of_a_redis_that_takes_no_writes_and_writes_nothing_itself(
    fairlane: Callable[..., Run], database_url: str, redis_url: str
) -> None:
    import redis

    variables = {"FAIRLANE_DATABASE_URL": database_url, "FAIRLANE_REDIS_URL": redis_url, **KEYS}
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", "1")
        try:
            run = fairlane("doctor", **variables)
        finally:
            client.config_set("maxmemory", "0")
        assert run.returncode == 1
        assert "Redis takes no writes (command not allowed when used memory > 'maxmemory'" in run.stderr
        assert "Redis takes no writes" not in fairlane("doctor", **variables).stderr
        assert not client.exists("{runs}:doctor")
