"""What travels in bodies and answers about workflows, their versions, and dry runs."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, model_validator

from api.schemas import Answer, Body, Identifier, Line, Moment, ObjectOrText


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
    last_error: str | None = Field(description="why the last of them failed")
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
