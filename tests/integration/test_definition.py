"""Documents whose expressions are compiled by the real evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from engine.definition import parse
from engine.errors import InvalidInput
from engine.expressions import Evaluator
from engine.ports import Action, Json, StepContext


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Echo(Action):
    name = "debug.echo"
    summary = "Returns what it is given."
    service = None
    credential_required = False
    has_effects = False
    honours_deadline = True
    input_model = Anything
    output_schema = {}  # noqa: RUF012

    def run(self, context: StepContext, parameters: Anything) -> Json:
        return parameters.model_dump()


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    with Evaluator() as evaluator:
        yield evaluator


def document(**step: Any) -> dict[str, Any]:
    return {"name": "n", "trigger": {"type": "webhook"}, "steps": [{"id": "a", "action": "debug.echo", **step}]}


def test_sound_expressions_pass(evaluator: Evaluator) -> None:
    source = document(**{"if": "trigger.body.n > 1", "with": {"x": "{{ trigger.body.list.map(i, i * 2) }} times"}})
    assert parse(source, actions={"debug.echo": Echo()}, evaluator=evaluator).steps[0].if_ == "trigger.body.n > 1"


@pytest.mark.parametrize(
    ("step", "place", "sentence"),
    [
        ({"if": "trigger.body.n >"}, "/steps/0/if", "column 17"),
        ({"if": "'yes'"}, "/steps/0/if", "a condition must be true or false"),
        ({"if": "n > 1"}, "/steps/0/if", "unknown name or function 'n'"),
        ({"if": "1 == 'a'"}, "/steps/0/if", "no matching overload"),
        ({"if": " "}, "/steps/0/if", "an expression is missing"),
        ({"with": {"x": ["a {{ now() }}"]}}, "/steps/0/with/x/0", "unknown name or function 'now'"),
        ({"with": {"x": "{{ }}"}}, "/steps/0/with/x", "an expression is missing"),
    ],
)
def test_expression_that_does_not_compile_is_a_fault_at_its_place(
    evaluator: Evaluator, step: dict[str, Any], place: str, sentence: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(document(**step), actions={"debug.echo": Echo()}, evaluator=evaluator)
    found = {fault.pointer: fault.message for fault in refused.value.faults}
    assert list(found) == [place]
    assert sentence in found[place]


def test_legacy_templates_are_not_compiled(evaluator: Evaluator) -> None:
    source = document(**{"with": {"text": "{{user.name}} {{"}, "templates": "legacy"})
    assert parse(source, actions={"debug.echo": Echo()}, evaluator=evaluator).steps[0].templates == "legacy"
