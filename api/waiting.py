"""Why a run waits: one reason with a sentence, out of its row in Postgres and its place in the queue.

Postgres knows what is held, sleeps or backs off; of what is queued, the lanes know whose turn comes first. While Redis
does not answer nobody can say, which is Unavailable; the run itself is stored and will start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.exceptions import RedisError

from api.schemas_runs import WaitingReason
from engine.db import Row
from engine.errors import Conflict, Unavailable
from engine.fairshare import Lanes, Position
from engine.ports import RunMessage
from engine.quotas import QUOTA
from engine.runs import FLOODED
from engine.states import RunState

_NOT_WAITING: Mapping[str, str] = {
    RunState.RUNNING: "is running",
    RunState.SUCCEEDED: "has succeeded",
    RunState.FAILED: "has failed",
    RunState.CANCELLED: "was cancelled",
}
_HELD = {
    QUOTA: "It is over a quota: the runs of this month are used up, or as many wait as the plan allows. It starts by"
    " itself, the oldest first, when there is room: when the next month begins (UTC), on a larger plan, or when fewer"
    " wait.",
    "max_executions_per_month": "The runs of this month are used up; it starts when the next month begins, or on a"
    " larger plan.",
    FLOODED: "One poll found very many new items at once; the runs start when somebody releases them.",
    "max_queued_runs": "As many runs wait as the plan allows; it starts when there are fewer.",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """`position` counts the starts that come before it, at least; None where it stands in no order."""

    reason: WaitingReason
    detail: str
    since: datetime
    position: int | None = None


def why(run: Row, *, tenant_id: str, lanes: Lanes) -> Waiting:
    """What the run waits for.

    Raises Conflict ``run_not_waiting`` when it runs or has ended, Unavailable when Redis must be asked and is down.
    """
    if run["status"] in _NOT_WAITING:
        raise Conflict(f"The run {run['id']} {_NOT_WAITING[run['status']]}; nothing waits.", code="run_not_waiting")
    if run["status"] == RunState.HELD:
        cause = run["wait_reason"]
        detail = _HELD.get(cause, f"It is held back ({cause}) until it is released.")
        return Waiting("quota", detail, run["queued_at"])
    if run["status"] == RunState.WAITING:
        return _parked(run)
    message = RunMessage(run["id"], tenant_id, run["workflow_id"], run["priority"], run["attempt"])
    try:
        return _queued(message, lanes, since=_let_go(run))
    except RedisError as error:
        raise Unavailable("Redis does not answer, so the queue is not known; the run is stored and starts.") from error


def _let_go(run: Row) -> datetime:
    """When the last worker let go of it, or it came."""
    moment: datetime = run["heartbeat_at"] or run["queued_at"]
    return moment


def _parked(run: Row) -> Waiting:
    cause, wake_at = run["wait_reason"], run["wake_at"]
    moment = "" if wake_at is None else f"{wake_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    until = f" until {moment}" if moment else ""
    if cause == "retry_backoff":
        return Waiting("retry_backoff", f"A step failed and is tried again at {moment}.", _let_go(run))
    if cause == "concurrency":
        detail = (
            "As many runs are under way as the workflow's own limit (its `concurrency`) allows, whatever the"
            " organization's is; it starts when one of them ends."
        )
        return Waiting("tenant_concurrency", detail, _let_go(run))
    if cause == "workflow":
        return Waiting(
            "sleeping", f"A step waits for the end of the workflow's run that it started{until}.", _let_go(run)
        )
    if cause == "outcome_unknown":
        detail = "A worker died in the middle of a step (outcome_unknown); somebody must say whether to try again."
        return Waiting("approval", detail, _let_go(run))
    if cause == "approval" or wake_at is None:
        why = "" if cause == "approval" else f" ({cause})"
        return Waiting("approval", f"A step waits for an approval{why}{until}.", _let_go(run))
    why = "" if cause == "sleeping" else f" ({cause})"
    return Waiting("sleeping", f"A step sleeps{why}{until}.", _let_go(run))


def _queued(message: RunMessage, lanes: Lanes, *, since: datetime) -> Waiting:
    position = lanes.position(message.id)
    if position is not None and position.state == "in_flight":
        return Waiting("fair_turn", "A worker has taken it and is about to begin.", since, position=0)
    ahead = None if position is None else (position.ahead or 0) + (position.lanes_ahead or 0)
    if position is not None and position.reason == "paused":
        return Waiting("paused", "The operator has paused this organization's runs.", since, ahead)
    if not lanes.workers():
        return Waiting("no_worker", "No worker is there to run anything; it starts when one comes.", since, ahead)
    if position is None or ahead is None:
        return Waiting("fair_turn", "It is stored and on its way into the queue.", since)
    return _in_turn(position, ahead, message.tenant_id, lanes, since=since)


def _in_turn(position: Position, ahead: int, tenant_id: str, lanes: Lanes, *, since: datetime) -> Waiting:
    match position.reason:
        case "tenant_concurrency":
            lane = lanes.inspect(tenant_id)
            cap = f" ({lane.cap})" if lane is not None and lane.cap is not None else ""
            detail = f"As many runs of this organization run as may at once{cap}; the next starts when one ends."
            return Waiting("tenant_concurrency", detail, since, ahead)
        case "rate":
            seconds = math.ceil(position.rate_due_in)
            detail = f"This organization starts as many runs as it may in a minute; the next starts in {seconds} s."
            return Waiting("rate", detail, since, ahead)
    others = "other" if ahead == 1 else "others"
    detail = f"It waits for its turn behind at least {ahead} {others}." if ahead else "It is next."
    return Waiting("fair_turn", detail, since, ahead)
