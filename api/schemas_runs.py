"""What travels in bodies and answers about runs: starting, reading, waiting, and webhooks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from api.schemas import Answer, Body, Identifier, Moment

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


IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=255, description="the same key again is the same run"),
]


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


class ReplayBody(Body):
    model_config = ConfigDict(populate_by_name=True)

    start: Identifier = Field(
        default="start",
        alias="from",
        description="`start`; `failed`: what has not finished well and what needs it; or the id of a step",
    )
    version: Literal["original", "latest"] = Field(default="original", description="of the workflow")
    input: Any = Field(
        default=None,
        description="another input than the run had: a webhook's body or `{body, headers, query}`, a poll's item, else"
        " `trigger.input`",
    )


class Repeat(Answer):
    step: str
    action: str
    status: str = Field(description="what had become of it: `succeeded`, `failed`, or `running` when nobody knows")


class ReplayedRun(Run):
    carried_over: list[str] = Field(description="the steps that are not run again; their outputs are kept")
    repeats: list[Repeat] = Field(description="steps with effects outside that were begun before and are done again")
    idempotent: bool = Field(description="true when this Idempotency-Key had replayed the run before")


class ResumeBody(Body):
    approved: bool = Field(default=True, description="false refuses, which fails the step that waits")
    data: Any = Field(default=None, description="anything that later steps may read")
    step: Identifier | None = Field(default=None, description="which step; needed when several wait for an answer")
    item: str = Field(default="", max_length=20, description="which item of a step that is done for each")


class Asked(Answer):
    step: str
    item: str | None = None
    reason: str = Field(description="`approval`, or `outcome_unknown` when nobody knows whether a call happened")
    message: str | None = Field(default=None, description="what is to be decided")
    expires_at: Moment | None = None


class Question(Answer):
    run_id: str
    workflow: str = Field(description="its name")
    status: str
    asks: list[Asked] = Field(description="the steps that wait for an answer; none when nothing waits any more")


class Answered(Answer):
    run_id: str
    step: str
    item: str | None = None
    approved: bool
    status: str = Field(description="of the run now")


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
