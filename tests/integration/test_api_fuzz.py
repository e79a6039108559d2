"""Schemathesis tries every route with what the OpenAPI document allows, and with what it forbids: never a 5xx.

A 5xx means our own fault; what somebody sends is at most a 4xx. Every answer must also be one that the document names,
of the type and shape that it says. The caller is an owner, who may most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.auth import OPEN, issue_token
from engine.repository import identity
from tests.api_server import Api, Person, running_api, services_for, settings_for
from tests.integration.test_api_closed import CLOSED

EXAMPLES = 20
UNTOLD = {("GET", "/metrics"), ("GET", "/api/openapi.json"), ("GET", "/api/docs")}
"""Routes that the document does not describe, or that are not JSON."""
STREAMS = {"/api/runs/{run_id}/events"}
"""Their document says that they are text: the shape of an event is told in words."""
ROUTES = sorted(CLOSED.keys() | OPEN - UNTOLD)
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


@pytest.fixture(scope="module")
def owner(api: Api) -> Person:
    return api.person()


@pytest.fixture(scope="module")
def document(api: Api) -> Any:
    return schemathesis.openapi.from_url(f"{api.url}/api/openapi.json")


@pytest.fixture(scope="module")
def known(owner: Person) -> dict[str, str]:
    """Ids of things that there are."""
    workflow_id = owner.workflow()
    secret = {"service": "http", "name": "shop", "data": {"bearer": "abcdef"}}
    return {
        "tenant_id": owner.tenant_id,
        "workflow_id": workflow_id,
        "run_id": owner.run(workflow_id),
        "credential_id": owner.http.post("/api/credentials", json=secret).json()["id"],
    }


def token_of(api: Api, owner: Person) -> str:
    """A token that holds, also after a try of logging out everywhere."""
    with api.services.database.system() as session:
        version = identity.token_version(session, owner.user_id) or 0
    return issue_token(api.services.settings, user_id=owner.user_id, tenant_id=owner.tenant_id, version=version)


def attempt(
    operation: Any, mode: GenerationMode, headers: Callable[[], dict[str, str]], known: Mapping[str, str]
) -> None:
    """Many requests to one operation, each answered as the document says."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    @given(case=operation.as_strategy(generation_mode=mode), real=booleans())
    def tried(case: Any, real: bool) -> None:
        """With `real` ids of things that there are, so that what comes behind a 404 is tried too."""
        given_headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "x-tenant-id"}
        case.headers = {**given_headers, **headers()}
        if real:
            case.path_parameters = {
                name: known.get(name, value) for name, value in (case.path_parameters or {}).items()
            }
        answer = case.call()
        streams = {response_schema_conformance} if operation.path in STREAMS else set()
        case.validate_response(answer, checks=[check for check in CHECKS if check not in streams])

    tried()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_of_an_owner_is_our_fault(
    api: Api, owner: Person, known: dict[str, str], document: Any, method: str, path: str
) -> None:
    operation = document[path][method]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        if has(operation, mode):
            attempt(operation, mode, lambda: {"Authorization": f"Bearer {token_of(api, owner)}"}, known)


def has(operation: Any, mode: GenerationMode) -> bool:
    """Whether it can be asked wrongly: not when it takes nothing, and not when it takes anything, as webhooks do."""
    if mode is GenerationMode.POSITIVE:
        return True
    takes_anything = any(body.media_type == "*/*" for body in operation.body)
    return not takes_anything and (bool(operation.body) or bool(list(operation.iter_parameters())))
