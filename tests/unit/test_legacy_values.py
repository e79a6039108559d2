"""Times and values of the multi-user system are read in every form in which they occur, and nothing is lost in it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrations.legacy import moments
from migrations.legacy.staging import COLUMNS
from migrations.legacy.values import LONGEST_KEY, Reading
from tests.legacy_database import FORMS_OF_A_TIME, NO_TIMES

INSTEAD = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(("written", "read"), FORMS_OF_A_TIME)
def test_every_form_of_a_time_is_read_as_a_moment_in_utc(written: Any, read: str) -> None:
    moment = moments.read(written)
    assert moment is not None
    assert moments.written(moment) == read


@pytest.mark.parametrize("written", [*NO_TIMES, float("inf"), float("nan"), 10**30, None, b"2026-01-12"])
def test_what_is_no_time_is_not_guessed(written: Any) -> None:
    assert moments.read(written) is None


@given(st.datetimes().filter(lambda t: 1 < t.year < 9999), st.integers(-14 * 60, 14 * 60))
def test_a_time_with_an_offset_is_the_moment_that_it_names(local: datetime, minutes: int) -> None:
    hours, rest = divmod(abs(minutes), 60)
    sign = "-" if minutes < 0 else "+"
    expected = datetime.fromisoformat(f"{local.isoformat()}{sign}{hours:02}:{rest:02}")
    assert moments.read(f"{local}{sign}{hours:02}:{rest:02}") == expected


@pytest.mark.parametrize(
    ("raw", "message", "original"),
    [
        ("a\0b", "a\ufffdb", b"a\0b"),
        (b"\xff\xfe", "\ufffd\ufffd", b"\xff\xfe"),
        ("caf\udce9", "caf\ufffd", b"caf\xe9"),
    ],
)
def test_what_postgres_cannot_hold_is_replaced_and_the_original_kept(raw: Any, message: str, original: bytes) -> None:
    values, changes = Reading(COLUMNS["logs"], INSTEAD).row(["l", "w", "success", raw, "2026-01-12"])
    assert values[3] == message
    (change,) = changes
    assert base64.b64decode(str(change.stored()["base64"])) == original


def test_numbers_and_readable_bytes_become_text_without_a_word() -> None:
    values, changes = Reading(COLUMNS["logs"], INSTEAD).row([7, b"w", "success", 1.5, 1768212672])
    assert values == ["7", "w", "success", "1.5", "2026-01-12T10:11:12.000000+00:00"]
    assert changes == []


def test_an_id_too_long_for_an_index_is_shortened_alike_wherever_it_stands() -> None:
    long = "x" * (LONGEST_KEY + 1)
    user, told = Reading(COLUMNS["users"], INSTEAD).row([long, "a@b", "", "2026-01-12"])
    credential, _ = Reading(COLUMNS["credentials"], INSTEAD).row(["c", long, "slack", "", "2026-01-12"])
    assert user[0] == credential[1] != long
    assert [change.original for change in told] == [long]


RAW = st.none() | st.text(max_size=20) | st.binary(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.floats()


@given(st.sampled_from(sorted(COLUMNS)), st.data())
def test_whatever_a_row_holds_is_text_that_postgres_takes_or_missing(table: str, data: st.DataObject) -> None:
    raw = data.draw(st.tuples(*[RAW] * len(COLUMNS[table])))
    values, changes = Reading(COLUMNS[table], INSTEAD).row(raw)
    for column, value, was in zip(COLUMNS[table], values, raw, strict=True):
        if value is None:
            assert was is None or any(change.column == column for change in changes)
        else:
            assert "\0" not in value
            value.encode()
    assert all(change.stored() for change in changes)
