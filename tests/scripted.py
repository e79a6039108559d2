"""A real action whose behaviour a test gives, and steps that use it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.ports import Json, StepContext


class AnyInput(BaseModel):
    model_config = ConfigDict(extra="allow")


class Scripted:
    """It counts its calls and keeps their contexts."""

    summary = "Does what the test says."
    service: str | None = None
    credential_required = False
    has_effects = True
    honours_deadline = True
    input_model = AnyInput
    output_schema: dict[str, Json] = {}  # noqa: RUF012

    def __init__(self, name: str, body: Callable[[StepContext, Any], Json]) -> None:
        self.name = name
        self.body = body
        self.contexts: list[StepContext] = []

    def run(self, context: StepContext, parameters: Any) -> Json:
        self.contexts.append(context)
        return self.body(context, parameters)


class WorkerDied(BaseException):
    """Nothing catches it, as nothing outlives a kill."""


def scripted() -> SimpleNamespace:
    """`body` is what the action ``test.script`` does, `action` the action itself."""
    holder = SimpleNamespace(body=lambda _context, _parameters: None)
    holder.action = Scripted("test.script", lambda context, parameters: holder.body(context, parameters))
    return holder


def echo(step_id: str = "one", **keys: Any) -> dict[str, Any]:
    """A step; `if_` and `with_` stand for the words that Python reserves."""
    named = {key.removesuffix("_"): value for key, value in keys.items()}
    return {"id": step_id, "action": "debug.echo", "with": {"at": step_id}, **named}


def call(step_id: str = "one", **keys: Any) -> dict[str, Any]:
    """A step that does what the test says."""
    named = {key.removesuffix("_"): value for key, value in keys.items()}
    return {"id": step_id, "action": "test.script", **named}
