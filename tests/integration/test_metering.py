"""Usage reaches the payment provider once, through Stripe's own library, whatever breaks on the way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import signals

import exporters
from engine import billing, metering
from engine.audit import Actor
from engine.db import Row
from engine.errors import Fatal, NotFound
from engine.metering import Metering
from engine.ports import MeterEvent, MeterExporter
from engine.repository import usage as stored_usage
from engine.usage import RollUp
from tests.api_server import settings_for
from tests.engine_parts import Parts, parts_for
from tests.stripe_server import KEY, StripeServer, stripe_server

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
BY = Actor("operator:test")
STATES = "SELECT identifier, quantity, state, attempts, error FROM meter_exports ORDER BY identifier"


@dataclass
class Desk:
    """The organizations `acme` and `beta`, known to the provider, and a way to it."""

    parts: Parts
    stripe: StripeServer
    exporter: MeterExporter

    def used(self, tenant: str, number: int, hour: int) -> None:
        """So many executions in that hour of the day, in ledger and roll-up."""
        at = NOON.replace(hour=hour).isoformat()
        self.parts.fill(
            "INSERT INTO usage (tenant_id, kind, run_id, workflow_id, at)"
            f" SELECT '{tenant}', 'execution', 'run_' || n, 'wf', '{at}' FROM generate_series(1, {number}) n"
        )
        RollUp(self.parts.database).run_once()

    def customer(self, tenant: str, customer: str) -> None:
        with self.parts.database.system() as session:
            billing.set_customer(session, BY, tenant, customer, since=NOON.replace(hour=0))

    def export(self, *, after: timedelta = timedelta(0), exporter: MeterExporter | None = None) -> metering.Exported:
        return Metering(self.parts.database, exporter or self.exporter).run_once(now=NOON + after)

    def rows(self) -> list[Row]:
        return self.parts.rows(STATES)


def stripe_at(url: str, key: str = KEY) -> MeterExporter:
    made = exporters.build(stripe_key=key, stripe_meter="runs", service_urls={"stripe": url})
    assert made is not None
    return made


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    with parts_for(database_url) as parts, stripe_server() as stripe:
        parts.fill("INSERT INTO tenants (id, name) VALUES ('beta', 'Beta'), ('gamma', 'Gamma')")
        made = Desk(parts, stripe, stripe_at(stripe.url))
        made.customer("acme", "cus_acme")
        made.customer("beta", "cus_beta")
        yield made


def test_each_hour_of_each_customer_is_one_event_and_the_running_hour_waits(desk: Desk) -> None:
    for tenant, number, hour in (("acme", 3, 9), ("acme", 4, 10), ("beta", 5, 10), ("acme", 6, 12)):
        desk.used(tenant, number, hour)
    assert (desk.export().sent, desk.export().sent) == (3, 0)
    assert desk.stripe.events == {
        f"fairlane:{tenant}:20261120T{hour}:1": {
            "customer": f"cus_{tenant}",
            "value": value,
            "timestamp": str(int(NOON.replace(hour=int(hour)).timestamp())),
            "event_name": "runs",
        }
        for tenant, hour, value in (("acme", "09", "3"), ("acme", "10", "4"), ("beta", "10", "5"))
    }
    assert desk.export(after=timedelta(hours=2)).sent == 1
    assert desk.stripe.total("cus_acme") == 13


def test_what_is_recorded_late_is_an_event_of_its_own(desk: Desk) -> None:
    desk.used("acme", 3, 9)
    desk.export()
    desk.used("acme", 2, 9)
    desk.export()
    assert [(row["identifier"], row["quantity"]) for row in desk.rows()] == [
        ("fairlane:acme:20261120T09:1", 3),
        ("fairlane:acme:20261120T09:2", 2),
    ]
    assert desk.stripe.total("cus_acme") == 5


def test_roll_ups_that_are_made_again_in_another_cluster_report_nothing_twice(desk: Desk) -> None:
    desk.used("acme", 3, 9)
    assert desk.export().sent == 1
    desk.parts.fill("UPDATE usage_rollups SET cluster = 7")
    with desk.parts.database.system() as session:
        assert stored_usage.restart(session) is not None
    assert desk.export().sent == 0, "while the roll-ups are empty"
    desk.used("acme", 2, 10)
    assert desk.export().sent == 1
    assert desk.stripe.total("cus_acme") == 5


@pytest.mark.parametrize("mood", ["busy", "broken", "lost"])
def test_a_provider_in_trouble_gets_the_same_event_again_later_and_counts_it_once(desk: Desk, mood: str) -> None:
    desk.used("acme", 3, 9)
    desk.used("beta", 4, 9)
    desk.stripe.moods = [mood]
    first = desk.export()
    assert (first.sent, first.refused) == (0, 0)
    assert first.trouble is not None
    assert desk.export().sent == 1, "the other one does not wait for the one that failed"
    assert desk.export(after=timedelta(minutes=1)).sent == 1
    assert desk.stripe.asked.count("fairlane:acme:20261120T09:1") == 2
    assert (desk.stripe.total("cus_acme"), desk.stripe.total("cus_beta")) == (3, 4)
    assert {row["state"] for row in desk.rows()} == {"sent"}


class Died(BaseException):
    """Nothing of this process runs any more."""


@dataclass
class Mortal:
    """An exporter whose process dies before or after the provider has the event."""

    exporter: MeterExporter
    sends: bool
    name: str = "mortal"

    def send(self, event: MeterEvent) -> None:
        if self.sends:
            self.exporter.send(event)
        raise Died


@pytest.mark.parametrize("sends", [False, True])
def test_who_dies_between_sending_and_noting_it_leaves_an_event_that_counts_once(desk: Desk, sends: bool) -> None:
    desk.used("acme", 3, 9)
    with pytest.raises(Died):
        desk.export(exporter=Mortal(desk.exporter, sends))
    assert [row["state"] for row in desk.rows()] == ["planned"]
    assert desk.export(after=timedelta(minutes=1)).sent == 0, "it may still be at work"
    assert desk.export(after=timedelta(minutes=3)).sent == 1
    assert desk.stripe.total("cus_acme") == 3


def test_what_had_no_answer_for_a_day_is_sent_no_more_until_somebody_looks(desk: Desk) -> None:
    """By then the provider may have forgotten the identifier, and would count it twice."""
    desk.used("acme", 3, 9)
    desk.stripe.moods = ["lost"]
    desk.export()
    late = desk.export(after=timedelta(hours=24))
    assert (late.sent, late.unknown) == (0, 1)
    (row,) = desk.rows()
    assert (row["state"], row["attempts"]) == ("unknown", 1)
    with desk.parts.database.system() as session:
        metering.settle(session, row["identifier"], "sent", now=NOON)
        with pytest.raises(NotFound):
            metering.settle(session, row["identifier"], "planned", now=NOON)
    assert desk.export(after=timedelta(hours=25)).sent == 0
    assert desk.stripe.total("cus_acme") == 3


def test_what_is_refused_holds_nobody_else_up_and_is_sent_again_when_that_is_asked_for(desk: Desk) -> None:
    desk.customer("acme", "cus_nobody")
    desk.used("acme", 3, 9)
    desk.used("beta", 4, 10)
    result = desk.export()
    assert (result.sent, result.refused) == (1, 1)
    refused = next(row for row in desk.rows() if row["state"] == "refused")
    assert refused["error"] == "Stripe: No such customer: 'cus_nobody'"
    desk.stripe.customers.add("cus_nobody")
    with desk.parts.database.system() as session:
        metering.settle(session, refused["identifier"], "planned", now=NOON)
    assert desk.export().sent == 1
    assert desk.stripe.total("cus_nobody") == 3


def test_organizations_without_a_customer_are_told_of_and_reported_from_then_on(desk: Desk) -> None:
    desk.used("gamma", 7, 9)
    assert desk.export().without_customer == ({"tenant_id": "gamma", "executions": 7},)
    desk.customer("gamma", "cus_beta")
    assert desk.export().sent == 1
    assert desk.export().without_customer == ()


def test_several_exporters_at_once_send_each_event_once(desk: Desk) -> None:
    for hour in range(11):
        desk.used("acme", 2, hour)
        desk.used("beta", 1, hour)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: desk.export(), range(4)))
    assert sum(result.sent for result in results) == 22
    assert len(desk.stripe.asked) == len(set(desk.stripe.asked)) == 22
    assert (desk.stripe.total("cus_acme"), desk.stripe.total("cus_beta")) == (22, 11)


def test_a_key_that_is_not_accepted_delays_everything_and_is_nowhere_to_be_read(desk: Desk) -> None:
    desk.used("acme", 3, 9)
    exporter = stripe_at(desk.stripe.url, key="sk_wrong_and_secret")
    result = desk.export(exporter=exporter)
    assert result.trouble == "Stripe does not accept the key of FAIRLANE_STRIPE_KEY."
    assert "sk_wrong" not in f"{desk.rows()} {exporter!r}"
    assert desk.export(after=timedelta(minutes=1)).sent == 1


@pytest.fixture
def tasks() -> Any:
    """The wiring. Nothing else in this process shall be set up as a worker of ours because of that."""
    import tasks

    connected: list[tuple[Any, Any]] = [
        (signals.setup_logging, tasks._log_as_we_do),
        (signals.worker_init, tasks.refuse_leaky_isolation),
        (signals.beat_init, tasks.refuse_leaky_isolation),
        (signals.task_prerun, tasks._charge_from_here),
        (signals.task_prerun, tasks._name_in_log_lines),
        (signals.task_postrun, tasks._forget_for_log_lines),
        (signals.worker_process_shutdown, tasks._send_what_is_left),
    ]
    for signal, receiver in connected:
        signal.disconnect(receiver)
    return tasks


def test_no_action_reaches_where_only_the_key_of_the_operator_goes(desk: Desk, tasks: Any) -> None:
    urls = f"stripe={desk.stripe.url},slack=http://127.0.0.1:1"
    configured = settings_for(desk.parts.url, "redis://127.0.0.1:1/0", service_urls=urls, stripe_key=KEY)
    with closing(tasks._actions(configured)) as registry, pytest.raises(Fatal, match="may not be called"):
        registry.client.fetch(desk.stripe.url)
    metering = tasks._metering(configured, desk.parts.database)
    assert metering is not None
    desk.used("acme", 3, 9)
    assert metering.run_once(now=NOON).sent == 1
    assert KEY not in repr(configured)


def test_without_a_key_there_is_no_exporter() -> None:
    assert exporters.build(stripe_key=None, stripe_meter="runs", service_urls={}) is None
