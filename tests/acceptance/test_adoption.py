"""The day after the switch: an adopted installation runs what the multi-user system ran, for who was there."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from embedded.postgres import PostgresServer
from migrations.legacy.conversion import next_fire
from tests.command_line import CommandLine
from tests.conftest import fresh_database
from tests.installation import Installation, installed, wait_for
from tests.legacy_database import KEY, MIXED, PASSWORD, Legacy, dump, encrypt, hashed

ENCRYPTION_KEY = base64.b64encode(KEY).decode()
LAST = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=20)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def _early() -> str:
    """The id of a workflow whose place in the spread of overdue schedules is in the first seconds."""
    ids = (str(uuid.UUID(int=number)) for number in range(1, 1000))
    return next(each for each in ids if next_fire(each, MINUTE, None, LAST) - LAST < timedelta(seconds=3))


class Adopted:
    """An installation over a database that the command adopted, with one of its users logged in."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.ids: dict[str, str] = {}
        self._fill().write(installation.database_url, MIXED)
        self.before = dump(installation.database_url)
        self.command = CommandLine(installation.folder, {
            name: value for name, value in installation.environment.items() if name.startswith("FAIRLANE_")
        })  # fmt: skip
        self.checked = self.command.fine("migrate", "--adopt", "--encryption-key", ENCRYPTION_KEY, "--check")
        self.done = self.command.fine("migrate", "--adopt", "--encryption-key", ENCRYPTION_KEY, "--json").json
        installation.start_worker()
        installation.start_beat()
        installation.start_api()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{installation.port}", timeout=30)
        installation.clients.append(self.client)
        self.login = self.client.post("/api/auth/login", json={"email": "ADA@example.com", "password": PASSWORD})
        self.client.headers["Authorization"] = f"Bearer {self.login.json().get('token')}"

    def _fill(self) -> Legacy:
        legacy, url = Legacy(), self.installation.receiver.url
        ada = legacy.user("Ada@example.com", password_hash=hashed())
        legacy.credential(ada, "slack", f"{url}/slack")
        legacy.credential(ada, "slack", f"{url}/other", created_at="2026-02-01 00:00:00")
        legacy.credential(ada, "discord", f"{url}/discord")
        self.ids["broken"] = legacy.credential(ada, "openweather", "", encrypted_key=encrypt("x", b"3" * 32))
        order = {"slack_message": "Order {{order.id}} by {{user.name}} for {{shop}}, {{not.there}}"}
        parameters = json.dumps([{"name": "shop", "type": "string", "default_value": "the shop"}])
        chain = [{"action_type": "discord_post", "config": {"discord_message": "ok={{ok}} {{order.id}}"},
                  "use_data_from": "previous"}]  # fmt: skip
        self.ids["order"] = legacy.workflow(
            ada, "webhook", "slack_message", order, name="Orders", parameters=parameters, action_chain=json.dumps(chain)
        )
        tick = {"discord_message": "tick", "interval": 1}
        overdue = "2026-01-12 10:11:12.123456789-05:00"
        self.ids["tick"] = legacy.workflow(ada, "schedule", "discord_post", tick, last_executed_at=overdue, id=_early())
        self.ids["hourly"] = legacy.workflow(
            ada, "schedule", "discord_post", tick | {"interval": 60}, last_executed_at=LAST.isoformat()
        )
        self.ids["weather"] = legacy.workflow(ada, "webhook", "weather_check", {})
        self.ids["sms"] = legacy.workflow(ada, "webhook", "twilio_sms", {"to": "1"}, name="Text me")
        for day in range(1, 31):
            status = "failed" if day % 4 == 0 else "success"
            legacy.log(self.ids["order"], status, executed_at=f"2026-01-{day:02} 08:00:00", message=f"day {day}")
        legacy.log(self.ids["sms"], executed_at="2026-01-12 10:11:12.123456789-05:00")
        return legacy

    def runs(self, name: str, **query: Any) -> list[dict[str, Any]]:
        answer = self.client.get("/api/runs", params={"workflow_id": self.ids[name], "limit": 200, **query})
        items: list[dict[str, Any]] = answer.json()["items"]
        return items


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Adopted]:
    with fresh_database(postgres_server) as url, installed(tmp_path_factory.mktemp("adopted"), url) as installation:
        yield Adopted(installation)


def test_the_check_says_what_will_happen_and_the_adoption_what_has(adopted: Adopted) -> None:
    assert "in its later form" in adopted.checked.out
    assert f"credentials {adopted.ids['broken']}: it does not decrypt" in adopted.checked.out
    assert f"workflows {adopted.ids['sms']}: action_type: there is no action 'twilio_sms'" in adopted.checked.out
    assert adopted.done["counts"]["logs"] == {"read": 31, "carried": 31, "set_aside": 0}
    found = {(finding["table"], finding["id"]): finding for finding in adopted.done["findings"]}
    assert found["credentials", adopted.ids["broken"]]["needed_by"] == [adopted.ids["weather"]]
    assert found["workflows", adopted.ids["sms"]]["kind"] == "inactive"


def test_who_was_there_logs_in_with_the_old_password(adopted: Adopted) -> None:
    assert adopted.login.status_code == 200
    [tenant] = adopted.login.json()["tenants"]
    assert tenant["name"] == "Ada@example.com's Organization"
    assert tenant["id"].startswith("tenant_")


def test_an_old_webhook_fills_its_template_and_its_chain_reads_the_previous_result(adopted: Adopted) -> None:
    body = {"order": {"id": 7}, "user": {"name": "Grace"}}
    answer = httpx.post(f"{adopted.client.base_url}/api/webhooks/{adopted.ids['order']}", json=body)
    assert answer.status_code == 202

    def sent() -> list[Any] | None:
        texts = [body for _, body in adopted.installation.receiver.requests if body.get("content") != "tick"]
        return texts if len(texts) == 2 else None

    slack, discord = wait_for(sent, "both messages", seconds=60)
    assert slack["text"] == "Order 7 by Grace for the shop, {{not.there}}"
    assert discord["content"] == "ok=true {{order.id}}"


def test_a_schedule_fires_in_its_old_rhythm(adopted: Adopted) -> None:
    def fired() -> list[dict[str, Any]]:
        return [run for run in adopted.runs("tick") if run["status"] == "succeeded"]

    first = wait_for(fired, "the overdue schedule to fire", seconds=90)[-1]
    shown = adopted.client.get(f"/api/workflows/{adopted.ids['tick']}").json()
    between = datetime.fromisoformat(shown["next_fire_at"]) - datetime.fromisoformat(first["input"]["scheduled_at"])
    assert between % MINUTE == timedelta()
    hourly = adopted.client.get(f"/api/workflows/{adopted.ids['hourly']}").json()
    assert datetime.fromisoformat(hourly["next_fire_at"]) == LAST + HOUR


def test_old_logs_are_listed_like_new_ones(adopted: Adopted) -> None:
    runs = [run for run in adopted.runs("order") if run["trigger"] == "legacy"]
    assert [run["started_at"][:10] for run in runs] == [f"2026-01-{day:02}" for day in range(30, 0, -1)]
    assert len(adopted.runs("order", status="failed")) == 7
    [line] = adopted.client.get(f"/api/runs/{runs[0]['id']}/logs").json()["items"]
    assert (line["message"], line["level"], line["at"][:19]) == ("day 30", "info", "2026-01-30T08:00:00")
    [other] = adopted.runs("sms")
    assert other["finished_at"].startswith("2026-01-12T15:11:12.123456")


def test_an_unknown_action_is_shown_with_its_reason_and_cannot_be_switched_on(adopted: Adopted) -> None:
    place = f"/api/workflows/{adopted.ids['sms']}"
    shown = adopted.client.get(place).json()
    assert shown["is_active"] is False
    assert "there is no action 'twilio_sms'" in shown["inactive_reason"]
    assert (shown["action_type"], shown["config_json"]) == ("twilio_sms", '{"to": "1"}')
    assert httpx.post(f"{adopted.client.base_url}/api/webhooks/{adopted.ids['sms']}", json={}).status_code == 409
    assert adopted.client.patch(place, json={"is_active": True}).status_code == 409
    assert adopted.client.post(f"{place}/runs", json={}).status_code == 409
    assert adopted.client.post(f"{place}/dry-run", json={"input": {}}).status_code < 500
    [run] = adopted.runs("sms")
    replay = adopted.client.post(f"/api/runs/{run['id']}/replay", json={"from": "start"})
    assert 400 <= replay.status_code < 500, replay.text


def test_the_way_back_asks_before_it_loses_runs_and_restores_every_row(adopted: Adopted) -> None:
    wait_for(lambda: adopted.runs("tick"), "a run since", seconds=90)
    for name in ("beat", "worker", "api"):
        adopted.installation.kill(name)
    refused = adopted.command("migrate", "--back-to", "0001")
    assert refused.code == 1
    assert "give --discard-new" in refused.err
    adopted.command.fine("migrate", "--back-to", "0001", "--discard-new")
    assert dump(adopted.installation.database_url) == adopted.before
