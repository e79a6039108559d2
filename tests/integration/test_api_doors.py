"""The doors of the API: what surrounds a request, whoever sends it."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from api import edge
from api.problems import MOST_FAULTS
from api.routes.auth import MOST_REGISTRATIONS, MOST_SWITCHES
from api.routes.members import MOST_ATTEMPTS, MOST_INVITES
from api.routes.tenants import MOST_TENANTS
from api.throttle import Throttle
from engine.errors import QuotaExceeded
from tests.api_server import Api, running_api, services_for, settings_for

ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


def preflight(api: Api, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-tenant-id",
    }
    return api.client().options("/api/workflows", headers=headers)


def test_pages_of_other_origins_are_kept_out_unless_the_operator_names_them(
    api: Api, database_url: str, redis_url: str
) -> None:
    closed = preflight(api, ORIGIN)
    assert "access-control-allow-origin" not in closed.headers
    assert "access-control-allow-origin" not in api.client().get("/healthz", headers={"Origin": ORIGIN}).headers
    with running_api(services_for(settings_for(database_url, redis_url, cors_origins=ORIGIN))) as opened:
        assert preflight(opened, ORIGIN).headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-origin" not in preflight(opened, "https://evil.example.com").headers
        answer = opened.client().get("/api/me", headers={"Origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("path", ["/healthz", "/api/me", "/api/docs", "/nowhere"])
def test_every_answer_has_the_headers_that_browsers_obey(api: Api, path: str) -> None:
    headers = api.client().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "strict-transport-security" not in headers


def test_behind_tls_browsers_are_told_to_stay_there(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url, public_url="https://flow.example.com")
    with running_api(services_for(settings)) as api:
        assert "max-age" in api.client().get("/healthz").headers["strict-transport-security"]


def test_a_body_that_does_not_come_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BODY_SECONDS", 0.2)
    port = int(api.url.rpartition(":")[2])
    head = "POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow, slow.makefile("rb") as answer:
        slow.sendall(head.encode())
        status, *rest = answer.read().decode().split("\r\n")  # to the end: the connection is closed
    assert status.startswith("HTTP/1.1 408")
    assert json.loads(rest[-1])["code"] == "request_timeout"


def test_who_is_not_known_yet_cannot_send_much(api: Api) -> None:
    body = {"email": "ada@example.com", "password": "x" * edge.OPEN_BODY_LIMIT}
    answer = api.client().post("/api/auth/login", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_of_very_many_faults_the_first_are_told_and_the_rest_are_counted(api: Api) -> None:
    owner = api.person()
    many = {f"k{number}": 0 for number in range(MOST_FAULTS + 20)}
    step = {"id": "one", "action": "http.request", "with": {"url": "https://x.example", **many}}
    document = {"name": "W", "trigger": {"type": "manual"}, "steps": [step]}
    for path, body in (("/api/tenants", {"name": "T", **many}), ("/api/workflows", {"definition": document})):
        problem = owner.http.post(path, json=body).json()
        assert (problem["code"], len(problem["errors"])) == ("invalid_input", MOST_FAULTS)
        assert problem["detail"].endswith("; and 20 more")


def test_a_request_id_is_in_the_answer_in_the_problem_and_in_the_log(api: Api) -> None:
    answer = api.client().get("/api/me", headers={"X-Request-ID": "trace-12345678"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "trace-12345678"
    forged = api.client().get("/api/me", headers={"X-Request-ID": "a b\tc" + "x" * 99})
    assert forged.headers["x-request-id"].startswith("req_")


def test_log_lines_of_a_request_name_it_its_organization_and_what_it_is_about(api: Api) -> None:
    owner = api.person()
    http = api.key(owner.tenant_id, "runs:read")
    with capture_logs(processors=[merge_contextvars]) as lines:
        http.post("/api/runs/run_1/cancel", headers={"X-Request-ID": "cancel-12345678"})
    (denied,) = [line for line in lines if line["event"] == "request_denied"]
    assert denied.items() >= {"request_id": "cancel-12345678", "tenant": owner.tenant_id, "run": "run_1"}.items()


def test_what_was_denied_is_logged_with_who_asked_and_without_what_they_sent(api: Api) -> None:
    with capture_logs() as lines:
        api.client("fl_canary-of-the-test").get("/api/me")
        api.client().post("/api/auth/login", json={"email": "a@example.com", "password": "canary-password"})
    denied = [line for line in lines if line["event"] == "request_denied"]
    assert [(line["code"], line["ip"]) for line in denied] == [
        ("invalid_token", "127.0.0.1"),
        ("bad_credentials", "127.0.0.1"),
    ]
    assert any(line["event"] == "login_failed" and line["ip"] == "127.0.0.1" for line in lines)
    assert "canary" not in str(lines)


def test_an_address_is_believed_from_a_trusted_proxy_only(api: Api) -> None:
    """The server of these tests trusts 127.0.0.1, as ours does unless told otherwise, and not 127.0.0.2."""
    owner = api.person()
    headers = {**owner.http.headers, "X-Forwarded-For": "203.0.113.7"}
    for number, source in enumerate(("127.0.0.1", "127.0.0.2")):
        with httpx.Client(transport=httpx.HTTPTransport(local_address=source), base_url=api.url) as client:
            body = {"name": str(number), "scopes": ["runs:read"]}
            assert client.post("/api/keys", json=body, headers=headers).status_code == 201
    rows = owner.http.get("/api/audit", params={"action": "key.created"}).json()["items"]
    assert {row["data"]["name"]: row["ip"] for row in rows} == {"0": "203.0.113.7", "1": "127.0.0.2"}


def test_what_costs_us_something_is_counted_and_bounded(api: Api, redis_url: str) -> None:
    throttle = Throttle(redis_url, clock=lambda: 1000.0)

    def spend(_: int) -> bool:
        with contextlib.suppress(QuotaExceeded):
            throttle.spend("register", "192.0.2.1", most=MOST_REGISTRATIONS)
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(spend, range(MOST_REGISTRATIONS + 20)))
    assert allowed.count(True) == MOST_REGISTRATIONS
    throttle.spend("register", "192.0.2.2", most=MOST_REGISTRATIONS)
    throttle.spend("switch", "192.0.2.1", most=MOST_SWITCHES)


@pytest.mark.parametrize(
    ("most", "method", "path", "body"),
    [
        (MOST_ATTEMPTS, "POST", "/api/invites/accept", {"token": "fli_x"}),
        (MOST_INVITES, "POST", "/api/tenants/{tenant}/invite", {"email": "x@example.com"}),
        (MOST_TENANTS, "POST", "/api/tenants", {"name": "Another"}),
    ],
)
def test_floods_of_invitations_end(api: Api, most: int, method: str, path: str, body: dict[str, str]) -> None:
    owner = api.person()
    codes = [
        owner.http.request(method, path.format(tenant=owner.tenant_id), json=body).status_code for _ in range(most + 2)
    ]
    assert set(codes[:most]) <= {201, 404}
    assert codes[most:] == [429, 429]
    again = owner.http.request(method, path.format(tenant=owner.tenant_id), json=body)
    assert again.json()["code"] == "too_many_requests"
    assert 0 < int(again.headers["retry-after"]) <= 300
