"""The ledger of what organizations use, its roll-ups, and the report of a month.

Every row is written in the transaction of what it stands for, and never changed. `executions` are counted when a run
is admitted, so that a run that is cancelled or crashes later counts all the same, and counters, page and bill agree
at every instant. `report` is exact up to now: the roll-up of a month, and the ledger's rows since then.

`RollUp.run_once` adds whole transactions, up to the oldest one that is still under way: a late commit is in the next
roll-up, no row is in two. The mark moves in the same transaction, so one that dies has done nothing, and of two at once
the second does nothing.

Transactions are numbered by the cluster. In a dump that was restored into another one the numbers say nothing: it is
noticed by the cluster's identity, and by a mark that its counter has not come to. Then the roll-ups are emptied, while
nobody writes to the ledger, and made again from all of it; `report` is right meanwhile, from the ledger alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog

from engine.db import Database, Row, SystemSession, TenantSession
from engine.errors import Fault, InvalidInput
from engine.repository import metrics
from engine.repository import usage as stored

log = structlog.get_logger(__name__)

_PERIOD = re.compile(r"(2\d{3})-(0[1-9]|1[0-2])")


class Kind(StrEnum):
    """What a row of the ledger stands for."""

    EXECUTION = "execution"
    """One run was admitted."""
    ACTION_CALL = "action_call"
    """A step called its action `quantity` times; `outcome` is the state that the step came to."""
    WORKER_SECONDS = "worker_seconds"
    """One attempt had a worker for `seconds`."""
    HELD = "held"
    """A run was stored and held, over a quota."""
    REJECTED = "rejected"
    """A start was refused, over a quota; `outcome` is the code. It has no run."""


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """A calendar month, UTC: what monthly limits and bills are counted by."""

    first: date

    @classmethod
    def of(cls, moment: datetime) -> Period:
        return cls(moment.astimezone(UTC).date().replace(day=1))

    @classmethod
    def parse(cls, text: str) -> Period:
        """From ``YYYY-MM``. Raises InvalidInput."""
        found = _PERIOD.fullmatch(text)
        if found is None:
            raise InvalidInput([Fault("/period", "want a month such as 2026-11")])
        return cls(date(int(found[1]), int(found[2]), 1))

    @property
    def start(self) -> datetime:
        return datetime(self.first.year, self.first.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """The first moment after it, when its limits begin anew."""
        return Period((self.first + timedelta(days=31)).replace(day=1)).start

    def __str__(self) -> str:
        return f"{self.first:%Y-%m}"


@dataclass(frozen=True, slots=True)
class Report:
    """What an organization used in a month."""

    period: str
    executions: int
    action_calls: int
    worker_seconds: float
    bytes_in: int
    bytes_out: int
    held: int
    rejected: int
    by_workflow: Sequence[Mapping[str, Any]]
    """Items ``{workflow_id, executions, action_calls, worker_seconds, bytes_in, bytes_out, held, rejected}``."""
    by_action: Sequence[Mapping[str, Any]]
    """Items ``{action, calls, seconds, bytes_in, bytes_out}``."""


def executions(session: TenantSession | SystemSession, tenant_id: str, period: Period) -> int:
    """How many runs of a month were admitted, counted in the ledger itself."""
    return stored.executions(session, tenant_id, period.start, period.end)


def report(session: TenantSession, period: Period) -> Report:
    """Exact up to this transaction's view."""
    rows = stored.report(session, period.first)
    workflows = _grouped(rows, "workflow_id", _totals)
    actions = _grouped([row for row in rows if row["kind"] == Kind.ACTION_CALL], "action", _calls)
    return Report(period=str(period), **_totals(rows), by_workflow=workflows, by_action=actions)


def reject(session: TenantSession, workflow_id: str, code: str) -> None:
    """Enter a start that was refused."""
    stored.insert(session, [{"kind": Kind.REJECTED.value, "workflow_id": workflow_id, "outcome": code}])


def worker_seconds(seconds: float) -> Row:
    """The row of an attempt that has ended or put its run aside, as `repository.runs.save_progress` takes it."""
    return {"kind": Kind.WORKER_SECONDS.value, "action": None, "quantity": 1, "seconds": seconds}


def _grouped(
    rows: Iterable[Row], key: str, summed: Callable[[Sequence[Row]], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [{key: name, **summed(groups[name])} for name in sorted(groups)]


def _totals(rows: Sequence[Row]) -> dict[str, Any]:
    def of(kind: Kind, column: str = "quantity") -> Any:
        return sum(row[column] for row in rows if row["kind"] == kind)

    return {
        "executions": of(Kind.EXECUTION),
        "action_calls": of(Kind.ACTION_CALL),
        "worker_seconds": round(of(Kind.WORKER_SECONDS, "seconds"), 3),
        "bytes_in": sum(row["bytes_in"] for row in rows),
        "bytes_out": sum(row["bytes_out"] for row in rows),
        "held": of(Kind.HELD),
        "rejected": of(Kind.REJECTED),
    }


def _calls(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "calls": sum(row["quantity"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "bytes_in": sum(row["bytes_in"] for row in rows),
        "bytes_out": sum(row["bytes_out"] for row in rows),
    }


@dataclass(frozen=True, slots=True)
class Result:
    """How many rows of the ledger a tick added to the roll-ups."""

    rows: int = 0


class RollUp:
    """See the module. Any number may run. As many tenants as `labels` says have one of their own in the metrics."""

    def __init__(self, database: Database, *, labels: int = 50) -> None:
        self._database = database
        self._labels = labels

    def run_once(self) -> Result:
        rolled = self._roll_up()
        if rolled is not None and rolled["elsewhere"] and self._restart():
            rolled = self._roll_up()
        return Result(0 if rolled is None else rolled["rows"])

    def _roll_up(self) -> Row | None:
        with self._database.system() as session:
            rolled = stored.roll_up(session)
            if rolled is not None and not rolled["elsewhere"]:
                metrics.fold(session, rolled, tenants=self._labels)
            return rolled

    def _restart(self) -> bool:
        with self._database.system() as session:
            newest = stored.restart(session)
        if newest is not None:
            log.warning("usage_rollups_restarted", reason="the database came from another cluster", ledger=newest)
        return newest is not None
