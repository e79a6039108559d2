"""Limits on what an organization may have, over HTTP: exact under concurrency, each with its code, and to be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from engine.notices import Notices
from tests.api_server import ECHO, Api, Person, places, running_api, services_for, settings_for

NOTICE_URL = "/api/quotas/notices/url"
MANUAL = {"name": "W", "definition": {"trigger": {"type": "manual"}, "steps": [ECHO]}}
Creator = Callable[[Person, int], httpx.Response]


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


def limited(api: Api, person: Person, **limits: int | str) -> Person:
    with api.services.database.system() as session:
        change = sa.text("UPDATE tenants SET limits = limits || :limits WHERE id = :id")
        session.execute(
            change.bindparams(sa.bindparam("limits", type_=JSONB)), {"limits": limits, "id": person.tenant_id}
        )
    return person


def quota(client: httpx.Client, name: str) -> tuple[int | None, int]:
    (item,) = [item for item in client.get("/api/quotas").json()["items"] if item["name"] == name]
    return item["limit"], item["used"]


def make_workflow(person: Person, n: int) -> httpx.Response:
    return person.http.post("/api/workflows", json=MANUAL)


def make_credential(person: Person, n: int) -> httpx.Response:
    body = {"service": "http", "name": f"c{n}", "data": {"bearer": "abcdef"}}
    return person.http.post("/api/credentials", json=body)


def invite(person: Person, n: int) -> httpx.Response:
    body = {"email": f"{person.tenant_id}-{n}@example.com", "role": "viewer"}
    return person.http.post(f"/api/tenants/{person.tenant_id}/invite", json=body)


@pytest.mark.parametrize(
    ("limit", "code", "make", "already"),
    [
        ("max_workflows", "quota_workflows", make_workflow, 0),
        ("max_credentials", "quota_credentials", make_credential, 0),
        ("max_members", "quota_members", invite, 1),
    ],
)
def test_many_at_once_make_exactly_as_many_as_the_limit_says(
    api: Api, limit: str, code: str, make: Creator, already: int
) -> None:
    person = limited(api, api.person(), **{limit: 5})
    with ThreadPoolExecutor(20) as crew:
        answers = list(crew.map(lambda n: make(person, n), range(20)))
    assert Counter(answer.status_code for answer in answers) == {201: 5 - already, 402: 15 + already}
    refused = next(answer.json() for answer in answers if answer.status_code == 402)
    assert refused["code"] == code
    assert "5 of at most 5" in refused["detail"]
    assert f"set-limit {person.tenant_id} {limit}" in refused["detail"]
    assert quota(person.http, limit) == (5, 5)
    limited(api, person, **{limit: 1})
    assert quota(person.http, limit) == (1, 5)
    assert make(person, 30).json()["code"] == code


def test_a_deleted_workflow_makes_room(api: Api) -> None:
    person = limited(api, api.person(), max_workflows=1)
    first = make_workflow(person, 0).json()["id"]
    assert make_workflow(person, 1).status_code == 402
    assert person.http.put(f"/api/workflows/{first}", json={**MANUAL, "name": "Changed"}).status_code == 200
    person.http.delete(f"/api/workflows/{first}").raise_for_status()
    assert make_workflow(person, 2).status_code == 201


def test_many_who_accept_at_once_are_at_most_the_members_of_a_lowered_limit(api: Api) -> None:
    person = limited(api, api.person(), max_members=10)
    guests = [api.person() for _ in range(6)]
    tokens = [
        person.http.post(
            f"/api/tenants/{person.tenant_id}/invite", json={"email": guest.email, "role": "viewer"}
        ).json()["token"]
        for guest in guests
    ]
    limited(api, person, max_members=4)
    with ThreadPoolExecutor(6) as crew:
        accepted = list(
            crew.map(
                lambda pair: pair[0].http.post("/api/invites/accept", json={"token": pair[1]}).status_code,
                zip(guests, tokens, strict=True),
            )
        )
    assert Counter(accepted) == {200: 3, 402: 3}


def test_a_poll_that_is_too_frequent_is_refused_where_it_says_so(api: Api) -> None:
    person = limited(api, api.person(), min_poll_interval=600)

    def document(every: str, name: str = "P") -> dict[str, Any]:
        trigger = {"type": "poll", "source": "http.json", "every": every, "with": {"url": "https://example.com"}}
        return {"name": name, "definition": {"trigger": trigger, "steps": [ECHO]}}

    refused = person.http.post("/api/workflows", json=document("5m"))
    assert refused.json()["code"] == "quota_poll_interval"
    assert "at least 10m" in places(refused)["/definition/trigger/every"]
    saved = person.http.post("/api/workflows", json=document("10m"))
    assert saved.status_code == 201
    limited(api, person, min_poll_interval=3600)
    address = f"/api/workflows/{saved.json()['id']}"
    assert person.http.put(address, json=document("10m", name="Renamed")).status_code == 200
    assert person.http.put(address, json=document("20m")).status_code == 422


def test_every_role_reads_the_quotas_and_the_month_has_its_end(api: Api) -> None:
    person = limited(api, api.person(), max_executions_per_month=7)
    workflow_id = person.workflow()
    person.run(workflow_id)
    viewer = api.member(person.tenant_id, "viewer")
    items = {item["name"]: item for item in viewer.get("/api/quotas").json()["items"]}
    month = items["max_executions_per_month"]
    assert (month["limit"], month["used"]) == (7, 1)
    assert datetime.fromisoformat(month["resets_at"]).day == 1
    assert (items["max_queued_runs"]["used"], items["max_concurrent_runs"]["used"]) == (1, 0)
    assert (items["max_members"]["used"], items["max_workflows"]["used"]) == (2, 1)


def test_what_becomes_of_runs_over_the_month_is_told(api: Api) -> None:
    person = api.person()
    assert person.http.get("/api/quotas").json()["over_quota"] == "hold"
    limited(api, person, over_quota="reject")
    assert person.http.get("/api/quotas").json()["over_quota"] == "reject"


def test_an_admin_says_where_notices_go_and_sees_what_became_of_them(api: Api) -> None:
    owner = limited(api, api.person(), max_executions_per_month=2)
    admin, member = (api.member(owner.tenant_id, role) for role in ("admin", "member"))
    assert admin.get(NOTICE_URL).json() == {"url": None, "updated_at": None}
    assert admin.delete(NOTICE_URL).json()["code"] == "not_found"
    hook = "https://ops.example.com/secret-path"
    answers = [admin.put(NOTICE_URL, json={"url": hook}).json() for _ in range(2)]
    assert {answer["url"] for answer in answers} == {hook}
    assert len({answer["secret"] for answer in answers}) == 2
    assert admin.get(NOTICE_URL).json().keys() == {"url", "updated_at"}
    assert member.put(NOTICE_URL, json={"url": hook}).status_code == member.get(NOTICE_URL).status_code == 403

    workflow_id = owner.workflow()
    for _ in range(2):
        owner.run(workflow_id)
    assert Notices(api.services.database, mails=False).run_once().notices == 2
    first = member.get("/api/quotas/notices", params={"limit": 1}).json()
    second = member.get("/api/quotas/notices", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert second["next_cursor"] is None
    (reached,), (near,) = first["items"], second["items"]
    assert [(notice["percent"], notice["used"], notice["limit"]) for notice in (near, reached)] == [
        (80, 2, 2),
        (100, 2, 2),
    ]
    (delivery,) = near["deliveries"]
    assert (delivery["channel"], delivery["state"], delivery["attempts"]) == ("webhook", "pending", 0)
    audited = owner.http.get("/api/audit").text
    assert "https://ops.example.com" in audited
    assert "secret-path" not in audited
    assert admin.delete(NOTICE_URL).status_code == 204


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("ftp://example.com/x", "only http:// and https:// are supported"),
        ("https://user:password@example.com/", "it holds a user name or password"),
        ("http://169.254.169.254/latest", "link-local address"),
        ("http://[::1]:8025/", "loopback address"),
        ("https://example.com:22/", "port 22 is not"),
        ("no url", ""),
    ],
)
def test_a_url_for_notices_that_could_never_be_called_is_refused(api: Api, url: str, fault: str) -> None:
    answer = api.person().http.put(NOTICE_URL, json={"url": url})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/url"
    assert fault in error["detail"]
