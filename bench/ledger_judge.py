"""What `bench.ledger` compares when all is calm: every book, the money of invoices, and what comes after closing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import psycopg

from bench import ledger_books as books
from bench.harness import until
from bench.ledger_books import EXECUTIONS, Book
from bench.ledger_load import Tenant
from bench.ledger_month import CALM, PRICES, Month
from engine import billing, invoice
from engine.billing import Closer
from engine.quotas import Reconciler


@dataclass
class Outcome:
    """What happened, what each book says of it, and where they differ."""

    books: list[Book] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Judge:
    """Of one month that has come to rest."""

    def __init__(self, month: Month) -> None:
        self._month = month

    def outcome(self) -> Outcome:
        """All books, compared; then the month is closed, and the invoices must stay what they were."""
        outcome = Outcome()
        with self._month.ground.sql() as connection:
            outcome.books = self.all_books(connection)
            metrics = books.of_metrics(httpx.get(f"{self._month.base}/metrics", timeout=30).raise_for_status().text)
            differences = books.compare(outcome.books) + books.compare([*books.of_all_time(connection), metrics])
            outcome.broken = [str(difference) for difference in differences]
            outcome.books.append(metrics)
            outcome.broken += books.run_by_run(connection) + self._month.callers.broken + self._unknown(connection)
            outcome.facts |= {"runs": self._month.runs(), "states": dict(books.states(connection))}
        outcome.facts["self_test"] = self._finds_a_missing_row()
        outcome.broken += [] if outcome.facts["self_test"] else ["a row that was missing in the ledger was not found"]
        drifted = Reconciler(self._month.database).run_once()
        outcome.broken += [f"the nightly check mended {drifted} counters"] * bool(drifted)
        outcome.broken += self._amounts() + self._close(outcome)
        return outcome

    def all_books(self, connection: books.Connection) -> list[Book]:
        ledger = books.of_ledger(connection)
        return [
            books.of_runs(connection),
            books.of_clients(self._month.name, self._month.callers.refused, self._month.callers.unheard, ledger),
            ledger,
            *books.of_roll_ups(connection),
            books.of_counters(connection),
            *books.of_usage(self._answers("/api/usage")),
            books.of_quotas(self._month.name, self._answers("/api/quotas")),
            books.of_invoices("invoice", self._answers("/api/billing/invoice")),
        ]

    def _answers(self, path: str) -> list[tuple[str, Any]]:
        with httpx.Client(base_url=self._month.base, timeout=30) as client:
            return [
                (tenant.id, client.get(path, headers=tenant.headers).raise_for_status().json())
                for tenant in self._month.tenants
            ]

    def _unknown(self, connection: books.Connection) -> list[str]:
        """Runs that were started from outside and no caller knows of, and the other way round."""
        rows = connection.execute(
            "SELECT id FROM runs WHERE trigger IN ('api', 'webhook')"
            " OR trigger = 'replay' AND idempotency_key NOT LIKE 'replay:%:batch%'"
        ).fetchall()
        stored, known = {str(row[0]) for row in rows}, {run for tenant in self._month.tenants for run in tenant.runs}
        return [f"{run} is known to a caller or to the runs table only" for run in sorted(stored ^ known)]

    def _amounts(self) -> list[str]:
        """The money, computed once more; each has one plan, that of the last day."""
        wrong = []
        for tenant, (_, document) in zip(self._month.tenants, self._answers("/api/billing/invoice"), strict=True):
            owed = self._owed(tenant, document["executions"])
            if owed != document["total_minor"]:
                wrong.append(f"{tenant.id} owes {owed}, and its invoice says {document['total_minor']}")
        return wrong

    def _owed(self, tenant: Tenant, executions: int) -> int:
        return owed_for(tenant.recipe.last_plan, executions, since=self._month.today)

    def _close(self, outcome: Outcome) -> list[str]:
        before = self._answers("/api/billing/invoice")
        self._close_all(self._month.name)
        closed = self._answers("/api/billing/invoice")
        kept = ("lines", "totals", "executions")
        changed = [
            f"the invoice of {tenant} changed when it was closed"
            for (tenant, old), (_, new) in zip(before, closed, strict=True)
            if new["status"] != "closed" or any(old[name] != new[name] for name in kept)
        ]
        return changed + self._bill_late(closed, outcome)

    def _close_all(self, month: str) -> None:
        Closer(self._month.database).close_all(month, now=_after(month))

    def _bill_late(self, closed: Sequence[tuple[str, Any]], outcome: Outcome) -> list[str]:
        """Some starts in the month that is closed already: they are on the next invoice, for what they cost there."""
        self._month.callers.work(2 * len(self._month.tenants), time.monotonic() + 60)
        until(self._month.at_rest, within=CALM, what="the end of the late runs")
        following = invoice.following(self._month.name)
        self._close_all(following)
        both, wrong = Book("both invoices", (EXECUTIONS,)), []
        for tenant, (_, first) in zip(self._month.tenants, closed, strict=True):
            with self._month.database.tenant(tenant.id) as session:
                second = billing.of_tenant(session, following, now=_after(following))
            lines = [*first["lines"], *(line for line in second["lines"] if line["period"] == self._month.name)]
            number = sum(line["quantity"] for line in lines if line["kind"] != "base")
            both.stated[tenant.id, self._month.name, EXECUTIONS] = number
            owed, billed = self._owed(tenant, number), sum(line["amount_minor"] for line in lines)
            wrong += [] if owed == billed else [f"{tenant.id} owes {owed} with what came late, and is billed {billed}"]
        with self._month.ground.sql() as connection:
            ledger = books.of_ledger(connection)
        outcome.facts["late"] = int((both.total(EXECUTIONS) or 0) - sum(first["executions"] for _, first in closed))
        return wrong + [str(each) for each in books.compare([both, ledger]) if each.key[2] == EXECUTIONS]

    def _finds_a_missing_row(self) -> list[str]:
        """What the comparison says with one execution less in the ledger; nothing stays of that."""
        with psycopg.connect(self._month.ground.postgres.url.replace("+psycopg", "")) as connection:
            connection.execute(
                "DELETE FROM usage WHERE (tenant_id, id) = (SELECT tenant_id, min(id) FROM usage"
                " WHERE kind = 'execution' AND tenant_id = 't002' GROUP BY 1)"
            )
            found = [str(each) for each in books.compare(self.all_books(connection)) if each.key[2] == EXECUTIONS]
            found += books.run_by_run(connection)
            connection.rollback()
        return found


def _after(month: str) -> datetime:
    """When it can be closed."""
    return invoice.bounds(month)[1] + timedelta(hours=7)


def owed_for(plan: str, executions: int, *, since: date) -> int:
    """Minor units for the days from `since` to the end of the month, each share rounded as docs/billing.md says."""
    base, included, further = PRICES[plan]
    days, before = invoice.days_of(since), since.day - 1
    fee = base - (2 * base * before + days) // (2 * days)
    over = max(0, executions - (included - included * before // days))
    return fee + (2 * over * further + 1000) // 2000
