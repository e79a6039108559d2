"""Limits on what an organization may have at once: workflows, members, credentials; and how often it may poll.

Exact under any concurrency: whoever adds something calls `check` behind the insert and before the commit. It takes a
lock for the tenant and the limit until the transaction ends, so that each sees all that was added before; over the
limit it raises, and the insert is undone with its transaction. A tenant without the limit takes no lock.

A limit that is lowered below what is used breaks nothing that exists: only what would be added is refused, with 402,
as waiting does not help. A pending invitation takes a seat when somebody is invited; whoever accepts one needs a seat
among the members only, so that invitations of before a limit was lowered do not use each other up.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from engine import usage
from engine.db import TenantSession
from engine.definition import PollTrigger, Trigger
from engine.durations import format_duration
from engine.errors import Fault, InvalidInput, QuotaExceeded
from engine.repository import allowances as stored
from engine.usage import Period


@dataclass(frozen=True, slots=True)
class Allowance:
    """A limit on what exists at once: its name, its code, and what it counts, in words."""

    limit: str
    code: str
    things: str
    seats: bool = False
    """Whether pending invitations count."""


WORKFLOWS = Allowance("max_workflows", "quota_workflows", "workflows")
MEMBERS = Allowance("max_members", "quota_members", "members")
SEATS = Allowance("max_members", "quota_members", "members and pending invitations", seats=True)
CREDENTIALS = Allowance("max_credentials", "quota_credentials", "credentials")

EXECUTIONS = "max_executions_per_month"


def check(session: TenantSession, allowance: Allowance) -> None:
    """Behind an insert: raises QuotaExceeded, with 402, when that was one too many."""
    if stored.limits(session).get(allowance.limit) is None:
        return
    stored.lock(session, allowance.limit)
    most = stored.limits(session).get(allowance.limit)  # again: it may have been changed while this waited
    used = stored.count(session, stored.SEATS if allowance.seats else stored.USED[allowance.limit])
    if most is not None and used > most:
        raise QuotaExceeded(
            f"The organization has {used - 1} of at most {most} {allowance.things} ({allowance.limit})."
            f" {_who_raises(session, allowance.limit)}",
            code=allowance.code,
            payment_required=True,
        )


def check_trigger(session: TenantSession, trigger: Trigger) -> None:
    """Raises InvalidInput ``quota_poll_interval`` for a poll that is more frequent than the plan allows."""
    if not isinstance(trigger, PollTrigger):
        return
    least = between_polls(session)
    if trigger.every >= least:
        return
    sentence = (
        f"is {format_duration(trigger.every)}, and at least {format_duration(least)} must be between two polls"
        f" (min_poll_interval). {_who_raises(session, 'min_poll_interval')}"
    )
    raise InvalidInput([Fault("/trigger/every", sentence)], code="quota_poll_interval")


def between_polls(session: TenantSession) -> timedelta:
    """The least time between two polls of a workflow, for those too that were saved before the limit was raised."""
    return timedelta(seconds=stored.limits(session).get("min_poll_interval") or 0)


def _who_raises(session: TenantSession, limit: str) -> str:
    return (
        "A larger plan allows more, or the operator changes the limit"
        f" (`fairlane tenants set-limit {session.tenant_id} {limit}`)."
    )


def policy(session: TenantSession) -> str:
    """What becomes of a start from outside over the monthly limit: ``hold`` or ``reject``."""
    return "reject" if stored.limits(session).get("over_quota") == "reject" else "hold"


def quotas(session: TenantSession, now: datetime) -> list[dict[str, Any]]:
    """Items ``{name, limit, used, resets_at}`` of what can be counted; `limit` None is unlimited."""
    row = stored.all_used(session)
    limits = row.pop("limits")
    period = Period.of(now.astimezone(UTC))
    used = {EXECUTIONS: usage.executions(session, session.tenant_id, period), **row}
    resets = {EXECUTIONS: period.end}
    return [
        {"name": name, "limit": limits.get(name), "used": count, "resets_at": resets.get(name)}
        for name, count in used.items()
    ]
