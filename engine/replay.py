"""Replays: a run that has ended, started again from its beginning, from what failed, or from any step.

A replay is a run of its own with `replay_of`. What comes before its starting point is carried over in the transaction
that starts it: stored as finished, with the outputs that it had, so the executor takes it for its own and never runs it
again. A step is carried over only if all that it needs is. Replays have the lowest priority: live runs go first.

Only what is in the way is refused: a run that has not ended, a step that the version does not have, a starting point
that the run never came to. What the replay would repeat to the outside is in its `Plan`, before and after.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from engine.db import Row, TenantSession
from engine.definition import load
from engine.errors import Conflict, Fault, InvalidInput, NotFound
from engine.ports import Action, Json
from engine.repository import replays as stored
from engine.repository import runs as stored_runs
from engine.runs import Runs, Start
from engine.states import RunState, StepState
from engine.step import Step
from engine.workflow import Workflow

PRIORITY = 9
"""The last in the workflow's own flow."""
START, FAILED = "start", "failed"
Version = Literal["original", "latest"]
ABSENT = object()
"""An input that was not given; null is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to replay, and how."""

    run_id: str
    start: str = START
    """``start``, ``failed`` (what has not finished well, and what needs it), or the id of a step."""
    version: Version = "original"
    input: Json | object = ABSENT
    """Instead of what was given to the run: see `edited`."""
    key: str | None = None
    """The same run is replayed once for each key; for a batch, its name."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A step with effects outside that was begun before and is done again; `status` is what became of it."""

    step: str
    action: str
    status: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay keeps and what it repeats. `items` are steps of which the finished items are kept."""

    version: int
    carried_over: tuple[str, ...]
    items: tuple[str, ...]
    repeats: tuple[Repeat, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The replay, and whether its key had made it before."""

    run: Row
    plan: Plan
    existing: bool


class Replays:
    """Starts replays through `runs`; `actions` says which steps have effects outside."""

    def __init__(self, runs: Runs, actions: Mapping[str, Action]) -> None:
        self._runs = runs
        self._actions = actions

    def plan(self, session: TenantSession, wish: Wish) -> Plan:
        """What `start` would do. Raises the same."""
        return self._planned(session, _ended(session, wish.run_id), wish)

    def start(self, session: TenantSession, wish: Wish) -> Replayed:
        """Store the replay with what it keeps, and publish it after commit.

        Raises NotFound; Conflict ``run_not_ended``, ``nothing_failed``, ``step_not_reached``, ``version_unreadable``,
        ``workflow_inactive``; InvalidInput at ``/from`` for a step that the version does not have.
        """
        run = _ended(session, wish.run_id)
        plan = self._planned(session, run, wish)
        started = self._runs.start(
            session,
            Start(
                workflow_id=run["workflow_id"],
                trigger="replay",
                input=run["input"] if wish.input is ABSENT else edited(run["input"], wish.input),
                idempotency_key=None if wish.key is None else stored.key(run["id"], wish.key),
                priority=PRIORITY,
                version=plan.version,
                replay_of=run["id"],
                depth=run["depth"],
            ),
        )
        if not started.existing:
            _carry_over(session, plan, source=run["id"], target=started.run["id"])
        return Replayed(started.run, plan, started.existing)

    def _planned(self, session: TenantSession, run: Row, wish: Wish) -> Plan:
        number = run["version"] if wish.version == "original" else run["newest"]
        before = _workflow(session, run["workflow_id"], run["version"])
        after = before if number == run["version"] else _workflow(session, run["workflow_id"], number)
        rows = stored.steps_of(session, run["id"])
        became = {row["step_id"]: StepState(row["status"]) for row in rows if not row["item"]}
        with_items = {row["step_id"] for row in rows if row["item"] and row["status"] == StepState.SUCCEEDED}
        _check(wish, run, after, number)
        kept = carried_over(before, after, became, start=wish.start)
        if wish.start in after.by_id:
            _check_reached(wish, after.graph.needs[wish.start] - kept)
        goes_on = wish.start == FAILED and wish.input is ABSENT
        items = continued(before, after, kept, with_items) if goes_on else frozenset()
        order = [step.id for step in after.steps]
        return Plan(
            number,
            tuple(name for name in order if name in kept),
            tuple(name for name in order if name in items),
            self._repeats(after, kept, became | dict.fromkeys(with_items - became.keys(), StepState.RUNNING)),
        )

    def _repeats(self, after: Workflow, kept: Collection[str], became: Mapping[str, StepState]) -> tuple[Repeat, ...]:
        """An action that is not known here counts as one with effects."""
        found = []
        for step in after.steps:
            status = became.get(step.id, StepState.SKIPPED)
            if step.id in kept or step.action is None or status is StepState.SKIPPED:
                continue
            action = self._actions.get(step.action)
            if action is None or action.has_effects:
                found.append(Repeat(step.id, step.action, status.value))
        return tuple(found)


def carried_over(before: Workflow, after: Workflow, became: Mapping[str, StepState], *, start: str) -> frozenset[str]:
    """The steps of the version `after` that count as done, by what `became` of them when `before` ran.

    Those that finished well (or failed where that is allowed) and are still the same kind of step, if all that they
    need counts as done, too. Nothing from the start; never the step to start from.
    """
    if start == START:
        return frozenset()
    kept: set[str] = set()
    for step_id in (step_id for wave in after.graph.plan() for step_id in wave):
        step = after.by_id[step_id]
        if step_id != start and after.graph.needs[step_id] <= kept and _is_done(before, step, became.get(step_id)):
            kept.add(step_id)
    return frozenset(kept)


def continued(before: Workflow, after: Workflow, kept: Collection[str], with_items: Collection[str]) -> frozenset[str]:
    """The steps that are done for each item and go on behind their finished ones: nothing about them has changed."""
    return frozenset(
        name
        for name in with_items
        if name not in kept
        and name in after.by_id
        and after.by_id[name].for_each is not None
        and after.by_id[name] == before.by_id.get(name)
        and after.graph.needs[name] <= set(kept)
    )


def _is_done(before: Workflow, step: Step, status: StepState | None) -> bool:
    earlier = before.by_id.get(step.id)
    if earlier is None or not _same_kind(earlier, step):
        return False
    match status:
        case StepState.SUCCEEDED | StepState.SKIPPED:
            return True
        case StepState.FAILED:
            return step.on_error != "fail"
    return False


def _same_kind(one: Step, other: Step) -> bool:
    """Whether the output of one is what the steps behind the other expect."""
    lists = (one.for_each is None) == (other.for_each is None)
    waits = (one.wait is None) == (other.wait is None)
    return one.action == other.action and one.switch == other.switch and lists and waits


def edited(root: Mapping[str, Json], given: Json) -> dict[str, Json]:
    """The root ``trigger`` of a run with another input, in the terms in which people give it.

    For a webhook that is the body, or parts of the request ``{body, headers, query}``; for a poll the item; else what
    ``trigger.input`` is.
    """
    for part, others in (("body", ("headers", "query")), ("item", ("item_id", "source"))):
        if part in root:
            names = {part, *others}
            whole = isinstance(given, Mapping) and part in given and given.keys() <= names
            return {**root, **(given if whole else {part: given})}
    return {**root, "input": given}


def _ended(session: TenantSession, run_id: str) -> Row:
    run = stored.original(session, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}, or no more: runs are kept as long as the plan says.")
    if not RunState(run["status"]).is_terminal:
        raise Conflict(
            f"The run {run_id} is {run['status']}; it can be replayed when it has ended.", code="run_not_ended"
        )
    return run


def _workflow(session: TenantSession, workflow_id: str, version: int) -> Workflow:
    row = stored_runs.workflow_version(session, workflow_id, version)
    if row is None:
        raise Conflict(f"The workflow {workflow_id} has no version that could run.", code="version_unreadable")
    try:
        return load(row["definition"])
    except InvalidInput as error:
        detail = f"Version {version} of {workflow_id} cannot be read any more: {error.detail}"
        raise Conflict(detail, code="version_unreadable") from None


def _check(wish: Wish, run: Row, after: Workflow, version: int) -> None:
    if wish.start == FAILED and run["status"] == RunState.SUCCEEDED:
        raise Conflict(f"The run {run['id']} succeeded; replay it from the start or a step.", code="nothing_failed")
    if wish.start not in (START, FAILED) and wish.start not in after.by_id:
        known = ", ".join(step.id for step in after.steps)
        sentence = f"want start, failed or a step of version {version} ({known}), not {wish.start!r}"
        raise InvalidInput([Fault("/from", sentence)])


def _check_reached(wish: Wish, missing: Collection[str]) -> None:
    if missing and wish.start not in (START, FAILED):
        names = ", ".join(sorted(missing))
        detail = f"The step {wish.start} needs {names}, which the run {wish.run_id} has not finished in this form."
        raise Conflict(detail, code="step_not_reached")


def _carry_over(session: TenantSession, plan: Plan, *, source: str, target: str) -> None:
    whole, items = plan.carried_over, plan.items
    if whole or items:
        stored.carry_over(session, source=source, target=target, whole=whole, items=items)
    kept = f" It keeps what was finished of {', '.join((*whole, *items))}." if whole or items else ""
    stored.note(session, target, f"This replays {source} in version {plan.version}.{kept}")
