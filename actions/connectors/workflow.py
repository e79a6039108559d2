"""`workflow.run`: start a run of another workflow of the same organization and wait for its end, without a worker."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from actions.base import Connector, Input, object_schema
from engine.errors import RunWorkflow
from engine.ports import Json, StepContext


class RunInput(Input):
    workflow: str = Field(min_length=1, max_length=200, description="The id of the workflow; its current version runs.")
    input: Any = Field(default=None, description="What its steps see as trigger.input.")


class Run(Connector):
    name = "workflow.run"
    summary = "Runs another workflow and waits for its end."
    input_model = RunInput
    output_schema = object_schema(
        {"run_id": {"type": "string"}, "output": {"description": "the output of that run"}},
        required=("run_id", "output"),
    )

    def run(self, context: StepContext, parameters: RunInput) -> Json:  # noqa: ARG002 (the shape of an action)
        raise RunWorkflow(parameters.workflow, parameters.input)
