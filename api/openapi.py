"""What the OpenAPI document says beyond the routes themselves: who may call, and which problems there are.

`CODES` is the one list of problem codes with what each means; docs/api.md shows it to people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from api.auth import OPEN

CODES: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be understood."),
    "malformed_json": (400, "The body is not what its Content-Type says; the detail names line and column."),
    "invalid_body": (400, "The body of a webhook says that it is JSON and is not, or is nested too deep."),
    "not_a_webhook": (400, "The workflow is started by something else than webhooks."),
    "unauthenticated": (401, "There is no token."),
    "invalid_token": (401, "The token or API key is forged, unknown or revoked."),
    "token_expired": (401, "Log in again."),
    "token_revoked": (401, "You have logged out everywhere; log in again."),
    "bad_credentials": (401, "Email or password is wrong."),
    "bad_signature": (401, "The webhook is not signed with the secret of its trigger, or too old."),
    "quota_workflows": (402, "The organization has as many workflows as its plan allows."),
    "quota_members": (402, "The organization has as many members and pending invitations as its plan allows."),
    "quota_credentials": (402, "The organization has as many credentials as its plan allows."),
    "forbidden": (403, "Your role, or the scopes of the API key, do not allow it."),
    "not_a_member": (403, "You are not a member of the organization that X-Tenant-ID names."),
    "tenant_suspended": (403, "The organization is suspended."),
    "organizations_off": (403, "Organizations are not switched on for you yet."),
    "invite_for_another_email": (403, "The invitation is for another email than yours."),
    "needs_person": (403, "An API key cannot do this."),
    "not_found": (404, "There is no such thing, or it belongs to another organization."),
    "invite_not_found": (404, "There is no such invitation: it was used, revoked or sent again."),
    "method_not_allowed": (405, "The address does not know this method."),
    "conflict": (409, "It is not possible in the state that the thing is in."),
    "email_taken": (409, "There is an account with this email."),
    "already_member": (409, "Who is invited belongs to the organization already."),
    "last_owner": (409, "An organization has an owner; make somebody else one first."),
    "credential_exists": (409, "There is a credential of this name."),
    "credential_in_use": (409, "Workflows use the credential; `workflows` names them."),
    "version_conflict": (409, "Somebody else saved a newer version of the workflow."),
    "workflow_inactive": (409, "The workflow is switched off; the detail says why."),
    "run_finished": (409, "The run has ended already."),
    "answer_ambiguous": (409, "Several steps of the run wait for an answer; name one."),
    "run_not_ended": (409, "The run has not ended yet; what is to be replayed has."),
    "nothing_failed": (409, "The run succeeded, so there is nothing failed to replay it from."),
    "step_not_reached": (409, "The run never came to the step that it is to be replayed from."),
    "version_unreadable": (409, "The version of the workflow cannot be run any more; choose the other one."),
    "run_not_waiting": (409, "The run is in a worker's hands, waits for nothing, or has ended."),
    "invite_expired": (410, "The invitation has expired; ask for another."),
    "link_expired": (410, "The link to answer a run has expired."),
    "approval_expired": (410, "The time for an answer is over."),
    "too_large": (413, "The body is too large."),
    "quota_payload": (413, "The run would be given more than the plan allows."),
    "unsupported_media_type": (415, "The body is neither JSON nor, for a workflow, YAML."),
    "invalid_input": (422, "Something in the input is wrong; `errors` has a JSON pointer and a sentence for each."),
    "quota_poll_interval": (422, "The plan does not allow to poll so often; `errors` points to it."),
    "unknown_action": (422, "The older form names an action that there is not."),
    "request_timeout": (408, "The body did not come within half a minute."),
    "too_many_requests": (429, "Too many of these; wait as long as Retry-After says."),
    "too_many_attempts": (429, "Too many failed logins; wait as long as Retry-After says."),
    "quota_executions": (429, "The month's runs are used up, and the organization's policy is to refuse more."),
    "quota_queue": (429, "As many runs wait as the plan allows."),
    "internal": (500, "Our fault. The log has more under `request_id`."),
    "credential_unreadable": (500, "A stored secret does not decrypt; replace it."),
    "unavailable": (503, "Postgres or Redis does not answer. Nothing was done; try again after Retry-After."),
    "not_ready": (503, "GET /readyz only: `reasons` has a sentence for each thing that is wrong."),
}
"""Every code, its status, and what it means."""

SELF_SUFFICIENT = frozenset({"/healthz", "/metrics", "/api/workflow-schema"})
"""What needs neither Postgres nor Redis."""
CLOSED = (
    "unauthenticated",
    "invalid_token",
    "token_expired",
    "token_revoked",
    "forbidden",
    "not_a_member",
    "tenant_suspended",
)
WITH_ADDRESS = ("bad_request",)
WITH_BODY = ("malformed_json", "request_timeout", "too_large", "unsupported_media_type")
WITH_INPUT = ("invalid_input",)
TAKES_YAML: dict[str, Any] = {"requestBody": {"content": {"application/yaml": {"schema": {"type": "string"}}}}}
TAKES_ANYTHING: dict[str, Any] = {"requestBody": {"content": {"*/*": {"schema": {}}}}}

_TENANT_HEADER = {
    "name": "X-Tenant-ID",
    "in": "header",
    "required": False,
    "description": "another organization of yours than that of the token",
    "schema": {"type": "string"},
}


class Fault(BaseModel):
    """One thing wrong with the input."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into what was sent")
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str = Field(description="a sentence for people")
    code: str = Field(description="stable; for programs")
    request_id: str | None = Field(default=None, description="under which the log has more")
    errors: list[Fault] | None = Field(default=None, description="with invalid_input")


class Application(FastAPI):
    """FastAPI, with a completed OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            _complete(super().openapi())
        assert self.openapi_schema is not None  # noqa: S101 - FastAPI keeps what it generated there
        return self.openapi_schema


def refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: problems of its own, beside those that every route has."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, meaning = CODES[code]
        line = f"`{code}`: {meaning}"
        if status in found:
            found[status]["description"] += f"\n\n{line}"
        else:
            schema = {"$ref": "#/components/schemas/Problem"}
            found[status] = {"description": line, "content": {"application/problem+json": {"schema": schema}}}
    return found


def _complete(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update({**problem.pop("$defs"), "Problem": problem})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a login token, or an API key (`fl_...`)"}
    }
    for method, path, operation in _operations(document):
        _describe(operation)
        codes: tuple[str, ...] = () if path in SELF_SUFFICIENT else ("unavailable",)
        if (method, path) not in OPEN:
            codes += CLOSED
            operation["security"] = [{"bearer": []}]
            operation.setdefault("parameters", []).append(_TENANT_HEADER)
        codes += WITH_ADDRESS if operation.get("parameters") else ()
        codes += WITH_BODY if "requestBody" in operation else ()
        _add_problems(operation["responses"], *codes)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def _describe(operation: dict[str, Any]) -> None:
    """The first sentence of a route's docstring is its summary."""
    summary, _, rest = operation.get("description", "").partition(". ")
    operation["summary"] = summary.rstrip(".\n") or operation["summary"]
    operation["description"] = rest.strip()


def _add_problems(responses: dict[str, Any], *codes: str) -> None:
    """Beside those that the route names; FastAPI's own 422 is ours."""
    if responses.get("422", {}).get("description") == "Validation Error":
        del responses["422"]
        codes += WITH_INPUT
    for status, response in refusals(*codes).items():
        own = responses.setdefault(str(status), response)
        if own is not response:
            own["description"] += f"\n\n{response['description']}"
