"""An invoice as a table for spreadsheets and as a page to print.

Names come from strangers: the page escapes every text, has no script and loads nothing; a cell of the table that a
spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import date, timedelta
from html import escape
from typing import Any

POLICY = "default-src 'none'; frame-ancestors 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
"""The Content-Security-Policy of the page."""

COLUMNS = (
    "tenant_id", "tenant_name", "invoice_period", "status", "kind", "description", "period", "from", "to",
    "quantity", "unit_price", "amount", "currency",
)  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:50em;margin:3em auto;padding:0 1em}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3em .6em;border-bottom:1px solid #ccc}"
    ".n{text-align:right;white-space:nowrap}tfoot td{font-weight:bold;border-bottom:0}"
    ".open{border:1px solid #b60;padding:.4em .8em}@media print{body{margin:0;max-width:none}}"
)


def as_csv(invoice: Mapping[str, Any]) -> str:
    """One row for each line, as RFC 4180 has it. The lines add up to the totals."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    whose = [invoice["tenant"]["id"], invoice["tenant"]["name"], invoice["period"], invoice["status"]]
    for line in invoice["lines"]:
        texts = [*whose, line["kind"], line["description"], line["period"], line["from"], line["to"]]
        figures = [line["quantity"], line["unit_price"], line["amount"], line["currency"]]
        writer.writerow([*map(_harmless, texts), *figures])
    return file.getvalue()


def as_html(invoice: Mapping[str, Any]) -> str:
    """A whole document."""
    title = escape(f"Invoice {invoice['period']}")
    rows = "".join(_row(line) for line in invoice["lines"])
    sums = "".join(
        f'<tr><td colspan="5">Total</td><td class="n">{escape(total["amount"])} {escape(total["currency"])}</td></tr>'
        for total in invoice["totals"]
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><title>{title}</title><h1>{title}</h1>{_head(invoice)}"
        '<table><thead><tr><th>Line<th>First day<th>Last day<th class="n">Quantity<th class="n">Price'
        f'<th class="n">Amount</thead><tbody>{rows}</tbody><tfoot>{sums}</tfoot></table></html>'
    )


def _head(invoice: Mapping[str, Any]) -> str:
    tenant = invoice["tenant"]
    facts = f"<p>{escape(tenant['name'])}<br>{escape(tenant['id'])}<br>{invoice['executions']:,} executions"
    if invoice["status"] == "closed":
        return f"{facts}<br>{escape(invoice['id'])}, closed at {escape(invoice['closed_at'])}</p>"
    return f'{facts}</p><p class="open">The month is open: the figures are those of now and will change.</p>'


def _row(line: Mapping[str, Any]) -> str:
    unit = {"base": "a month"}.get(line["kind"], "a thousand")
    price = "-" if line["unit_price"] is None else f"{line['unit_price']} {line['currency']} {unit}"
    amount = f"{line['amount']} {line['currency'] or ''}"
    last = date.fromisoformat(line["to"]) - timedelta(days=1)
    texts = "".join(f"<td>{escape(text)}</td>" for text in (line["description"], line["from"], last.isoformat()))
    quantity = f"{line['quantity']:,} {'days' if line['kind'] == 'base' else ''}"
    figures = "".join(f'<td class="n">{escape(text.strip())}</td>' for text in (quantity, price, amount))
    return f"<tr>{texts}{figures}</tr>"


def _harmless(text: str) -> str:
    """A spreadsheet shows it and does not compute it."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
