"""When a schedule fires: arithmetic over moments, without a clock, a database or a sleep.

A schedule is a rhythm (`Cron` or `Every`), a policy for fires that nobody was there to start, and an offset. All
moments that come out are UTC. The *nominal* moment is what the rhythm says; a row falls due `offset` later, so that
thousands of schedules of the same minute do not start in the same second. The offset is fixed for each workflow: the
rhythm holds.

Daylight saving, for a cron whose minute and hour do not begin with ``*`` (as in Debian's cron): a time inside the gap
fires at the end of the gap, so 02:30 on 2026-03-29 in Berlin fires at 03:00; a time inside the fold fires once, in its
first pass. A cron with ``*`` in the minute or hour means elapsed time: it goes on through the fold and over the gap.

A text that is no cron, no time zone, or never comes true is a ValueError that says what would be right.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

CATCH_UP = 10
"""Most runs that one call of `due` starts under the policy `all`: the latest."""
GRACE = timedelta(minutes=1)
"""A fire that is started this late is late, not missed."""
MAX_COUNTED = 1000
"""Missed fires of a cron are counted up to here."""


class Missed(StrEnum):
    """What to do about fires that passed while no scheduler ran."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Window:
    """The nominal fires of a stretch of time: the latest of them, oldest first, and how many there were in all."""

    latest: tuple[datetime, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields, minute to day of week, read in a time zone."""

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        if len(self.expression.split()) != 5:
            raise ValueError("a cron has five fields: minute, hour, day of month, month, day of week")
        zone(self.timezone)
        try:
            CronSim(self.expression, datetime(2000, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(f"{self.expression!r} is not a cron: {str(error).lower()}") from None

    def first(self, now: datetime) -> datetime | None:
        """The first fire of a schedule saved at `now`; None when there is none in fifty years."""
        return next(self._after(now), None)

    def window(self, start: datetime, until: datetime) -> Window:
        """The fire `start` and all that follow it up to `until`."""
        count = 1 + sum(1 for _, _ in zip(range(MAX_COUNTED - 1), self._until(start, until), strict=False))
        span = timedelta(hours=1)
        while until - span > start:  # look back in growing steps: an outage may have been long
            latest = deque(self._until(until - span, until), maxlen=CATCH_UP)
            if len(latest) == CATCH_UP:
                return Window(tuple(latest), count)
            span *= 2
        return Window(tuple(deque([start, *self._until(start, until)], maxlen=CATCH_UP)), count)

    def following(self, start: datetime, until: datetime) -> datetime | None:  # noqa: ARG002 (a cron has no anchor)
        """The first fire after `until`."""
        return self.first(until)

    def _until(self, start: datetime, until: datetime) -> Iterator[datetime]:
        return takewhile(lambda fire: fire <= until, self._after(start))

    def _after(self, moment: datetime) -> Iterator[datetime]:
        """Strictly after `moment`. In the second pass of a fold the library looks back into the first: skip that."""
        fires = (fire.astimezone(UTC) for fire in CronSim(self.expression, moment.astimezone(zone(self.timezone))))
        return (fire for fire in fires if fire > moment)


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed interval of at least a second, counted from the fire before, so that a late start shifts nothing."""

    interval: timedelta

    def __post_init__(self) -> None:
        if self.interval < timedelta(seconds=1):
            raise ValueError("the shortest interval is one second (1s)")

    def first(self, now: datetime) -> datetime | None:
        return now.astimezone(UTC).replace(microsecond=0) + self.interval

    def window(self, start: datetime, until: datetime) -> Window:
        count = (until - start) // self.interval + 1
        return Window(tuple(start + n * self.interval for n in range(max(0, count - CATCH_UP), count)), count)

    def following(self, start: datetime, until: datetime) -> datetime | None:
        return start + ((until - start) // self.interval + 1) * self.interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A rhythm, what to do about missed fires, and how long after its nominal moment a fire falls due."""

    rhythm: Cron | Every
    missed: Missed = Missed.ONCE
    offset: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Due:
    """What to start now, oldest first, as nominal moments; when the row falls due again; how many fires get no run."""

    fires: tuple[datetime, ...]
    next_fire_at: datetime | None
    missed: int


def first_fire(schedule: Schedule, now: datetime) -> datetime | None:
    """When a schedule saved at `now` falls due for the first time; None when it never does."""
    nominal = schedule.rhythm.first(now)
    return None if nominal is None else nominal + schedule.offset


def due(schedule: Schedule, due_at: datetime, now: datetime) -> Due:
    """Decide about a row that fell due at `due_at`, which is not after `now`.

    Several fires may have passed. `once` starts the latest; `all` the latest ten; `skip` the latest if it is not older
    than `GRACE`, else none.
    """
    start, until = due_at.astimezone(UTC) - schedule.offset, now.astimezone(UTC) - schedule.offset
    window = schedule.rhythm.window(start, until)
    fires = _chosen(schedule.missed, window.latest, until)
    following = schedule.rhythm.following(start, until)
    return Due(
        fires=fires,
        next_fire_at=None if following is None else following + schedule.offset,
        missed=window.count - len(fires),
    )


def offset_of(workflow_id: str, jitter: timedelta) -> timedelta:
    """Between nothing and `jitter`, always the same for one workflow, spread evenly over many."""
    span = jitter // timedelta(milliseconds=1)
    if span <= 0:
        return timedelta()
    digest = hashlib.sha256(workflow_id.encode()).digest()
    return timedelta(milliseconds=int.from_bytes(digest[:8]) % span)


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name such as Europe/Berlin; ValueError for anything else."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; want a name such as Europe/Berlin or UTC") from None


def _chosen(missed: Missed, latest: tuple[datetime, ...], until: datetime) -> tuple[datetime, ...]:
    match missed:
        case Missed.ALL:
            return latest
        case Missed.SKIP if until - latest[-1] > GRACE:
            return ()
        case _:
            return latest[-1:]
