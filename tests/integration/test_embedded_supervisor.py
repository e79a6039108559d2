"""The supervisor with real child processes: restarts, orders, graces, and no process left."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedded.home import Home
from embedded.ports import free_port
from embedded.printer import Printer, wants_colour
from embedded.processes import ProcessMark, wait_until
from embedded.program import Program
from embedded.supervisor import STILLBORN_LIMIT, Supervisor

ROOT = Path(__file__).resolve().parents[2]
TALKER = "import os, signal; print('alive', os.getpid(), flush=True); signal.pause()"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {TALKER}"
POLITE = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0)))\n"
    "print('alive', os.getpid(), flush=True)\n"
    "signal.pause()"
)
PARENT = (
    "import signal, subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    "print('alive', child.pid, flush=True)\n"
    "signal.pause()"
)

Reaction = Callable[[re.Match[str]], None]


class Script(io.StringIO):
    """What the supervisor prints. The n-th line that matches a pattern makes its n-th reaction happen."""

    def __init__(self, **reactions: tuple[str, list[Reaction]]) -> None:
        super().__init__()
        self._reactions = [(re.compile(pattern), list(todo)) for pattern, todo in reactions.values()]

    def write(self, text: str) -> int:
        written = super().write(text)
        for pattern, todo in self._reactions:
            if todo and (match := pattern.search(text)):
                todo.pop(0)(match)
        return written


def child(name: str, script: str, **options: Any) -> Program:
    return Program(name, (sys.executable, "-c", script), ready_when=lambda line: "alive" in line, **options)


def stop_all(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def nothing(*_: object) -> None:
    """Let this one pass."""


def crash(match: re.Match[str]) -> None:
    os.kill(int(match[1]), signal.SIGKILL)


def supervise(*children: Program, script: Script, announce: Callable[[], None] | None = None) -> int:
    return Supervisor(children, printer=Printer([one.name for one in children], script), announce=announce).run()


def test_a_child_that_dies_is_started_again() -> None:
    script = Script(alive=(r"alive (\d+)", [crash, stop_all]))
    assert supervise(child("talker", TALKER), script=script) == 0
    assert "was ended by SIGKILL; starting again in 0.5 s" in script.getvalue()
    assert len(set(re.findall(r"alive (\d+)", script.getvalue()))) == 2


def test_everything_ready_is_announced_once_whatever_is_restarted_later() -> None:
    announced: list[int | None] = []
    one, two = child("one", TALKER), child("two", TALKER)

    def announce() -> None:
        announced.append(one.pid)
        os.kill(one.pid or 0, signal.SIGKILL)

    script = Script(alive=(r"one +\| alive", [nothing, stop_all]))
    assert supervise(one, two, script=script, announce=announce) == 0
    assert len(announced) == 1


def test_a_child_that_never_becomes_ready_ends_the_whole_with_its_words_on_the_screen() -> None:
    script = Script()
    assert supervise(child("broken", "raise SystemExit('no such file')"), child("fine", TALKER), script=script) == 1
    assert script.getvalue().count("no such file") == STILLBORN_LIMIT
    assert "giving up" in script.getvalue()


def test_children_stop_by_rank_and_a_rank_waits_for_the_one_before() -> None:
    script = Script()
    children = [
        child("last", POLITE, stop_rank=2),
        child("first", POLITE, stop_rank=0),
        child("mid", POLITE, stop_rank=1),
    ]
    assert supervise(*children, script=script, announce=stop_all) == 0
    said = re.findall(r"^(\w+) +\| (stopping|bye)$", script.getvalue(), re.MULTILINE)
    assert said == [(name, word) for name in ("first", "mid", "last") for word in ("stopping", "bye")]


def test_a_deaf_child_is_killed_when_its_grace_is_over() -> None:
    script = Script()
    deaf = child("deaf", DEAF, grace=0.2)
    assert supervise(deaf, script=script, announce=stop_all) == 0
    assert "did not stop in time: killed" in script.getvalue()
    assert deaf.pid is None


def test_a_second_signal_stops_at_once() -> None:
    script = Script(stopping=("stopping", [stop_all]))
    slow = child("slow", DEAF, grace=600.0, quick_signal=signal.SIGINT)
    began = time.monotonic()
    assert supervise(slow, script=script, announce=stop_all) == 0
    assert time.monotonic() - began < 30.0


def test_a_child_that_takes_long_to_stop_is_said_to_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedded.supervisor.QUICK_GRACE", 0.0)
    script = Script(busy=("busy", [stop_all]))
    assert supervise(child("slow", DEAF, grace=600.0), script=script, announce=stop_all) == 0
    assert len(re.findall(r"is still busy: has \d+ s more, a second Ctrl-C ends it at once", script.getvalue())) == 1


def test_what_a_child_started_goes_with_it() -> None:
    marks: list[ProcessMark | None] = []
    script = Script(alive=(r"alive (\d+)", [lambda match: marks.append(ProcessMark.of(int(match[1])))]))
    assert supervise(child("parent", PARENT), script=script, announce=stop_all) == 0
    assert marks[0] is not None
    assert wait_until(lambda: not any(mark and mark.alive for mark in marks), 10.0)


def test_a_child_that_closes_its_output_goes_on_running() -> None:
    silent = "import os, signal; print('alive', os.getpid(), flush=True); os.close(1); os.close(2); signal.pause()"
    ended: list[int | None] = []
    program = child("silent", silent)

    def look_and_stop() -> None:
        wait_until(lambda: program.silent or not program.read(), 0.5)
        ended.append(program.exit_code())
        stop_all()

    assert supervise(program, script=Script(), announce=look_and_stop) == 0
    assert ended == [None]


def test_words_without_an_end_of_line_are_printed_too() -> None:
    script = Script(last=("last words", [stop_all]))
    supervise(child("brief", "import sys; print('alive'); sys.stdout.write('last words')"), script=script)
    assert "brief | last words" in script.getvalue()


def test_no_colour_without_a_terminal() -> None:
    stream = io.StringIO()
    assert not wants_colour(stream)
    Printer(["one"], stream).say("one", "hello")
    assert stream.getvalue() == "one | hello\n"


def test_children_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from embedded.program import Program; from embedded.supervisor import Supervisor\n"
        f"talker = Program('talker', (sys.executable, '-c', {TALKER!r}), marks=Path({str(tmp_path)!r}))\n"
        "Supervisor([talker]).run()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        mark = ProcessMark.of(int(owner.stdout.readline().split()[-1]))
        assert mark is not None
        owner.kill()
        owner.wait()
        assert wait_until(lambda: not mark.alive, 20.0)


def test_what_a_crash_left_running_is_ended_by_the_next_start(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.run.mkdir()
    with subprocess.Popen([sys.executable, "-c", TALKER], stdout=subprocess.DEVNULL, process_group=0) as left:
        mark = ProcessMark.of(left.pid)
        assert mark is not None
        mark.write(home.run / "worker-1.pid")
        (home.run / "torn.pid").write_text("{")
        ProcessMark(os.getpid(), "another process that had our number").write(home.run / "reused.pid")
        assert home.end_leftovers() == ["worker-1"]
        assert left.wait(10) == -signal.SIGKILL
    assert list(home.run.iterdir()) == []


def test_the_receiver_prints_what_arrives_and_hides_credentials() -> None:
    port = free_port()
    answers: list[bytes] = []

    def deliver() -> None:
        headers = {
            "Idempotency-Key": "run_1:notify",
            "Authorization": "Bearer hush",
            "Content-Type": "application/json",
        }
        request = urllib.request.Request(f"http://127.0.0.1:{port}/orders", data=b'{"amount":7}', headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            answers.append(answer.read())

    def listens() -> bool:
        try:
            deliver()
        except OSError:
            return False
        return True

    command = (sys.executable, "-m", "embedded.receiver", str(port))
    receiver = Program("receiver", command, folder=ROOT, probe=listens)
    script = Script(body=(r'"amount": 7', [stop_all]))
    assert supervise(receiver, script=script) == 0
    assert answers == [b'{"received": true, "idempotency_key": "run_1:notify"}']
    assert "POST /orders idempotency-key=run_1:notify authorization=Bearer ***" in script.getvalue()
    assert "hush" not in script.getvalue()


@pytest.mark.parametrize("name", ["of", "read"])
def test_a_process_that_is_gone_has_no_mark(tmp_path: Path, name: str) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
        given: Any = gone.pid if name == "of" else tmp_path / "absent.pid"
        assert getattr(ProcessMark, name)(given) is None
