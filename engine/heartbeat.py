"""Says for all runs that this process has in hand that they are alive, and learns which of them it lost.

One statement every sixth of a lease for the whole process says so, and one a second looks; none while it holds nothing
older than a second, so a run of a few milliseconds costs nothing here. A run that was cancelled or taken over is told
through its `Hold`, within about a second. While Postgres is down nothing is said and nothing is lost: a worker that
takes a run over must ask the same Postgres, and writes carry the attempt they belong to.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import structlog

from engine.db import Database
from engine.errors import Unavailable
from engine.execution import RunInHand
from engine.repository import runs

BEATS_PER_LEASE = 6
LOOK_SECONDS = 1.0
"""How often it looks which runs are lost, between beats."""
MISSED_BEATS = 3
"""After so many a run counts as silent and may be taken over: half a lease, so that a message whose lease ran out
always finds its run silent."""

log = structlog.get_logger(__name__)


class Heartbeat:
    """The runs in hand of one process, and the thread that keeps them. The thread starts with the first run."""

    def __init__(self, database: Database, *, lease_seconds: float) -> None:
        self._database = database
        self.interval = lease_seconds / BEATS_PER_LEASE
        self.stale_seconds = self.interval * MISSED_BEATS
        self._moment = min(LOOK_SECONDS, self.interval)
        self._held: dict[RunInHand, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def holding(self, run: RunInHand) -> Iterator[None]:
        """Keep `run` alive while the block runs."""
        with self._lock:
            self._held[run] = time.monotonic()
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
        horizon = time.monotonic() - (self.interval if older_than is None else older_than)
        with self._lock:
            held = [run for run, since in self._held.items() if since <= horizon]
        if not held:
            return 0
        with self._database.system() as session:
            alive = runs.heartbeat(session, _names(held))
        return self._tell(run for run in held if run.run_id not in alive)

    def look(self) -> int:
        """Learn which of the runs held for more than a moment are lost, without saying anything; how many."""
        horizon = time.monotonic() - self._moment
        with self._lock:
            held = [run for run, since in self._held.items() if since <= horizon]
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
        beat_at = time.monotonic() + self.interval
        while True:
            time.sleep(self._moment)
            try:
                if time.monotonic() < beat_at:
                    self.look()
                    continue
                beat_at = time.monotonic() + self.interval
                self.run_once(older_than=self._moment)
            except Unavailable as error:
                log.warning("heartbeat_missed", reason=error.detail)
            except Exception:
                log.exception("heartbeat_failed")


def _names(held: Sequence[RunInHand]) -> list[tuple[str, str, int]]:
    return [(run.tenant_id, run.run_id, run.attempt) for run in held]
