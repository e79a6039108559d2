"""What a scrape of a real API shows: exact numbers, the same from every process, and no more labels than may be."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from itertools import pairwise

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from api import edge
from engine.metrics import COUNTED, TALLIES
from engine.notices import Notices
from engine.usage import RollUp
from tests.api_server import Api, Person, Queue, running_api, services_for, settings_for
from tests.fairshare_waiting import until

Shown = dict[tuple[str, frozenset[tuple[str, str]]], float]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FAILS = {"id": "bad", "action": "debug.fail"}


@pytest.fixture
def api(database_url: str, redis_url: str) -> Iterator[Api]:
    TALLIES.take()
    with running_api(services_for(settings_for(database_url, redis_url, webhook_max_bytes=1000))) as api:
        yield api


def scrape(http: httpx.Client) -> Shown:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(shown: Shown, name: str, **labels: str) -> float | None:
    return shown.get((f"fairlane_{name}", frozenset(labels.items())))


def roll_up(api: Api, *, labels: int = 50) -> None:
    RollUp(api.services.database, labels=labels).run_once()


def limit(api: Api, person: Person, **limits: int) -> None:
    with api.services.database.system() as session:
        for name, most in limits.items():
            session.execute(
                sa.text("UPDATE tenants SET limits = limits || cast(:limit AS jsonb) WHERE id = :id"),
                {"limit": json.dumps({name: most}), "id": person.tenant_id},
            )


def test_runs_of_two_tenants_are_shown_exactly(api: Api) -> None:
    one, two = api.person(), api.person()
    good, bad = one.workflow(), one.workflow(FAILS)
    for workflow in (good, good, bad):
        api.work(one.tenant_id, one.run(workflow))
    cancelled = one.run(good)
    assert one.http.post(f"/api/runs/{cancelled}/cancel").status_code == 200
    limit(api, two, max_executions_per_month=1)
    hooked = two.workflow()
    started = [api.client().post(f"/api/webhooks/{hooked}", json={}).json()["run_id"] for _ in range(3)]
    api.work(two.tenant_id, started[0])
    roll_up(api)

    shown = scrape(api.client())
    assert {key: value for key, value in shown.items() if key[0] == "fairlane_runs_total"} == {
        ("fairlane_runs_total", frozenset({("tenant", tenant), ("status", status), ("trigger", trigger)})): count
        for tenant, status, trigger, count in (
            (one.tenant_id, "succeeded", "api", 2),
            (one.tenant_id, "failed", "api", 1),
            (one.tenant_id, "cancelled", "api", 1),
            (two.tenant_id, "succeeded", "webhook", 1),
        )
    }
    assert of(shown, "action_calls_total", action="debug.echo", outcome="succeeded") == 3
    assert of(shown, "action_calls_total", action="debug.fail", outcome="failed") == 1
    assert of(shown, "quota_held_total", tenant=two.tenant_id, quota="max_executions_per_month") == 2
    assert of(shown, "quota_used_ratio", tenant=two.tenant_id, quota="max_executions_per_month") == 1
    assert of(shown, "run_seconds_count") == 5
    assert of(shown, "queue_wait_seconds_count", tenant=one.tenant_id) == 3
    assert of(shown, "queue_wait_seconds_count", tenant="other") == 0
    assert of(shown, "webhooks_total", outcome="accepted") == 3
    assert (of(shown, "worker_seconds_total", tenant=one.tenant_id) or 0) > 0


def test_buckets_hold_what_is_below_their_bounds_as_well(api: Api) -> None:
    person = api.person()
    workflow = person.workflow()
    for age in ("0 seconds", "3 seconds", "2 days"):
        run_id = person.run(workflow)
        with api.services.database.system() as session:
            session.execute(sa.text(f"UPDATE runs SET queued_at = now() - interval '{age}' WHERE id = '{run_id}'"))
        api.work(person.tenant_id, run_id)
    roll_up(api)
    shown = scrape(api.client())
    buckets = {dict(labels)["le"]: n for (name, labels), n in shown.items() if name == "fairlane_run_seconds_bucket"}
    assert (buckets["2.5"], buckets["5.0"], buckets["86400.0"], buckets["+Inf"]) == (1, 2, 2, 3)
    in_order = [buckets[bound] for bound in sorted(buckets, key=float)]
    assert all(before <= after for before, after in pairwise(in_order))
    assert 172_803 <= (of(shown, "run_seconds_sum") or 0) < 172_830


def test_what_becomes_of_webhooks_is_counted_by_outcome(api: Api) -> None:
    person, sender = api.person(), api.client()
    open_one = person.workflow()
    signed = person.workflow(trigger={"type": "webhook", "secret": SECRET})
    full = api.person()
    full_one = full.workflow()
    limit(api, full, max_queued_runs=0)
    for workflow, request in (
        (open_one, {"json": {}}),
        (open_one, {"json": {}, "headers": {"webhook-id": "m1"}}),
        (open_one, {"json": {}, "headers": {"webhook-id": "m1"}}),
        (open_one, {"content": b"x" * 2000}),
        (open_one, {"content": iter([b"x" * 600] * 4)}),
        (open_one, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (signed, {"json": {}}),
        (full_one, {"json": {}}),
        ("wf_none", {"json": {}}),
        (person.workflow(trigger={"type": "manual"}), {"json": {}}),
    ):
        sender.post(f"/api/webhooks/{workflow}", **request)
    shown = scrape(sender)
    counted = {dict(labels)["outcome"]: n for (name, labels), n in shown.items() if name == "fairlane_webhooks_total"}
    assert {outcome: n for outcome, n in counted.items() if n} == {
        "accepted": 2,
        "duplicate": 1,
        "too_large": 2,
        "invalid_body": 1,
        "bad_signature": 1,
        "quota_queue": 1,
        "not_found": 1,
        "not_a_webhook": 1,
    }


def test_what_callers_do_wrong_is_no_error_of_ours(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BODY_SECONDS", 0.2)
    path = f"/api/webhooks/{api.person().workflow()}"
    address = ("127.0.0.1", int(api.url.rpartition(":")[2]))
    begun = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
    with capture_logs() as lines:
        assert api.client().post(f"{path}?a=%00").status_code == 400
        with socket.create_connection(address, timeout=10) as slow:
            slow.sendall(begun)
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        with socket.create_connection(address, timeout=10) as gone:
            gone.sendall(begun)
        until(lambda: of(scrape(api.client()), "webhooks_total", outcome="bad_request") == 3)
    assert of(scrape(api.client()), "webhooks_total", outcome="failed") == 0
    assert [line["event"] for line in lines if line["log_level"] == "error"] == []


def test_what_nobody_foresaw_is(api: Api, database_url: str) -> None:
    path = f"/api/webhooks/{api.person().workflow()}"
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
            "CREATE TRIGGER fail BEFORE INSERT ON runs EXECUTE FUNCTION fail()"
        )
    assert api.client().post(path).status_code == 500
    assert of(scrape(api.client()), "webhooks_total", outcome="failed") == 1


def test_every_series_of_the_contract_is_there_before_anything_has_happened(api: Api) -> None:
    text = api.client().get("/metrics").text
    for series in (*(f"fairlane_{s.name}" for s in COUNTED), "fairlane_quota_used_ratio", "fairlane_queue_depth"):
        assert f"# TYPE {series}" in text, series
    assert 'fairlane_sweeper_repairs_total{kind="silent"} 0.0' in text
    assert 'fairlane_webhooks_total{outcome="bad_signature"} 0.0' in text
    assert "fairlane_quota_drift_total 0.0" in text
    assert "process_" not in text
    assert "python_" not in text


def test_every_process_shows_the_same(api: Api) -> None:
    person = api.person()
    api.work(person.tenant_id, person.run(person.workflow()))
    api.client().post("/api/webhooks/wf_none", json={})
    roll_up(api)
    first = scrape(api.client())
    with running_api(services_for(api.services.settings)) as another:
        assert scrape(another.client()) == first


def test_a_process_that_is_stopped_leaves_what_it_counted(database_url: str, redis_url: str) -> None:
    TALLIES.take()
    settings = settings_for(database_url, redis_url)
    with running_api(services_for(settings)) as api:
        api.client().post("/api/webhooks/wf_none", json={})
    assert not TALLIES.take()
    with running_api(services_for(settings)) as api:
        assert of(scrape(api.client()), "webhooks_total", outcome="not_found") == 1


def test_the_ratio_follows_a_limit_that_is_set_when_much_is_used(api: Api) -> None:
    person = api.person()
    with api.services.database.system() as session:
        session.execute(
            sa.text("UPDATE plans SET limits = limits - '{max_queued_runs,max_executions_per_month}'::text[]")
        )
    workflow = person.workflow()
    for _ in range(3):
        api.work(person.tenant_id, person.run(workflow))
    roll_up(api)
    quota = {"tenant": person.tenant_id, "quota": "max_executions_per_month"}
    assert of(scrape(api.client()), "quota_used_ratio", **quota) is None
    limit(api, person, max_executions_per_month=4)
    Notices(api.services.database, mails=False).run_once()
    assert of(scrape(api.client()), "quota_used_ratio", **quota) == 0.75


def test_a_limit_of_zero_is_all_used_once_a_run_is_held_over_it(api: Api) -> None:
    person = api.person()
    workflow = person.workflow()
    limit(api, person, max_executions_per_month=0)
    roll_up(api)
    assert of(scrape(api.client()), "quota_used_ratio", tenant="other", quota="max_executions_per_month") is None
    person.run(workflow)
    assert of(scrape(api.client()), "quota_used_ratio", tenant="other", quota="max_executions_per_month") == 1


def test_the_ratio_of_others_is_that_of_the_fullest(api: Api) -> None:
    people = [api.person() for _ in range(3)]
    for count, person in enumerate(people, start=1):
        limit(api, person, max_workflows=4)
        for _ in range(count):
            person.workflow()
    api.work(people[0].tenant_id, people[0].run(people[0].workflow()))
    roll_up(api, labels=1)
    shown = scrape(api.client())
    assert of(shown, "quota_used_ratio", tenant=people[0].tenant_id, quota="max_workflows") == 0.5
    assert of(shown, "quota_used_ratio", tenant="other", quota="max_workflows") == 0.75
    assert of(shown, "quota_used_ratio", tenant=people[2].tenant_id, quota="max_workflows") is None


def test_without_redis_the_rest_is_shown(database_url: str) -> None:
    with running_api(services_for(settings_for(database_url, "redis://127.0.0.1:1/0"))) as api:
        shown = scrape(api.client())
        assert of(shown, "schedule_lag_seconds") == 0
        assert of(shown, "queue_depth", tenant="other") is None
        assert of(shown, "run_seconds_count") == 0


def test_without_postgres_the_lanes_are_shown(redis_url: str) -> None:
    with running_api(services_for(settings_for("postgresql://nobody@127.0.0.1:1/nothing", redis_url))) as api:
        shown = scrape(api.client())
        assert of(shown, "queue_depth", tenant="other") == 0
        assert of(shown, "run_seconds_count") is None


def test_a_scrape_shows_who_waits_within_the_limit_and_how_late_schedules_are(
    database_url: str, redis_url: str
) -> None:
    settings = settings_for(database_url, redis_url, metrics_tenant_limit=1)
    with running_api(services_for(settings, Queue(redis_url))) as api:
        most, least = api.person(), api.person()
        for person, count in ((most, 3), (least, 2)):
            workflow = person.workflow()
            for _ in range(count):
                person.run(workflow)
        shown = scrape(api.client())
        assert of(shown, "queue_depth", tenant=most.tenant_id) == 3
        assert of(shown, "queue_depth", tenant="other") == 2
        assert of(shown, "queue_depth", tenant=least.tenant_id) is None
        assert of(shown, "runs_in_flight", tenant="other") == 0
        assert of(shown, "schedule_lag_seconds") == 0
        with api.services.database.system() as session:
            session.execute(sa.text("UPDATE triggers SET next_fire_at = now() - interval '90 seconds'"))
        assert 90 <= (of(scrape(api.client()), "schedule_lag_seconds") or 0) < 600


def test_an_installation_may_want_a_token_of_its_own_for_its_metrics(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url, metrics_token="of-the-scraper")
    with running_api(services_for(settings)) as api:
        http = api.client()
        assert http.get("/metrics").status_code == 401
        assert http.get("/metrics", headers={"Authorization": "Bearer of-somebody"}).status_code == 401
        answer = http.get("/metrics", headers={"Authorization": "Bearer of-the-scraper"})
        assert answer.status_code == 200
        assert "fairlane_schedule_lag_seconds" in answer.text
