"""Credentials over the real API: shared, replaced, protected while in use, and shown to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from tests.api_server import Api, Person, places, running_api, services_for, settings_for

SECRET = "T0ken-that-nobody-may-see"


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


@pytest.fixture
def person(api: Api) -> Person:
    return api.person()


def made(person: Person, name: str = "shop", **data: Any) -> dict[str, Any]:
    body = {"service": "http", "name": name, "data": data or {"bearer": SECRET}}
    answer = person.http.post("/api/credentials", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_credential_is_kept_and_its_secret_is_never_shown(api: Api, person: Person) -> None:
    credential = made(person)
    assert credential["id"].startswith("cred_")
    assert (credential["service"], credential["name"], credential["created_by"]) == ("http", "shop", person.user_id)
    assert credential["fingerprint"]
    listed = person.http.get("/api/credentials")
    assert listed.json()["items"] == [credential]
    with api.services.database.system() as session:
        rows = session.rows(sa.text("SELECT to_jsonb(c) AS c, encode(ciphertext, 'escape') AS raw FROM credentials c"))
    assert SECRET not in str(credential) + listed.text + str(rows)


def test_replacing_the_secret_changes_the_fingerprint_and_nothing_else(person: Person) -> None:
    before = made(person)
    after = person.http.put(f"/api/credentials/{before['id']}", json={"data": {"bearer": "another secret"}}).json()
    assert after["fingerprint"] != before["fingerprint"]
    assert {**after, "fingerprint": "", "updated_at": ""} == {**before, "fingerprint": "", "updated_at": ""}
    other = {"name": "other", "data": {"bearer": "x"}}
    assert list(places(person.http.put(f"/api/credentials/{before['id']}", json=other))) == ["/name"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"service": "http", "data": {}}, "/data"),
        ({"service": "http", "data": {"barer": SECRET}}, "/data/barer"),
        ({"service": "http", "data": {"basic": {"username": "u"}}}, "/data/basic/password"),
        ({"service": "slack", "data": {"token": SECRET}}, "/data/token"),
        ({"service": "http", "data": {"bearer": "x" * 70_000}}, "/data"),
        ({"service": "http", "data": {"headers": {f"X-{n}": SECRET for n in range(101)}}}, "/data"),
        ({"service": "slack", "data": {"webhook_url": SECRET}}, "/data/webhook_url"),
        ({"service": "discord", "data": {"webhook_url": f"ftp://discord.com/{SECRET}"}}, "/data/webhook_url"),
        ({"service": "htp", "data": {"bearer": SECRET}}, "/service"),
        ({"data": {"bearer": SECRET}}, "/service"),
        ({"service": "http", "data": {"bearer": SECRET}, "tenant_id": "tenant_x"}, "/tenant_id"),
    ],
)
def test_data_that_does_not_fit_is_told_at_its_place_and_never_quoted(
    person: Person, body: dict[str, Any], pointer: str
) -> None:
    answer = person.http.post("/api/credentials", json=body)
    assert pointer in places(answer)
    assert SECRET not in answer.text
    assert person.http.get("/api/credentials").json()["items"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"service": "htp", "data": {"bearer": SECRET}}, "did you mean 'http'?"),
        ({"service": "salesforce", "data": {"bearer": SECRET}}, "known are discord, http, openweather, slack"),
        ({"service": "http", "data": {"barer": SECRET}}, "unknown key 'barer'; did you mean 'bearer'?"),
        ({"service": "http", "data": {"x": SECRET}}, "unknown key 'x'; known are basic, bearer, headers, hosts"),
    ],
)
def test_what_is_not_known_is_answered_with_what_is(person: Person, body: dict[str, Any], says: str) -> None:
    assert says in person.http.post("/api/credentials", json=body).json()["detail"]


def test_a_name_is_taken_once_in_an_organization(api: Api, person: Person) -> None:
    made(person)
    again = person.http.post("/api/credentials", json={"service": "http", "name": "shop", "data": {"bearer": "x"}})
    assert (again.status_code, again.json()["code"]) == (409, "credential_exists")
    made(api.person())


def test_a_credential_in_use_stays_unless_forced(person: Person) -> None:
    credential = made(person)
    step = {"id": "call", "action": "http.request", "credential": "shop", "with": {"url": "https://example.com"}}
    workflow_id = person.workflow(step, name="Order")
    at = f"/api/credentials/{credential['id']}"
    refused = person.http.delete(at)
    assert (refused.status_code, refused.json()["code"]) == (409, "credential_in_use")
    assert refused.json()["workflows"] == [{"id": workflow_id, "name": "Order"}]
    assert "'Order'" in refused.json()["detail"]
    assert person.http.delete(at, params={"force": "true"}).status_code == 204
    assert person.http.delete(at).status_code == 404


def test_a_credential_that_nothing_uses_is_deleted(person: Person) -> None:
    credential = made(person)
    assert person.http.delete(f"/api/credentials/{credential['id']}").status_code == 204
    assert person.http.get("/api/credentials").json()["items"] == []
