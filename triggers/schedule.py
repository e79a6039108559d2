"""The kind `schedule`: a cron in a time zone, or an interval. When it fires is decided in `triggers.cron`.

A run's input is ``{"scheduled_at": the nominal moment}``, with ``missed``: how many fires before it got no run, where
there were any.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from engine.definition import ScheduleTrigger
from engine.errors import Fault, InvalidInput
from engine.ports import Json
from engine.runs import Start
from triggers import cron
from triggers.kinds import Decision, Due


class Schedule:
    type = "schedule"

    def first_fire(self, workflow_id: str, trigger: ScheduleTrigger, now: datetime) -> datetime | None:
        moment = cron.first_fire(_schedule(workflow_id, trigger), now)
        if moment is None:
            raise InvalidInput([Fault("/trigger/cron", "never comes true in the next fifty years")])
        return moment

    def decide(self, due: Due) -> Decision:
        decided = cron.due(_schedule(due.workflow_id, due.trigger), due.due_at, due.now)
        starts = [
            _start(due.workflow_id, moment, missed=decided.missed if n == 0 else 0)
            for n, moment in enumerate(decided.fires)
        ]
        return Decision(next_fire_at=decided.next_fire_at, starts=tuple(starts), missed=decided.missed)


def _schedule(workflow_id: str, trigger: ScheduleTrigger) -> cron.Schedule:
    if trigger.every is not None:
        rhythm: cron.Cron | cron.Every = cron.Every(trigger.every)
    else:
        rhythm = cron.Cron(trigger.cron or "", trigger.timezone)
    return cron.Schedule(
        rhythm=rhythm,
        missed=cron.Missed(trigger.missed),
        offset=cron.offset_of(workflow_id, trigger.jitter or timedelta()),
    )


def _start(workflow_id: str, moment: datetime, *, missed: int) -> Start:
    """The key makes a fire unique, however many schedulers see it: one run for each nominal moment."""
    at = moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    data: dict[str, Json] = {"scheduled_at": at}
    if missed:
        data["missed"] = missed
    return Start(
        workflow_id=workflow_id, trigger="schedule", input=data, idempotency_key=f"schedule:{workflow_id}:{at}"
    )
