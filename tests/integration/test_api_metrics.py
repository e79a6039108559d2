"""What a scrape of a real API shows of the lanes and the schedules."""

from __future__ import annotations

import httpx
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from tests.api_server import Queue, running_api, services_for, settings_for


def _scrape(http: httpx.Client) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(s.name, s.labels.get("tenant", "")): s.value for family in families for s in family.samples}


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
        shown = _scrape(api.client())
        assert shown[("fairlane_queue_depth", most.tenant_id)] == 3
        assert shown[("fairlane_queue_depth", "other")] == 2
        assert ("fairlane_queue_depth", least.tenant_id) not in shown
        assert shown[("fairlane_runs_in_flight", "other")] == 0
        assert shown[("fairlane_schedule_lag_seconds", "")] == 0
        with api.services.database.system() as session:
            session.execute(sa.text("UPDATE triggers SET next_fire_at = now() - interval '90 seconds'"))
        assert 90 <= _scrape(api.client())[("fairlane_schedule_lag_seconds", "")] < 600


def test_an_installation_may_want_a_token_of_its_own_for_its_metrics(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url, metrics_token="of-the-scraper")
    with running_api(services_for(settings)) as api:
        http = api.client()
        assert http.get("/metrics").status_code == 401
        assert http.get("/metrics", headers={"Authorization": "Bearer of-somebody"}).status_code == 401
        answer = http.get("/metrics", headers={"Authorization": "Bearer of-the-scraper"})
        assert answer.status_code == 200
        assert "fairlane_schedule_lag_seconds" in answer.text
