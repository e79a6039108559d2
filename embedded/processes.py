"""What the embedded servers need to know of processes: which one is meant, whether it lives, and how it ends.

A process number alone is not a name: numbers are used again. A `ProcessMark` adds when the process began, so that a
file left by a crash never makes us signal a stranger. Works on Linux (``/proc``) and, slower, wherever ``ps`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")
TICK = 0.01
"""Seconds between two looks at a condition of the operating system that cannot be waited on."""


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process of one boot of the machine: its number and a text that says when it began."""

    pid: int
    began: str

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """The mark of a living process; None when there is none of that number, or only its zombie."""
        began = _began(pid)
        return None if began is None else cls(pid, began)

    @classmethod
    def read(cls, path: Path) -> ProcessMark | None:
        """What `write` left; None when the file is absent or torn."""
        try:
            stored = json.loads(path.read_text())
            return cls(int(stored["pid"]), str(stored["began"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n")

    @property
    def alive(self) -> bool:
        return ProcessMark.of(self.pid) == self

    def send(self, sig: signal.Signals) -> None:
        """Signal the process if it still lives."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def end(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn and wait its seconds; SIGKILL after the last. Returns when the process is gone."""
        for sig, seconds in steps:
            self.send(sig)
            if wait_until(lambda: not self.alive, seconds):
                return
        self.send(signal.SIGKILL)
        wait_until(lambda: not self.alive, 10.0)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look at `condition` until it holds or `seconds` have passed; says whether it holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(TICK)
    return True


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL, whatever of them still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)  # noqa: S607
    pairs = (line.split() for line in listing.stdout.splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]


def working_in(folder: Path, *, name: str) -> list[int]:
    """Processes called `name` whose working directory is `folder`. Empty where there is no ``/proc``."""
    wanted = str(folder.resolve())
    found = []
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == Path(wanted) and (entry / "comm").read_text().strip() == name:
                found.append(int(entry.name))
    return found


def _began(pid: int) -> str | None:
    return _began_by_proc(pid) if (PROC / "self" / "stat").exists() else _began_by_ps(pid)


def _began_by_proc(pid: int) -> str | None:
    try:
        # The name in parentheses may hold blanks and parentheses itself: the fields follow the last one.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError):
        return None
    state, ticks_since_boot = fields[0], fields[19]
    return None if state in "ZX" else f"{boot} {ticks_since_boot}"


def _began_by_ps(pid: int) -> str | None:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    state, _, began = listing.stdout.strip().partition(" ")
    return began.strip() if state and not state.startswith("Z") else None
