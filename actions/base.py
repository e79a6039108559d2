"""What connectors share: a base class with the attributes of `engine.ports.Action`, input types, and one way out.

`Connector.call` is how every connector sends a request: with the step's idempotency key, inside the step's time, and
ended by a cancel. `Connector.secret` reads the step's credential through the connector's own model; a credential that
does not fit is `Fatal` ``credential_invalid``, with the names of the fields and never their values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import httpx
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError

from actions.guard import parse_url
from actions.http import GuardedClient, Request
from engine.errors import ActionError, Fatal
from engine.ports import Action, HttpReply, Json, StepContext

Model = TypeVar("Model", bound=BaseModel)


def as_text(value: object) -> object:
    """Numbers and booleans as JSON writes them; for types with constraints of their own, else take `Text`.

    Templates keep the type of what they name, so a number may well arrive where a person meant text.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, BeforeValidator(as_text)]
"""A string; numbers and booleans become one. Lists, mappings and null are refused."""


class Input(BaseModel):
    """The base of a step's `with`: unknown keys are refused, errors do not repeat what was given."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)


def _checked_url(given: SecretStr) -> SecretStr:
    try:
        parse_url(given.get_secret_value())
    except ActionError as error:
        raise ValueError(error.detail) from None
    return given


SecretUrl = Annotated[SecretStr, AfterValidator(_checked_url)]
"""A URL that is itself a secret, such as that of a webhook. Where it may lead is judged when it is called."""


class CredentialData(BaseModel):
    """The base of what a credential of a known service holds. Secrets: errors and `repr` do not show values."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(**********)"

    __str__ = __repr__


class Connector(Action):
    """Base of the built-in actions; a plug-in may use it too. Stateless but for the shared client."""

    name: str
    summary: str
    service: str | None = None
    credential_required: bool = False
    credential_model: ClassVar[type[BaseModel] | None] = None
    """What a credential of `service` must look like; None when it is free-form."""
    has_effects: bool = True
    honours_deadline: bool = True
    input_model: type[BaseModel]
    output_schema: Mapping[str, Json]

    def __init__(self, client: GuardedClient) -> None:
        self._client = client

    def call(self, context: StepContext, request: Request) -> HttpReply:
        """Send `request` with the idempotency key of the step; raises what `GuardedClient.send` raises."""
        headers = {**request.headers, "Idempotency-Key": context.idempotency_key}
        keyed = Request(
            request.method, request.url, headers, request.content, credential=request.credential, follow=request.follow
        )
        return self._client.send(keyed, seconds=context.remaining(), pulse=lambda: context.wait(0))

    def secret(self, context: StepContext, model: type[Model]) -> Model:
        """The step's credential as `model`. `Fatal` when there is none, or it does not fit."""
        if context.credential is None:
            raise Fatal(f"{self.name} needs a credential of service {self.service}.", code="credential_missing")
        try:
            return model.model_validate(context.credential.get_secret_value())
        except ValidationError as error:
            # The text of a custom validator is its own sentence; nothing here may quote the value.
            places = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'data'}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise Fatal(
                f"The {self.service} credential does not fit: {places.rstrip('.')}.", code="credential_invalid"
            ) from None


def rebased(url: str, *, hosts: Collection[str], base: str | None) -> str:
    """`url` sent to the operator's `base` instead, when there is one and the URL is of the official `hosts`."""
    parsed = httpx.URL(url)
    return url if base is None or parsed.host not in hosts else base + parsed.raw_path.decode("ascii")


def object_schema(properties: Mapping[str, Any], *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON Schema of an object with these properties; more may come, since fields may be added."""
    return {"type": "object", "properties": dict(properties), "required": list(required)}
