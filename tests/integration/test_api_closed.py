"""Who may call what: every route is closed unless it is listed here, to roles, to scopes and to other organizations.

The tables are written out on purpose: a route that is added fails these tests until it has its line.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import httpx
import jwt
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.auth import OPEN
from engine.permissions import ROLES, SCOPES, Permission, Role, Scope
from tests.api_server import ECHO, Api, Person, running_api, services_for, settings_for

P = Permission
DOCUMENT = {"name": "W", "definition": {"trigger": {"type": "manual"}, "steps": [ECHO]}}

Callers: TypeAlias = dict[str, tuple[httpx.Client, frozenset[Permission]]]
LOGOUT = "/api/auth/logout-everywhere"

CLOSED: dict[tuple[str, str], tuple[Permission, Any]] = {
    ("POST", "/api/auth/switch"): (P.TENANT_READ, {"tenant_id": "tenant_x"}),
    ("POST", LOGOUT): (P.TENANT_READ, None),
    ("GET", "/api/me"): (P.TENANT_READ, None),
    ("GET", "/api/actions"): (P.CATALOG_READ, None),
    ("GET", "/api/tenants"): (P.TENANT_READ, None),
    ("POST", "/api/tenants"): (P.TENANT_READ, {"name": "New"}),
    ("GET", "/api/tenants/{tenant_id}"): (P.TENANT_READ, None),
    ("PATCH", "/api/tenants/{tenant_id}"): (P.TENANT_WRITE, {"name": "New"}),
    ("GET", "/api/tenants/{tenant_id}/members"): (P.MEMBERS_READ, None),
    ("PUT", "/api/tenants/{tenant_id}/members/{user_id}/role"): (P.MEMBERS_MANAGE, {"role": "viewer"}),
    ("DELETE", "/api/tenants/{tenant_id}/members/{user_id}"): (P.MEMBERS_MANAGE, None),
    ("POST", "/api/tenants/{tenant_id}/invite"): (P.MEMBERS_MANAGE, {"email": "x@example.com", "role": "viewer"}),
    ("GET", "/api/tenants/{tenant_id}/invites"): (P.MEMBERS_MANAGE, None),
    ("POST", "/api/tenants/{tenant_id}/invites/{invite_id}/resend"): (P.MEMBERS_MANAGE, None),
    ("DELETE", "/api/tenants/{tenant_id}/invites/{invite_id}"): (P.MEMBERS_MANAGE, None),
    ("POST", "/api/invites/accept"): (P.TENANT_READ, {"token": "fli_unknown"}),
    ("GET", "/api/keys"): (P.KEYS_MANAGE, None),
    ("POST", "/api/keys"): (P.KEYS_MANAGE, {"name": "k", "scopes": ["runs:read"]}),
    ("DELETE", "/api/keys/{key_id}"): (P.KEYS_MANAGE, None),
    ("GET", "/api/audit"): (P.AUDIT_READ, None),
    ("GET", "/api/usage"): (P.RUNS_READ, None),
    ("GET", "/api/quotas"): (P.TENANT_READ, None),
    ("GET", "/api/quotas/notices"): (P.TENANT_READ, None),
    ("GET", "/api/quotas/notices/url"): (P.NOTICES_MANAGE, None),
    ("PUT", "/api/quotas/notices/url"): (P.NOTICES_MANAGE, {"url": "https://example.com/hook"}),
    ("DELETE", "/api/quotas/notices/url"): (P.NOTICES_MANAGE, None),
    ("GET", "/api/credentials/{credential_id}/decryptions"): (P.AUDIT_READ, None),
    ("GET", "/api/credentials/{credential_id}/workflows"): (P.CREDENTIALS_READ, None),
    ("GET", "/api/roles"): (P.CATALOG_READ, None),
    ("GET", "/api/billing/invoice"): (P.BILLING_READ, None),
    ("GET", "/api/credentials"): (P.CREDENTIALS_READ, None),
    ("POST", "/api/credentials"): (P.CREDENTIALS_WRITE, {"service": "http", "data": {"bearer": "abcdef"}}),
    ("PUT", "/api/credentials/{credential_id}"): (P.CREDENTIALS_WRITE, {"data": {"bearer": "abcdef"}}),
    ("DELETE", "/api/credentials/{credential_id}"): (P.CREDENTIALS_WRITE, None),
    ("GET", "/api/workflows"): (P.WORKFLOWS_READ, None),
    ("POST", "/api/workflows"): (P.WORKFLOWS_WRITE, DOCUMENT),
    ("GET", "/api/workflows/{workflow_id}"): (P.WORKFLOWS_READ, None),
    ("PUT", "/api/workflows/{workflow_id}"): (P.WORKFLOWS_WRITE, DOCUMENT),
    ("PATCH", "/api/workflows/{workflow_id}"): (P.WORKFLOWS_WRITE, {"is_active": False, "name": "Mine"}),
    ("DELETE", "/api/workflows/{workflow_id}"): (P.WORKFLOWS_WRITE, None),
    ("GET", "/api/workflows/{workflow_id}/versions"): (P.WORKFLOWS_READ, None),
    ("GET", "/api/workflows/{workflow_id}/versions/{version}"): (P.WORKFLOWS_READ, None),
    ("POST", "/api/workflows/{workflow_id}/dry-run"): (P.WORKFLOWS_READ, {"input": {}}),
    ("POST", "/api/workflows/{workflow_id}/runs"): (P.RUNS_WRITE, {"input": {}}),
    ("POST", "/api/workflows/{workflow_id}/release"): (P.RUNS_WRITE, None),
    ("GET", "/api/runs"): (P.RUNS_READ, None),
    ("GET", "/api/runs/{run_id}"): (P.RUNS_READ, None),
    ("GET", "/api/runs/{run_id}/steps"): (P.RUNS_READ, None),
    ("GET", "/api/runs/{run_id}/logs"): (P.RUNS_READ, None),
    ("GET", "/api/runs/{run_id}/waiting"): (P.RUNS_READ, None),
    ("GET", "/api/runs/{run_id}/events"): (P.RUNS_READ, None),
    ("POST", "/api/runs/{run_id}/cancel"): (P.RUNS_WRITE, None),
    ("POST", "/api/runs/{run_id}/replay"): (P.RUNS_WRITE, {"from": "start"}),
}
"""Every closed route, the permission that it asks for, and a body that it takes."""

IDS = ("tenant_id", "credential_id", "workflow_id", "run_id", "user_id", "invite_id", "key_id")
NOT_OURS = dict.fromkeys(IDS, "x_unknown") | {"version": "1"}
ROUTES = [pytest.param(method, path, id=f"{method} {path}") for method, path in CLOSED]
NESTED = [route for route in ROUTES if str(route.values[1]).count("{") > 1 and "tenant_id" in str(route.values[1])]


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


@pytest.fixture(scope="module")
def owner(api: Api) -> Person:
    return api.person()


@pytest.fixture(scope="module")
def theirs(owner: Person) -> dict[str, str]:
    """One of each kind of thing, of the owner's organization."""
    secret = {"service": "http", "name": "theirs", "data": {"bearer": "abcdef"}}
    workflow_id = owner.workflow()
    invitation = {"email": "invited@example.com", "role": "member"}
    return {
        "tenant_id": owner.tenant_id,
        "user_id": owner.user_id,
        "invite_id": owner.http.post(f"/api/tenants/{owner.tenant_id}/invite", json=invitation).json()["invite"]["id"],
        "key_id": owner.http.post("/api/keys", json={"name": "k", "scopes": ["admin"]}).json()["key"]["id"],
        "credential_id": owner.http.post("/api/credentials", json=secret).json()["id"],
        "workflow_id": workflow_id,
        "run_id": owner.run(workflow_id),
        "version": "1",
    }


@pytest.fixture(scope="module")
def callers(api: Api, owner: Person) -> Callers:
    return everybody(api, owner)


def everybody(api: Api, owner: Person) -> Callers:
    """One caller for each role and each scope in the owner's organization, and what they may."""
    people = {str(role): (api.member(owner.tenant_id, role), ROLES[role]) for role in Role}
    return people | {str(scope): (api.key(owner.tenant_id, scope), SCOPES[scope]) for scope in Scope}


def call(client: httpx.Client, method: str, path: str, ids: dict[str, str], **headers: str) -> httpx.Response:
    _, body = CLOSED[(method, path)]
    return client.request(method, path.format_map(ids), json=body, headers=headers)


def test_every_route_is_either_open_or_listed_here(api: Api) -> None:
    routes = {
        (method, route.path)
        for route in iter_route_contexts(create_app(api.services).routes)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes == OPEN | CLOSED.keys()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_token_nothing_is_even_read(api: Api, method: str, path: str) -> None:
    answer = api.client().request(method, path.format_map(NOT_OURS), content=b"{", headers={"Content-Type": "x/y"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_each_role_and_scope_may_what_the_table_says(
    api: Api, owner: Person, callers: Callers, method: str, path: str
) -> None:
    permission, _ = CLOSED[(method, path)]
    for name, (client, permissions) in (everybody(api, owner) if path == LOGOUT else callers).items():
        answer = call(client, method, path, NOT_OURS | {"tenant_id": owner.tenant_id})
        refused = answer.status_code == 403 and answer.json()["code"] == "forbidden"
        assert refused == (permission not in permissions), f"{name}: {answer.status_code} {answer.text}"
        assert answer.status_code not in (401, 500)


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if "{" in str(route.values[1])])
def test_the_things_of_another_organization_are_not_found(
    api: Api, theirs: dict[str, str], method: str, path: str
) -> None:
    stranger = api.person()
    foreign = call(stranger.http, method, path, theirs)
    unknown = call(stranger.http, method, path, NOT_OURS)
    assert (foreign.status_code, foreign.json()["code"]) == (404, "not_found"), foreign.text
    assert unknown.status_code == 404

    def words(answer: httpx.Response, ids: dict[str, str]) -> str:
        text = str(answer.json()["detail"])
        for value in ids.values():
            text = text.replace(value, "x")
        return text

    assert words(foreign, theirs) == words(unknown, NOT_OURS)


@pytest.mark.parametrize(("method", "path"), NESTED)
def test_their_things_are_not_found_inside_our_organization_either(
    api: Api, theirs: dict[str, str], method: str, path: str
) -> None:
    stranger = api.person()
    answer = call(stranger.http, method, path, theirs | {"tenant_id": stranger.tenant_id})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_forged_token_opens_no_route(api: Api, owner: Person, theirs: dict[str, str], method: str, path: str) -> None:
    for name, (token, code) in forgeries(api, owner).items():
        answer = call(api.client(token), method, path, theirs)
        assert (answer.status_code, answer.json()["code"]) == (401, code), name
        if name == "no tenant":
            assert answer.json()["detail"] == "Invalid tenant_id in token"


def forgeries(api: Api, owner: Person) -> dict[str, tuple[str, str]]:
    """Tokens that somebody without our key, or with an old token, could send; and the code of the refusal."""
    key = api.services.settings.secret_key.get_secret_value()
    claims = {"user_id": owner.user_id, "tenant_id": owner.tenant_id, "exp": datetime.now(UTC) + timedelta(hours=1)}
    past = datetime.now(UTC) - timedelta(seconds=1)
    payload = owner.token.split(".")[1]
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    without = {name: {k: v for k, v in claims.items() if k != name} for name in claims}
    return {
        "no algorithm": (f"{unsigned}.{payload}.", "invalid_token"),
        "another key": (jwt.encode(claims, "x" * 40, algorithm="HS256"), "invalid_token"),
        "another algorithm": (jwt.encode(claims, key, algorithm="HS512"), "invalid_token"),
        "expired": (jwt.encode({**claims, "exp": past}, key, algorithm="HS256"), "token_expired"),
        "never expires": (jwt.encode(without["exp"], key, algorithm="HS256"), "invalid_token"),
        "no tenant": (jwt.encode(without["tenant_id"], key, algorithm="HS256"), "invalid_token"),
        "no user": (jwt.encode(without["user_id"], key, algorithm="HS256"), "invalid_token"),
        "revoked": (jwt.encode({**claims, "ver": 7}, key, algorithm="HS256"), "token_revoked"),
        "unknown key": ("fl_" + "0" * 64, "invalid_token"),
    }


def test_the_openapi_document_tells_of_every_closed_route(api: Api) -> None:
    paths = api.client().get("/api/openapi.json").json()["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told >= CLOSED.keys()
    for method, path in CLOSED:
        assert paths[path][method.lower()]["security"] == [{"bearer": []}]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nobody_enters_an_organization_by_naming_it(
    api: Api, owner: Person, theirs: dict[str, str], method: str, path: str
) -> None:
    answer = call(api.person().http, method, path, theirs, **{"X-Tenant-ID": owner.tenant_id})
    assert (answer.status_code, answer.json()["code"]) == (403, "not_a_member")


def test_lists_and_filters_show_only_what_is_ours(api: Api, theirs: dict[str, str]) -> None:
    stranger = api.person()
    for path in ("/api/workflows", "/api/runs", "/api/credentials", f"/api/runs?workflow_id={theirs['workflow_id']}"):
        assert stranger.http.get(path).json() == {"items": [], "next_cursor": None}
    assert [tenant["id"] for tenant in stranger.http.get("/api/tenants").json()["items"]] == [stranger.tenant_id]


def test_a_strangers_credential_cannot_be_named_in_a_workflow(api: Api, theirs: dict[str, str]) -> None:
    assert theirs["credential_id"]
    step = {"id": "s", "action": "http.request", "credential": "theirs", "with": {"url": "https://example.com"}}
    body = {"name": "W", "definition": {"trigger": {"type": "manual"}, "steps": [step]}}
    answer = api.person().http.post("/api/workflows", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["detail"] == "there is no credential 'theirs'; add one for http first"


def test_after_all_that_the_things_of_the_owner_are_as_they_were(owner: Person, theirs: dict[str, str]) -> None:
    workflow = owner.http.get(f"/api/workflows/{theirs['workflow_id']}").json()
    assert (workflow["name"], workflow["is_active"], workflow["version"]) == ("W", True, 1)
    assert owner.http.get(f"/api/runs/{theirs['run_id']}").json()["status"] == "queued"
    runs = owner.http.get("/api/runs", params={"workflow_id": theirs["workflow_id"]}).json()["items"]
    assert [run["id"] for run in runs] == [theirs["run_id"]]
    pending = owner.http.get(f"/api/tenants/{owner.tenant_id}/invites").json()["items"]
    assert theirs["invite_id"] in {invite["id"] for invite in pending}
    keys = owner.http.get("/api/keys").json()["items"]
    assert [key["revoked_at"] for key in keys if key["id"] == theirs["key_id"]] == [None]
