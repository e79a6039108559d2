"""The workflow document: reading it, checking it against what exists, and its canonical form.

`parse` takes what a person wrote and answers a `Workflow` or InvalidInput with every fault, each a JSON pointer and
what would be right. `load` takes what `canonical` made and was stored, and checks shape only: it is on the worker's hot
path. Nothing here touches a database; the actions and poll sources that exist are handed in.

Steps run in order; `needs: [ids]` makes a step wait for exactly those, `needs: []` for none. A step whose `if` is not
true is skipped, and what needs it still runs; when a step fails, no further step starts and the run fails, unless its
`on_error` says otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from engine.definition_checks import check_concurrency, check_expressions, check_graph, check_step, check_trigger
from engine.definition_faults import faults_of, suggestion
from engine.document_text import read_document
from engine.errors import Fault, InvalidInput, WrittenByNewer
from engine.expressions import Evaluator
from engine.legacy_form import from_legacy
from engine.ports import Action, Json, PollSource
from engine.templates import pointer
from engine.workflow import (
    MAX_STEPS,
    Concurrency,
    Graph,
    Interval,
    ManualTrigger,
    Name,
    OnFailure,
    PollTrigger,
    Retry,
    ScheduleTrigger,
    Step,
    Trigger,
    WebhookTrigger,
    Workflow,
)

__all__ = [
    "Graph",
    "ManualTrigger",
    "PollTrigger",
    "Retry",
    "ScheduleTrigger",
    "Step",
    "Trigger",
    "WebhookTrigger",
    "Workflow",
    "canonical",
    "from_legacy",
    "json_schema",
    "load",
    "parse",
    "version_hash",
]

T = TypeVar("T")

_TRIGGER: TypeAdapter[Trigger] = TypeAdapter(Trigger)
_CONCURRENCY = TypeAdapter(Concurrency | None)
_PLAIN: Mapping[str, TypeAdapter[Any]] = {
    "name": TypeAdapter(Name),
    "timeout": TypeAdapter(Interval | None),
    "on_failure": TypeAdapter(OnFailure | None),
}
"""Keys of which the shape is all that there is to check."""
FORMAT = 1
"""Of stored documents. Whoever changes them so that an older worker could not read them raises it, and writes it into
them as ``format``: such a worker then leaves their runs to a newer one. Documents without it have the format 1."""
_REQUIRED = ("name", "trigger", "steps")
_KEYS = (*_REQUIRED, "timeout", "concurrency", "on_failure")
_NO_SOURCES: Mapping[str, PollSource] = MappingProxyType({})


def parse(
    document: str | bytes | Mapping[str, Json],
    *,
    actions: Mapping[str, Action],
    sources: Mapping[str, PollSource] = _NO_SOURCES,
    evaluator: Evaluator | None = None,
) -> Workflow:
    """The workflow that a JSON text, YAML text or mapping describes, checked in full. Raises InvalidInput.

    Without an `evaluator` expressions are only searched for the steps that they name, not compiled.
    """
    raw = read_document(document)
    faults = [
        Fault(pointer("", key), f"unknown key '{key}'{suggestion(key, _KEYS)}") for key in raw if key not in _KEYS
    ]
    faults += [Fault(pointer("", key), f"the key '{key}' is missing") for key in _REQUIRED if key not in raw]
    for key in (key for key in _PLAIN if key in raw):
        _shape(_PLAIN[key], raw[key], f"/{key}", faults)
    if concurrency := _shape(_CONCURRENCY, raw.get("concurrency"), "/concurrency", faults):
        faults += check_concurrency(concurrency, evaluator)
    trigger = _shape(_TRIGGER, raw["trigger"], "/trigger", faults) if "trigger" in raw else None
    if trigger is not None:
        faults += check_trigger(trigger, sources)
    if "steps" in raw:
        faults += _steps_faults(raw["steps"], actions, evaluator)
    if faults:
        raise InvalidInput(faults)
    return Workflow.model_validate(raw)


def _shape(adapter: TypeAdapter[T], value: Json, base: str, faults: list[Fault]) -> T | None:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        faults += faults_of(error, value, base)
        return None


_STEP: TypeAdapter[Step] = TypeAdapter(Step)


def _steps_faults(raw: Json, actions: Mapping[str, Action], evaluator: Evaluator | None) -> list[Fault]:
    """Faults of each step by itself, then of those that are sound together."""
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_STEPS:
        return [Fault("/steps", f"steps is a list of 1 to {MAX_STEPS} steps")]
    faults: list[Fault] = []
    steps: dict[int, Step] = {}
    for index, item in enumerate(raw):
        step = _shape(_STEP, item, f"/steps/{index}", faults)
        if step is not None:
            steps[index] = step
            faults += check_step(step, f"/steps/{index}", actions)
    faults += check_graph(raw, steps)
    return faults + check_expressions(raw, steps, evaluator)


def load(stored: Mapping[str, Json]) -> Workflow:
    """A document that was checked when it was saved.

    Raises WrittenByNewer for one of a later FORMAT, and InvalidInput for one whose shape is not ours all the same.
    """
    written = stored.get("format", FORMAT)
    if isinstance(written, int) and written > FORMAT:
        raise WrittenByNewer(f"The workflow has the format {written}, and this Fairlane reads up to {FORMAT}.")
    stored = {key: value for key, value in stored.items() if key != "format"}
    try:
        return Workflow.model_validate(stored)
    except ValidationError as error:
        raise InvalidInput(faults_of(error, stored, "")) from None


def canonical(workflow: Workflow) -> dict[str, Json]:
    """The document as it is stored: JSON values, defaults left out. ``parse(canonical(w)) == w``."""
    return workflow.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def version_hash(workflow: Workflow) -> str:
    """SHA-256 in hex over the canonical JSON: equal for documents that mean the same."""
    text = json.dumps(canonical(workflow), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def json_schema() -> dict[str, Json]:
    """JSON Schema (2020-12) of the document, for editors and the API's documentation."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Fairlane workflow",
        **{key: value for key, value in Workflow.model_json_schema().items() if key != "title"},
    }
