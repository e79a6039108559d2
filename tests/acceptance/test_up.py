"""``fairlane up`` as a person runs it: it comes up, mends itself, stops without a trace, and survives its own murder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.home import SECRET_KEY, Home
from embedded.ports import free_port
from embedded.processes import ProcessMark, wait_until, working_in

ROOT = Path(__file__).resolve().parents[2]
STARTS = 60.0
STOPS = 60.0


class Up:
    """One ``fairlane up --no-demo`` on a folder, with what it says in a file."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / ".fairlane")
        self.port = free_port()
        self.output = folder / f"output-{self.port}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLANE_")}
        words = ("up", "--no-demo", "--port", str(self.port), "--processes", "1", "--concurrency", "2")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import cli; cli.main()", *words],
                cwd=folder, env={**clean, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=output,
            )  # fmt: skip

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def await_words(self, words: str) -> None:
        assert wait_until(lambda: words in self.said() or self.process.poll() is not None, STARTS), self.said()
        assert words in self.said(), self.said()

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
        return self.process.wait(STOPS)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def living(marks: dict[str, ProcessMark]) -> list[str]:
    return [name for name, mark in marks.items() if mark.alive]


def test_it_comes_up_mends_itself_and_leaves_nothing(up: Up) -> None:
    up.await_words("Fairlane is ready")
    with urllib.request.urlopen(f"http://127.0.0.1:{up.port}/healthz", timeout=5) as answer:
        assert answer.status == 200
    marks = up.marks()
    assert {"api", "beat", "worker-1", "redis"} <= marks.keys()
    assert any(name.startswith("postgres-") for name in marks)

    os.kill(marks["worker-1"].pid, signal.SIGKILL)
    up.await_words("was ended by SIGKILL; starting again")
    assert wait_until(lambda: up.marks().get("worker-1", marks["worker-1"]) != marks["worker-1"], STARTS), up.said()

    second = Up(up.home.folder.parent)
    assert second.process.wait(STARTS) == 1
    assert "is in use by a running Fairlane" in second.said()

    marks |= up.marks()
    assert up.stop(signal.SIGINT) == 0, up.said()
    assert wait_until(lambda: not living(marks), 10.0), living(marks)
    assert "FAIRLANE_DATABASE_URL" not in up.home.read_env()


def test_a_folder_left_by_kill_9_comes_up_again_as_it_was(up: Up) -> None:
    up.await_words("Fairlane is ready")
    secret, left = up.home.read_env()[SECRET_KEY], up.marks()
    up.process.kill()
    up.process.wait()
    again = Up(up.home.folder.parent)
    try:
        again.await_words("Fairlane is ready")
        assert living(left) == []
        assert again.home.read_env()[SECRET_KEY] == secret
        marks = again.marks()
        assert again.stop(signal.SIGTERM) == 0, again.said()
        assert wait_until(lambda: not living(marks), 10.0), living(marks)
    finally:
        again.process.kill()


def test_a_signal_while_it_starts_stops_it_without_a_trace(up: Up) -> None:
    up.await_words("Data in")
    marks = up.marks()
    assert up.stop(signal.SIGTERM) == 0, up.said()
    assert wait_until(lambda: not living(marks | up.marks()), 10.0)
