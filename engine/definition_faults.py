"""Turning pydantic's errors into faults with JSON pointers and sentences that say what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.errors import Fault
from engine.ports import Json
from engine.templates import pointer
from engine.workflow import (
    Approval,
    Case,
    Concurrency,
    ForEach,
    ManualTrigger,
    OnFailure,
    PollTrigger,
    Retry,
    ScheduleTrigger,
    Step,
    Switch,
    Wait,
    WebhookTrigger,
    Workflow,
)

_TRIGGERS: Mapping[str, type[BaseModel]] = {
    "webhook": WebhookTrigger,
    "schedule": ScheduleTrigger,
    "poll": PollTrigger,
    "manual": ManualTrigger,
}
_PARTS: Mapping[str, type[BaseModel]] = {
    "retry": Retry,
    "wait": Wait,
    "approval": Approval,
    "switch": Switch,
    "cases": Case,
    "for_each": ForEach,
    "concurrency": Concurrency,
    "on_failure": OnFailure,
}
"""The model of what stands under a key of a document."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'action'?`` or the list of what is known when nothing is near."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known are {', '.join(names[:20])}" if names else ""


def faults_of(error: ValidationError, value: Json, base: str, *, model: type[BaseModel] | None = None) -> list[Fault]:
    """A fault for each error of validating `value`, whose place in the document is `base`."""
    return [fault for fault, _, _ in located(error, value, base, model=model)]


def located(
    error: ValidationError, value: Json, base: str, *, model: type[BaseModel] | None = None
) -> list[tuple[Fault, str, str]]:
    """(fault, pointer, pydantic's error type) for each error."""
    found = []
    for item in error.errors(include_url=False, include_input=False):
        place, parents = _place(item["loc"], value, base, missing=item["type"] == "missing")
        found.append((Fault(place, _sentence(item, parents, base, model)), place, item["type"]))
    return found


def _place(loc: tuple[int | str, ...], value: Json, base: str, *, missing: bool) -> tuple[str, list[Json]]:
    """The pointer of an error: those parts of `loc` that are keys of the value, not tags of unions."""
    parents: list[Json] = [value]
    place = base
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if _holds(value, part):
            value = value[part]
        elif not (last and missing):
            continue
        place = pointer(place, part)
        parents.append(value)
    return place, parents


def _holds(value: Json, part: int | str) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _sentence(item: Any, parents: list[Json], base: str, model: type[BaseModel] | None) -> str:
    kind, loc = item["type"], item["loc"]
    if kind == "extra_forbidden":
        owner = parents[-2] if len(parents) > 1 else None
        return f"unknown key '{loc[-1]}'{suggestion(str(loc[-1]), _keys_beside(loc, owner, base, model))}"
    if kind == "missing":
        return f"the key '{loc[-1]}' is missing"
    if kind == "union_tag_not_found":
        return f"the key 'type' is missing; one of {', '.join(_TRIGGERS)}"
    if kind == "union_tag_invalid":
        return f"unknown trigger type{suggestion(str(item['ctx']['tag']), _TRIGGERS)}"
    if kind == "string_pattern_mismatch" and loc[-1:] == ("id",):
        return "an id is a small letter, then small letters, digits and _, at most 64 in all"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be an object"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _keys_beside(loc: tuple[int | str, ...], owner: Json, base: str, model: type[BaseModel] | None) -> list[str]:
    """The keys that would have been right where an unknown one was found."""
    if model is not None:
        owner_model = model if len(loc) == 1 else None
    else:
        names = [part for part in (*base.split("/"), *map(str, loc[:-1])) if part and not part.isdigit()]
        owner_model = _PARTS.get(names[-1]) if names else None
        if owner_model is None and isinstance(owner, Mapping):
            owner_model = _TRIGGERS.get(str(owner.get("type"))) or (Workflow if "steps" in owner else Step)
    if owner_model is None:
        return []
    return [field.alias or name for name, field in owner_model.model_fields.items()]
