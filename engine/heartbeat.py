"""Says for all runs that this process has in hand that they are alive, and learns which of them it lost.

One statement every sixth of a lease for the whole process says so, and one a second looks; none while it holds only
what is younger than half a second, so a run of a few milliseconds costs nothing here. A run that was cancelled or taken
over is told through its `Hold`, a second later at the most. While Postgres is down nothing is said and nothing is lost:
a worker that takes a run over must ask the same Postgres, and writes carry the attempt they belong to.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog

from engine.db import Database
from engine.errors import Unavailable
from engine.execution import RunInHand
from engine.repository import runs

BEATS_PER_LEASE = 6
LOOK_SECONDS = 1.0
"""How often it asks which runs are lost, between beats."""
YOUNG_SECONDS = 0.5
"""While nothing in hand is older, nothing is asked: most runs end before."""
MISSED_BEATS = 3
"""After so many a run counts as silent and may be taken over: half a lease, so that a message whose lease ran out
always finds its run silent."""

log = structlog.get_logger(__name__)


class Heartbeat:
    """The runs in hand of one process, and the thread that keeps them. The thread starts with the first run."""

    def __init__(
        self, database: Database, *, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._clock = clock
        self.interval = lease_seconds / BEATS_PER_LEASE
        self.stale_seconds = self.interval * MISSED_BEATS
        self._beat_at = self._clock() + self.interval
        self._look_at = 0.0
        self._held: dict[RunInHand, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def holding(self, run: RunInHand) -> Iterator[None]:
        """Keep `run` alive while the block runs."""
        with self._lock:
            self._held[run] = self._clock()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(run, None)

    def run_once(self, *, older_than: float | None = None) -> int:
        """Beat for the runs held longer than `older_than` seconds (an interval); returns how many are lost."""
        horizon = self._clock() - (self.interval if older_than is None else older_than)
        with self._lock:
            held = [run for run, since in self._held.items() if since <= horizon]
        if not held:
            return 0
        with self._database.system() as session:
            alive = runs.heartbeat(session, _names(held))
        return self._tell(run for run in held if run.run_id not in alive)

    def tick(self) -> None:
        """Beat or look, if it is time to and anything is in hand for more than a moment."""
        now = self._clock()
        with self._lock:
            if not any(since <= now - YOUNG_SECONDS for since in self._held.values()):
                return
        if now >= self._beat_at:
            self._beat_at, self._look_at = now + self.interval, now + LOOK_SECONDS
            self.run_once(older_than=0)
        elif now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self.look()

    def look(self) -> int:
        """Learn which of the runs in hand are lost, without saying anything; how many."""
        with self._lock:
            held = list(self._held)
        if not held:
            return 0
        with self._database.system() as session:
            gone = runs.lost(session, _names(held))
        return self._tell(run for run in held if run.run_id in gone)

    def _tell(self, gone: Iterable[RunInHand]) -> int:
        """Those that were put down meanwhile have ended here, and are not lost."""
        with self._lock:
            lost = [run for run in gone if run in self._held]
        for run in lost:
            log.info("run_lost", tenant=run.tenant_id, workflow=run.workflow_id, run=run.run_id, attempt=run.attempt)
            run.hold.lose()
        return len(lost)

    def _loop(self) -> None:
        while True:
            time.sleep(min(YOUNG_SECONDS, self.interval))
            try:
                self.tick()
            except Unavailable as error:
                log.warning("heartbeat_missed", reason=error.detail)
            except Exception:
                log.exception("heartbeat_failed")


def _names(held: Sequence[RunInHand]) -> list[tuple[str, str, int]]:
    return [(run.tenant_id, run.run_id, run.attempt) for run in held]
