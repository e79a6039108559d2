"""Invoices: what runs did is on them exactly once, a closed month never changes, and two closings make one invoice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from engine import billing, invoice
from engine.billing import Closer
from engine.db import Row
from engine.errors import Conflict, InvalidInput, NotFound
from engine.invoice import Price
from engine.replay import Replays, Wish
from tests.engine_parts import Parts, parts_for

TENANTS = ("acme", "beta", "gamma")
RUNS = 80
OCTOBER = "2026-10"
AFTER_OCTOBER = datetime(2026, 11, 1, 6, tzinfo=UTC)
AFTER_NOVEMBER = datetime(2026, 12, 1, 6, tzinfo=UTC)
TEAM = Price("USD", base=4900, included=1000, per_thousand=400)


@dataclass
class Books:
    """Three organizations since September 2026, on the plan `team`, with what tests do to their ledgers."""

    parts: Parts

    def used(self, tenant: str, number: int, at: str) -> None:
        """So many executions in the ledger at that moment."""
        self.parts.fill(
            "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, at)"
            f" SELECT '{tenant}', 'execution', 'run_' || n, 'wf', '{at}' FROM generate_series(1, {number}) n"
        )

    def invoice(self, tenant: str, period: str, now: datetime = AFTER_NOVEMBER) -> Row:
        with self.parts.database.tenant(tenant) as session:
            return billing.of_tenant(session, period, now=now)

    def close(self, tenant: str, period: str, now: datetime) -> Row:
        with self.parts.database.system() as session:
            return billing.close(session, tenant, period, now=now)

    def price(self, plan: str, price: Price, period: str) -> None:
        with self.parts.database.system() as session:
            billing.set_price(session, plan, price, period=period)


@pytest.fixture
def books(database_url: str) -> Iterator[Books]:
    with parts_for(database_url) as parts:
        parts.fill("INSERT INTO tenants (id, name) VALUES ('beta', 'Beta'), ('gamma', 'Gamma')")
        parts.fill("UPDATE tenants SET plan = 'team', created_at = '2026-09-01'; TRUNCATE plan_terms")
        parts.fill("UPDATE plan_prices SET created_at = '2026-09-01'")
        made = Books(parts)
        made.price("team", TEAM, "2026-09")
        yield made


def figures(document: Row) -> list[tuple[str, str, int, int]]:
    return [(line["kind"], line["period"], line["quantity"], line["amount_minor"]) for line in document["lines"]]


def test_an_open_month_shows_what_is_there_now_and_a_closed_one_what_was_there_then(books: Books) -> None:
    books.used("acme", 1010, "2026-10-31 23:59:59+00")
    books.used("acme", 7, "2026-11-01 00:00:00+00")
    running = books.invoice("acme", OCTOBER)
    expected = [("base", OCTOBER, 31, 4900), ("included", OCTOBER, 1000, 0), ("further", OCTOBER, 10, 4)]
    assert (running["status"], running["total"], running["executions"]) == ("open", "49.04", 1010)
    assert figures(running) == expected
    closed = books.close("acme", OCTOBER, AFTER_OCTOBER)
    assert (closed["status"], closed["closed_at"], figures(closed)) == ("closed", "2026-11-01T06:00:00Z", expected)
    assert closed["ledger_position"] == books.parts.rows("SELECT max(id) AS last FROM usage")[0]["last"]
    assert books.invoice("acme", OCTOBER) == closed
    assert figures(books.invoice("beta", OCTOBER)) == [("base", OCTOBER, 31, 4900), ("included", OCTOBER, 0, 0)]


def test_nothing_that_happens_later_changes_a_closed_month(books: Books) -> None:
    books.used("acme", 1010, "2026-10-15")
    closed = books.close("acme", OCTOBER, AFTER_OCTOBER)
    books.used("acme", 500, "2026-10-15")
    books.price("team", Price("USD", base=1, included=0, per_thousand=1), "2026-11")
    with books.parts.database.system() as session:
        session.execute(sa.text("UPDATE tenants SET name = 'Renamed', plan = 'free' WHERE id = 'acme'"))
        session.execute(sa.text("DELETE FROM workflows"))
    assert books.close("acme", OCTOBER, AFTER_NOVEMBER) == closed
    assert books.invoice("acme", OCTOBER) == closed
    for period in (OCTOBER, "2026-09"):
        with pytest.raises(Conflict, match="2026-10 is closed, so a price can hold from 2026-11 on"):
            books.price("team", TEAM, period)


def test_what_comes_to_a_closed_month_late_is_a_line_of_the_next_invoice_and_only_of_that(books: Books) -> None:
    books.used("acme", 900, "2026-10-15")
    books.close("acme", OCTOBER, AFTER_OCTOBER)
    books.used("acme", 150, "2026-10-15")
    books.used("acme", 3, "2026-11-15")
    november = books.close("acme", "2026-11", AFTER_NOVEMBER)
    assert figures(november)[2:] == [("late", OCTOBER, 150, 20)]  # 1,050 in all, of which 1,000 are included
    assert november["lines"][2]["description"] == "Executions of 2026-10 recorded late, on the plan team"
    assert (november["executions"], november["total_minor"]) == (3, 4920)
    books.used("acme", 100, "2026-10-15")
    december = books.invoice("acme", "2026-12")
    assert figures(december)[2:] == [("late", OCTOBER, 100, 40)]


def test_a_plan_that_changes_within_the_month_is_paid_for_by_its_days(books: Books) -> None:
    with books.parts.database.system() as session:
        session.execute(sa.text("UPDATE tenants SET plan = 'free' WHERE id = 'acme'"))
        session.execute(sa.text("UPDATE tenants SET plan = 'free' WHERE id = 'acme'"))
    changes = books.parts.rows("SELECT plan, since FROM plan_terms WHERE tenant_id = 'acme' ORDER BY id")
    assert [row["plan"] for row in changes] == ["team", "free"]
    books.parts.fill("UPDATE plan_terms SET since = '2026-10-11 12:00+00' WHERE plan = 'free'")
    terms = books.invoice("acme", OCTOBER)["terms"]
    assert [(term["plan"], term["from"], term["to"]) for term in terms] == [
        ("team", "2026-10-01", "2026-10-11"),
        ("free", "2026-10-11", "2026-11-01"),
    ]
    assert figures(books.invoice("acme", OCTOBER))[0] == ("base", OCTOBER, 10, 1581)
    assert [term["plan"] for term in books.invoice("acme", "2026-09")["terms"]] == ["team"]


def test_a_month_is_closed_some_hours_after_its_end_for_all_and_one_that_was_missed_too(books: Books) -> None:
    closer = Closer(books.parts.database)
    assert closer.run_once(now=datetime(2026, 10, 1, 5, 59, tzinfo=UTC)).invoices == 0
    assert closer.run_once(now=AFTER_OCTOBER).invoices == 2 * len(TENANTS)
    assert closer.run_once(now=AFTER_OCTOBER).invoices == 0
    closed = books.parts.rows("SELECT tenant_id, period FROM invoices ORDER BY period, tenant_id")
    assert [(row["period"], row["tenant_id"]) for row in closed] == [
        (period, tenant) for period in ("2026-09", OCTOBER) for tenant in TENANTS
    ]


def test_closings_at_once_make_one_invoice_each_and_lose_no_execution(books: Books) -> None:
    """While three close, others write to the month that is closed: what misses the invoice is on the next."""
    for tenant in TENANTS:
        books.used(tenant, 20, "2026-10-15")
    with ThreadPoolExecutor(6) as threads:
        work: list[Future[Any]] = [
            threads.submit(Closer(books.parts.database).run_once, now=AFTER_OCTOBER) for _ in range(3)
        ]
        work += [threads.submit(books.used, tenant, 5, "2026-10-20") for tenant in TENANTS]
        for future in work:
            future.result()
    assert books.parts.rows("SELECT count(*) AS n FROM invoices WHERE period = '2026-10'")[0]["n"] == len(TENANTS)
    for tenant in TENANTS:
        late = sum(number for kind, _, number, _ in figures(books.invoice(tenant, "2026-11")) if kind == "late")
        assert books.invoice(tenant, OCTOBER)["executions"] + late == 25


def test_what_cannot_be_closed_or_shown_says_why(books: Books) -> None:
    with pytest.raises(Conflict, match="2026-10 has not ended yet; it can be closed from 2026-11-01 on"):
        books.close("acme", OCTOBER, AFTER_OCTOBER - timedelta(hours=7))
    with pytest.raises(NotFound):
        books.close("nobody", OCTOBER, AFTER_OCTOBER)
    with pytest.raises(InvalidInput, match="has not begun"):
        books.invoice("acme", "2027-01")
    with pytest.raises(NotFound):
        books.price("nothing", TEAM, "2026-12")


def test_an_organization_older_than_the_installation_owes_nothing_for_the_time_before_it(books: Books) -> None:
    books.parts.fill("UPDATE tenants SET created_at = '2019-05-01'")
    books.parts.fill("UPDATE plan_prices SET created_at = '2026-10-11 12:00+00'")
    assert figures(books.invoice("acme", "2026-09")) == []
    for closing in (books.close, lambda _, period, now: Closer(books.parts.database).close_all(period, now=now)):
        with pytest.raises(Conflict, match="2026-09 ended before billing was installed on 2026-10-11; nothing is owed"):
            closing("acme", "2026-09", AFTER_OCTOBER)
    assert figures(books.close("acme", OCTOBER, AFTER_OCTOBER)) == [
        ("base", OCTOBER, 21, 3319),
        ("included", OCTOBER, 0, 0),
    ]


def test_the_invoices_hold_what_the_ledger_and_the_table_of_runs_do(books: Books) -> None:
    """Hundreds of runs of three organizations: fine ones, failures, retries, replays, and runs over a quota."""
    shapes: list[dict[str, Any]] = [
        {"action": "debug.echo", "with": {"a": 1}},
        {"action": "debug.fail", "with": {"message": "no"}},
        {"action": "debug.fail", "with": {"message": "once", "times": 1}, "retry": {"attempts": 3, "initial": "10ms"}},
    ]
    first = books.parts
    first.fill("""UPDATE tenants SET limits = '{"max_executions_per_month": 40}' WHERE id = 'gamma'""")
    for tenant in TENANTS:
        parts = Parts(first.database, first.vault, first.registry, first.evaluator, tenant=tenant, url=first.url)
        flows = [parts.workflow({"id": "s", **shape}, workflow_id=f"wf_{tenant}_{n}") for n, shape in enumerate(shapes)]
        started = [parts.start(flows[n % len(flows)]) for n in range(RUNS + len(tenant))]
        for run_id in started:
            parts.executor.run(tenant, run_id)
        for run_id in started[:12]:
            with parts.database.tenant(tenant) as session:
                replay = Replays(parts.runs, parts.registry).start(session, Wish(run_id=run_id)).run
            parts.executor.run(tenant, replay["id"])
    now = datetime.now(UTC)
    period, after = invoice.period_of(now), invoice.bounds(invoice.period_of(now))[1] + timedelta(hours=6)
    statuses = {row["status"] for row in first.rows("SELECT DISTINCT status FROM runs")}
    assert statuses == {"succeeded", "failed", "held"}
    for tenant in TENANTS:
        document = books.close(tenant, period, after)
        (counts,) = first.rows(
            "SELECT (SELECT count(*) FROM runs WHERE tenant_id = :tenant AND status <> 'held') AS runs,"
            " (SELECT sum(quantity) FROM usage WHERE tenant_id = :tenant AND kind = 'execution') AS ledger",
            tenant=tenant,
        )
        lines = sum(line["quantity"] for line in document["lines"] if line["kind"] in ("included", "further"))
        assert document["executions"] == lines == counts["runs"] == counts["ledger"]
        assert counts["runs"] == (40 if tenant == "gamma" else RUNS + len(tenant) + 12)
