"""What travels in answers about money. Amounts are decimal text, and whole minor units beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas import Answer


class BilledTenant(Answer):
    id: str
    name: str = Field(description="as it was called then")


class InvoiceLine(Answer):
    kind: Literal["base", "included", "further", "late"] = Field(
        description="late: executions of a month that was closed when they were recorded"
    )
    description: str
    period: str = Field(description="the month that it is for")
    from_: str = Field(alias="from", description="the first day of the term, UTC")
    to: str = Field(description="the day after the last one")
    quantity: int = Field(description="days of a base fee, else executions")
    unit_price: str | None = Field(description="of a month, or of a thousand executions")
    unit_price_minor: int | None
    amount: str
    amount_minor: int
    currency: str | None = Field(description="null where the plan has no price")


class Total(Answer):
    currency: str
    amount: str
    amount_minor: int


class Invoice(Answer):
    id: str | None = Field(description="null while it is open")
    tenant: BilledTenant
    period: str
    from_: str = Field(alias="from", description="the first day of the month, UTC")
    to: str = Field(description="the first day of the next month")
    status: Literal["open", "closed"] = Field(description="open: the figures of this moment, which will change")
    closed_at: str | None
    ledger_position: int | None = Field(description="the newest row of the ledger that was there")
    executions: int = Field(description="of the month itself, without what came late to others")
    currency: str | None = Field(description="null without a price, or with several currencies")
    total: str | None
    total_minor: int | None
    totals: list[Total] = Field(description="the sum of the lines in each currency")
    lines: list[InvoiceLine]
