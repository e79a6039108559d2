"""``fairlane billing`` by its entry point: prices, invoices, closing, and reporting to a provider."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue

import pytest
import sqlalchemy as sa

import exporters
from engine import invoice
from engine.db import Database
from engine.metering import Metering
from engine.usage import RollUp
from tests.command_line import CommandLine, configured
from tests.stripe_server import KEY, stripe_server

THIS = invoice.period_of(datetime.now(UTC))
LAST = invoice.period_of(invoice.bounds(THIS)[0] - timedelta(days=1))
NEXT = invoice.following(THIS)
INSTALLED_LONG_AGO = (
    "INSERT INTO plan_prices (plan, starts, currency, base, included, per_thousand, created_at)"
    " SELECT plan, starts, currency, base, included, per_thousand, '2020-01-01' FROM plan_prices"
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Two organizations for a long time; `acme` executed thrice last month, and twice on the first of this month."""
    database = Database(database_url)
    with database.system() as session:
        session.execute(
            sa.text(
                "INSERT INTO tenants (id, name, plan, created_at)"
                " VALUES ('acme', 'Acme', 'team', '2020-01-01'), ('beta', 'Beta', 'team', '2020-01-01')"
            )
        )
        session.execute(sa.text(INSTALLED_LONG_AGO))
        for number, period in ((3, LAST), (2, THIS)):
            session.execute(
                sa.text(
                    "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, at) SELECT 'acme', 'execution', 'r', 'w',"
                    " :at FROM generate_series(1, :number)"
                ),
                {"at": invoice.bounds(period)[0], "number": number},
            )
    RollUp(database).run_once()
    yield database
    database.close()


@pytest.fixture
def fairlane(database: Database, database_url: str, redis_url: str, tmp_path: Path) -> CommandLine:
    return configured(tmp_path, database_url, redis_url)


def price(fairlane: CommandLine, *more: str) -> tuple[str, ...]:
    return ("billing", "set-price", "team", "--base", "10", "--included", "1", "--per-thousand", "500.50", *more)


def test_a_price_holds_from_a_month_on_and_not_in_a_closed_one(fairlane: CommandLine) -> None:
    made = fairlane.fine(*price(fairlane, "--from", LAST, "--currency", "eur", "--json")).json
    assert (made["currency"], made["base"], made["included"], made["per_thousand"]) == ("EUR", 1000, 1, 50050)
    shown = fairlane.fine("billing", "prices", "--period", LAST).out.splitlines()
    assert shown[-1].split() == ["team", "EUR", "10.00", "1", "500.50", LAST]
    fairlane.fine("billing", "close", LAST)
    refused = fairlane(*price(fairlane, "--from", LAST))
    assert (refused.code, refused.err) == (1, f"{LAST} is closed, so a price can hold from {THIS} on.\n")
    for wrong in (("--base", "1.001"), ("--currency", "EURO"), ("--from", "yesterday")):
        assert fairlane(*price(fairlane, *wrong)).code == 2
    fairlane.fine("plans", "set", "trial", "max_members=3", "--create")
    rows = fairlane.fine("billing", "prices", "--json").json
    assert [(row["plan"], row["base"]) for row in rows][-1] == ("trial", None)


def test_an_invoice_is_shown_in_every_form_and_closed_once(fairlane: CommandLine) -> None:
    fairlane.fine(*price(fairlane, "--from", LAST))
    running = fairlane.fine("billing", "invoice", "acme").out
    assert "open" in running
    assert fairlane.fine("billing", "close", LAST, "--tenant", "beta", "--json").json == {"period": LAST, "closed": 1}
    assert fairlane.fine("billing", "close", LAST).out == f"Invoices made for {LAST}: 1.\n"
    assert fairlane.fine("billing", "close", LAST, "--json").json["closed"] == 0
    closed = fairlane.fine("billing", "invoice", "acme", "--period", LAST, "--json").json
    assert (closed["status"], closed["executions"], closed["total"]) == ("closed", 3, "11.00")
    table = fairlane.fine("billing", "invoice", "acme", "--period", LAST, "--format", "csv").out
    assert table.splitlines()[0].startswith("tenant_id,tenant_name,invoice_period")
    assert fairlane.fine("billing", "invoice", "acme", "--format", "html").out.startswith("<!doctype html>")
    too_early = fairlane("billing", "close", THIS)
    assert (too_early.code, "has not ended yet" in too_early.err) == (1, True)
    assert fairlane("billing", "invoice", "acme", "--period", NEXT).code == 2
    for words in (("invoice", "nobody"), ("close", LAST, "--tenant", "nobody"), ("set-customer", "nobody", "cus_1")):
        assert fairlane("billing", *words).err.startswith("There is no organization 'nobody'")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--base", "abc"), "--base: 'abc' is no amount of USD such as 49.00: at most two decimals, not negative."),
        (("--base", "-1"), "--base: '-1' is no amount of USD"),
        (("--per-thousand", "0.404"), "--per-thousand: '0.404' is no amount of USD"),
        (
            ("--currency", "JPY"),
            "--per-thousand: '500.50' is no amount of JPY such as 4900: no decimals, not negative.",
        ),
        (("--from", "abc"), "--from: 'abc' is not a month such as 2026-10."),
        (("--from", ""), "--from: '' is not a month such as 2026-10."),
    ],
)
def test_a_price_that_cannot_be_set_names_the_option_and_what_would_be_right(
    fairlane: CommandLine, words: tuple[str, ...], sentence: str
) -> None:
    refused = fairlane(*price(fairlane, *words))
    assert refused.code == 2
    assert sentence in " ".join(refused.err.replace("│", " ").split())


@pytest.mark.parametrize("period", ["", "abc", NEXT])
def test_a_month_that_is_none_is_not_taken_for_this_one(fairlane: CommandLine, period: str) -> None:
    refused = fairlane("billing", "invoice", "acme", "--period", period)
    assert (refused.code, "Invalid value for --period: " in refused.err) == (2, True)


@pytest.mark.parametrize("customer", ["", " ", "cus 1", "cus\n1", "cus\x00", "cüs"])
def test_a_customer_that_no_provider_has_is_refused(fairlane: CommandLine, customer: str) -> None:
    refused = fairlane("billing", "set-customer", "acme", customer)
    assert (refused.code, "is no id of a customer, such as cus_" in refused.err) == (2, True)
    assert fairlane.fine("tenants", "show", "acme", "--json").json["customer"] is None


def test_the_customer_is_shown_with_its_organization(fairlane: CommandLine) -> None:
    fairlane.fine("billing", "set-customer", "acme", "cus_acme")
    assert ["customer", "cus_acme"] in [
        line.split() for line in fairlane.fine("tenants", "show", "acme").out.splitlines()
    ]
    assert fairlane.fine("tenants", "show", "beta", "--json").json["customer"] is None


def test_a_command_that_is_killed_when_the_provider_has_the_event_reports_nothing_twice(
    fairlane: CommandLine, database: Database
) -> None:
    fairlane.fine("billing", "set-customer", "acme", "cus_acme")
    with stripe_server() as stripe:
        fairlane.variables |= {"FAIRLANE_STRIPE_KEY": KEY, "FAIRLANE_SERVICE_URLS": f"stripe={stripe.url}"}
        started: Queue[subprocess.Popen[str]] = Queue()
        stripe.when_taken = lambda: _kill(started.get(timeout=60))
        process = fairlane.start("billing", "export")
        started.put(process)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert fairlane.fine("billing", "exports", "--json").json[0]["state"] == "planned"
        stripe.when_taken = lambda: None
        exporter = exporters.build(stripe_key=KEY, stripe_meter="runs", service_urls={"stripe": stripe.url})
        assert exporter is not None
        later = datetime.now(UTC) + timedelta(minutes=3)
        assert Metering(database, exporter).run_once(now=later).sent == 1
        assert (len(stripe.asked), stripe.total("cus_acme")) == (2, 2)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=60)


def test_usage_is_reported_and_what_is_refused_is_listed_and_settled(fairlane: CommandLine) -> None:
    missing = fairlane("billing", "export")
    assert (missing.code, missing.err) == (1, "No payment provider is configured: set FAIRLANE_STRIPE_KEY.\n")
    with stripe_server() as stripe:
        variables = {"FAIRLANE_STRIPE_KEY": KEY, "FAIRLANE_SERVICE_URLS": f"stripe={stripe.url}"}
        told = fairlane.fine("billing", "export", **variables)
        assert told.err.startswith("acme has no customer: ")
        fairlane.fine("billing", "set-customer", "acme", "cus_unknown")
        refused = fairlane.fine("billing", "export", "--json", **variables).json
        assert (refused["planned"], refused["refused"]) == (1, 1)
        (row,) = fairlane.fine("billing", "exports", "--state", "refused", "--json").json
        stripe.customers.add("cus_unknown")
        fairlane.fine("billing", "settle", row["identifier"], "planned")
        assert fairlane.fine("billing", "export", "--json", **variables).json["sent"] == 1
        assert stripe.total("cus_unknown") == 2
        assert [row["state"] for row in fairlane.fine("billing", "exports", "--json").json] == ["sent"]
        assert fairlane("billing", "settle", row["identifier"], "planned").code == 1
