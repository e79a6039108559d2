"""What travels in bodies and answers. Unknown fields of a body are refused; answers hold what is named here."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import email_validator
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

from engine.passwords import MAXIMUM_LENGTH, MINIMUM_LENGTH

Item = TypeVar("Item")


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _plausible_email(text: str) -> str:
    """The syntax only: whether it reaches anybody is known when mail arrives there."""
    try:
        # The suffix lets names pass that are not on the internet but in use inside companies, such as server.local.
        email_validator.validate_email(f"{text}.example.org", check_deliverability=False)
    except email_validator.EmailNotValidError as error:
        raise ValueError(f"not an email address: {error}") from None
    return unicodedata.normalize("NFC", text)


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""RFC 3339 in UTC, ending in Z."""
Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of text that somebody reads: a name."""
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(_plausible_email)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
RoleName = Literal["owner", "admin", "member", "viewer"]


class Body(BaseModel):
    """The base of request bodies."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Answer(BaseModel):
    """The base of answers; built from rows, of which it shows what it names."""

    model_config = ConfigDict(extra="ignore", from_attributes=False)


class Listed(Answer, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next_cursor: str | None = Field(default=None, description="give it as `cursor` for the next page; null at the end")


# Identity


class Register(Body):
    email: Email
    password: SecretStr = Field(min_length=MINIMUM_LENGTH, max_length=MAXIMUM_LENGTH)
    organization: Line | None = None


class Login(Body):
    email: Identifier
    password: SecretStr = Field(max_length=MAXIMUM_LENGTH)


class Switch(Body):
    tenant_id: Identifier


class TenantBody(Body):
    name: Line


class User(Answer):
    id: str
    email: str


class Tenant(Answer):
    id: str
    name: str
    role: str | None = Field(default=None, description="yours in it; null for an API key")


class TenantDetails(Tenant):
    plan: str
    status: str
    created_at: Moment


class Registered(Answer):
    token: str
    user: User
    tenant: Tenant


class LoggedIn(Answer):
    token: str
    user: User
    tenants: list[Tenant]


class Switched(Answer):
    token: str
    tenant: Tenant


class Key(Answer):
    id: str
    scopes: list[str]


class Me(Answer):
    user: User | None = Field(description="null when an API key calls")
    tenant: Tenant
    tenants: list[Tenant]
    role: str | None
    key: Key | None = Field(default=None, description="the API key that calls")


# Credentials


class CredentialBody(Body):
    service: Line
    name: Line | None = Field(default=None, description="the service's name unless given")
    data: dict[str, Any] = Field(min_length=1, description="the secret itself; see GET /api/actions for its shape")


class CredentialRotation(Body):
    service: Line | None = None
    name: Line | None = None
    data: dict[str, Any] = Field(min_length=1)


class Credential(Answer):
    id: str
    service: str
    name: str
    fingerprint: str | None = Field(description="changes when the secret does; tells nothing about it")
    broken_reason: str | None = Field(default=None, description="why it cannot be used until it is replaced")
    created_by: str | None
    created_at: Moment
    updated_at: Moment


# Runs


class RunBody(Body):
    input: dict[str, Any] | None = Field(default=None, description="`trigger.input` of its expressions")
    priority: int = Field(default=5, ge=0, le=9, description="0 runs before 9, within the workflow")


class DryRunBody(Body):
    input: Any = Field(default=None, description="what the run would be started with")


class Run(Answer):
    id: str
    workflow_id: str
    version: int
    status: str
    trigger: str = Field(description="what started it: webhook, schedule, poll, api, replay")
    input: Any = None
    output: Any = None
    error: Any = None
    attempt: int
    queued_at: Moment
    started_at: Moment | None = None
    finished_at: Moment | None = None
    wait_reason: str | None = Field(default=None, description="why it is held or waiting; absent otherwise")
    replay_of: str | None = Field(default=None, description="the run that it repeats; absent otherwise")

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        return {key: value for key, value in document.items() if value is not None or key not in _OPTIONAL}


_OPTIONAL = frozenset({"wait_reason", "replay_of"})


class RunStarted(Answer):
    run: Run
    idempotent: bool = Field(description="true when this Idempotency-Key had started the run before")


class Step(Answer):
    id: str
    item: str | None = None
    status: str
    attempt: int
    output: Any = None
    error: Any = None
    started_at: Moment | None = None
    finished_at: Moment | None = None


class LogLine(Answer):
    at: Moment
    level: str
    step: str | None = None
    message: str
    data: Any = None


class Triggered(Answer):
    status: Literal["triggered"] = "triggered"
    message: str
    run_id: str
