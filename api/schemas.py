"""What travels in bodies and answers. Unknown fields of a body are refused; answers hold what is named here."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import email_validator
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    StrictBool,
    StringConstraints,
    model_serializer,
    model_validator,
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


def _object_or_text(value: Any) -> Any:
    if not isinstance(value, dict | str):
        raise ValueError("must be an object, or text")
    return value


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""RFC 3339 in UTC, ending in Z."""
Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of text that somebody reads: a name."""
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(_plausible_email)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
ObjectOrText = Annotated[dict[str, Any] | str, BeforeValidator(_object_or_text)]
RoleName = Literal["owner", "admin", "member", "viewer"]
WaitingReason = Literal[
    "fair_turn",
    "tenant_concurrency",
    "rate",
    "paused",
    "quota",
    "sleeping",
    "approval",
    "retry_backoff",
    "no_worker",
]


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


# Workflows


class WorkflowBody(Body):
    """A document, or the older form: `trigger_type`, `action_type` and `config_json`."""

    name: Line | None = Field(default=None, description="the document's own name unless given")
    definition: ObjectOrText | None = Field(
        default=None, description="the document: an object as in GET /api/workflow-schema, or YAML text"
    )
    trigger_type: Identifier | None = Field(default=None, description="older form: webhook or schedule")
    action_type: Identifier | None = Field(
        default=None, description="older form: slack_message, discord_post or weather_check"
    )
    config_json: ObjectOrText | None = Field(default=None, description="older form: an object, or its text")

    @model_validator(mode="before")
    @classmethod
    def _not_the_document_itself(cls, value: Any) -> Any:
        if isinstance(value, dict) and "steps" in value and "definition" not in value:
            raise ValueError('this is a document; send it as {"definition": {...}}, or as YAML')
        return value

    @property
    def is_legacy(self) -> bool:
        return not (self.trigger_type is None and self.action_type is None and self.config_json is None)


class WorkflowChange(WorkflowBody):
    version: int | None = Field(
        default=None,
        ge=0,
        description="the version that you read and changed; 409 version_conflict when there is a newer one",
    )


class WorkflowPatch(Body):
    is_active: StrictBool | None = Field(default=None, description="true also resumes a trigger that was paused")
    name: Line | None = None


class WorkflowSummary(Answer):
    id: str
    name: str
    is_active: bool
    inactive_reason: str | None
    version: int = Field(description="the current one; 0 when there is none yet")
    trigger_type: str
    webhook_url: str | None = Field(description="where a webhook workflow takes its requests")
    next_fire_at: Moment | None = Field(description="when its schedule or poll falls due next")
    last_fired_at: Moment | None
    failures: int = Field(default=0, description="failed polls in a row")
    paused_reason: str | None = Field(description="why its trigger fires no more until it is switched on again")
    created_by: str | None = Field(description="the user who made it")
    created_at: Moment
    updated_at: Moment
    action_type: str | None = Field(default=None, description="older form, where it was saved in that")
    config_json: str | None = None


class Workflow(WorkflowSummary):
    definition: dict[str, Any] | None = Field(description="the document of the current version, secrets masked")


class Version(Answer):
    version: int
    created_at: Moment
    created_by: str | None = Field(description="the user or API key that saved it")


class VersionDetails(Version):
    definition: dict[str, Any] = Field(description="as it was saved, secrets masked")


class DryRunBody(Body):
    input: Any = Field(default=None, description="what a webhook's body, or the input of a started run, would be")


class DryStep(Answer):
    id: str
    would: dict[str, Any] = Field(
        description="`{action, with, credential, has_effects, unknown?}`, or `{skip: reason}`, or `{fail: reason}`"
    )


class DryRun(Answer):
    steps: list[DryStep]


# Runs


class RunBody(Body):
    input: Any = Field(default=None, description="`trigger.input` of its expressions; `{}` unless given")
    priority: int = Field(default=5, ge=0, le=9, description="0 runs before 9, within the workflow")


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
    wake_at: Moment | None = Field(default=None, description="when a waiting run goes on; absent otherwise")
    replay_of: str | None = Field(default=None, description="the run that it repeats; absent otherwise")

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        return {key: value for key, value in document.items() if value is not None or key not in _OPTIONAL}


_OPTIONAL = frozenset({"wait_reason", "wake_at", "replay_of"})


class RunStarted(Answer):
    run: Run
    idempotent: bool = Field(description="true when this Idempotency-Key had started the run before")


class ReleasedRuns(Answer):
    released: int = Field(description="how many runs are queued now")


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


class Waiting(Answer):
    reason: WaitingReason
    detail: str = Field(description="a sentence for people")
    position: int | None = Field(
        default=None, description="starts that come before it, at least; absent outside the queue"
    )
    since: Moment

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        return {key: value for key, value in document.items() if value is not None}


class Triggered(Answer):
    status: Literal["triggered"] = "triggered"
    message: str
    run_id: str
    idempotent: bool = Field(description="true when this webhook-id had started the run before")
