"""What travels in bodies and answers: what all share, and who is calling.

Unknown fields of a body are refused; answers hold what is named here. The other resources have files of their own.
"""

from __future__ import annotations

import re
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
    StringConstraints,
)

from engine.passwords import MAXIMUM_LENGTH, MINIMUM_LENGTH

Item = TypeVar("Item")

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)?)?", re.ASCII)


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _utc_unless_told(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _rfc_3339(value: Any) -> Any:
    if isinstance(value, str) and not _RFC_3339.fullmatch(value):
        raise ValueError("must be a moment of RFC 3339, such as 2026-01-02T03:04:05Z (in a URL, write + as %2B)")
    return value


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
Since = Annotated[datetime, BeforeValidator(_rfc_3339), AfterValidator(_utc_unless_told)]
"""A moment, or a day, of a query; a bare number is none, although pydantic would count seconds from 1970."""
Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of text that somebody reads: a name."""
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(_plausible_email)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
StoredEmail = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
"""As long as those that may have come out of the multi-user system."""
ObjectOrText = Annotated[dict[str, Any] | str, BeforeValidator(_object_or_text)]
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
    email: StoredEmail
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
