"""Brings what this process tallies (`engine.metrics`) into the totals of the whole installation.

A thread flushes every few seconds while there is something to flush, and once more when the process ends. While
Postgres does not answer the tallies are kept. A process that is killed loses those of its last `EVERY`; when the answer
to a COMMIT is lost they may be added twice. So only what operators watch is counted this way, never what is billed.
"""

from __future__ import annotations

import atexit
import threading
from datetime import timedelta
from typing import Self

import structlog

from engine.db import Database
from engine.errors import Unavailable
from engine.metrics import TALLIES, Tallies
from engine.repository import metrics as stored

EVERY = timedelta(seconds=3)

log = structlog.get_logger(__name__)


class Flusher:
    """Those of this process, or other `tallies`."""

    def __init__(self, database: Database, tallies: Tallies = TALLIES) -> None:
        self._database = database
        self._tallies = tallies
        self._stopped = threading.Event()
        self._one_at_a_time = threading.Lock()

    def run_once(self) -> int:
        """Flush; how many series. Raises Unavailable, and keeps the tallies, when Postgres does not answer."""
        taken = self._tallies.take()
        if not taken:
            return 0
        try:
            with self._database.system() as session:
                stored.add(session, taken)
        except BaseException:
            for key, amount in taken.items():
                self._tallies.add(key, amount)
            raise
        return len(taken)

    def flush(self) -> None:
        """Like `run_once`, behind one that is under way; what goes wrong is logged."""
        try:
            with self._one_at_a_time:
                self.run_once()
        except Unavailable as error:
            log.info("tallies_kept", reason=error.detail)
        except Exception:
            log.exception("tallies_not_flushed")

    def start(self, *, every: timedelta = EVERY) -> Self:
        """Flush from now on, until this process ends."""
        seconds = every.total_seconds()
        threading.Thread(target=self._flush_on, args=(seconds,), name="tallies", daemon=True).start()
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """Flush a last time."""
        self._stopped.set()
        self._tallies.some.set()
        atexit.unregister(self.stop)
        self.flush()

    def _flush_on(self, seconds: float) -> None:
        while not self._stopped.is_set():
            self._tallies.some.wait()
            if not self._stopped.wait(seconds):
                self.flush()
