"""Whatever changes something over the API stands in the audit; a route that is added says what it writes there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine import audit
from tests.api_server import PASSWORD, Api, Person, running_api, services_for, settings_for
from tests.integration.test_api_closed import CLOSED

WRITES: dict[tuple[str, str], str] = {
    ("POST", "/api/auth/switch"): "user.switched_here",
    ("POST", "/api/auth/logout-everywhere"): "user.logged_out_everywhere",
    ("POST", "/api/tenants"): "tenant.created",
    ("PATCH", "/api/tenants/{tenant_id}"): "tenant.renamed",
    ("PUT", "/api/tenants/{tenant_id}/members/{user_id}/role"): "member.role_changed",
    ("DELETE", "/api/tenants/{tenant_id}/members/{user_id}"): "member.removed",
    ("POST", "/api/tenants/{tenant_id}/invite"): "invite.created",
    ("POST", "/api/tenants/{tenant_id}/invites/{invite_id}/resend"): "invite.resent",
    ("DELETE", "/api/tenants/{tenant_id}/invites/{invite_id}"): "invite.revoked",
    ("POST", "/api/invites/accept"): "member.joined",
    ("POST", "/api/keys"): "key.created",
    ("DELETE", "/api/keys/{key_id}"): "key.revoked",
    ("PUT", "/api/quotas/notices/url"): "quota.notice_url_set",
    ("DELETE", "/api/quotas/notices/url"): "quota.notice_url_removed",
    ("POST", "/api/credentials"): "credential.created",
    ("PUT", "/api/credentials/{credential_id}"): "credential.replaced",
    ("DELETE", "/api/credentials/{credential_id}"): "credential.deleted",
    ("POST", "/api/workflows"): "workflow.created",
    ("PUT", "/api/workflows/{workflow_id}"): "workflow.saved",
    ("PATCH", "/api/workflows/{workflow_id}"): "workflow.changed",
    ("DELETE", "/api/workflows/{workflow_id}"): "workflow.deleted",
    ("POST", "/api/workflows/{workflow_id}/release"): "workflow.runs_released",
    ("POST", "/api/runs/{run_id}/cancel"): "run.cancelled",
}
SILENT = {
    ("POST", "/api/workflows/{workflow_id}/dry-run"): "stores nothing",
    ("POST", "/api/workflows/{workflow_id}/runs"): "the run itself is the record",
    ("POST", "/api/runs/{run_id}/replay"): "the new run is the record, and names the old one",
}


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


def test_every_route_that_changes_something_says_what_it_writes() -> None:
    changing = {route for route in CLOSED if route[0] != "GET"}
    assert changing == WRITES.keys() | SILENT.keys()


def test_each_of_them_writes_it(api: Api) -> None:
    owner, guest = api.person(), api.person()
    everything_once(owner, guest)
    login = api.client().post("/api/auth/login", json={"email": owner.email, "password": PASSWORD}).json()
    client = api.client(login["token"])
    rows = client.get("/api/audit", params={"limit": 200}).json()["items"]
    written = {row["action"] for row in rows}
    assert written == set(WRITES.values()) | {"user.logged_in"}
    assert {row["ip"] for row in rows[:-1]} == {"127.0.0.1"}  # the first was not written over the API
    assert {row["actor"] for row in rows} == {owner.user_id, guest.user_id}
    assert all(row["object"] for row in rows)
    assert [row["id"] for row in rows] == list(range(len(rows), 0, -1))
    with api.services.database.tenant(owner.tenant_id) as session:
        assert audit.verify(audit.entries(session)).fault is None


def everything_once(owner: Person, guest: Person) -> None:
    http, inside = owner.http, f"/api/tenants/{owner.tenant_id}"
    secret = made(http.post("/api/credentials", json={"service": "http", "name": "s", "data": {"bearer": "abcdef"}}))
    made(http.put(f"/api/credentials/{secret['id']}", json={"data": {"bearer": "ghijkl"}}))
    made(http.delete(f"/api/credentials/{secret['id']}"))
    workflow_id = owner.workflow()
    steps = [{"id": "e", "action": "debug.echo"}]
    document = {"trigger": {"type": "webhook"}, "steps": steps}
    made(http.put(f"/api/workflows/{workflow_id}", json={"name": "V", "definition": document}))
    made(http.post(f"/api/runs/{owner.run(workflow_id)}/cancel"))
    made(http.post(f"/api/workflows/{workflow_id}/release"))
    made(http.patch(f"/api/workflows/{workflow_id}", json={"is_active": False}))
    made(http.delete(f"/api/workflows/{workflow_id}"))
    made(http.put("/api/quotas/notices/url", json={"url": "https://example.com/hook"}))
    made(http.delete("/api/quotas/notices/url"))
    key = made(http.post("/api/keys", json={"name": "k", "scopes": ["runs:read"]}))["key"]
    made(http.delete(f"/api/keys/{key['id']}"))
    first = made(http.post(f"{inside}/invite", json={"email": "x@example.com", "role": "member"}))["invite"]["id"]
    made(http.delete(f"{inside}/invites/{first}"))
    invitation = made(http.post(f"{inside}/invite", json={"email": guest.email, "role": "member"}))["invite"]["id"]
    token = made(http.post(f"{inside}/invites/{invitation}/resend"))["token"]
    made(guest.http.post("/api/invites/accept", json={"token": token}))
    made(http.put(f"{inside}/members/{guest.user_id}/role", json={"role": "viewer"}))
    made(http.delete(f"{inside}/members/{guest.user_id}"))
    made(http.post("/api/tenants", json={"name": "Another"}))
    made(http.patch(inside, json={"name": "Renamed"}))
    made(http.post("/api/auth/switch", json={"tenant_id": owner.tenant_id}))
    made(http.post("/api/auth/logout-everywhere"))


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.is_success, answer.text
    return dict(answer.json()) if answer.content else {}


def test_what_was_refused_is_not_in_it(api: Api) -> None:
    owner = api.person()
    owner.http.post("/api/keys", json={"name": "k", "scopes": ["nothing"]})
    owner.http.delete("/api/keys/key_unknown")
    owner.http.delete(f"/api/tenants/{owner.tenant_id}/members/{owner.user_id}")
    assert [row["action"] for row in owner.http.get("/api/audit").json()["items"]] == ["tenant.created"]


def test_no_secret_stands_in_it(api: Api) -> None:
    owner = api.person()
    data = {"service": "http", "name": "s", "data": {"bearer": "canary-secret-value"}}
    owner.http.post("/api/credentials", json=data)
    key = owner.http.post("/api/keys", json={"name": "k", "scopes": ["admin"]}).json()["secret"]
    text = owner.http.get("/api/audit").text
    assert "canary" not in text
    assert key not in text


def test_it_is_read_in_pages_and_narrowed(api: Api) -> None:
    owner = api.person()
    keys = [
        owner.http.post("/api/keys", json={"name": str(n), "scopes": ["admin"]}).json()["key"]["id"] for n in range(5)
    ]
    first = owner.http.get("/api/audit", params={"action": "key.created", "limit": 3}).json()
    rest = owner.http.get("/api/audit", params={"action": "key.created", "cursor": first["next_cursor"]}).json()
    assert [row["object"] for row in first["items"] + rest["items"]] == keys[::-1]
    one = owner.http.get("/api/audit", params={"object": keys[2], "actor": owner.user_id}).json()["items"]
    assert [row["data"]["name"] for row in one] == ["2"]
    assert owner.http.get("/api/audit", params={"since": "2999-01-01T00:00:00"}).json()["items"] == []
