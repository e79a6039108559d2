"""When schedules fire: both changes of the clock, missed fires, and what must hold for every schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triggers import cron
from triggers.cron import Cron, Every, Missed, Schedule

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = Cron("30 2 * * *", "Europe/Berlin")

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kathmandu")
EXPRESSIONS = (
    "30 2 * * *",
    "0 * * * *",
    "*/15 2 * * *",
    "0,30 1-3 * * *",
    "5 4 * * 0",
    "0 0 1 * *",
    "0 0 * * *",
    "17 */3 * * *",
)

moments = st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
crons = st.builds(Cron, st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES))
everies = st.builds(Every, st.timedeltas(timedelta(seconds=1), timedelta(days=40)))
schedules = st.builds(
    Schedule,
    rhythm=st.one_of(crons, everies),
    missed=st.sampled_from(Missed),
    offset=st.timedeltas(timedelta(), timedelta(minutes=10)),
)


def berlin(*parts: int, fold: int = 0) -> datetime:
    return datetime(*parts, tzinfo=BERLIN, fold=fold).astimezone(UTC)  # type: ignore[misc, arg-type]


def fires(rhythm: Cron, after: datetime, count: int) -> list[datetime]:
    found = []
    for _ in range(count):
        moment = rhythm.first(after)
        assert moment is not None
        found.append(moment)
        after = moment
    return found


def test_a_time_inside_the_gap_fires_at_its_end() -> None:
    assert fires(NIGHTLY, berlin(2026, 3, 28, 12, 0), 2) == [berlin(2026, 3, 29, 3, 0), berlin(2026, 3, 30, 2, 30)]


def test_a_time_inside_the_fold_fires_once_in_its_first_pass() -> None:
    found = fires(NIGHTLY, berlin(2026, 10, 24, 12, 0), 2)
    assert found == [berlin(2026, 10, 25, 2, 30, fold=0), berlin(2026, 10, 26, 2, 30)]


@pytest.mark.parametrize("minute", [0, 10, 30, 59])
def test_a_schedule_saved_in_the_second_pass_of_the_fold_waits_for_the_next_day(minute: int) -> None:
    assert NIGHTLY.first(berlin(2026, 10, 25, 2, minute, fold=1)) == berlin(2026, 10, 26, 2, 30)


def test_an_hourly_schedule_means_elapsed_time_over_both_changes() -> None:
    hourly = Cron("0 * * * *", "Europe/Berlin")
    for change in (berlin(2026, 3, 29, 0, 0), berlin(2026, 10, 25, 0, 0)):
        found = fires(hourly, change, 6)
        assert [later - earlier for earlier, later in pairwise(found)] == [timedelta(hours=1)] * 5


def test_several_times_inside_the_gap_fire_once_at_its_end() -> None:
    rhythm = Cron("0,30 2,3 * * *", "Europe/Berlin")
    assert fires(rhythm, berlin(2026, 3, 29, 0, 0), 2) == [berlin(2026, 3, 29, 3, 0), berlin(2026, 3, 29, 3, 30)]


def test_every_keeps_its_rhythm_when_the_scheduler_is_late() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    schedule = Schedule(rhythm=Every(timedelta(minutes=10)))
    decided = cron.due(schedule, start, start + timedelta(minutes=3))
    assert decided == cron.Due((start,), start + timedelta(minutes=10), 0)


@pytest.mark.parametrize(
    ("missed", "started", "dropped"),
    [(Missed.SKIP, [], 19), (Missed.ONCE, [18], 18), (Missed.ALL, list(range(9, 19)), 9)],
)
@pytest.mark.parametrize("rhythm", [Every(timedelta(minutes=10)), Cron("*/10 * * * *")], ids=["every", "cron"])
def test_after_three_hours_without_a_scheduler_the_policy_decides(
    rhythm: Cron | Every, missed: Missed, started: list[int], dropped: int
) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    now = start + timedelta(hours=3, minutes=5)
    decided = cron.due(Schedule(rhythm=rhythm, missed=missed), start, now)
    assert decided.fires == tuple(start + n * timedelta(minutes=10) for n in started)
    assert decided.missed == dropped
    assert decided.next_fire_at == start + timedelta(hours=3, minutes=10)


def test_skip_still_starts_a_fire_that_is_only_late() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    schedule = Schedule(rhythm=Cron("0 * * * *"), missed=Missed.SKIP)
    assert cron.due(schedule, start, start + cron.GRACE).fires == (start,)


def test_a_year_of_missed_minutes_is_decided_quickly_and_exactly_where_it_matters() -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    now = datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)
    decided = cron.due(Schedule(rhythm=Cron("* * * * *"), missed=Missed.ALL), start, now)
    newest = datetime(2026, 1, 1, tzinfo=UTC)
    assert decided.fires == tuple(newest - n * timedelta(minutes=1) for n in reversed(range(cron.CATCH_UP)))
    assert decided.missed == cron.MAX_COUNTED - cron.CATCH_UP


def test_a_rare_fire_missed_long_ago_is_still_found() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    decided = cron.due(Schedule(rhythm=Cron("0 0 1 * *")), start, datetime(2026, 1, 28, tzinfo=UTC))
    assert decided == cron.Due((start,), datetime(2026, 2, 1, tzinfo=UTC), 0)


@pytest.mark.parametrize(
    ("expression", "timezone", "says"),
    [
        ("* * * *", "UTC", "five fields"),
        ("* * * * * *", "UTC", "five fields"),
        ("61 * * * *", "UTC", "bad minute"),
        ("0 0 31 2 *", "UTC", "bad day-of-month"),
        ("@reboot", "UTC", "five fields"),
        ("0 0 * * *", "Mars/Olympus", "time zone"),
        ("0 0 * * *", "../../etc/passwd", "time zone"),
        ("0 0 * * *", "Europe", "time zone"),
        ("0 0 * * *", "", "time zone"),
    ],
)
def test_what_is_not_a_schedule_is_refused_with_what_would_be_right(expression: str, timezone: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cron(expression, timezone)


def test_an_interval_under_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match="one second"):
        Every(timedelta(milliseconds=999))


def test_the_offset_is_the_same_for_a_workflow_and_spreads_over_many() -> None:
    jitter = timedelta(seconds=60)
    offsets = [cron.offset_of(f"wf_{number}", jitter) for number in range(1000)]
    assert offsets == [cron.offset_of(f"wf_{number}", jitter) for number in range(1000)]
    assert all(timedelta() <= offset < jitter for offset in offsets)
    assert sum(offset < jitter / 2 for offset in offsets) == pytest.approx(500, abs=80)
    assert cron.offset_of("wf_1", timedelta()) == timedelta()


@given(crons, moments)
def test_the_next_fire_is_after_the_moment_and_none_lies_between(rhythm: Cron, moment: datetime) -> None:
    fire = rhythm.first(moment)
    assert fire is not None
    assert fire > moment
    assert rhythm.first(fire - timedelta(seconds=1)) == fire
    middle = moment + (fire - moment) / 2
    assert rhythm.first(middle) == fire


@given(schedules, moments, st.timedeltas(timedelta(), timedelta(days=30)))
def test_a_decision_looks_only_back_and_the_next_fire_lies_ahead(
    schedule: Schedule, saved: datetime, outage: timedelta
) -> None:
    due_at = cron.first_fire(schedule, saved)
    assert due_at is not None
    now = due_at + outage
    decided = cron.due(schedule, due_at, now)
    assert decided.next_fire_at is not None
    assert decided.next_fire_at > now
    assert list(decided.fires) == sorted(set(decided.fires))
    assert all(due_at <= fire + schedule.offset <= now for fire in decided.fires)
    assert len(decided.fires) <= {Missed.SKIP: 1, Missed.ONCE: 1, Missed.ALL: cron.CATCH_UP}[schedule.missed]
    assert decided.missed >= 0


@given(schedules, moments, st.integers(1, 30))
def test_a_scheduler_that_is_never_late_starts_every_fire_exactly_once(
    schedule: Schedule, saved: datetime, rounds: int
) -> None:
    due_at = cron.first_fire(schedule, saved)
    started: list[datetime] = []
    for _ in range(rounds):
        assert due_at is not None
        decided = cron.due(schedule, due_at, due_at)
        assert decided.missed == 0
        started += decided.fires
        due_at = decided.next_fire_at
    assert len(started) == rounds
    assert started == sorted(set(started))
