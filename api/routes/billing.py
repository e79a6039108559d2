"""The invoice of a month, for programs, for spreadsheets and to be printed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from api.auth import Call, may
from api.schemas_billing import Invoice
from api.wire import Route
from engine import billing, invoice, invoice_page
from engine.permissions import Permission

router = APIRouter(route_class=Route, prefix="/api/billing", tags=["billing"])

Payer = Annotated[Call, may(Permission.BILLING_READ)]
FORMATS = {"application/json": "json", "text/csv": "csv", "text/html": "html"}
OTHER_FORMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}, "text/html": {"schema": {"type": "string"}}}}
}


@router.get("/invoice", response_model=Invoice, responses=OTHER_FORMS)
def show(
    call: Payer,
    request: Request,
    period: Annotated[str | None, Query(max_length=7, description="Such as 2026-10; this month without it.")] = None,
    form: Annotated[
        Literal["json", "csv", "html"] | None, Query(alias="format", description="Instead of an Accept header.")
    ] = None,
) -> Any:
    """Show the invoice of a month. It is `open` until the month is closed, and never changes after that."""
    wanted = form or _accepted(request.headers.get("accept", ""))
    with call.transaction() as session:
        document = billing.of_tenant(session, invoice.period_of(datetime.now(UTC)) if period is None else period)
    if wanted == "csv":
        name = f"invoice-{document['period']}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(invoice_page.as_csv(document), media_type="text/csv; charset=utf-8", headers=headers)
    if wanted == "html":
        headers = {"Content-Security-Policy": invoice_page.POLICY}
        return HTMLResponse(invoice_page.as_html(document), headers=headers)
    return document


def _accepted(header: str) -> str:
    """What comes first in an Accept header of that which we have; JSON when nothing does."""
    named = (part.partition(";")[0].strip().lower() for part in header.split(","))
    return next((FORMATS[media] for media in named if media in FORMATS), "json")
