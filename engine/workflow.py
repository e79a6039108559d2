"""The workflow document as values: trigger, steps and the graph that they form. Frozen; JSON by pydantic.

These models know one document's shape. What needs to know more (the actions that exist, whether expressions compile)
is in `engine.definition`. A key that is not listed here is refused. Later keys go into `Step` as optional fields with
defaults: `engine.definition.canonical` leaves defaults out, so hashes of stored versions do not change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from engine.durations import LONGEST, Duration
from engine.ports import RetryPolicy

MAX_STEPS = 100
ID_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
_ANY_DATE = datetime(2024, 1, 1)  # noqa: DTZ001 - never compared


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


def _between(shortest: timedelta, longest: timedelta, sentence: str) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if not shortest <= value <= longest:
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


Interval = Annotated[Duration, _between(timedelta(seconds=1), LONGEST, "must be at least 1s")]
Timeout = Annotated[
    Duration, _between(timedelta(milliseconds=1), timedelta(hours=1), "must be more than 0, at most 1h")
]


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


class WebhookTrigger(_Part):
    """A POST to /api/webhooks/{workflow id} starts a run. With a secret, only signed requests do."""

    type: Literal["webhook"]
    secret: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    legacy: bool = False
    """Whether the URL was given out by the multi-user system, whose senders know nothing of signatures."""


class ScheduleTrigger(_Part):
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


class PollTrigger(_Part):
    """Looks at a source `every` so often and starts a run for each new item."""

    type: Literal["poll"]
    source: str
    every: Interval
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    initial: Literal["baseline", "all"] = "baseline"
    """What the first poll does: only remember what is there, or run for each item."""


class ManualTrigger(_Part):
    """Runs are started by the API or the console only."""

    type: Literal["manual"]


Trigger: TypeAlias = Annotated[
    WebhookTrigger | ScheduleTrigger | PollTrigger | ManualTrigger, Field(discriminator="type")
]


class Retry(_Part):
    """`attempts` counts the first one too; waits grow from `initial` to `max`, with jitter."""

    attempts: int = Field(default=1, ge=1, le=20)
    initial: Duration = timedelta(seconds=1)
    max: Duration = timedelta(minutes=1)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max < self.initial:
            raise ValueError("max must not be less than initial")
        return self


class Step(_Part):
    """One action with its input. `needs` left out means: after the step before it."""

    id: Annotated[str, StringConstraints(pattern=ID_PATTERN)]
    action: str
    credential: str | None = None
    if_: str | None = Field(default=None, alias="if")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    needs: tuple[str, ...] | None = None
    retry: Retry = Retry()
    timeout: Timeout = timedelta(seconds=30)
    templates: Literal["cel", "legacy"] = "cel"
    """``legacy``: strings hold ``{{dotted.paths}}`` into the webhook's body instead of CEL."""

    @property
    def retry_policy(self) -> RetryPolicy:
        """The `retry` block as the engine's decision function takes it."""
        return RetryPolicy(self.retry.attempts, self.retry.initial, self.retry.max)


@dataclass(frozen=True, slots=True)
class Graph:
    """Which step waits for which. `needs` has every step, in the document's order."""

    steps: tuple[Step, ...]
    needs: Mapping[str, frozenset[str]]

    def ready(self, finished: Collection[str], *, begun: Collection[str] = ()) -> list[Step]:
        """Steps whose needs are all in `finished` (succeeded or skipped), without those finished or `begun`.

        In the document's order; independent steps come together, to be run in parallel.
        """
        return [
            step
            for step in self.steps
            if step.id not in finished and step.id not in begun and self.needs[step.id].issubset(finished)
        ]

    def before(self, step_id: str) -> set[str]:
        """Ids of all steps that are certain to have finished when this one starts."""
        found: set[str] = set()
        waiting = [step_id]
        while waiting:
            new = self.needs.get(waiting.pop(), frozenset()) - found
            found |= new
            waiting.extend(new)
        return found - {step_id}

    def cycle(self) -> list[str] | None:
        """The ids of one cycle, first again at the end; None when there is none."""
        try:
            TopologicalSorter(self.needs).prepare()
        except CycleError as error:
            return list(reversed(error.args[1]))
        return None

    def plan(self) -> tuple[tuple[str, ...], ...]:
        """The steps in waves: each wave needs only earlier ones. For people; the executor does not wait for waves."""
        sorter = TopologicalSorter(self.needs)
        sorter.prepare()
        waves = []
        while sorter.is_active():
            now = set(sorter.get_ready())
            waves.append(tuple(step.id for step in self.steps if step.id in now))
            sorter.done(*now)
        return tuple(waves)


def graph_of(steps: Sequence[Step]) -> Graph:
    """The graph of `steps`: a step without `needs` comes after the one before it."""
    needs: dict[str, frozenset[str]] = {}
    before: tuple[str, ...] = ()
    for step in steps:
        needs[step.id] = frozenset(before if step.needs is None else step.needs)
        before = (step.id,)
    return Graph(tuple(steps), needs)


class Workflow(_Part):
    """A whole document. Equal documents are equal values."""

    name: Name
    trigger: Trigger
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS)]

    @cached_property
    def graph(self) -> Graph:
        """Who needs whom; computed once."""
        return graph_of(self.steps)

    def plan(self) -> tuple[tuple[str, ...], ...]:
        """Ids of the steps in waves that may run in parallel."""
        return self.graph.plan()
