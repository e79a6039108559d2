"""What an organization owes for a month: pure arithmetic, from days, plans, prices and executions to lines.

Money is whole minor units (cents); nothing here is a float. A month is one of UTC and a day belongs to the plan that
held at its end. Of a month that is shared by plans, or that an organization did not see from its first day, each plan
gets its days: of the base fee and of the included executions. Shares are differences of rounded sums from the first of
the month on, so however a month is split, its parts add up to the whole. What is over the included executions is paid
for exactly, not by started thousands, and rounded once for each line, half a minor unit up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Literal

from engine.errors import Fault, InvalidInput

NO_PLAN = "-"
"""Stands for the plan where executions were recorded and no plan was known."""

_OTHER_DIGITS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV"), 0),
    **dict.fromkeys(("XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
"""Currencies whose minor unit is not a hundredth (ISO 4217)."""

_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Price:
    """What a plan costs in a month; money in minor units of the currency."""

    currency: str
    base: int
    included: int
    """Executions that the base fee pays for."""
    per_thousand: int
    """For a thousand executions more."""


@dataclass(frozen=True, slots=True)
class Term:
    """Whole days of one month on one plan."""

    plan: str
    first: date
    until: date
    """The first day that is not in it."""
    price: Price | None
    """None: nobody priced the plan, so it costs nothing."""

    @property
    def base(self) -> int:
        """Its share of the base fee: what is due from the first of the month to its end, less what was due before."""
        if self.price is None:
            return 0
        amount, begin = self.price.base, self.first.replace(day=1)
        whole = days_of(begin)
        return _rounded(amount * (self.until - begin).days, whole) - _rounded(amount * (self.first - begin).days, whole)

    @property
    def included(self) -> int:
        """Its share of the included executions."""
        if self.price is None:
            return 0
        number, begin = self.price.included, self.first.replace(day=1)
        whole = days_of(begin)
        return number * (self.until - begin).days // whole - number * (self.first - begin).days // whole


@dataclass(frozen=True, slots=True)
class Share:
    """A term with the executions of its days, as an invoice keeps it."""

    term: Term
    executions: int

    def overage(self, executions: int | None = None) -> int:
        """What executions over the included ones cost; those that it has, unless others are given."""
        number = self.executions if executions is None else executions
        return over(number, included=self.term.included, price=self.term.price)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice."""

    kind: Literal["base", "included", "further", "late"]
    description: str
    period: str
    """The month that it is for; that of the invoice, unless it is late."""
    first: date
    until: date
    quantity: int
    """Days of a base fee, else executions."""
    unit_price: int | None
    """For a month, or for a thousand executions; None where nothing is asked for."""
    amount: int
    currency: str | None


def parse_period(text: str) -> str:
    """A month such as ``2026-10``. Raises InvalidInput."""
    if re.fullmatch(r"(19|20|21)\d\d-(0[1-9]|1[0-2])", text, re.ASCII) is None:
        sentence = f"{text!r} is not a month such as 2026-10."
        raise InvalidInput([Fault("/period", sentence)], detail=sentence)
    return text


def period_of(moment: datetime) -> str:
    """The month of a moment, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m}"


def bounds(period: str) -> tuple[datetime, datetime]:
    """Its beginning, and that of the next month."""
    begin = first_day(period)
    return midnight(begin), midnight(begin + timedelta(days=days_of(begin)))


def following(period: str) -> str:
    """The next month."""
    return period_of(bounds(period)[1])


def first_day(period: str) -> date:
    return date.fromisoformat(f"{period}-01")


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def days_of(day: date) -> int:
    """How many days the month of that day has."""
    begin = day.replace(day=1)
    return ((begin + timedelta(days=31)).replace(day=1) - begin).days


def terms_of(
    period: str,
    changes: Sequence[tuple[datetime, str]],
    price_of: Callable[[str], Price | None],
    *,
    began: datetime,
    ended: datetime | None = None,
) -> list[Term]:
    """The terms of a month, in order, from plans and since when they held, in order.

    The first plan holds before its time too. Days before `began` and after `ended`, the life of the organization, are
    in none.
    """
    begin, end = (moment.date() for moment in bounds(period))
    terms: list[Term] = []
    for day in (begin + timedelta(days=number) for number in range((end - begin).days)):
        if day < began.astimezone(UTC).date() or (ended is not None and day > ended.astimezone(UTC).date()):
            continue
        tomorrow = midnight(day + _ONE_DAY)
        plan = next((plan for since, plan in reversed(changes) if since < tomorrow), changes[0][1])
        if terms and terms[-1].plan == plan:
            terms[-1] = Term(plan, terms[-1].first, day + _ONE_DAY, terms[-1].price)
        else:
            terms.append(Term(plan, day, day + _ONE_DAY, price_of(plan)))
    return terms


def shares_of(period: str, terms: Sequence[Term], by_day: Mapping[date, int]) -> list[Share]:
    """Every execution of the month in one term: those of days without a term in the next one, else in the last."""
    if not terms:
        if not any(by_day.values()):
            return []
        begin, end = (moment.date() for moment in bounds(period))
        terms = [Term(NO_PLAN, begin, end, None)]
    counts = [0] * len(terms)
    for day, number in by_day.items():
        counts[next((place for place, term in enumerate(terms) if day < term.until), -1)] += number
    return [Share(term, count) for term, count in zip(terms, counts, strict=True)]


def lines_of(period: str, shares: Iterable[Share]) -> list[Line]:
    """The lines of a month: for each term its base fee, what was included, and what came on top."""
    return [line for share in shares for line in _lines(period, share)]


def _lines(period: str, share: Share) -> Iterable[Line]:
    term, price = share.term, share.term.price
    span = (period, term.first, term.until)
    included = share.executions if price is None else min(share.executions, term.included)
    if price is None:
        yield Line(
            "included", f"Executions on the plan {term.plan}, which has no price", *span, included, None, 0, None
        )
        return
    days = (term.until - term.first).days
    yield Line("base", f"Plan {term.plan}, base fee", *span, days, price.base, term.base, price.currency)
    text = f"Executions included in the plan {term.plan} ({term.included:,})"
    yield Line("included", text, *span, included, None, 0, price.currency)
    if share.executions > included:
        number = share.executions - included
        text = f"Further executions on the plan {term.plan}"
        yield Line("further", text, *span, number, price.per_thousand, share.overage(), price.currency)


def late_lines(period: str, shares: Iterable[Share], taken: Mapping[date, int]) -> list[Line]:
    """What a closed month owes besides: `shares` as the ledger has them now, `taken` what is on invoices already.

    `taken` is by the first day of the term. A term without anything new has no line.
    """
    lines = []
    for share in shares:
        term, before = share.term, taken.get(share.term.first, 0)
        if share.executions > before:
            text = f"Executions of {period} recorded late, on the plan {term.plan}"
            span = (period, term.first, term.until)
            price, amount = term.price, share.overage() - share.overage(before)
            unit, currency = (None, None) if price is None else (price.per_thousand, price.currency)
            lines.append(Line("late", text, *span, share.executions - before, unit, amount, currency))
    return lines


def totals(lines: Iterable[Line]) -> dict[str, int]:
    """The sum of the lines in each currency."""
    sums: dict[str, int] = {}
    for line in lines:
        if line.currency is not None:
            sums[line.currency] = sums.get(line.currency, 0) + line.amount
    return sums


def over(executions: int, *, included: int, price: Price | None) -> int:
    """What executions over the included ones cost."""
    return 0 if price is None else _rounded(max(0, executions - included) * price.per_thousand, 1000)


def written(amount: int, currency: str) -> str:
    """Minor units as people write them: 4900 of USD is ``49.00``."""
    digits = _digits(currency)
    return f"{Decimal(amount).scaleb(-digits):.{digits}f}"


def parse_money(text: str, currency: str) -> int:
    """``49`` or ``49.00`` to minor units. Raises InvalidInput, also for more decimals than the currency has."""
    try:
        minor = Decimal(text).scaleb(_digits(currency))
        if not (0 <= minor < 10**15 and minor == minor.to_integral_value()):
            raise InvalidOperation
    except InvalidOperation:
        digits = {0: "no decimals", 2: "at most two decimals", 3: "at most three decimals"}[_digits(currency)]
        sentence = f"{text!r} is no amount of {currency} such as {written(4900, currency)}: {digits}, not negative."
        raise InvalidInput([Fault("/amount", sentence)], detail=sentence) from None
    return int(minor)


def parse_currency(text: str) -> str:
    """An ISO 4217 code. Raises InvalidInput."""
    if re.fullmatch("[A-Za-z]{3}", text) is None:
        sentence = f"{text!r} is not the code of a currency such as USD."
        raise InvalidInput([Fault("/currency", sentence)], detail=sentence)
    return text.upper()


def _digits(currency: str) -> int:
    return _OTHER_DIGITS.get(currency, 2)


def _rounded(numerator: int, denominator: int) -> int:
    """Half up, for what is not negative."""
    return (2 * numerator + denominator) // (2 * denominator)
