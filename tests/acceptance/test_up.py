"""``fairlane up`` as a newcomer meets it: one command, something to see, nothing lost and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded.home import SECRET_KEY, Home
from embedded.ports import free_port
from embedded.processes import ProcessMark, wait_until, working_in
from tests.installation import wait_for
from tests.ordinary_user import AS_NOBODY, NOBODY, can_be_nobody

ROOT = Path(__file__).resolve().parents[2]
STARTS = 60.0
STOPS = 60.0
CAN_TOUR = all(shutil.which(program) for program in ("bash", "curl", "python3"))


class Up:
    """One ``fairlane up`` on a folder, with what it says in a file."""

    def __init__(
        self, folder: Path, *words: str, prefix: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self.home = Home(folder / ".fairlane")
        self.port = free_port()
        self.output = folder / f"output-{self.port}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLANE_")}
        environment = {**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(variables or {})}
        options = ("--port", str(self.port), "--processes", "1", "--concurrency", "2")
        command = [*prefix, sys.executable, "-c", "import cli; cli.main()", "up", *options, *words]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def await_words(self, words: str) -> None:
        assert wait_until(lambda: words in self.said() or self.process.poll() is not None, STARTS), self.said()
        assert words in self.said(), self.said()

    def await_ready(self) -> None:
        self.await_words("Ctrl-C stops everything")

    def printed(self, pattern: str) -> str:
        """The one group of the first line that matches."""
        match = re.search(pattern, self.said())
        assert match is not None, f"no {pattern} in:\n{self.said()}"
        return match[1]

    def marks(self) -> dict[str, ProcessMark]:
        """Every process of it, servers included."""
        files = [*self.home.run.glob("*.pid"), self.home.folder / "redis" / "redis.pid"]
        found = {file.stem: mark for file in files if (mark := ProcessMark.read(file))}
        for pid in working_in(self.home.folder / "postgres" / "data", name="postgres"):
            if mark := ProcessMark.of(pid):
                found[f"postgres-{pid}"] = mark
        return found

    def stop(self, sig: signal.Signals) -> int:
        self.process.send_signal(sig)
        assert wait_until(lambda: self.process.poll() is not None, STOPS), self.said()
        return self.process.returncode

    def stops_without_a_trace(self, sig: signal.Signals) -> None:
        marks = self.marks()
        assert self.stop(sig) == 0, self.said()
        assert wait_until(lambda: not living(marks), 10.0), living(marks)
        assert "FAIRLANE_DATABASE_URL" not in self.home.read_env()


@contextmanager
def running(folder: Path, *words: str, **options: Any) -> Iterator[Up]:
    up = Up(folder, *words, **options)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()


def living(marks: dict[str, ProcessMark]) -> list[str]:
    return [name for name, mark in marks.items() if mark.alive]


def typed(command: str) -> Any:
    """What a printed command answers, run by a shell as it is; where there is no curl, by its words."""
    if shutil.which("curl"):
        run = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        return json.loads(run.stdout)
    _, url, *options = shlex.split(command)
    given = dict(zip(options[::2], options[1::2], strict=True))
    name, _, value = given.get("-H", "").partition(": ")
    return httpx.request(
        "POST" if "-d" in given else "GET",
        url,
        content=given.get("-d"),
        headers={name: value} if name else {"Content-Type": "application/x-www-form-urlencoded"},
    ).json()


class Newcomer:
    """Somebody who does what is printed."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.send_order = up.printed(r"(curl \S+/api/webhooks/.*)")
        self.newest_run = up.printed(r"(curl '\S+/api/runs\?.*)")
        self.log_of_run = up.printed(r"(curl \S+/api/runs/RUN_ID/logs .*)")
        self.email, self.password = up.printed(r"Login +(\S+),"), up.printed(r"password (\S+)")
        self.api_key = up.printed(r"API key +(\S+)")

    def order(self) -> dict[str, Any]:
        """The run of an order, once it has ended."""
        return self.ended(typed(self.send_order)["run_id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        return wait_for(
            lambda: run if (run := self.run(run_id))["status"] not in ("queued", "running") else None,
            f"the run {run_id} to end",
        )

    def run(self, run_id: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.up.port}/api/runs/{run_id}"
        row: dict[str, Any] = httpx.get(url, headers={"Authorization": f"Bearer {self.api_key}"}).json()
        return row

    def log(self, run_id: str) -> list[str]:
        return [line["message"] for line in typed(self.log_of_run.replace("RUN_ID", run_id))["items"]]

    def take_the_tour(self, folder: Path) -> str:
        """Type what README.md says, chunk by chunk; waits for the runs before it looks at them. What was shown."""
        (tour,) = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
        address = f"API=http://127.0.0.1:{self.up.port}\nKEY='Authorization: Bearer {self.api_key}'\n"
        shown, so_far = "", address
        for chunk in tour.split("\n\n"):
            run = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", so_far + chunk],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, f"{chunk}\n{run.stdout}{run.stderr}"
            shown += run.stdout
            so_far += "".join(line + "\n" for line in chunk.splitlines() if re.match(r"[A-Z]+=", line))
            for run_id in re.findall(r'"run_id":"(\w+)"', run.stdout):
                self.ended(run_id)
        return shown


def test_a_newcomer_does_what_is_printed_and_finds_it_again_the_next_day(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        up.await_ready()
        stages = (
            "Data in ",
            "Schema at revision ",
            "Starting the API, beat and 1 worker ...",
            "Fairlane is ready after ",
        )
        assert [stage for stage in stages if f"\n{stage}" not in f"\n{up.said()}"] == []
        assert sorted(stages, key=up.said().index) == list(stages)
        first = Newcomer(up)
        run = first.order()
        assert run["status"] == "succeeded", run
        assert any("succeeded" in line for line in first.log(run["id"]))
        assert typed(first.newest_run)["items"]
        up.await_words('{"amount": 120, "customer": "Ada"}\n')
        assert "authorization=Bearer ***" in up.said()
        login = {"email": first.email, "password": first.password}
        assert httpx.post(f"http://127.0.0.1:{up.port}/api/auth/login", json=login).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{up.port}/api/docs").status_code == 200
        if CAN_TOUR:
            shown = first.take_the_tour(tmp_path)
            assert "succeeded {'text': 'Hello Ada'}" in shown
            assert "trigger.body.name: no such key 'name'" in shown
        up.stops_without_a_trace(signal.SIGINT)

    with running(tmp_path) as up:
        up.await_ready()
        second = Newcomer(up)
        assert (second.email, second.password, second.api_key) == (first.email, first.password, first.api_key)
        assert str(up.port) in second.send_order
        assert second.run(run["id"]) == run
        assert second.order()["status"] == "succeeded"
        up.stops_without_a_trace(signal.SIGTERM)


def test_a_process_that_dies_is_started_again_and_a_second_up_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as up:
        up.await_ready()
        marks = up.marks()
        assert {"api", "beat", "worker-1", "redis"} <= marks.keys()
        assert any(name.startswith("postgres-") for name in marks)

        os.kill(marks["worker-1"].pid, signal.SIGKILL)
        up.await_words("was ended by SIGKILL; starting again")
        assert wait_until(lambda: up.marks().get("worker-1", marks["worker-1"]) != marks["worker-1"], STARTS), up.said()

        with running(tmp_path, "--no-demo") as second:
            assert second.process.wait(STARTS) == 1
            assert "is in use by a running Fairlane" in second.said()
        up.stops_without_a_trace(signal.SIGINT)
    assert wait_until(lambda: not living(marks), 10.0), living(marks)


@pytest.mark.skipif(not can_be_nobody(), reason="only root, with setpriv, can become an ordinary user")
def test_an_ordinary_user_finds_a_folder_that_kill_9_left_as_it_was(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with running(tmp_path, "--no-demo", prefix=AS_NOBODY) as up:
        up.await_ready()
        assert {Path(f"/proc/{mark.pid}").stat().st_uid for mark in up.marks().values()} == {NOBODY}
        secret, left = up.home.read_env()[SECRET_KEY], up.marks()
        up.process.kill()
        up.process.wait()
    with running(tmp_path, "--no-demo", prefix=AS_NOBODY) as again:
        again.await_ready()
        assert living(left) == []
        assert again.home.read_env()[SECRET_KEY] == secret
        again.stops_without_a_trace(signal.SIGTERM)


def test_a_signal_while_it_starts_stops_it_without_a_trace(tmp_path: Path) -> None:
    with running(tmp_path, "--no-demo") as up:
        up.await_words("Data in")
        marks = up.marks()
        assert up.stop(signal.SIGTERM) == 0, up.said()
        assert wait_until(lambda: not living(marks | up.marks()), 10.0)


def test_servers_named_by_url_replace_the_embedded_ones_and_logs_may_be_json(
    tmp_path: Path, empty_database_url: str, redis_url: str
) -> None:
    variables = {
        "FAIRLANE_DATABASE_URL": empty_database_url.replace("+psycopg", ""),
        "FAIRLANE_REDIS_URL": redis_url,
        "FAIRLANE_LOG_FORMAT": "json",
    }
    with running(tmp_path, variables=variables) as up:
        up.await_ready()
        assert up.marks().keys() == {"api", "beat", "receiver", "worker-1"}
        assert not (up.home.folder / "redis" / "redis.pid").exists()
        assert not (up.home.folder / "postgres").exists()
        assert Newcomer(up).order()["status"] == "succeeded"
        up.stops_without_a_trace(signal.SIGTERM)
    lines = [json.loads(line) for line in up.said().splitlines() if line.startswith("{")]
    assert all(line["event"] and line["level"] and line["timestamp"] and line["process"] for line in lines)
    assert {line["process"] for line in lines} >= {"api", "beat", "receiver", "worker-1"}
    assert not [line for line in up.said().splitlines() if " | " in line]
