"""What a run of a workflow would do, without doing it: conditions and templates are evaluated, actions are not called.

Nothing is stored, decrypted or sent. What an action would answer is not known, so what reads it is not known either;
`would` then shows the text as written and names the steps that it waits for. Only `debug.echo` is known: it answers its
input. Masked is what stands under keys, in URL parameters or behind a scheme of authorization that hold secrets; the
credential of a step is shown by its name.

A dry run is bounded as a whole, in time and in what its texts grow to, because it is walked in the API.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from engine.definition import Step, Workflow
from engine.errors import ExpressionFailed, Fault, InvalidInput
from engine.expressions import Evaluator, Room, expressions_in, legacy_data, render_legacy, step_references
from engine.ports import Action, Json
from engine.states import StepState
from engine.step import ForEach, Switch, TemplateData, Wait
from engine.templates import pointer

MASK = "**********"
ECHO = "debug.echo"

MOST_SECONDS = 10.0
"""That a dry run takes; one at a time is walked, and others wait."""

_SECRET_NAME = r"(?:authorization|cookie|password|passwd|secret|signature|token|api[-_]?key)"  # noqa: S105 - names, no secret
_SECRET_KEY = re.compile(_SECRET_NAME, re.IGNORECASE)
# Bounded, because texts of any length are looked at: from each mark on, a name is searched for so far and no further.
_SECRET_PART = re.compile(
    rf"([?&][^?=&#\s]{{0,100}}?{_SECRET_NAME}[^?=&#\s]{{0,100}}=)[^&#\s\"']++|\b((?:bearer|basic)\s++)[^\s\"']++",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """A walk over the steps of one workflow."""

    workflow: Workflow
    workflow_id: str
    version: int
    actions: Mapping[str, Action]
    credentials: Mapping[str, str]
    """Name to service of those that the organization has."""
    evaluator: Evaluator

    def run(self, trigger: Json) -> list[dict[str, Json]]:
        """``{id, would}`` for each step, in the order in which they would run; `trigger` is what expressions see.

        `would` is ``{action, with, credential, has_effects}``, with ``unknown`` ``[{pointer, needs}]`` where something
        waits for an answer; or ``{skip: reason}``, or ``{fail: reason}``, after which nothing would run unless the
        step's `on_error` says so. A wait is ``{wait}``, a switch ``{chosen}``; a step that is done for each item has
        the number of ``items`` and its `with` for the first of them. Raises InvalidInput when it takes too long.
        """
        walk = _Walk(self._roots(trigger))
        found = []
        for step in self._ordered():
            would = {"skip": f"The step {walk.failed} would have failed."} if walk.failed else self._would(step, walk)
            if "fail" in would and walk.failed is None:
                walk.fail(step, would["fail"])
            found.append({"id": step.id, "would": would})
        return found

    def _ordered(self) -> Iterator[Step]:
        steps = {step.id: step for step in self.workflow.steps}
        return (steps[step_id] for wave in self.workflow.plan() for step_id in wave)

    def _roots(self, trigger: Json) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        return {
            "trigger": trigger,
            "steps": {},
            "run": {"id": "run_dry", "attempt": 1, "queued_at": now},
            "workflow": {"id": self.workflow_id, "name": self.workflow.name, "version": self.version},
        }

    def _would(self, step: Step, walk: _Walk) -> dict[str, Json]:
        walk.check_time()
        unknown: list[dict[str, Json]] = []
        try:
            reason = self._skipped_because(step, walk, unknown)
            if reason is not None:
                walk.note(step.id, StepState.SKIPPED, output=None)
                return {"skip": reason}
            if step.switch is not None:
                return self._choice(step, step.switch, walk, unknown)
            if step.wait is not None:
                return self._waiting(step, step.wait, walk, unknown)
            return self._call(step, walk, unknown)
        except (ExpressionFailed, _WouldFail) as error:
            return {"fail": str(error)}
        except ValidationError as error:
            return {"fail": "; ".join(_sentences(error))}

    def _skipped_because(self, step: Step, walk: _Walk, unknown: list[dict[str, Json]]) -> str | None:
        reason = self.workflow.graph.passed_over(step, walk.settled)
        if reason is not None:
            return f"{reason[:1].upper()}{reason[1:]}."
        met = step.if_ is None or self._condition(step.if_, walk, unknown)
        return None if met else "Its condition is not true."

    def _choice(self, step: Step, switch: Switch, walk: _Walk, unknown: list[dict[str, Json]]) -> dict[str, Json]:
        """What it chooses; everything it may choose when nobody can know yet."""
        chosen = switch.else_
        for number, case in enumerate(switch.cases):
            place = f"/switch/cases/{number}/if"
            if self._condition(case.if_, walk, unknown, place=place):
                chosen = switch.targets if unknown else case.then
                break
        output = {"chosen": list(chosen)}
        walk.note(step.id, StepState.SUCCEEDED, **({} if unknown else {"output": output}), settled=output)
        return {**output, **({"unknown": unknown} if unknown else {})}

    def _waiting(self, step: Step, wait: Wait, walk: _Walk, unknown: list[dict[str, Json]]) -> dict[str, Json]:
        walk.note(step.id, StepState.SUCCEEDED)
        would = wait.model_dump(mode="json", by_alias=True, exclude_none=True)
        if wait.approval is not None and wait.approval.message is not None:
            place = "/wait/approval/message"
            would["approval"]["message"] = masked(self._rendered(wait.approval.message, place, walk, unknown))
        if wait.until is not None:
            would["until"] = self._rendered(f"{{{{ {wait.until} }}}}", "/wait/until", walk, unknown)
        return {"wait": would, **({"unknown": unknown} if unknown else {})}

    def _call(self, step: Step, walk: _Walk, unknown: list[dict[str, Json]]) -> dict[str, Json]:
        action = self.actions.get(str(step.action))
        if action is None:
            raise _WouldFail(f"There is no action {step.action}.")
        if step.for_each is not None:
            return self._for_each(step, step.for_each, action, walk, unknown)
        values = self._with(step, walk, unknown)
        would = self._described(step, action, values, unknown)
        walk.note(step.id, StepState.SUCCEEDED, **({"output": values} if step.action == ECHO and not unknown else {}))
        return would

    def _for_each(
        self, step: Step, for_each: ForEach, action: Action, walk: _Walk, unknown: list[dict[str, Json]]
    ) -> dict[str, Json]:
        items = self._rendered(f"{{{{ {for_each.items} }}}}", "/for_each", walk, unknown)
        walk.note(step.id, StepState.SUCCEEDED)
        if unknown:
            return {**self._described(step, action, step.with_, unknown), "items": None}
        if not isinstance(items, list):
            raise _WouldFail("for_each: want a list.")
        if not items:
            return {**self._described(step, action, {}, unknown, checked=False), "items": 0}
        first = replace(walk, roots=walk.roots | {"item": items[0], "index": 0})
        return {**self._described(step, action, self._with(step, first, unknown), unknown), "items": len(items)}

    def _described(
        self, step: Step, action: Action, values: Json, unknown: list[dict[str, Json]], *, checked: bool = True
    ) -> dict[str, Json]:
        """The call; raises what its credential or its input is refused with."""
        credential = self._credential(step, action)
        if checked and not unknown:
            action.input_model.model_validate(values)
        would = {"action": step.action, "with": masked(values), "credential": credential}
        return {**would, "has_effects": action.has_effects, **({"unknown": unknown} if unknown else {})}

    def _condition(self, source: str, walk: _Walk, unknown: list[dict[str, Json]], *, place: str = "/if") -> bool:
        """Whether the step would run; also when nobody can know yet, which `unknown` then says."""
        walk.check_time()
        try:
            return self.evaluator.condition(source, walk.roots)
        except ExpressionFailed as error:
            needs = walk.unknown_among([source])
            if not needs:
                raise _WouldFail(f"{place.lstrip('/').replace('/', '.')}: {error.detail}") from None
            unknown.append({"pointer": place, "needs": needs})
            return True

    def _with(self, step: Step, walk: _Walk, unknown: list[dict[str, Json]]) -> Json:
        if step.templates == "legacy":
            given = step.template_data or TemplateData()
            data = legacy_data(walk.roots, step=given.step, defaults=given.defaults)
            return render_legacy(step.with_, data, room=walk.room)
        return self._rendered(step.with_, "/with", walk, unknown)

    def _rendered(self, value: Json, place: str, walk: _Walk, unknown: list[dict[str, Json]]) -> Json:
        if isinstance(value, Mapping):
            return {key: self._rendered(item, pointer(place, key), walk, unknown) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._rendered(item, pointer(place, n), walk, unknown) for n, item in enumerate(value)]
        if not isinstance(value, str) or "{{" not in value:
            return value
        walk.check_time()
        try:
            return self.evaluator.render(value, walk.roots, room=walk.room)
        except ExpressionFailed as error:
            needs = walk.unknown_among([source for _, source in expressions_in(value)])
            if not needs:
                raise _WouldFail(f"{place.lstrip('/').replace('/', '.')}: {error.detail}") from None
            unknown.append({"pointer": place, "needs": needs})
            return value

    def _credential(self, step: Step, action: Action) -> str | None:
        """The name of the credential that would be used."""
        if action.service is None or (step.credential is None and not action.credential_required):
            return None
        fitting = [name for name, service in self.credentials.items() if service == action.service]
        if step.credential is not None:
            if step.credential not in fitting:
                raise _WouldFail(f"There is no credential {step.credential!r} for {action.service}.")
            return step.credential
        if len(fitting) != 1:
            number = "no credential" if not fitting else f"{len(fitting)} credentials"
            raise _WouldFail(f"There is {number} for {action.service}, and the step names none.")
        return fitting[0]


class _WouldFail(Exception):
    """The step would fail, for this reason."""


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the order of steps depends on."""

    status: StepState
    output: Json


@dataclass(slots=True)
class _Walk:
    """What is known so far."""

    roots: dict[str, Any]
    unknown: set[str] = field(default_factory=set)
    """Steps that would succeed with an answer that is not known."""
    failed: str | None = None
    settled: dict[str, _Settled] = field(default_factory=dict)
    room: Room = field(default_factory=Room)
    until: float = field(default_factory=lambda: time.monotonic() + MOST_SECONDS)

    def check_time(self) -> None:
        if time.monotonic() > self.until:
            sentence = f"its expressions take more than {MOST_SECONDS:g} s to try; try parts of it"
            raise InvalidInput([Fault("", sentence)])

    def fail(self, step: Step, reason: str) -> None:
        """Nothing runs after this one, unless its failure is dealt with."""
        if step.on_error == "fail":
            self.failed = step.id
            return
        self.note(step.id, StepState.FAILED, output=None, error={"code": "dry_run", "message": reason})

    def note(self, step_id: str, status: StepState, *, settled: Json = None, **known: Json) -> None:
        """What later steps see of this one; without ``output`` its answer is unknown."""
        self.settled[step_id] = _Settled(status, settled)
        self.roots["steps"][step_id] = {"status": status.value, **known}
        if "output" not in known:
            self.unknown.add(step_id)

    def unknown_among(self, sources: Sequence[str]) -> list[Json]:
        """The steps with unknown answers that the expressions read."""
        return sorted({name for source in sources for name in step_references(source)} & self.unknown)


def trigger_of(kind: str, given: Json) -> dict[str, Json]:
    """What expressions would see as ``trigger`` when a run of a workflow with that kind of trigger began with `given`.

    For a webhook `given` is the body, or parts of the request ``{body, headers, query}``; for a poll it is the item. As
    for a run that the API starts, it is ``trigger.input`` too.
    """
    parts: Mapping[str, Json] = {}
    if kind == "webhook":
        request = given if _has_only(given, "body", "headers", "query") else {"body": given}
        parts = {"body": None, "headers": {}, "query": {}, **request}
    elif kind == "poll":
        parts = given if _has_only(given, "item", "item_id", "source") else {"item": given}
    elif kind == "schedule":
        parts = {"scheduled_at": datetime.now(UTC).isoformat()}
    return {"input": {} if given is None else given, **parts}


def _has_only(value: Json, *keys: str) -> bool:
    return isinstance(value, Mapping) and bool(value) and value.keys() <= set(keys)


def masked(value: Json, key: str = "") -> Json:
    """A copy without the texts that are secrets by the look of their place."""
    if isinstance(value, Mapping):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key):
        return MASK
    return _SECRET_PART.sub(lambda match: f"{match[1] or match[2]}{MASK}", value)


def _sentences(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_input=False, include_url=False):
        yield f"with.{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
