"""Times as the multi-user system's releases wrote them, read as moments in UTC.

What is understood: ``2026-01-12 10:11:12`` and RFC 3339, with or without an offset (none is UTC) and a fraction of up
to nine digits; Go's own form, which names the zone twice and may end in ``m=+0.1``; a date alone; and the seconds,
milliseconds, microseconds or nanoseconds since 1970. Nanoseconds are cut to microseconds. Everything else is None.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

_WRITTEN = re.compile(
    r"\s*([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?"
    r"\s*(?:([Zz]|UTC|GMT)|([+-])([0-9]{2}):?([0-9]{2})?(?:\s+[A-Za-z0-9+-]{1,8})?)?(?:\s+m=[+-][0-9.]+)?)?\s*"
)
_NUMBER = re.compile(r"\s*(-?[0-9]{9,20}(?:\.[0-9]*)?)\s*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST, _LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
_UNITS = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))
"""Below the first number, how many microseconds the unit has that is meant."""


def read(written: object) -> datetime | None:
    """The moment, or None when nobody can read it or it lies outside the years 1 to 9999."""
    try:
        moment = _read(written)
    except (ValueError, ArithmeticError):
        return None
    return moment if moment is not None and _EARLIEST <= moment < _LATEST else None


def _read(written: object) -> datetime | None:
    if isinstance(written, float):
        return _of_number(Decimal(int(written))) if abs(written) >= 10**11 else _EPOCH + timedelta(seconds=written)
    if isinstance(written, int):
        return _of_number(Decimal(written))
    if not isinstance(written, str):
        return None
    if found := _WRITTEN.fullmatch(written):
        return _of_parts(found)
    if number := _NUMBER.fullmatch(written):
        return _of_number(Decimal(number[1]))
    return None


def _of_number(number: Decimal) -> datetime:
    for below, microseconds in _UNITS:
        if abs(number) < below:
            return _EPOCH + timedelta(microseconds=int(number * microseconds))
    return _EPOCH + timedelta(microseconds=int(number // 1000))


def _of_parts(found: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(found[group] or 0) for group in range(1, 7))
    zone = UTC
    if found[9]:
        offset = timedelta(hours=int(found[10]), minutes=int(found[11] or 0))
        zone = timezone(-offset if found[9] == "-" else offset)
    micros = int((found[7] or "").ljust(6, "0")[:6])
    leap = second == 60
    moment = datetime(year, month, day, hour, minute, 59 if leap else second, micros, tzinfo=zone)
    return (moment + timedelta(seconds=1) if leap else moment).astimezone(UTC)


def written(moment: datetime) -> str:
    """The one form that checksums are made of: ``2026-01-12T10:11:12.000000+00:00``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
