"""From the body of a request to a checked workflow, and from its faults to places in that body.

A workflow comes as a document in ``definition``, as YAML that is the whole body, or in the form of the multi-user
system. The checks speak of places in the document; whoever sent something else is told the place in what was sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from api.schemas_workflows import WorkflowBody
from api.services import Services
from engine.definition import Workflow, from_legacy, parse
from engine.document_text import read_document
from engine.errors import Fault, InvalidInput
from engine.ports import Json
from engine.workflows import LegacyForm
from triggers import SOURCES

_ORDER = ("name", "trigger", "steps", "type", "id", "action", "credential", "if", "needs", "with")
_REQUIRED = "this field is required"
_LEGACY_FIELDS = ("name", "trigger_type", "action_type")
_LEGACY_PLACES = (
    ("/name", "/name"),
    ("/trigger", "/trigger_type"),
    ("/steps/0/with", "/config_json"),
    ("/steps/0", "/action_type"),
)
"""Where the older form says what stands at a place of the document that is made of it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A workflow as it was sent. With `whole` the body is the document itself."""

    body: WorkflowBody
    whole: bool = False

    @property
    def legacy(self) -> LegacyForm | None:
        """The older form as it was written; None when a document was sent."""
        if self.body.action_type is None:
            return None
        config = self.body.config_json
        return LegacyForm(self.body.action_type, config if isinstance(config, str) else json.dumps(config or {}))

    def read(self, services: Services) -> Workflow:
        """The checked workflow. Raises InvalidInput; see `faults` for the places."""
        return parse(self._document(services), actions=services.actions, sources=SOURCES, evaluator=services.evaluator)

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Around everything that speaks of the document: its faults name their places in the body."""
        try:
            yield
        except InvalidInput as error:
            place = self._legacy_place if self.body.is_legacy else self._place
            raise InvalidInput(
                [Fault(place(fault.pointer), fault.message) for fault in error.faults], code=error.error_code
            ) from None

    def _document(self, services: Services) -> dict[str, Json]:
        if self.body.is_legacy:
            return self._from_legacy(services)
        if self.body.definition is None:
            raise InvalidInput([Fault("", f"{_REQUIRED}: the workflow's document, an object or YAML text")])
        document = read_document(self.body.definition)
        return document if self.body.name is None else {**document, "name": self.body.name}

    def _from_legacy(self, services: Services) -> dict[str, Json]:
        body = self.body
        if body.definition is not None:
            raise InvalidInput([Fault("/definition", "give it, or trigger_type, action_type and config_json")])
        if body.name is None or body.trigger_type is None or body.action_type is None:
            missing = [field for field in _LEGACY_FIELDS if getattr(body, field) is None]
            raise InvalidInput([Fault(f"/{field}", _REQUIRED) for field in missing])
        return from_legacy(
            body.name, body.trigger_type, body.action_type, body.config_json, actions=services.actions.keys()
        )

    def _place(self, pointer: str) -> str:
        if pointer == "/name" and self.body.name is not None:
            return pointer
        return pointer if self.whole else f"/definition{pointer}"

    @staticmethod
    def _legacy_place(pointer: str) -> str:
        return next((place for start, place in _LEGACY_PLACES if _inside(pointer, start)), pointer)


def shown(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A stored document as people write it: under the name that its workflow has now, keys in the usual order."""
    steps = [_in_order(step) for step in document["steps"]]
    return _in_order({**document, "name": name, "trigger": _in_order(document["trigger"]), "steps": steps})


def _in_order(part: Mapping[str, Any]) -> dict[str, Any]:
    usual = [key for key in _ORDER if key in part]
    return {key: part[key] for key in [*usual, *sorted(part.keys() - usual)]}


def _inside(pointer: str, place: str) -> bool:
    return pointer == place or pointer.startswith(f"{place}/")
