"""What travels in bodies and answers about credentials; no answer has a secret."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.schemas import Answer, Body, Line, Moment


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
