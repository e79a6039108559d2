"""Keeps a set of children running: starts them in order, prints what they say, restarts them, stops them in order.

- A child that dies is started again, after a pause that doubles from half a second to 30 s and starts anew once the
  child has lived for a while. A child that dies several times before it was ever ready ends the whole with exit code 1:
  something is wrong that waiting will not mend, and its last words are on the screen.
- SIGINT, SIGTERM and SIGHUP stop everything by rank, each child within its grace, then by SIGKILL. A second signal
  stops what is left at once. No process outlives the supervisor; if it is killed itself, the guard ends them.

One thread, one loop: it waits on the children's pipes and looks after the rest several times a second.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from embedded.printer import Printer
from embedded.program import Child
from engine.errors import FairlaneError

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 20.0
"""Seconds of life after which the pauses between restarts start anew."""
STILLBORN_LIMIT = 3
"""Deaths before the first readiness that end the whole."""
LOOK_EVERY = 0.1
QUICK_GRACE = 3.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Life:
    """What the supervisor remembers of one child."""

    child: Child
    running: bool = False
    began: float = 0.0
    ever_ready: bool = False
    ready: bool = False
    deaths: int = 0
    start_at: float = 0.0
    """When it is to be started; only while it does not run."""
    told: bool = False
    """Whether people know that it takes long to stop."""


class Supervisor:
    """`announce` is called once, when every child is ready for the first time."""

    def __init__(
        self, children: Sequence[Child], *, announce: Callable[[], None] | None = None, printer: Printer | None = None
    ) -> None:
        self._lives = [_Life(child) for child in children]
        self._announce = announce
        self.printer = printer or Printer([child.name for child in children])
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._failed = False

    def run(self, *, before: Callable[[], None] = lambda: None) -> int:
        """Supervise until a signal stops it: 0; or until a child proves unable to start: 1.

        `before` is called once signals are its own to count: for a caller who must not miss one that came earlier.
        """
        with self._signals_counted():
            before()
            try:
                while not self._signals and not self._failed and not self.printer.broken:
                    self._tend()
            finally:
                self._stop_all()
        return 1 if self._failed else 0

    def _tend(self) -> None:
        """One round: start what is due, print what was said, notice who died and who became ready."""
        now = time.monotonic()
        for life in self._lives:
            if not life.running and now >= life.start_at:
                self._start(life)
        self._pump(LOOK_EVERY)
        for life in self._lives:
            self._look_after(life)
        if self._announce is not None and all(life.ready for life in self._lives):
            self._announce()
            self._announce = None

    def _start(self, life: _Life) -> None:
        try:
            life.child.start()
        except (FairlaneError, OSError) as error:
            self.printer.say(life.child.name, str(error))
            self._died(life, "could not start")
            return
        life.running, life.began = True, time.monotonic()
        if (output := life.child.output()) is not None:
            self._selector.register(output, selectors.EVENT_READ, life.child)

    def _pump(self, seconds: float) -> None:
        """Wait for words of the children, at most `seconds`, and print them."""
        if not self._selector.get_map():
            time.sleep(seconds)
        for key, _ in self._selector.select(seconds):
            self._print(key.data)
            if key.data.silent:
                self._selector.unregister(key.fd)

    def _print(self, child: Child) -> None:
        for line in child.read():
            if line.strip():
                self.printer.say(child.name, line)

    def _look_after(self, life: _Life) -> None:
        if not life.running:
            return
        if (code := life.child.exit_code()) is not None:
            self._bury(life)
            self._died(life, _how(code))
        elif not life.ready and life.child.ready():
            life.ready = life.ever_ready = True
        elif life.deaths and time.monotonic() - life.began > HEALTHY_AFTER:
            life.deaths = 0

    def _bury(self, life: _Life) -> None:
        """Print its last words and forget the process."""
        self._print(life.child)
        if (output := life.child.output()) is not None and output in self._selector.get_map():
            self._selector.unregister(output)
        life.child.reap()
        life.running = life.ready = False

    def _died(self, life: _Life, how: str) -> None:
        life.deaths += 1
        if not life.ever_ready and life.deaths >= STILLBORN_LIMIT:
            self.printer.say(life.child.name, f"{how} {life.deaths} times and never became ready: giving up")
            self._failed = True
            return
        pause = pause_before_restart(life.deaths)
        life.start_at = time.monotonic() + pause
        self.printer.say(life.child.name, f"{how}; starting again in {pause:g} s")

    def _stop_all(self) -> None:
        """By rank, each within its grace; after a second signal at once."""
        asked = self._signals
        ordered = sorted((life for life in self._lives if life.running), key=lambda life: life.child.stop_rank)
        for _, rank in groupby(ordered, key=lambda life: life.child.stop_rank):
            self._stop(list(rank), asked=asked)
        self._selector.close()

    def _stop(self, lives: list[_Life], *, asked: int) -> None:
        quick = self._signals > asked
        for life in lives:
            self.printer.say(life.child.name, "stopping")
            life.child.ask(quick=quick)
        began = time.monotonic()
        while lives:
            self._pump(LOOK_EVERY / 2)
            if self._signals > asked and not quick:
                quick, began = True, time.monotonic()
                for life in lives:
                    life.child.ask(quick=True)
            for life in [life for life in lives if self._has_ended(life, time.monotonic() - began, quick=quick)]:
                self._bury(life)
                lives.remove(life)

    def _has_ended(self, life: _Life, waited: float, *, quick: bool) -> bool:
        if life.child.exit_code() is not None:
            return True
        if waited > (min(QUICK_GRACE, life.child.grace) if quick else life.child.grace):
            self.printer.say(life.child.name, "did not stop in time: killed")
            life.child.kill()
            return True
        if waited > QUICK_GRACE and not life.told:  # or people would take it for hanging
            life.told = True
            left = life.child.grace - waited
            self.printer.say(life.child.name, f"is still busy: has {left:.0f} s more, a second Ctrl-C ends it at once")
        return False

    @contextlib.contextmanager
    def _signals_counted(self) -> Iterator[None]:
        def count(*_: object) -> None:
            self._signals += 1

        before = {sig: signal.signal(sig, count) for sig in STOP_SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def pause_before_restart(deaths: int) -> float:
    """Seconds to wait after the `deaths`-th death in a row."""
    return float(min(FIRST_PAUSE * 2 ** (deaths - 1), LONGEST_PAUSE))


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
