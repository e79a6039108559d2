"""The guard: a tiny process that outlives its parent just long enough to end what the parent started.

A parent killed by ``kill -9`` cannot clean up, and its servers would run on for ever. `watch` tells the guard of a
child, `release` that the child was ended in the ordinary way. The guard holds the reading end of a pipe; when the
parent is gone, however it went, the pipe closes, and the guard ends every child still watched: the signal named for
it, then SIGKILL to its process group, so a watched child must lead one (``process_group=0``). One guard serves a whole
process and is started with its first child.

Run as a file, it imports nothing but the standard library's signal handling, so it starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

GRACE = 8.0
"""Seconds that a watched child gets to obey its signal before it is killed."""


class Guard:
    """The parent's end of the pipe to the guard process."""

    def __init__(self) -> None:
        self._owner = 0
        self._pipe = -1

    def watch(self, pid: int, sig: signal.Signals) -> None:
        """From now on: when this process dies, `pid` gets `sig`."""
        self._say(f"+ {pid} {int(sig)}\n")

    def release(self, pid: int) -> None:
        """`pid` has ended; its number may soon be somebody else's."""
        if self._owner == os.getpid():
            self._say(f"- {pid} 0\n")

    def _say(self, line: str) -> None:
        if self._owner != os.getpid():
            self._start()
        try:
            os.write(self._pipe, line.encode())
        except BrokenPipeError:  # somebody killed the guard: without it we are only less tidy after a crash
            os.close(self._pipe)
            self._owner = 0

    def _start(self) -> None:
        reading, self._pipe = os.pipe()
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]  # noqa: PTH100 - pathlib would be imported
        files = ((os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
        # Its own process group: a Ctrl-C on the terminal is for the parent to answer.
        os.posix_spawn(sys.executable, command, os.environ, file_actions=files, setpgroup=0)
        os.close(reading)
        self._owner = os.getpid()


GUARD = Guard()
"""The guard of this process."""


def main() -> None:
    """Read what to watch until the parent is gone, then end it."""
    for deaf_to in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(deaf_to, signal.SIG_IGN)
    watched: dict[int, int] = {}
    for line in sys.stdin:
        verb, pid, sig = line.split()
        if verb == "+":
            watched[int(pid)] = int(sig)
        else:
            watched.pop(int(pid), None)
    _end_all(watched)


def _end_all(watched: dict[int, int]) -> None:
    for pid, sig in reversed(watched.items()):
        with contextlib.suppress(OSError):
            os.kill(pid, sig)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(_group_lives(pid) for pid in watched):
        time.sleep(0.05)
    for pid in watched:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
