"""``fairlane billing``: prices, invoices, closing months, and what is reported to the payment provider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from cli import commands
from cli.installation import opened, operator_here
from cli.options import DEFAULT_DATA, AsJson, Data, TenantId, group
from cli.output import plain, show_items, show_json, show_record, warn
from cli.paging import pages
from cli.progress import progress
from engine import billing, invoice, invoice_page, metering, plans
from engine.billing import Closer
from engine.errors import ConfigurationError, InvalidInput
from engine.invoice import Price, written
from engine.metering import Exported, Metering
from engine.repository import metering as stored_exports

app = group("Billing: prices, invoices, and what is reported to the payment provider.")

Period = Annotated[str | None, typer.Option("--period", metavar="YYYY-MM", help="The month; this one without it.")]
Month = Annotated[str, typer.Argument(metavar="YYYY-MM", help="A month that has ended.")]
PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")]
Identifier = Annotated[str, typer.Argument(metavar="IDENTIFIER", help="As `fairlane billing exports` shows it.")]

LINE: dict[str, Any] = {
    "line": lambda line: line["description"],
    "from": lambda line: line["from"],
    "before": lambda line: line["to"],
    "quantity": lambda line: line["quantity"],
    "price": lambda line: line["unit_price"],
    "amount": lambda line: f"{line['amount']} {line['currency'] or ''}",
}
PRICE: dict[str, Any] = {
    "plan": lambda row: row["plan"],
    "currency": lambda row: row["currency"],
    "base": lambda row: written(row["base"], row["currency"]) if row["currency"] else None,
    "included": lambda row: row["included"],
    "per thousand": lambda row: written(row["per_thousand"], row["currency"]) if row["currency"] else None,
    "since": lambda row: f"{row['starts']:%Y-%m}" if row["starts"] else None,
}
EXPORT: dict[str, Any] = {
    "identifier": lambda row: row["identifier"],
    "customer": lambda row: row["customer"],
    "quantity": lambda row: row["quantity"],
    "state": lambda row: row["state"],
    "attempts": lambda row: row["attempts"],
    "error": lambda row: row["error"],
}


@app.command()
def prices(period: Period = None, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Show what each plan costs in a month."""
    with opened(data) as here, here.database.system() as session, _usage("--period"):
        found = billing.prices(session, _this_month() if period is None else period)
        names = [row["name"] for row in plans.listed(session)]
    nothing = dict.fromkeys(("starts", "currency", "base", "included", "per_thousand"))
    show_items([{"plan": name} | found.get(name, nothing) for name in names], PRICE, as_json=as_json)


@app.command("set-price")
def set_price(
    plan: PlanName,
    base: Annotated[str, typer.Option("--base", metavar="AMOUNT", help="Fee for a month, such as 49.00.")],
    included: Annotated[int, typer.Option("--included", min=0, help="Executions that the fee pays for.")],
    per_thousand: Annotated[str, typer.Option("--per-thousand", metavar="AMOUNT", help="For a thousand more.")],
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="ISO 4217.")] = "USD",
    start: Annotated[
        str | None, typer.Option("--from", metavar="YYYY-MM", help="The first month; this one without it.")
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Set what a plan costs from a month on; months that are closed stay as they are."""
    with _usage("--currency"):
        code = invoice.parse_currency(currency)
    with _usage("--base"):
        fee = invoice.parse_money(base, code)
    with _usage("--per-thousand"):
        price = Price(code, fee, included, invoice.parse_money(per_thousand, code))
    with _usage("--from"):
        period = invoice.parse_period(_this_month() if start is None else start)
    with opened(data) as here, here.database.system() as session, _usage():
        billing.set_price(session, plan, price, period=period)
        made = {"plan": plan} | billing.prices(session, period)[plan]
    _report(
        made, f"From {period} on the plan {plan} costs {written(price.base, code)} {code} a month.", as_json=as_json
    )


@app.command("invoice")
def show_invoice(
    tenant: TenantId,
    period: Period = None,
    form: Annotated[Literal["text", "csv", "html"], typer.Option("--format", help="How it is printed.")] = "text",
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Show the invoice of an organization for a month: the closed one, else what it would be now."""
    with opened(data) as here, _usage("--period"):
        with here.database.system() as session:
            billing.require_tenant(session, tenant)
        with here.database.tenant(tenant) as own:
            document = billing.of_tenant(own, _this_month() if period is None else period)
    if as_json:
        show_json(document)
    elif form == "text":
        _show(document)
    else:
        typer.echo(invoice_page.as_csv(document) if form == "csv" else invoice_page.as_html(document), nl=False)


@app.command()
def close(
    month: Month,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="TENANT", help="Only this organization.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Close a month, for every organization that has no invoice for it yet. It cannot be undone."""
    now = datetime.now(UTC)
    with opened(data) as here, progress(f"Closing {month}"), _usage("YYYY-MM"):
        if tenant is not None:
            with here.database.system() as session:
                billing.require_tenant(session, tenant)
        closed = Closer(here.database).close_all(month, now=now, only=tenant)
    _report({"period": month, "closed": closed}, f"Invoices made for {month}: {closed:,}.", as_json=as_json)


@app.command("set-customer")
def set_customer(
    tenant: TenantId,
    customer: Annotated[
        str, typer.Argument(metavar="CUSTOMER", help="The provider's id of it, such as cus_NffrFeUfNV2Hib.")
    ],
    start: Annotated[
        str | None, typer.Option("--from", metavar="YYYY-MM", help="Report from this month on; this one without it.")
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Name the customer that an organization is at the payment provider; its executions are reported from then on."""
    if not customer or not customer.isascii() or not customer.isprintable() or " " in customer:
        sentence = f"{customer!r} is no id of a customer, such as cus_NffrFeUfNV2Hib."
        raise typer.BadParameter(sentence, param_hint="CUSTOMER")
    with _usage("--from"):
        since = invoice.bounds(invoice.parse_period(_this_month() if start is None else start))[0]
    with opened(data) as here, here.database.system() as session:
        billing.set_customer(session, operator_here(), tenant, customer, since=since)
    made = {"tenant_id": tenant, "customer": customer}
    _report(made, f"{tenant} is {customer} for the payment provider.", as_json=as_json)


@app.command()
def export(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Report to the payment provider what is new, now; beat does so by itself every minute."""
    with opened(data) as here:
        exporter = commands.meter_exporter(here.settings)
        if exporter is None:
            raise ConfigurationError("No payment provider is configured: set FAIRLANE_STRIPE_KEY.")
        with progress(f"Reporting to {exporter.name}"):
            result = Metering(here.database, exporter, report=show_json if as_json else _tell).run_once()
    if result.trouble:
        raise typer.Exit(1)


@app.command("exports")
def list_exports(
    state: Annotated[
        Literal["planned", "sent", "refused", "unknown"] | None, typer.Option("--state", help="Only those.")
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """List what was and will be reported to the payment provider."""
    with opened(data) as here:
        rows = pages(
            here.database,
            lambda session, last, limit: stored_exports.listed(
                session, state=state, after=last["identifier"] if last else "", limit=limit
            ),
        )
        show_items(rows, EXPORT, as_json=as_json)


@app.command()
def settle(
    identifier: Identifier,
    outcome: Annotated[
        Literal["sent", "planned"], typer.Argument(metavar="STATE", help="What holds now: sent or planned.")
    ],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Decide on an export that is unknown or refused: the provider has it, or it shall be sent again."""
    with opened(data) as here, here.database.system() as session:
        metering.settle(session, identifier, outcome, now=datetime.now(UTC))
    _report({"identifier": identifier, "state": outcome}, f"{identifier} is {outcome}.", as_json=as_json)


def _show(document: dict[str, Any]) -> None:
    facts = {"organization": f"{document['tenant']['name']} ({document['tenant']['id']})"}
    facts |= {name: document[name] for name in ("period", "status", "executions")}
    facts |= {f"total {total['currency']}": total["amount"] for total in document["totals"]}
    show_record(facts)
    typer.echo()
    show_items(document["lines"], LINE, as_json=False, none="There is nothing on it.")


def _tell(result: Exported) -> None:
    figures = ("planned", "sent", "refused", "unknown")
    show_record({name: getattr(result, name) for name in figures})
    for row in result.without_customer:
        warn(f"{row['tenant_id']} has no customer: {row['executions']:,} executions are not reported.")
    if result.trouble:
        warn(f"{result.trouble} The rest is sent later.")


def _report(made: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    if as_json:
        show_json(made)
    else:
        typer.echo(sentence)


def _this_month() -> str:
    return invoice.period_of(datetime.now(UTC))


@contextmanager
def _usage(what: str | None = None) -> Iterator[None]:
    """What is wrong with a month or an amount is wrong usage; `what` is the option that has it."""
    try:
        yield
    except InvalidInput as error:
        raise typer.BadParameter(plain(error), param_hint=what) from None
