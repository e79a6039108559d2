"""The invoice over HTTP: in three forms, of one's own organization, for any month that has begun."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from engine import billing, invoice
from tests.api_server import Api, Person, running_api, services_for, settings_for

HOSTILE = '=cmd()"><script>alert(1)</script>'
PATH = "/api/billing/invoice"


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


@pytest.fixture(scope="module")
def owner(api: Api) -> Person:
    """Since the year 2020, with three executions in October 2026, which is closed, and a name to be careful with."""
    person = api.person()
    person.http.patch(f"/api/tenants/{person.tenant_id}", json={"name": HOSTILE}).raise_for_status()
    with api.services.database.system() as session:
        session.execute(sa.text("UPDATE tenants SET created_at = '2020-01-01'"))
        session.execute(
            sa.text(
                "INSERT INTO plan_prices (plan, starts, currency, base, included, per_thousand, created_at)"
                " SELECT plan, starts, currency, base, included, per_thousand, '2020-01-01' FROM plan_prices"
            )
        )
        session.execute(
            sa.text(
                "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, at)"
                " SELECT :tenant, 'execution', 'run_' || n, 'wf', '2026-10-05' FROM generate_series(1, 3) n"
            ),
            {"tenant": person.tenant_id},
        )
        billing.close(session, person.tenant_id, "2026-10", now=datetime(2026, 11, 1, 6, tzinfo=UTC))
    return person


def test_a_closed_month_and_the_running_one(owner: Person) -> None:
    closed = owner.http.get(PATH, params={"period": "2026-10"}).json()
    assert (closed["status"], closed["executions"], closed["total"], closed["currency"]) == ("closed", 3, "0.00", "USD")
    assert closed["tenant"] == {"id": owner.tenant_id, "name": HOSTILE}
    assert [(line["kind"], line["quantity"], line["from"], line["to"]) for line in closed["lines"]] == [
        ("base", 31, "2026-10-01", "2026-11-01"),
        ("included", 3, "2026-10-01", "2026-11-01"),
    ]
    running = owner.http.get(PATH).json()
    assert (running["status"], running["period"]) == ("open", invoice.period_of(datetime.now(UTC)))


def test_another_organization_sees_nothing_of_it(api: Api, owner: Person) -> None:
    answer = api.person().http.get(PATH, params={"period": "2026-10"}).json()
    assert (answer["status"], answer["executions"], answer["lines"]) == ("open", 0, [])


@pytest.mark.parametrize(
    ("accept", "form", "media"),
    [
        ("*/*", None, "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", None, "text/html; charset=utf-8"),
        ("text/csv", None, "text/csv; charset=utf-8"),
        ("text/csv", "html", "text/html; charset=utf-8"),
        ("text/html", "json", "application/json"),
    ],
)
def test_the_form_is_what_is_asked_for(owner: Person, accept: str, form: str | None, media: str) -> None:
    chosen = {"format": form} if form else {}
    answer = owner.http.get(PATH, params={"period": "2026-10", **chosen}, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media)


def test_the_page_and_the_table_take_no_orders_from_a_name(owner: Person) -> None:
    page = owner.http.get(PATH, params={"period": "2026-10", "format": "html"})
    assert "<script" not in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    table = owner.http.get(PATH, params={"period": "2026-10", "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert {row["tenant_name"] for row in rows} == {f"'{HOSTILE}"}
    assert sum(int(row["quantity"]) for row in rows if row["kind"] == "included") == 3


@pytest.mark.parametrize("query", ["period=2026-1", "period=2026-13", "period=2199-01", "period=", "format=pdf", "x=1"])
def test_what_cannot_be_shown_is_refused(owner: Person, query: str) -> None:
    answer = owner.http.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), answer.text


@pytest.mark.parametrize("period", ["abc", "2026-1", "2026-13", ""])
def test_a_month_that_is_none_is_told_what_is_wanted(owner: Person, period: str) -> None:
    (fault,) = owner.http.get(PATH, params={"period": period}).json()["errors"]
    assert (fault["pointer"], "is not a month such as 2026-10" in fault["detail"]) == ("/period", True)
