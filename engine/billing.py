"""Invoices out of the ledger: the running figure of a month, closing it, and prices.

A month is open until it is closed: what is shown of it until then is computed at each look. Closing writes the invoice
as it is then, in a table that nobody may change, together with the position of the ledger. Rows of the ledger that come
to a closed month later are a line of their own on the next invoice that is closed: whatever the ledger holds of the
month and no invoice does, so that neither the order of commits nor two closings at once lose or repeat an execution.
Closed months are looked at again for `LATE_MONTHS` months.

Nobody owes anything for the time before billing was installed; organizations that came out of the multi-user system are
older than that. `Closer` closes every month some hours after its end, from the one on in which billing was installed.
Any number of closers may run; one that dies leaves no half of an invoice, and months that were missed are closed by
the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import structlog

from engine import audit, ids, invoice
from engine.audit import Actor
from engine.db import Database, Row, Session, SystemSession, TenantSession
from engine.errors import Conflict, Fault, InvalidInput, NotFound
from engine.invoice import Line, Price, Share, Term, written
from engine.repository import billing as stored

CLOSE_AFTER = timedelta(hours=6)
"""After the end of a month: by then whatever began in it is in the ledger."""
LATE_MONTHS = 12
BATCH = 200
"""Organizations whose month one pass closes before it looks again."""
MOST = 2**53
"""More is no number of executions, nor an amount."""

log = structlog.get_logger(__name__)


def of_tenant(session: TenantSession, period: str, *, now: datetime | None = None) -> Row:
    """The invoice of a month: what was closed, else the figures of this moment, marked ``open``.

    Raises InvalidInput when it is no month, or one that has not begun.
    """
    moment = now or datetime.now(UTC)
    if invoice.parse_period(period) > invoice.period_of(moment):
        sentence = f"{period} has not begun yet."
        raise InvalidInput([Fault("/period", sentence)], detail=sentence)
    return stored.invoice(session, period) or _document(session, period)


def close(session: SystemSession, tenant_id: str, period: str, *, now: datetime | None = None) -> Row:
    """Close a month of an organization, once; the invoice.

    Raises NotFound, InvalidInput when it is no month, and Conflict while it has not ended or if it ended before billing
    was installed.
    """
    moment = now or datetime.now(UTC)
    require_ended(period, moment)
    require_billed(session, period)
    require_tenant(session, tenant_id)
    stored.lock_prices(session, closing=True)
    stored.lock(session, tenant_id)
    with session.acting_for(tenant_id) as own:
        closed = stored.invoice(own, period)
        if closed is not None:
            return closed
        position = stored.ledger_position(own)
        document = _document(own, period) | {
            "id": ids.new_id("invoice"),
            "status": "closed",
            "closed_at": moment.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "ledger_position": position,
        }
    stored.insert_invoice(session, tenant_id, period, document=document, position=position, at=moment)
    return document


def require_ended(period: str, now: datetime) -> None:
    """Raises InvalidInput when it is no month, and Conflict while it has not ended."""
    if invoice.parse_period(period) >= invoice.period_of(now):
        raise Conflict(f"{period} has not ended yet; it can be closed from {invoice.following(period)}-01 on.")


def require_billed(session: SystemSession, period: str) -> None:
    """Raises Conflict when the month ended before billing was installed."""
    installed = stored.first_price_set(session)
    if installed is not None and invoice.bounds(period)[1] <= installed:
        raise Conflict(f"{period} ended before billing was installed on {_day(installed)}; nothing is owed for it.")


def require_tenant(session: SystemSession, tenant_id: str) -> None:
    """Raises NotFound; a deleted organization is there until it is erased."""
    if not stored.exists(session, tenant_id):
        raise NotFound(f"There is no organization {tenant_id!r}; `fairlane tenants list` shows their ids.")


@dataclass(frozen=True, slots=True)
class Closed:
    """What one pass did."""

    invoices: int = 0


class Closer:
    """Closes what has ended. `after`: how long after the end of a month."""

    def __init__(self, database: Database, *, after: timedelta = CLOSE_AFTER) -> None:
        self._database = database
        self._after = after

    def run_once(self, *, now: datetime | None = None) -> Closed:
        """Close every month that is due; by the clock of this machine unless `now` is given."""
        moment = now or datetime.now(UTC)
        with self._database.system() as session:
            installed = stored.first_price_set(session)
        if installed is None:
            return Closed()
        closed = {period: self.close_all(period, now=moment) for period in self._due(installed, moment)}
        for period, number in closed.items():
            if number:
                log.info("month_closed", period=period, invoices=number)
        return Closed(sum(closed.values()))

    def close_all(self, period: str, *, now: datetime, only: str | None = None) -> int:
        """Close a month for every organization that has no invoice for it, or `only` for one; how many there were.

        Raises InvalidInput when it is no month, and Conflict while it has not ended or if it ended before billing was
        installed.
        """
        require_ended(period, now)
        with self._database.system() as session:
            require_billed(session, period)
        since, until = invoice.bounds(period)
        closed = 0
        while True:
            with self._database.system() as session:
                open_ = stored.without_invoice(session, period, since=since, until=until, only=only, limit=BATCH)
            for tenant_id in open_:
                with self._database.system() as session:
                    close(session, tenant_id, period, now=now)
            closed += len(open_)
            if len(open_) < BATCH:
                break
        return closed

    def _due(self, installed: datetime, now: datetime) -> Iterator[str]:
        period = invoice.period_of(installed)
        while invoice.bounds(period)[1] + self._after <= now:
            yield period
            period = invoice.following(period)


def prices(session: Session, period: str) -> dict[str, Row]:
    """What each plan costs in a month, by name: currency, base, included, per_thousand, and since when (`starts`)."""
    return stored.prices(session, at=invoice.first_day(invoice.parse_period(period)))


def set_price(session: SystemSession, plan: str, price: Price, *, period: str) -> None:
    """Let a plan cost that from a month on. Raises NotFound, InvalidInput, and Conflict when a bill went out since."""
    if not stored.has_plan(session, plan):
        raise NotFound(f"There is no plan {plan!r}; `fairlane plans list` shows them.")
    if max(price.base, price.included, price.per_thousand) > MOST:
        sentence = "That is more than can be billed."
        raise InvalidInput([Fault("", sentence)], detail=sentence)
    starts = invoice.first_day(invoice.parse_period(period))
    stored.lock_prices(session, closing=False)
    closed = stored.newest_closed(session)
    if closed is not None and period <= closed:
        raise Conflict(f"{closed} is closed, so a price can hold from {invoice.following(closed)} on.")
    values = {name: getattr(price, name) for name in ("currency", "base", "included", "per_thousand")}
    stored.insert_price(session, plan, starts, values)


def set_customer(session: SystemSession, by: Actor, tenant_id: str, customer: str, *, since: datetime) -> None:
    """Who an organization is for the provider that usage is reported to, and from when on it is. Raises NotFound."""
    require_tenant(session, tenant_id)
    stored.set_customer(session, tenant_id, customer, since=since)
    audit.record_for(session, tenant_id, by, "billing.customer_set", tenant_id, customer=customer)


def customer(session: TenantSession) -> str | None:
    """Who the organization is for the provider that usage is reported to."""
    return stored.customer(session)


def _document(session: TenantSession, period: str) -> Row:
    tenant = stored.tenant(session)
    shares = _shares(session, tenant, period)
    lines = [*invoice.lines_of(period, shares), *_late(session, period)]
    sums = invoice.totals(lines)
    since, until = invoice.bounds(period)
    (currency, total) = next(iter(sums.items())) if len(sums) == 1 else (None, None)
    return {
        "id": None,
        "tenant": {"id": tenant["id"], "name": tenant["name"]},
        "period": period,
        "from": since.date().isoformat(),
        "to": until.date().isoformat(),
        "status": "open",
        "closed_at": None,
        "ledger_position": None,
        "executions": sum(share.executions for share in shares),
        "currency": currency,
        "total": None if total is None or currency is None else written(total, currency),
        "total_minor": total,
        "totals": [
            {"currency": currency, "amount": written(amount, currency), "amount_minor": amount}
            for currency, amount in sorted(sums.items())
        ],
        "lines": [_line(line) for line in lines],
        "terms": [_kept(share) for share in shares],
    }


def _shares(session: TenantSession, tenant: Row, period: str) -> list[Share]:
    known = stored.prices(session, at=invoice.first_day(period))
    changes = [(row["since"], row["plan"]) for row in stored.plan_changes(session)]
    terms = invoice.terms_of(
        period,
        changes or [(tenant["created_at"], tenant["plan"])],
        lambda plan: _price(known[plan]) if plan in known else None,
        began=max(tenant["created_at"], stored.first_price_set(session) or tenant["created_at"]),
        ended=tenant["deleted_at"],
    )
    return invoice.shares_of(period, terms, stored.executions_by_day(session, *invoice.bounds(period)))


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()


def _price(row: Mapping[str, Any]) -> Price:
    return Price(row["currency"], row["base"], row["included"], row["per_thousand"])


def _late(session: TenantSession, period: str) -> list[Line]:
    """What the ledger holds of closed months and no invoice does."""
    begin = invoice.first_day(period)
    months = begin.year * 12 + begin.month - 1 - LATE_MONTHS
    documents = stored.invoices_since(session, f"{months // 12:04}-{months % 12 + 1:02}")
    lines: list[Line] = []
    for document in documents:
        if document["period"] < period:
            lines += _late_of(session, document, documents)
    return lines


def _late_of(session: TenantSession, document: Row, documents: Sequence[Row]) -> list[Line]:
    closed = document["period"]
    kept = [_share(term) for term in document["terms"]]
    taken = {share.term.first: share.executions for share in kept}
    for line in (line for other in documents for line in other["lines"]):
        if line["kind"] == "late" and line["period"] == closed:
            first = date.fromisoformat(line["from"])
            taken[first] = taken.get(first, 0) + line["quantity"]
    by_day = stored.executions_by_day(session, *invoice.bounds(closed))
    return invoice.late_lines(closed, invoice.shares_of(closed, [share.term for share in kept], by_day), taken)


def _line(line: Line) -> Row:
    unit = None if line.unit_price is None or line.currency is None else written(line.unit_price, line.currency)
    return {
        "kind": line.kind,
        "description": line.description,
        "period": line.period,
        "from": line.first.isoformat(),
        "to": line.until.isoformat(),
        "quantity": line.quantity,
        "unit_price": unit,
        "unit_price_minor": line.unit_price,
        "amount": written(line.amount, line.currency or ""),
        "amount_minor": line.amount,
        "currency": line.currency,
    }


def _kept(share: Share) -> Row:
    """What of a term is needed to say later what late executions of it cost."""
    term = share.term
    price = None if term.price is None else {name: getattr(term.price, name) for name in Price.__slots__}
    return {
        "plan": term.plan,
        "from": term.first.isoformat(),
        "to": term.until.isoformat(),
        "executions": share.executions,
        "included": term.included,
        "price_minor": price,
    }


def _share(kept: Row) -> Share:
    price = None if kept["price_minor"] is None else _price(kept["price_minor"])
    term = Term(kept["plan"], date.fromisoformat(kept["from"]), date.fromisoformat(kept["to"]), price)
    return Share(term, kept["executions"])
