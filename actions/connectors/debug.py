"""`debug.*`: actions for trying out workflows, retries and limits. They touch nothing outside.

`debug.sleep` occupies its worker slot like real work would, and ends early when the run is cancelled.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from actions.base import Connector, Input, Text, object_schema
from engine.errors import RetryLater
from engine.ports import Json, StepContext

MAX_SLEEP_SECONDS = 60.0


class EchoInput(BaseModel):
    """Anything at all."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)


class Echo(Connector):
    name = "debug.echo"
    summary = "Returns what it is given."
    has_effects = False
    input_model = EchoInput
    output_schema = object_schema({})

    def run(self, context: StepContext, parameters: EchoInput) -> Json:  # noqa: ARG002 (the shape of an action)
        return dict(parameters.model_extra or {})


class SleepInput(Input):
    seconds: float = Field(ge=0, le=MAX_SLEEP_SECONDS, description="How long to hold the worker's slot.")


class Sleep(Connector):
    name = "debug.sleep"
    summary = "Holds the worker's slot for some seconds, at most 60."
    has_effects = False
    input_model = SleepInput
    output_schema = object_schema({"slept": {"type": "number", "description": "seconds"}}, required=("slept",))

    def run(self, context: StepContext, parameters: SleepInput) -> Json:
        available = context.remaining()
        context.wait(min(parameters.seconds, available))
        if available < parameters.seconds:
            raise RetryLater("The step's timeout came before the sleep was over.", code="timeout")
        return {"slept": parameters.seconds}


class FailInput(Input):
    message: Text = Field(default="debug.fail failed on purpose", description="What the error says.")
    times: int | None = Field(
        default=None, ge=0, description="How many attempts fail before one succeeds; all without."
    )


class Fail(Connector):
    name = "debug.fail"
    summary = "Fails in a way that may be retried: always, or on the first attempts only."
    has_effects = False
    input_model = FailInput
    output_schema = object_schema({"attempt": {"type": "integer"}}, required=("attempt",))

    def run(self, context: StepContext, parameters: FailInput) -> Json:
        if parameters.times is None or context.attempt <= parameters.times:
            raise RetryLater(parameters.message, code="debug_fail", data={"attempt": context.attempt})
        return {"attempt": context.attempt}
