"""What travels in bodies and answers about organizations: people, invitations, API keys, the audit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, ValidationInfo, field_validator

from api import schemas
from api.schemas import Answer, Body, Email, Identifier, Line, Moment, RoleName
from engine import passwords

ScopeName = Literal["runs:write", "runs:read", "workflows:write", "workflows:read", "credentials:write", "admin"]


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


Instant = Annotated[datetime, AfterValidator(_aware)]
Token = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Register(schemas.Register):
    invite: Token | None = Field(default=None, description="the token of an invitation, which is accepted at once")

    @field_validator("password")
    @classmethod
    def _not_common(cls, password: SecretStr, info: ValidationInfo) -> SecretStr:
        weakness = passwords.weakness(password.get_secret_value(), email=info.data.get("email", ""))
        if weakness is not None:
            raise ValueError(weakness)
        return password


# Members and invitations


class Member(Answer):
    user_id: str
    email: str
    role: str
    joined_at: Moment


class RoleBody(Body):
    role: RoleName


class InviteBody(Body):
    email: Email
    role: RoleName = "member"


class Invite(Answer):
    id: str
    email: str
    role: str
    expires_at: Moment
    created_at: Moment
    created_by: str | None


class Invited(Answer):
    invite: Invite
    token: str = Field(description="shown once; whoever has it and the email may join")
    link: str = Field(description="the same as an address")
    mailed: bool = Field(description="whether a mail server took it")


class AcceptBody(Body):
    token: Token


class Accepted(Answer):
    tenant: schemas.Tenant
    role: str


# API keys


class KeyBody(Body):
    name: Line
    scopes: list[ScopeName] = Field(min_length=1, max_length=20)
    expires_at: Instant | None = Field(default=None, description="RFC 3339; never unless given")


class ApiKey(Answer):
    id: str
    name: str
    prefix: str = Field(description="the first characters of the secret, to recognise it by")
    scopes: list[str]
    created_by: str | None
    created_at: Moment
    expires_at: Moment | None
    last_used_at: Moment | None = Field(description="noted once a minute")
    revoked_at: Moment | None


class KeyMade(Answer):
    key: ApiKey
    secret: str = Field(description="shown once")


# Audit


class AuditEntry(Answer):
    id: int = Field(description="counts from 1 in each organization, without a gap")
    at: Moment
    actor: str = Field(description="a user, an API key, or operator:...")
    action: str = Field(description="object.verb, such as credential.created")
    object: str | None
    ip: str | None
    data: dict[str, Any] | None


class Decryption(Answer):
    id: int
    at: Moment
    run_id: str
    step_id: str
    attempt: int
    sealed: bool = Field(description="whether the audit vouches for it already")


class UsedBy(Answer):
    id: Identifier
    name: str


class RoleMeaning(Answer):
    role: str
    permissions: list[str]


class Roles(Answer):
    roles: list[RoleMeaning] = Field(description="each may all that those behind it may")
    scopes: list[RoleMeaning] = Field(description="of API keys")
    permissions: dict[str, str] = Field(description="what each means")
