"""What a sound shape does not show: unknown actions, wrong inputs, dangling references, cycles, bad expressions.

Each function answers faults, never raises for what a tenant wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from pydantic import BaseModel, ValidationError

from engine.definition_faults import located, suggestion
from engine.errors import ExpressionInvalid, Fault
from engine.expressions import Evaluator, expressions_in, item_root, step_references
from engine.ports import Action, Json, PollSource
from engine.templates import pointer, strings_in
from engine.workflow import Concurrency, Graph, PollTrigger, Step, Trigger, graph_of

Source: TypeAlias = tuple[str, str, Literal["condition", "value"]]
"""Pointer, CEL, and what it is for."""


def check_trigger(trigger: Trigger, sources: Mapping[str, PollSource]) -> list[Fault]:
    """A poll's source must exist and accept its `with`."""
    if not isinstance(trigger, PollTrigger):
        return []
    source = sources.get(trigger.source)
    if source is None:
        return [Fault("/trigger/source", f"unknown source '{trigger.source}'{suggestion(trigger.source, sources)}")]
    return _input_faults(source.input_model, trigger.with_, "/trigger/with", templated=False)


def check_concurrency(concurrency: Concurrency, evaluator: Evaluator | None) -> list[Fault]:
    """The key compiles, and reads what is known before any step."""
    if concurrency.key is None:
        return []
    place = "/concurrency/key"
    if concurrency.key.lstrip().startswith("{{"):
        return [Fault(place, "write the expression without {{ }}")]
    faults = [Fault(place, "no step has run yet; a key reads trigger and workflow")] * bool(
        step_references(concurrency.key)
    )
    return faults + _compiled([(place, concurrency.key, "value")], evaluator)


def check_step(step: Step, place: str, actions: Mapping[str, Action]) -> list[Fault]:
    """The action must exist, take the credential that is named, and accept the literal part of `with`."""
    if step.wait is not None or step.switch is not None:
        return []
    if step.action is None:
        return [Fault(f"{place}/action", "the key 'action' is missing")]
    action = actions.get(step.action)
    if action is None:
        return [Fault(f"{place}/action", f"unknown action '{step.action}'{suggestion(step.action, actions)}")]
    faults = _input_faults(action.input_model, step.with_, f"{place}/with", templated=True)
    if step.credential is not None and action.service is None:
        faults.append(Fault(f"{place}/credential", f"{action.name} takes no credential; leave it out"))
    return faults


def _input_faults(model: type[BaseModel], value: Mapping[str, Json], base: str, *, templated: bool) -> list[Fault]:
    """Faults of an input. A value with templates is unknown until the run, so nothing is said of it."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        unknown = [place for place, _ in strings_in(value, base)] if templated else []
        return [
            fault
            for fault, place, kind in located(error, value, base, model=model)
            if kind in ("extra_forbidden", "missing") or not any(_related(place, other) for other in unknown)
        ]
    return []


def _related(one: str, other: str) -> bool:
    """Whether one of two pointers is inside the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def check_graph(raw: Sequence[Json], steps: Mapping[int, Step]) -> list[Fault]:
    """Ids are unique, `needs` name steps, and nothing waits for itself."""
    known = _ids(raw)
    faults = [
        Fault(f"/steps/{index}/id", f"the id '{step.id}' is used by another step; ids are unique")
        for index, step in steps.items()
        if any(isinstance(item, Mapping) and item.get("id") == step.id for item in raw[:index])
    ]
    for index, step in steps.items():
        faults += [
            Fault(f"/steps/{index}/{place}", f"there is no step '{name}'{suggestion(name, known - {step.id})}")
            for place, name in _named_steps(step)
            if name not in known
        ]
    if not faults and len(steps) == len(raw) and (cycle := _graph(steps).cycle()):
        place = next(index for index, step in steps.items() if step.id == cycle[0])
        faults.append(Fault(f"/steps/{place}/needs", f"these steps wait for each other: {' -> '.join(cycle)}"))
    return faults


def _ids(raw: Sequence[Json]) -> set[str]:
    """Of all steps, those with faults included."""
    ids = [item.get("id") for item in raw if isinstance(item, Mapping)]
    return {name for name in ids if isinstance(name, str)}


def _named_steps(step: Step) -> Iterator[tuple[str, str]]:
    """The other steps that one names, each with its place inside the step."""
    for position, name in enumerate(step.needs or ()):
        yield f"needs/{position}", name
    if step.handler is not None:
        yield "on_error", step.handler
    if step.switch is not None:
        for number, case in enumerate(step.switch.cases):
            for position, name in enumerate(case.then):
                yield f"switch/cases/{number}/then/{position}", name
        for position, name in enumerate(step.switch.else_):
            yield f"switch/else/{position}", name


def _graph(steps: Mapping[int, Step]) -> Graph:
    return graph_of(list(steps.values()))


def check_expressions(raw: Sequence[Json], steps: Mapping[int, Step], evaluator: Evaluator | None) -> list[Fault]:
    """Templates are closed, expressions compile and read only steps that have run by then.

    Of a step whose shape is wrong nobody knows when it runs, so nothing is said of who reads it.
    """
    graph = _graph(steps)
    known = set(graph.needs)
    unsound = _ids(raw) - known
    faults: list[Fault] = []
    sources: list[Source] = []
    for index, step in steps.items():
        earlier = graph.before(step.id)
        for place, source, use in _expressions(step, f"/steps/{index}", faults):
            sources.append((place, source, use))
            faults += [
                Fault(place, _reference_problem(name, step.id, known))
                for name in sorted(step_references(source) - earlier - unsound)
            ]
            if (name := item_root(source)) is not None and not (step.for_each and "/with/" in place):
                faults.append(Fault(place, f"'{name}' is known in the `with` of a step with for_each only"))
    return faults + _compiled(sources, evaluator)


def _compiled(sources: Sequence[Source], evaluator: Evaluator | None) -> list[Fault]:
    if evaluator is not None:
        try:
            evaluator.check(sources)
        except ExpressionInvalid as error:
            return list(error.faults)
    return []


def _reference_problem(name: str, reader: str, known: set[str]) -> str:
    if name not in known:
        return f"there is no step '{name}'{suggestion(name, known - {reader})}"
    if name == reader:
        return f"step '{name}' cannot read its own result"
    return f"step '{name}' does not run before '{reader}'; move it up, or name it in needs"


def _expressions(step: Step, base: str, faults: list[Fault]) -> Iterator[Source]:
    """Each expression of a step with its pointer; templates that do not close become faults."""
    for place, source, use in _bare(step):
        if source.lstrip().startswith("{{"):
            what = "condition" if use == "condition" else "expression"
            faults.append(Fault(f"{base}/{place}", f"write the {what} without {{{{ }}}}"))
        else:
            yield f"{base}/{place}", source, use
    if step.templates == "legacy":
        return
    message = step.wait.approval.message if step.wait is not None and step.wait.approval is not None else None
    templated = [(pointer(base, "with"), step.with_), (f"{base}/wait/approval/message", message)]
    for place, text in [found for where, value in templated for found in strings_in(value, where)]:
        try:
            yield from [(place, source, "value") for _, source in expressions_in(text, place)]
        except ExpressionInvalid as error:
            faults += [Fault(place, fault.message) for fault in error.faults]


def _bare(step: Step) -> Iterator[Source]:
    """The expressions that are written without braces, their place inside the step."""
    if step.if_ is not None:
        yield "if", step.if_, "condition"
    if step.template_data is not None and step.template_data.step is not None:
        yield "template_data/step", f"steps.{step.template_data.step}.output", "value"
    if step.for_each is not None:
        yield "for_each", step.for_each.items, "value"
    if step.wait is not None and step.wait.until is not None:
        yield "wait/until", step.wait.until, "value"
    if step.switch is not None:
        for number, case in enumerate(step.switch.cases):
            yield f"switch/cases/{number}/if", case.if_, "condition"
