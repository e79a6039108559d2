"""Who may call what: every route is closed unless it is listed here, to roles, to scopes and to other organizations.

The tables are written out on purpose: a route that is added fails these tests until it has its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.auth import OPEN
from engine.permissions import ROLES, SCOPES, Permission, Role, Scope
from tests.api_server import ECHO, Api, Person, running_api, services_for, settings_for

P = Permission
DOCUMENT = {"name": "W", "definition": {"trigger": {"type": "manual"}, "steps": [ECHO]}}

CLOSED: dict[tuple[str, str], tuple[Permission, Any]] = {
    ("POST", "/api/auth/switch"): (P.TENANT_READ, {"tenant_id": "tenant_x"}),
    ("GET", "/api/me"): (P.TENANT_READ, None),
    ("GET", "/api/actions"): (P.CATALOG_READ, None),
    ("GET", "/api/tenants"): (P.TENANT_READ, None),
    ("POST", "/api/tenants"): (P.TENANT_READ, {"name": "New"}),
    ("GET", "/api/tenants/{tenant_id}"): (P.TENANT_READ, None),
    ("PATCH", "/api/tenants/{tenant_id}"): (P.TENANT_READ, {"name": "New"}),
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
    ("POST", "/api/runs/{run_id}/cancel"): (P.RUNS_WRITE, None),
}
"""Every closed route, the permission that it asks for, and a body that it takes."""

NOT_OURS = dict.fromkeys(("tenant_id", "credential_id", "workflow_id", "run_id"), "x_unknown") | {"version": "1"}
ROUTES = [pytest.param(method, path, id=f"{method} {path}") for method, path in CLOSED]


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
    return {
        "tenant_id": owner.tenant_id,
        "credential_id": owner.http.post("/api/credentials", json=secret).json()["id"],
        "workflow_id": workflow_id,
        "run_id": owner.run(workflow_id),
        "version": "1",
    }


@pytest.fixture(scope="module")
def callers(api: Api, owner: Person) -> dict[str, tuple[httpx.Client, frozenset[Permission]]]:
    """Somebody of every role and a key of every scope, with what they may do."""
    people = {str(role): (api.member(owner.tenant_id, role), ROLES[role]) for role in Role}
    keys = {str(scope): (api.key(owner.tenant_id, scope), SCOPES[scope]) for scope in Scope}
    return {**people, **keys}


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
    callers: dict[str, tuple[httpx.Client, frozenset[Permission]]], method: str, path: str
) -> None:
    permission, _ = CLOSED[(method, path)]
    for name, (client, permissions) in callers.items():
        answer = call(client, method, path, NOT_OURS)
        refused = answer.status_code == 403 and answer.json()["code"] == "forbidden"
        assert refused == (permission not in permissions), f"{name}: {answer.status_code} {answer.text}"
        assert answer.status_code != 401


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
