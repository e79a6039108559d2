"""Reports executions to a payment provider: each hour of each customer once, whatever is killed when.

What is to be reported is a row before it is sent: `Metering` compares the hours of the roll-up with the rows that there
are, and plans the difference, so that an execution which was recorded late is a row of its own. A row is claimed for a
while, sent under its identifier, and marked; who dies in between leaves the row to be sent again under the same
identifier, which the provider takes once. Providers remember identifiers for a day only: a row whose first sending is
nearly that old, with no answer, is ``unknown`` and is sent no more; the operator looks and settles it. What a provider
refuses is ``refused``, with its words, until the operator has corrected the cause.

An organization without a customer is not reported and not forgotten: each pass counts its executions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import structlog

from engine.db import Database, Row, SystemSession
from engine.errors import Fatal, NotFound, RetryLater, Unavailable
from engine.ports import MeterEvent, MeterExporter
from engine.repository import metering as stored

SETTLED = timedelta(minutes=10)
"""After an hour, before it is reported: by then the roll-up has it."""
REACH = timedelta(days=34)
"""Hours older than this are no more reported; Stripe takes events of 35 days."""
REMEMBERED = timedelta(hours=23)
"""How long a provider is trusted to know an identifier again."""
CLAIM = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(hours=1)
BATCH = 100

Settled = Literal["sent", "planned"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Exported:
    """What one pass did, and what waits for somebody."""

    planned: int = 0
    sent: int = 0
    refused: int = 0
    unknown: int = 0
    without_customer: tuple[Row, ...] = ()
    """Organizations with executions that nobody is charged for by the provider: tenant_id, executions."""
    trouble: str | None = None
    """Why the pass ended early: the provider did not answer, or asked for patience."""


def log_result(result: Exported) -> None:
    """What operators should know of a pass, if anything."""
    if result.planned or result.sent or result.refused or result.unknown:
        figures = {name: getattr(result, name) for name in ("planned", "sent", "refused", "unknown")}
        log.info("usage_exported", **figures)
    if result.without_customer:
        log.warning("usage_without_customer", organizations=len(result.without_customer))
    if result.trouble:
        log.warning("export_delayed", reason=result.trouble)


class Metering:
    """Any number may run at once. `report` is given what each pass did."""

    def __init__(
        self, database: Database, exporter: MeterExporter, *, report: Callable[[Exported], None] = log_result
    ) -> None:
        self._database = database
        self._exporter = exporter
        self._report = report

    def run_once(self, *, now: datetime | None = None) -> Exported:
        """Plan what is new and send what is planned; by the clock of this machine unless `now` is given."""
        moment = now or datetime.now(UTC)
        planned = self.plan(moment)
        sent = refused = 0
        trouble: str | None = None
        with self._database.system() as session:
            unknown = stored.give_up(session, before=moment - REMEMBERED)
            lacking = stored.without_customer(session, *_window(moment))
        while trouble is None and (batch := self._claim(moment)):
            for number, row in enumerate(batch):
                try:
                    done = self._send(row, moment)
                except (RetryLater, Unavailable) as error:
                    trouble = error.detail
                    self._release(batch[number + 1 :])
                    break
                sent, refused = sent + done, refused + (not done)
        result = Exported(planned, sent, refused, unknown, tuple(lacking), trouble)
        self._report(result)
        return result

    def plan(self, now: datetime) -> int:
        """Make rows of what the roll-up has and no row does; how many."""
        planned, after = 0, ""
        while True:
            with self._database.system() as session:
                customers = stored.customers(session, after=after, limit=BATCH)
            if not customers:
                return planned
            for customer in customers:
                with self._database.system() as session:
                    planned += _plan(session, customer, now)
            after = customers[-1]["tenant_id"]

    def _claim(self, now: datetime) -> list[Row]:
        with self._database.system() as session:
            return stored.claim(session, now=now, until=now + CLAIM, limit=BATCH)

    def _send(self, row: Row, now: datetime) -> bool:
        """True when the provider has it, False when it refused it. Raises RetryLater, Unavailable."""
        with self._database.system() as session:
            stored.begin(session, row["identifier"], now=now)
        event = MeterEvent(row["identifier"], row["customer"], row["quantity"], row["hour"])
        try:
            self._exporter.send(event)
        except Fatal as error:
            self._mark(row, state="refused", error=error.detail)
            return False
        except (RetryLater, Unavailable) as error:
            pause = min(LONGEST_PAUSE, timedelta(seconds=15 * 2 ** min(row["attempts"], 10)))
            # It was not taken where the provider says so: then the time for repeating begins anew.
            taken = {} if isinstance(error, Unavailable) else {"sent_first_at": None}
            self._mark(row, claimed_until=now + pause, error=error.detail, **taken)
            raise
        self._mark(row, state="sent", sent_at=now, error=None)
        return True

    def _mark(self, row: Row, **values: object) -> None:
        with self._database.system() as session:
            stored.mark(session, row["identifier"], values)

    def _release(self, rows: Sequence[Row]) -> None:
        with self._database.system() as session:
            stored.release(session, [row["identifier"] for row in rows])


def settle(session: SystemSession, identifier: str, outcome: Settled, *, now: datetime) -> None:
    """Say of a row that is ``unknown`` or ``refused`` that the provider has it, or that it shall be sent again.

    Raises NotFound when there is no such row in one of these states.
    """
    if not stored.settle(session, identifier, outcome, now=now):
        raise NotFound(f"There is no export {identifier!r} that is unknown or refused.")


def _window(now: datetime) -> tuple[datetime, datetime]:
    """The hours that are reported now: from, and before."""
    return now - REACH, (now - SETTLED).replace(minute=0, second=0, microsecond=0)


def _plan(session: SystemSession, customer: Row, now: datetime) -> int:
    tenant_id = customer["tenant_id"]
    since, until = _window(now)
    stored.lock(session, tenant_id)
    missing = stored.missing(session, tenant_id, max(since, customer["export_from"]), until)
    rows = [
        {
            "tenant_id": tenant_id,
            "hour": row["hour"],
            "seq": row["seq"],
            "identifier": f"fairlane:{tenant_id}:{row['hour'].astimezone(UTC):%Y%m%dT%H}:{row['seq']}",
            "customer": customer["customer"],
            "quantity": row["quantity"],
        }
        for row in missing
    ]
    stored.insert(session, rows)
    return len(rows)
