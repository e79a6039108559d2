"""The workflow document as values: trigger, steps and the graph that they form. Frozen; JSON by pydantic.

These models know one document's shape; steps are in `engine.step`, their order in `engine.graph`. What needs to know
more (the actions that exist, whether expressions compile) is in `engine.definition`. A key that is not listed here is
refused. Later keys are optional, with defaults that the canonical form leaves out, so hashes of versions do not change.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from engine.durations import LONGEST, Duration
from engine.graph import Graph, graph_of
from engine.step import (
    ID_PATTERN,
    Approval,
    Case,
    ForEach,
    Part,
    Retry,
    Step,
    Switch,
    Timeout,
    Wait,
    between,
)

__all__ = [
    "ID_PATTERN",
    "MAX_STEPS",
    "RUN_WORKFLOW",
    "Approval",
    "Case",
    "Concurrency",
    "ForEach",
    "Graph",
    "Interval",
    "ManualTrigger",
    "Name",
    "OnFailure",
    "PollTrigger",
    "Retry",
    "ScheduleTrigger",
    "Step",
    "Switch",
    "Timeout",
    "Trigger",
    "Wait",
    "WebhookTrigger",
    "Workflow",
    "graph_of",
]

MAX_STEPS = 100
RUN_WORKFLOW = "workflow.run"
"""The action that starts a run of another workflow."""
_ANY_DATE = datetime(2024, 1, 1)  # noqa: DTZ001 - never compared


Interval = Annotated[Duration, between(timedelta(seconds=1), LONGEST, "must be at least 1s")]


def _without_nul(name: str) -> str:
    if "\0" in name:
        raise ValueError("a name cannot hold the character NUL")
    return name


Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_without_nul)
]


def _cron(expression: str) -> str:
    if len(expression.split()) != 5:
        raise ValueError("cron has five fields: minute hour day month weekday, such as '0 9 * * MON-FRI'")
    try:
        # Any date does; the constructor refuses what is not cron, and dates that never come.
        CronSim(expression, _ANY_DATE)
    except CronSimError as error:
        raise ValueError(f"{error}; cron is minute hour day month weekday, such as '0 9 * * MON-FRI'") from None
    return expression


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("unknown time zone; write an IANA name such as Europe/Berlin") from None
    return name


class WebhookTrigger(Part):
    """A POST to /api/webhooks/{workflow id} starts a run. With a secret, only signed requests do."""

    type: Literal["webhook"]
    secret: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    legacy: bool = False
    """Whether the URL was given out by the multi-user system, whose senders know nothing of signatures."""


class ScheduleTrigger(Part):
    """Runs at the times of `cron` in `timezone`, or `every` so often."""

    type: Literal["schedule"]
    cron: Annotated[str, AfterValidator(_cron)] | None = None
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    every: Interval | None = None
    missed: Literal["skip", "once", "all"] = "once"
    """What happens with times that passed while nothing ran: none of them, one run, or a run for each up to 10."""
    jitter: Duration | None = None
    """Each start is delayed by a random time up to this."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either cron or every")
        if self.every is not None and self.timezone != "UTC":
            raise ValueError("timezone goes with cron; every needs none")
        return self


class PollTrigger(Part):
    """Looks at a source `every` so often and starts a run for each new item."""

    type: Literal["poll"]
    source: str
    every: Interval
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    initial: Literal["baseline", "all"] = "baseline"
    """What the first poll does: only remember what is there, or run for each item."""


class ManualTrigger(Part):
    """Runs are started by the API or the console only."""

    type: Literal["manual"]


Trigger: TypeAlias = Annotated[
    WebhookTrigger | ScheduleTrigger | PollTrigger | ManualTrigger, Field(discriminator="type")
]


class Concurrency(Part):
    """How many runs of the workflow, with the same key, may be under way at once."""

    key: str | None = None
    """CEL over `trigger` and `workflow`: only runs with the same value count together; all of them without it."""
    limit: int = Field(default=1, ge=1, le=1000)
    on_limit: Literal["queue", "cancel_running", "drop_new"] = "queue"


class OnFailure(Part):
    """The workflow that is started when a run has failed."""

    workflow: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Workflow(Part):
    """A whole document. Equal documents are equal values."""

    name: Name
    trigger: Trigger
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS)]
    timeout: Interval | None = None
    """How long after its beginning a run is ended, waits included."""
    concurrency: Concurrency | None = None
    on_failure: OnFailure | None = None

    @cached_property
    def graph(self) -> Graph:
        """Who needs whom; computed once."""
        return graph_of(self.steps)

    def plan(self) -> tuple[tuple[str, ...], ...]:
        """Ids of the steps in waves that may run in parallel."""
        return self.graph.plan()

    @cached_property
    def asks(self) -> bool:
        """Whether a person may have to answer something before a run goes on."""
        return any((step.wait is not None and step.wait.approval) or step.on_unknown == "ask" for step in self.steps)

    @cached_property
    def has_children(self) -> bool:
        """Whether runs of it may start runs and wait for them."""
        return any(step.action == RUN_WORKFLOW for step in self.steps)

    @cached_property
    def by_id(self) -> dict[str, Step]:
        """The steps by their ids."""
        return {step.id: step for step in self.steps}
