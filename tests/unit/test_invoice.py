"""The arithmetic of invoices: sums, shares of a month, included executions, late rows; and how invoices are shown."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import invoice, invoice_page
from engine.errors import InvalidInput
from engine.invoice import Price, Share, Term

PERIOD = "2026-10"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TEAM = Price("USD", base=4900, included=1000, per_thousand=40)
FREE = Price("USD", base=0, included=10, per_thousand=0)

amounts = st.integers(0, 10**7)
prices = st.builds(Price, st.just("USD"), base=amounts, included=amounts, per_thousand=amounts)
days = st.dictionaries(st.dates(date(2026, 10, 1), date(2026, 10, 31)), amounts)
moments = st.datetimes(datetime(2026, 9, 1), datetime(2026, 11, 1), timezones=st.just(UTC))  # noqa: DTZ001
changes = st.lists(st.tuples(moments, st.sampled_from("abc")), min_size=1).map(sorted)


def terms(changed: list[tuple[datetime, str]], price_of: dict[str, Price], **life: Any) -> list[Term]:
    return invoice.terms_of(PERIOD, changed, price_of.get, **{"began": BEGAN, **life})


@given(changes, st.fixed_dictionaries({"a": prices, "b": prices}), days)
def test_the_lines_hold_every_execution_once_and_add_up_to_the_total(
    changed: list[tuple[datetime, str]], price_of: dict[str, Price], by_day: dict[date, int]
) -> None:
    lines = invoice.lines_of(PERIOD, invoice.shares_of(PERIOD, terms(changed, price_of), by_day))
    assert sum(line.quantity for line in lines if line.kind != "base") == sum(by_day.values())
    assert sum(invoice.totals(lines).values()) == sum(line.amount for line in lines)
    assert all(line.amount >= 0 for line in lines)


@given(changes, prices)
def test_the_parts_of_a_split_month_cost_and_include_what_the_whole_month_does(
    changed: list[tuple[datetime, str]], price: Price
) -> None:
    parts = terms(changed, dict.fromkeys("abc", price))
    assert parts[0].first == date(2026, 10, 1)
    assert parts[-1].until == date(2026, 11, 1)
    assert all(before.until == after.first for before, after in pairwise(parts))
    assert sum(part.base for part in parts) == price.base
    assert sum(part.included for part in parts) == price.included


@given(prices, days, days)
def test_what_comes_late_costs_what_it_would_have_cost_in_time(
    price: Price, in_time: dict[date, int], late: dict[date, int]
) -> None:
    term = terms([(BEGAN, "a")], {"a": price})
    both = {day: in_time.get(day, 0) + late.get(day, 0) for day in in_time.keys() | late.keys()}
    (before,), (after,) = (invoice.shares_of(PERIOD, term, by_day) for by_day in (in_time, both))
    lines = invoice.late_lines(PERIOD, [after], {before.term.first: before.executions})
    assert before.overage() + sum(line.amount for line in lines) == after.overage()
    assert sum(line.quantity for line in lines) == sum(late.values())
    assert invoice.late_lines(PERIOD, [after], {after.term.first: after.executions}) == []


@pytest.mark.parametrize(
    ("executions", "further"), [(0, 0), (999, 0), (1000, 0), (1001, 0), (1012, 0), (1013, 1), (2000, 40), (3500, 100)]
)
def test_what_is_over_the_included_executions_is_paid_for_exactly_and_rounded_half_up(
    executions: int, further: int
) -> None:
    assert invoice.over(executions, included=1000, price=TEAM) == further


def test_a_month_without_any_use_costs_the_base_fee() -> None:
    shares = invoice.shares_of(PERIOD, terms([(BEGAN, "team")], {"team": TEAM}), {})
    lines = invoice.lines_of(PERIOD, shares)
    assert [(line.kind, line.quantity, line.amount) for line in lines] == [("base", 31, 4900), ("included", 0, 0)]


def test_each_plan_of_a_month_gets_its_days_and_their_executions() -> None:
    """From the 11th on it is on `team`: 10 days of `free`, 21 of `team`."""
    changed = [(BEGAN, "free"), (datetime(2026, 10, 11, 23, 59, tzinfo=UTC), "team")]
    found = terms(changed, {"free": FREE, "team": TEAM})
    assert [(term.plan, term.first.day, (term.until - term.first).days) for term in found] == [
        ("free", 1, 10),
        ("team", 11, 21),
    ]
    lines = invoice.lines_of(PERIOD, invoice.shares_of(PERIOD, found, {date(2026, 10, 10): 5, date(2026, 10, 11): 700}))
    assert [(line.kind, line.quantity, line.amount) for line in lines] == [
        ("base", 10, 0),
        ("included", 3, 0),
        ("further", 2, 0),
        ("base", 21, 3319),  # 4900 * 21 / 31 = 3319.35
        ("included", 678, 0),  # 1000 less the 322 of the first ten days
        ("further", 22, 1),
    ]


def test_days_before_an_organization_was_there_and_after_it_was_deleted_cost_nothing() -> None:
    life = {"began": datetime(2026, 10, 22, 8, tzinfo=UTC), "ended": datetime(2026, 10, 25, 8, tzinfo=UTC)}
    (term,) = terms([(BEGAN, "team")], {"team": TEAM}, **life)
    assert ((term.until - term.first).days, term.base) == (4, 633)  # of 4900: 3952 after 25 days, less 3319 after 21
    late = invoice.shares_of(PERIOD, [term], {date(2026, 10, 31): 7})
    assert [share.executions for share in late] == [7]


def test_executions_without_any_plan_are_on_the_invoice_all_the_same() -> None:
    lines = invoice.lines_of(PERIOD, invoice.shares_of(PERIOD, [], {date(2026, 10, 3): 4}))
    assert [(line.quantity, line.amount, line.currency) for line in lines] == [(4, 0, None)]
    assert invoice.shares_of(PERIOD, [], {}) == []


def test_amounts_are_written_and_read_with_the_digits_of_their_currency() -> None:
    assert [invoice.written(4905, currency) for currency in ("USD", "JPY", "KWD")] == ["49.05", "4905", "4.905"]
    assert [invoice.parse_money("12", currency) for currency in ("USD", "JPY", "KWD")] == [1200, 12, 12000]
    for text in ("1.001", "-1", "x", "NaN", "Infinity", "1e30", ""):
        with pytest.raises(InvalidInput):
            invoice.parse_money(text, "USD")


@pytest.mark.parametrize("text", ["2026-13", "2026-1", "2026-10-01", "", "x", "٢٠٢٦-10", "9999-12", "2026-10\n"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        invoice.parse_period(text)


def shown(name: str) -> dict[str, Any]:
    share = Share(Term("=plan", date(2026, 10, 1), date(2026, 11, 1), TEAM), 1500)
    lines = [
        {
            "kind": line.kind, "description": line.description, "period": line.period, "from": line.first.isoformat(),
            "to": line.until.isoformat(), "quantity": line.quantity, "unit_price": "0.40", "amount": "0.20",
            "currency": "USD",
        }
        for line in invoice.lines_of(PERIOD, [share])
    ]  # fmt: skip
    totals = [{"currency": "USD", "amount": "49.20"}]
    return {
        "id": None, "tenant": {"id": "tenant_1", "name": name}, "period": PERIOD, "status": "open", "executions": 1500,
        "lines": lines, "totals": totals,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b", "</td></table>", "'x'"]
)
def test_a_hostile_name_is_only_text_on_the_page(name: str) -> None:
    page, harmless = invoice_page.as_html(shown(name)), invoice_page.as_html(shown("x"))
    assert page.count("<") == harmless.count("<")
    assert "<script" not in page
    assert "<img" not in page


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x","y")', "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "＝1", "a"])
def test_no_name_is_a_formula_in_a_spreadsheet(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(invoice_page.as_csv(shown(name)), newline="")))
    assert [row["tenant_name"] for row in rows] == [name if name == "a" else f"'{name}"] * 3
    assert [row["quantity"] for row in rows] == ["31", "1000", "500"]


def test_months_follow_each_other_over_the_end_of_a_year() -> None:
    assert invoice.following("2026-12") == "2027-01"
    assert invoice.bounds("2026-12")[1] - invoice.bounds("2026-12")[0] == timedelta(days=31)
    assert invoice.period_of(datetime(2026, 12, 31, 23, 30, tzinfo=UTC)) == "2026-12"
