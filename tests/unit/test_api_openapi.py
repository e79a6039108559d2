"""The OpenAPI document says all that a client needs, and every problem code is in the one list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.auth import OPEN
from api.openapi import CODES
from tests.api_server import services_for, settings_for

ROOT = Path(__file__).parents[2]
EVENTS = "/api/runs/{run_id}/events"
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> Iterator[dict[str, Any]]:
    services = services_for(settings_for("postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1/0"))
    yield create_app(services).openapi()
    services.actions.close()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, item[method]) for path, item in document["paths"].items() for method in METHODS if method in item
    ]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_operation_has_a_sentence_an_answer_and_its_problems(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        name = f"{method} {path}"
        assert len(operation["summary"].split()) > 1, name
        assert operation["tags"], name
        good = [response for status, response in operation["responses"].items() if status.startswith("2")]
        assert len(good) == 1, name
        closed = (method.upper(), path) not in OPEN
        assert ("security" in operation) == closed, name
        if closed:
            assert {"401", "403", "503"} <= operation["responses"].keys(), name
        if "{" in path:
            assert "404" in operation["responses"], name
        for status, response in operation["responses"].items():
            if status >= "400":
                content = response["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name


def test_what_is_answered_as_json_has_a_schema(document: dict[str, Any]) -> None:
    free_form = {"/api/actions", "/api/workflow-schema", "/healthz", "/readyz", "/metrics", EVENTS}
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status.startswith("2") and status != "204" and path not in free_form:
                assert "$ref" in response["content"]["application/json"]["schema"], f"{method} {path}"


def test_every_reference_leads_somewhere_and_ids_are_unique(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {ref.rpartition("/")[2] for ref in references(document)} <= schemas.keys()
    assert "HTTPValidationError" not in schemas
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_a_workflow_may_be_sent_as_yaml(document: dict[str, Any]) -> None:
    for method, path in (("post", "/api/workflows"), ("put", "/api/workflows/{workflow_id}")):
        content = document["paths"][path][method]["requestBody"]["content"]
        assert set(content) == {"application/json", "application/yaml"}


def test_the_document_is_made_once(document: dict[str, Any]) -> None:
    app = create_app(services_for(settings_for("postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1/0")))
    assert app.openapi() is app.openapi()
    assert app.openapi() == document


ANSWERED_BY = [
    *(ROOT / "api").rglob("*.py"),
    *(ROOT / "triggers").glob("*.py"),
    *(ROOT / "engine" / f"{name}.py" for name in ("connections", "legacy_form", "runs", "tenancy", "workflows")),
]


def test_every_code_that_is_answered_is_in_the_list() -> None:
    found = {code for path in ANSWERED_BY for code in re.findall(r'code="([a-z_]+)"', path.read_text("utf-8"))}
    assert {"workflow_inactive", "version_conflict", "bad_signature"} <= found
    assert found <= CODES.keys()
