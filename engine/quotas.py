"""Admission: what becomes of a run that is started while a limit of the plan is near, reached or passed.

The database decides, in the transaction that stores the run (`admit` in the migrations): under any concurrency exactly
as many runs are admitted in a month as ``max_executions_per_month`` says, and no start from outside is added to more
than ``max_queued_runs`` that wait. The counter that it uses is derived from the ledger, and `Reconciler` compares the
two. Starts of a tenant without these limits touch no counter.

Over the monthly limit a run is `held` with the reason `QUOTA`; with the policy ``reject`` a start from outside (API,
webhook, replay) is refused instead. A full queue refuses what comes from outside. What an organization's own clock,
polls and runs start has nobody to try again: it is always held, never dropped. `engine.held` lets it go.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import structlog

from engine import metrics, usage
from engine.db import Database, TenantSession
from engine.errors import QuotaExceeded, Unavailable
from engine.repository import quotas as stored
from engine.usage import Period

QUOTA: Final = "quota"
"""The `wait_reason` of runs that are held over a limit."""
FROM_OUTSIDE: Final = frozenset({"api", "webhook", "replay"})
"""Whoever starts runs this way hears of a refusal, and can try again."""
MEASURED: Final = frozenset({*FROM_OUTSIDE, "poll", "workflow"})
"""What these are given is bounded by the plan. A schedule gives its time only, and no failure is to go unhandled."""
QUEUE_RETRY: Final = timedelta(seconds=10)
"""A queue gets shorter soon."""
RECOUNTED_AT_ONCE: Final = 1000
"""Counters, when a plan of many changes; the others a moment later."""

log = structlog.get_logger(__name__)


class Verdict(StrEnum):
    """What `admit` says."""

    ADMITTED = "admitted"
    LINE = "line"
    """Others are held and go first, or so many start at once that it is not known yet."""
    EXECUTIONS = "executions"
    """The month's runs are used up."""
    QUEUE = "queue"
    """As many wait as may."""


class StartRefused(QuotaExceeded):
    """A start that a quota did not let happen; `note_refusal` puts it into the ledger."""

    def __init__(
        self, detail: str, *, code: str, retry_after: timedelta | None, tenant_id: str, workflow_id: str
    ) -> None:
        super().__init__(detail, code=code, retry_after=retry_after)
        self.tenant_id = tenant_id
        self.workflow_id = workflow_id


class PayloadRefused(StartRefused):
    """What the run was to be given is larger than the plan allows: 413, since waiting does not help."""

    retryable = False

    def __init__(self, size: int, most: int, *, tenant_id: str, workflow_id: str) -> None:
        sentence = f"The run would be given {size:,} bytes of JSON; the plan allows {most:,} (max_payload_bytes)."
        super().__init__(sentence, code="quota_payload", retry_after=None, tenant_id=tenant_id, workflow_id=workflow_id)
        self.http_status = 413


def refusal(verdict: Verdict, *, tenant_id: str, workflow_id: str, rejects: bool, now: datetime) -> StartRefused | None:
    """The error for a start from outside; None when it is to be held."""
    if verdict is Verdict.QUEUE:
        sentence = "As many runs wait as the plan allows (max_queued_runs); try again when there are fewer."
        return StartRefused(
            sentence, code="quota_queue", retry_after=QUEUE_RETRY, tenant_id=tenant_id, workflow_id=workflow_id
        )
    if verdict is Verdict.EXECUTIONS and rejects:
        resets = Period.of(now).end
        sentence = (
            "The runs of this month are used up (max_executions_per_month); more start on"
            f" {resets.day} {calendar.month_name[resets.month]} {resets.year}, 00:00 UTC, or on a larger plan."
        )
        return StartRefused(
            sentence,
            code="quota_executions",
            retry_after=resets - now.astimezone(UTC),
            tenant_id=tenant_id,
            workflow_id=workflow_id,
        )
    return None


def note_refusal(database: Database, error: StartRefused) -> None:
    """Count it in the ledger, in a transaction of its own: that of the start is gone. Best effort, and logged."""
    try:
        with database.tenant(error.tenant_id) as session:
            usage.reject(session, error.workflow_id, error.error_code)
    except Unavailable as gone:
        log.warning("refusal_not_counted", tenant=error.tenant_id, code=error.error_code, reason=gone.detail)


def used(session: TenantSession, period: Period) -> int:
    """Executions admitted in a month: the number that the limit is held against, counted in the ledger."""
    return usage.executions(session, session.tenant_id, period)


def recount(database: Database, now: datetime) -> int:
    """Count anew what the next start would, since a limit is new or has come back; how many counters.

    So whoever looks at counters sees within seconds what is used of a limit. What fails for one is logged, and stops
    no other; where runs start at this instant it is done by them or the next time.
    """
    period = Period.of(now)
    with database.system() as session:
        tenants = stored.stale(session, period.first, start=period.start, end=period.end, limit=RECOUNTED_AT_ONCE)
    return sum(_recount(database, tenant_id, now) for tenant_id in tenants)


def _recount(database: Database, tenant_id: str, now: datetime) -> bool:
    try:
        with database.tenant(tenant_id) as session:
            return stored.recount(session, now)
    except Exception:  # whatever it is: others wait to be counted, too
        log.exception("quota_not_recounted", tenant=tenant_id)
        return False


class Reconciler:
    """Compares each counter with the ledger, and mends it. Any number may run; a tenant's starts wait meanwhile.

    What fails for one organization is logged and stops no other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def run_once(self, now: datetime | None = None) -> int:
        """How many counters were wrong. Every difference is logged, and counted in executions."""
        period = Period.of(now or datetime.now(UTC))
        with self._database.system() as session:
            tenants = stored.counted_tenants(session, period.first)
            stored.forget_before(session, period.first)
        return sum(self._reconcile(tenant_id, period) for tenant_id in tenants)

    def _reconcile(self, tenant_id: str, period: Period) -> bool:
        try:
            return self._compare(tenant_id, period)
        except Exception:  # whatever it is: the counters of others may be wrong, too
            log.exception("quota_counter_not_compared", tenant=tenant_id, period=str(period))
            return False

    def _compare(self, tenant_id: str, period: Period) -> bool:
        with self._database.tenant(tenant_id) as session:
            counted = stored.lock_counter(session, period.first)
            ledger = usage.executions(session, tenant_id, period)
            if counted == ledger:
                return False
            stored.mend_counter(session, period.first, ledger)
        metrics.QUOTA_DRIFT.inc(abs(ledger - counted))
        log.error("quota_counter_mended", tenant=tenant_id, period=str(period), counted=counted, ledger=ledger)
        return True
