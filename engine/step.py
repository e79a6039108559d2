"""One step of a workflow as a value: an action, a wait or a switch, and what steers it. Frozen; JSON by pydantic.

A key that is not listed here is refused. Later keys are optional fields with defaults: `engine.definition.canonical`
leaves defaults out, so hashes of stored versions do not change.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from engine.durations import LONGEST, Duration
from engine.ports import RetryPolicy

ID_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
MAX_PARALLEL_ITEMS = 20
MAX_CASES = 20
KINDS = ("action", "wait", "switch")
_OF_ACTIONS = ("with_", "credential", "retry", "timeout", "templates", "template_data", "for_each", "on_unknown")


class Part(BaseModel):
    """Base of every part of a document: frozen, unknown keys refused, errors do not repeat what was given."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


def between(shortest: timedelta, longest: timedelta, sentence: str) -> AfterValidator:
    """Refuses durations outside the bounds with `sentence`."""

    def check(value: timedelta) -> timedelta:
        if not shortest <= value <= longest:
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


Timeout = Annotated[Duration, between(timedelta(milliseconds=1), timedelta(hours=1), "must be more than 0, at most 1h")]
Expiry = Annotated[Duration, between(timedelta(seconds=1), LONGEST, "must be at least 1s")]


class Retry(Part):
    """`attempts` counts the first one too; waits grow from `initial` to `max`, with jitter."""

    attempts: int = Field(default=1, ge=1, le=20)
    initial: Duration = timedelta(seconds=1)
    max: Duration = timedelta(minutes=1)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max < self.initial:
            raise ValueError("max must not be less than initial")
        return self


class Approval(Part):
    """Somebody must agree before the run goes on. A refusal, or no answer in time, fails the step."""

    message: Annotated[str, StringConstraints(max_length=4000)] | None = None
    """What is to be decided; may hold templates. It is the step's output while it waits."""
    expires: Expiry | None = None
    """How long an answer is waited for; for ever unless given."""


class Wait(Part):
    """Let time pass, or wait for a person, without a worker."""

    for_: Duration | None = Field(default=None, alias="for")
    until: str | None = None
    """CEL: a timestamp, or text that is one in RFC 3339."""
    approval: Approval | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if [self.for_, self.until, self.approval].count(None) != 2:
            raise ValueError("give one of for, until and approval")
        return self


class ForEach(Part):
    """Do the action once for each item of a list. Written as the CEL expression alone, or with its bound."""

    items: str
    """CEL: a list."""
    parallel: int = Field(default=1, ge=1, le=MAX_PARALLEL_ITEMS)
    """How many items may be in hand at once."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"items": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(handler(core))
        properties = described.pop("properties")
        whole = {"type": "object", "properties": properties, "required": ["items"], "additionalProperties": False}
        return {"title": "ForEach", "anyOf": [{"type": "string", "description": "CEL: a list"}, whole]}


class Case(Part):
    """The steps of `then` run when this is the first case whose `if` is true."""

    if_: str = Field(alias="if")
    then: tuple[str, ...] = Field(min_length=1)


class Switch(Part):
    """Chooses among steps that come later; those it does not choose are skipped."""

    cases: tuple[Case, ...] = Field(min_length=1, max_length=MAX_CASES)
    else_: tuple[str, ...] = Field(default=(), alias="else")

    @property
    def targets(self) -> tuple[str, ...]:
        """Every step that it may choose, once each, in the order in which they are written."""
        named = [name for case in self.cases for name in case.then]
        return tuple(dict.fromkeys([*named, *self.else_]))


class TemplateData(Part):
    """What the ``{{dotted.paths}}`` of a legacy step lead into: the webhook's body unless `step` is given."""

    step: str | None = None
    """An earlier step, whose output it is."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Values for first names that the body does not have."""


class Step(Part):
    """One action with its input, a wait, or a switch. `needs` left out means: after the step before it."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [kind]} for kind in KINDS]})

    id: Annotated[str, StringConstraints(pattern=ID_PATTERN)]
    action: str | None = None
    wait: Wait | None = None
    switch: Switch | None = None
    credential: str | None = None
    if_: str | None = Field(default=None, alias="if")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    for_each: ForEach | None = None
    needs: tuple[str, ...] | None = None
    retry: Retry = Retry()
    timeout: Timeout = timedelta(seconds=30)
    on_error: str = "fail"
    """``fail`` ends the run, ``continue`` goes on as if it had not failed; else the step that deals with it."""
    on_unknown: Literal["retry", "fail", "ask"] = "retry"
    """What follows when its worker died while the effect was tried, so that nobody knows whether it happened."""
    templates: Literal["cel", "legacy"] = "cel"
    """``legacy``: strings hold ``{{dotted.paths}}`` into the webhook's body instead of CEL."""
    template_data: TemplateData | None = None
    """With ``templates: legacy``: where else the paths lead."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(KINDS)}, not {' and '.join(given)}")
        if given and given != ["action"]:
            odd = [name for name in _OF_ACTIONS if name in self.model_fields_set and not self._is_default(name)]
            if odd:
                raise ValueError(f"'{odd[0].rstrip('_')}' goes with an action, not with {given[0]}")
        return self

    def _is_default(self, name: str) -> bool:
        default: object = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(self, name) == default)

    @property
    def retry_policy(self) -> RetryPolicy:
        """The `retry` block as the engine's decision function takes it."""
        return RetryPolicy(self.retry.attempts, self.retry.initial, self.retry.max)

    @property
    def handler(self) -> str | None:
        """The step that deals with a failure of this one."""
        return None if self.on_error in ("fail", "continue") else self.on_error
