"""What is due fires exactly once, whoever looks, whatever stands beside it, and however long nobody looked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from engine.db import Row
from engine.errors import QuotaExceeded
from engine.held import Held
from engine.runs import Runs, Start, Started
from tests.trigger_parts import Parts, parts_for
from triggers import KINDS, Scheduler
from triggers.kinds import Decision, Kinds
from triggers.poll import LEASE
from triggers.scheduler import BATCH, Result

HOURLY = {"type": "schedule", "every": "1h"}


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        yield parts


@pytest.fixture
def scheduler(parts: Parts) -> Scheduler:
    return Scheduler(parts.database, parts.runs, parts.broker)


def make_due(parts: Parts, workflow_id: str, *, since: timedelta = timedelta(seconds=1)) -> datetime:
    """Let the trigger have fallen due `since` ago; when that was."""
    due_at = parts.rows("SELECT date_trunc('second', now()) AS now")[0]["now"] - since
    parts.change("UPDATE triggers SET next_fire_at = :at WHERE workflow_id = :id", at=due_at, id=workflow_id)
    assert isinstance(due_at, datetime)
    return due_at


def due_schedules(parts: Parts, count: int) -> None:
    """Many hourly schedules that fell due one after the other, half of them of each tenant."""
    parts.change(
        "INSERT INTO workflows (id, tenant_id, name, trigger_type, version)"
        " SELECT 'wf_' || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'W', 'schedule', 1 FROM generate_series(1, :n) n",
        n=count,
    )
    parts.change(
        "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
        " SELECT tenant_id, id, 1, '{}', 'h' FROM workflows"
    )
    parts.change(
        "INSERT INTO triggers (tenant_id, workflow_id, type, config, next_fire_at)"
        """ SELECT tenant_id, id, 'schedule', '{"type": "schedule", "every": "1h"}',"""
        " now() - interval '1 second' - substr(id, 4)::int * interval '1 millisecond' FROM workflows"
    )


def runs_by_workflow(parts: Parts) -> dict[str, int]:
    rows = parts.rows("SELECT workflow_id, count(*) AS n FROM runs GROUP BY 1")
    return {row["workflow_id"]: row["n"] for row in rows}


def scheduled_at(parts: Parts, workflow_id: str) -> list[datetime]:
    return [datetime.fromisoformat(run["input"]["scheduled_at"]) for run in parts.runs_of(workflow_id)]


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)


class At(Kinds):
    """The kinds as they decide at another moment than the database's."""

    def __init__(self, now: datetime) -> None:
        super().__init__(KINDS.values())
        self.now = now

    def decide(self, row: Mapping[str, Any]) -> Decision:
        return super().decide({**row, "now": self.now})


def test_a_due_schedule_starts_one_run_and_keeps_its_rhythm(parts: Parts, scheduler: Scheduler) -> None:
    workflow_id = parts.save(HOURLY)
    due_at = make_due(parts, workflow_id)
    assert scheduler.run_once() == Result(claimed=1, started=1)
    assert scheduler.run_once() == Result()
    (run,) = parts.runs_of(workflow_id)
    assert (run["trigger"], run["status"]) == ("schedule", "queued")
    assert run["input"] == {"scheduled_at": due_at.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    row = parts.trigger_of(workflow_id)
    assert (row["last_fired_at"], row["next_fire_at"]) == (due_at, due_at + timedelta(hours=1))
    assert list(parts.broker.runs) == [run["id"]]


def test_what_is_not_due_does_not_fire(parts: Parts, scheduler: Scheduler) -> None:
    for trigger in (HOURLY, {"type": "schedule", "cron": "0 0 1 1 *"}, {"type": "webhook"}, {"type": "manual"}):
        parts.save(trigger)
    assert scheduler.run_once() == Result()


def test_two_schedulers_at_once_fire_each_schedule_once(parts: Parts) -> None:
    due_schedules(parts, 400)
    start = Barrier(2)

    def tick(_: int) -> Result:
        scheduler = Scheduler(parts.database, parts.runs, parts.broker)
        start.wait(timeout=30)
        return scheduler.run_once()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(tick, range(2))
    assert one + other == Result(claimed=400, started=400)
    assert runs_by_workflow(parts) == {f"wf_{n}": 1 for n in range(1, 401)}
    Held(parts.database, parts.runs).run_once()  # a start that would have waited for another's count is held for this
    assert len(parts.broker.runs) == 400


def test_a_fire_that_was_stored_before_is_not_stored_again(parts: Parts, scheduler: Scheduler) -> None:
    workflow_id = parts.save(HOURLY)
    due_at = make_due(parts, workflow_id)
    scheduler.run_once()
    parts.change("UPDATE triggers SET next_fire_at = :at WHERE workflow_id = :id", at=due_at, id=workflow_id)
    assert scheduler.run_once() == Result(claimed=1, started=0)
    assert len(parts.runs_of(workflow_id)) == 1


def test_ten_thousand_schedules_due_in_the_same_second_fire_once_each(parts: Parts, scheduler: Scheduler) -> None:
    due_schedules(parts, 10_000)
    parts.change("UPDATE triggers SET next_fire_at = date_trunc('second', now()) - interval '1 second'")
    fired = scheduler.run_once()
    while (more := scheduler.run_once()).claimed:
        fired = Result(claimed=fired.claimed + more.claimed, started=fired.started + more.started)
    assert fired == Result(claimed=10_000, started=10_000)
    assert runs_by_workflow(parts) == {f"wf_{n}": 1 for n in range(1, 10_001)}
    (row,) = parts.rows("SELECT count(*) AS n FROM triggers WHERE next_fire_at > now()")
    assert row["n"] == 10_000


def test_of_a_herd_each_organization_fires_in_its_turn(parts: Parts, scheduler: Scheduler) -> None:
    due_schedules(parts, 200)
    few = ["wf_50", "wf_100", "wf_200"]
    parts.change("UPDATE triggers SET next_fire_at = NULL WHERE tenant_id = 'a'")
    parts.change(
        "UPDATE triggers SET next_fire_at = date_trunc('second', now()) - interval '1 second'"
        " WHERE tenant_id = 'b' OR workflow_id = ANY(:few)",
        few=few,
    )
    assert scheduler.run_once().started == 103
    first = [message.flow for message in list(parts.broker.runs.values())[:BATCH]]
    assert set(few) < set(first), "one organization's hundred came first"


@pytest.mark.parametrize(("missed", "started"), [("skip", []), ("once", [18]), ("all", list(range(9, 19)))])
def test_after_three_hours_without_a_scheduler_the_policy_decides(
    parts: Parts, scheduler: Scheduler, missed: str, started: list[int]
) -> None:
    workflow_id = parts.save({"type": "schedule", "every": "10m", "missed": missed})
    due_at = make_due(parts, workflow_id, since=timedelta(hours=3, minutes=5))
    assert scheduler.run_once() == Result(claimed=1, started=len(started), missed=19 - len(started))
    assert scheduled_at(parts, workflow_id) == [due_at + number * timedelta(minutes=10) for number in started]
    assert [run["input"].get("missed") for run in parts.runs_of(workflow_id)[:1]] == [19 - len(started)] * bool(started)
    assert parts.trigger_of(workflow_id)["next_fire_at"] == due_at + timedelta(hours=3, minutes=10)


@pytest.mark.parametrize(
    ("cron", "ticks", "fires"),
    [
        # The clock goes from 02:00 to 03:00: the fire comes at the end of the gap, and the next one as ever.
        ("30 2 * * *", ["2025-03-30 04:00", "2025-03-31 04:00"], ["2025-03-30 03:00", "2025-03-31 02:30"]),
        # It goes from 03:00 back to 02:00: one fire, in the first pass.
        ("30 2 * * *", ["2025-10-26 04:00", "2025-10-27 04:00"], ["2025-10-26 02:30", "2025-10-27 02:30"]),
        ("0 0 * * *", ["2025-10-26 04:00", "2025-10-27 04:00"], ["2025-10-26 00:00", "2025-10-27 00:00"]),
    ],
)
def test_a_local_time_fires_once_on_the_days_when_the_clock_changes(
    parts: Parts, cron: str, ticks: list[str], fires: list[str]
) -> None:
    moments = [berlin(text) for text in ticks]
    workflow_id = parts.save({"type": "schedule", "cron": cron, "timezone": "Europe/Berlin"})
    first = KINDS.next_fire(workflow_id, parts.trigger_of(workflow_id)["config"], moments[0] - timedelta(hours=12))
    parts.change("UPDATE triggers SET next_fire_at = :at WHERE workflow_id = :id", at=first, id=workflow_id)
    for moment in moments:
        scheduler = Scheduler(parts.database, parts.runs, parts.broker, kinds=At(moment))
        assert scheduler.run_once() == Result(claimed=1, started=1)
    assert scheduled_at(parts, workflow_id) == [berlin(text) for text in fires]


def test_one_unreadable_trigger_is_paused_and_the_others_fire(parts: Parts, scheduler: Scheduler) -> None:
    due_schedules(parts, 5)
    parts.change("""UPDATE triggers SET config = '{"type": "schedule", "cron": "never"}' WHERE workflow_id = 'wf_2'""")
    parts.change("""UPDATE triggers SET config = '{"type": "moon", "phase": 1}' WHERE workflow_id = 'wf_4'""")
    assert scheduler.run_once() == Result(claimed=5, started=3, paused=2)
    assert runs_by_workflow(parts) == {"wf_1": 1, "wf_3": 1, "wf_5": 1}
    for workflow_id in ("wf_2", "wf_4"):
        row = parts.trigger_of(workflow_id)
        assert row["next_fire_at"] is None
        assert row["paused_reason"].startswith("The trigger cannot be read: /trigger")


def test_a_paused_trigger_goes_on_when_the_workflow_is_switched_on_again(parts: Parts, scheduler: Scheduler) -> None:
    workflow_id = parts.save(HOURLY)
    make_due(parts, workflow_id)
    parts.change("UPDATE workflows SET is_active = false, inactive_reason = 'unpaid' WHERE id = :id", id=workflow_id)
    assert scheduler.run_once() == Result(claimed=1, paused=1)
    assert "unpaid" in parts.trigger_of(workflow_id)["paused_reason"]
    with parts.database.tenant("a") as session:
        parts.workflows.set_active(session, workflow_id, True)
    row = parts.trigger_of(workflow_id)
    assert row["paused_reason"] is None
    assert row["next_fire_at"] > row["now"]
    assert parts.runs_of(workflow_id) == []


def test_a_workflow_that_is_off_or_deleted_does_not_fall_due(parts: Parts, scheduler: Scheduler) -> None:
    off, deleted = parts.save(HOURLY), parts.save(HOURLY)
    make_due(parts, off)
    make_due(parts, deleted)
    with parts.database.tenant("a") as session:
        parts.workflows.set_active(session, off, False)
        parts.workflows.delete(session, deleted)
    assert scheduler.run_once() == Result()


def test_a_suspended_tenant_fires_nothing_and_then_what_its_policy_says(parts: Parts, scheduler: Scheduler) -> None:
    mine, yours = parts.save(HOURLY), parts.save(HOURLY, tenant="b")
    make_due(parts, mine, since=timedelta(hours=5))
    make_due(parts, yours)
    parts.change("UPDATE tenants SET status = 'suspended' WHERE id = 'a'")
    assert scheduler.run_once() == Result(claimed=1, started=1)
    parts.change("UPDATE tenants SET status = 'active' WHERE id = 'a'")
    assert scheduler.run_once() == Result(claimed=1, started=1, missed=5)
    assert runs_by_workflow(parts) == {mine: 1, yours: 1}


def test_a_tenant_that_is_suspended_while_its_schedule_fires_keeps_it(parts: Parts, scheduler: Scheduler) -> None:
    class Suspending(Kinds):
        def decide(self, row: Mapping[str, Any]) -> Decision:
            parts.change("UPDATE tenants SET status = 'suspended' WHERE id = 'a'")
            return super().decide(row)

    workflow_id = parts.save(HOURLY)
    due_at = make_due(parts, workflow_id)
    Scheduler(parts.database, parts.runs, parts.broker, kinds=Suspending(KINDS.values())).run_once()
    row = parts.trigger_of(workflow_id)
    assert (row["next_fire_at"], row["paused_reason"], row["last_fired_at"]) == (due_at, None, None)
    parts.change("UPDATE tenants SET status = 'active' WHERE id = 'a'")
    assert scheduler.run_once() == Result(claimed=1, started=1)


def test_a_scheduler_that_dies_half_way_has_done_nothing(parts: Parts, scheduler: Scheduler) -> None:
    class Dying(Kinds):
        def decide(self, row: Mapping[str, Any]) -> Decision:
            if row["workflow_id"] == "wf_3":
                raise RuntimeError("killed")
            return super().decide(row)

    due_schedules(parts, 6)
    with pytest.raises(RuntimeError, match="killed"):
        Scheduler(parts.database, parts.runs, parts.broker, kinds=Dying(KINDS.values())).run_once()
    assert runs_by_workflow(parts) == {}
    assert parts.broker.runs == {}
    assert scheduler.run_once() == Result(claimed=6, started=6)


def test_with_the_broker_down_runs_are_stored_all_the_same(parts: Parts, scheduler: Scheduler) -> None:
    workflow_id = parts.save(HOURLY)
    make_due(parts, workflow_id)
    parts.broker.down = True
    assert scheduler.run_once() == Result(claimed=1, started=1)
    assert [run["status"] for run in parts.runs_of(workflow_id)] == ["queued"]


def test_a_run_that_the_quota_refuses_is_left_out_and_the_schedule_goes_on(parts: Parts) -> None:
    class Full(Runs):
        """Takes three runs."""

        taken = 0

        def start(self, session: Any, request: Start) -> Started:
            self.taken += 1
            if self.taken > 3:
                raise QuotaExceeded("The queue is full.", code="quota_queue")
            return super().start(session, request)

    workflow_id = parts.save({"type": "schedule", "every": "10m", "missed": "all"})
    due_at = make_due(parts, workflow_id, since=timedelta(hours=1))
    result = Scheduler(parts.database, Full(parts.broker), parts.broker).run_once()
    assert (result.claimed, result.started) == (1, 0)
    assert parts.runs_of(workflow_id) == []
    assert parts.broker.runs == {}
    assert parts.trigger_of(workflow_id)["next_fire_at"] == due_at + timedelta(minutes=70)


def poll_of(parts: Parts) -> tuple[str, Row]:
    workflow_id = parts.save(
        {"type": "poll", "source": "rss", "every": "10m", "with": {"url": "http://127.0.0.1:1/feed"}}
    )
    return workflow_id, parts.trigger_of(workflow_id)


def test_a_due_poll_is_handed_to_a_worker_with_what_the_plan_says_of_its_lane(
    parts: Parts, scheduler: Scheduler
) -> None:
    workflow_id, saved = poll_of(parts)
    assert saved["next_fire_at"] <= saved["now"]
    assert scheduler.run_once() == Result(claimed=1, polls=1)
    (message,) = parts.broker.polls
    assert (message.tenant_id, message.workflow_id, message.id) == ("a", workflow_id, f"poll:{workflow_id}")
    assert message.lane is not None
    assert message.lane["weight"] == 1
    assert message.lane["cap"] == 20
    assert parts.runs_of(workflow_id) == []


def test_a_poll_that_was_lost_falls_due_again_under_the_same_message_id(parts: Parts, scheduler: Scheduler) -> None:
    workflow_id, _ = poll_of(parts)
    parts.broker.down = True
    assert scheduler.run_once() == Result(claimed=1, polls=1)
    row = parts.trigger_of(workflow_id)
    assert timedelta() < row["next_fire_at"] - row["now"] <= LEASE
    parts.broker.down = False
    for _ in range(2):
        make_due(parts, workflow_id)
        assert scheduler.run_once() == Result(claimed=1, polls=1)
    assert [message.id for message in parts.broker.polls] == [f"poll:{workflow_id}"] * 2
