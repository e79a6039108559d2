"""What a sound shape does not show: unknown actions, wrong inputs, dangling references, cycles, bad expressions.

Each function answers faults, never raises for what a tenant wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ValidationError

from engine.definition_faults import located, suggestion
from engine.errors import ExpressionInvalid, Fault
from engine.expressions import Evaluator, expressions_in, step_references
from engine.ports import Action, Json, PollSource
from engine.templates import pointer, strings_in
from engine.workflow import Graph, PollTrigger, Step, Trigger, graph_of


def check_trigger(trigger: Trigger, sources: Mapping[str, PollSource]) -> list[Fault]:
    """A poll's source must exist and accept its `with`."""
    if not isinstance(trigger, PollTrigger):
        return []
    source = sources.get(trigger.source)
    if source is None:
        return [Fault("/trigger/source", f"unknown source '{trigger.source}'{suggestion(trigger.source, sources)}")]
    return _input_faults(source.input_model, trigger.with_, "/trigger/with", templated=False)


def check_step(step: Step, place: str, actions: Mapping[str, Action]) -> list[Fault]:
    """The action must exist, take the credential that is named, and accept the literal part of `with`."""
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
    ids = [item.get("id") for item in raw if isinstance(item, Mapping)]
    known = {name for name in ids if isinstance(name, str)}
    faults = [
        Fault(f"/steps/{index}/id", f"the id '{step.id}' is used by another step; ids are unique")
        for index, step in steps.items()
        if any(isinstance(item, Mapping) and item.get("id") == step.id for item in raw[:index])
    ]
    for index, step in steps.items():
        faults += [
            Fault(f"/steps/{index}/needs/{position}", f"there is no step '{name}'{suggestion(name, known - {step.id})}")
            for position, name in enumerate(step.needs or ())
            if name not in known
        ]
    if not faults and len(steps) == len(raw) and (cycle := _graph(steps).cycle()):
        place = next(index for index, step in steps.items() if step.id == cycle[0])
        faults.append(Fault(f"/steps/{place}/needs", f"these steps wait for each other: {' -> '.join(cycle)}"))
    return faults


def _graph(steps: Mapping[int, Step]) -> Graph:
    return graph_of(list(steps.values()))


def check_expressions(steps: Mapping[int, Step], evaluator: Evaluator | None) -> list[Fault]:
    """Templates are closed, expressions compile and read only steps that have run by then."""
    graph = _graph(steps)
    known = set(graph.needs)
    faults: list[Fault] = []
    sources: list[tuple[str, str, Literal["condition", "value"]]] = []
    for index, step in steps.items():
        earlier = graph.before(step.id)
        for place, source, use in _expressions(step, f"/steps/{index}", faults):
            sources.append((place, source, use))
            faults += [
                Fault(place, _reference_problem(name, step.id, known))
                for name in sorted(step_references(source) - earlier)
            ]
    if evaluator is not None:
        try:
            evaluator.check(sources)
        except ExpressionInvalid as error:
            faults += error.faults
    return faults


def _reference_problem(name: str, reader: str, known: set[str]) -> str:
    if name not in known:
        return f"there is no step '{name}'{suggestion(name, known - {reader})}"
    if name == reader:
        return f"step '{name}' cannot read its own result"
    return f"step '{name}' does not run before '{reader}'; move it up, or name it in needs"


def _expressions(
    step: Step, base: str, faults: list[Fault]
) -> Iterator[tuple[str, str, Literal["condition", "value"]]]:
    """Each expression of a step with its pointer; templates that do not close become faults."""
    if step.if_ is not None:
        if step.if_.lstrip().startswith("{{"):
            faults.append(Fault(f"{base}/if", "write the condition without {{ }}"))
        else:
            yield f"{base}/if", step.if_, "condition"
    if step.templates == "legacy":
        return
    for place, text in strings_in(step.with_, pointer(base, "with")):
        try:
            found = list(expressions_in(text, place))
        except ExpressionInvalid as error:
            faults += [Fault(place, fault.message) for fault in error.faults]
            continue
        for _, source in found:
            yield place, source, "value"
