"""Reading expressions and templates without evaluating them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cel_source import Path, dead_end, needed, only_path, paths
from engine.errors import ExpressionFailed, ExpressionInvalid
from engine.expressions import Template, expressions_in, render_legacy, step_references, templates
from engine.templates import FILLED_LIMIT, Room, filled


def sources(text: str) -> list[str]:
    return [piece.source for piece in templates(text) if isinstance(piece, Template)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", []),
        ("{{ a }}", ["a"]),
        ("x {{ a }} y {{ b }}", ["a", "b"]),
        ("{{ {'a': {'b': 1}} }}", ["{'a': {'b': 1}}"]),
        ("{{ {'a': {'b': 1}}}}", ["{'a': {'b': 1}}"]),
        ("{{ '}}' + \"}}\" }}", ["'}}' + \"}}\""]),
        ("{{ 'it\\'s }}' }}", ["'it\\'s }}'"]),
        ("{{ r'\\' }}", ["r'\\'"]),
        ("{{ '''}}''' }}", ["'''}}'''"]),
        ("{{ a // not }} yet\n }}", ["a // not }} yet"]),
        ("}} {{a}} }", ["a"]),
        ("{{}}", [""]),
    ],
)
def test_templates_end_where_their_expression_ends(text: str, expected: list[str]) -> None:
    assert sources(text) == expected


def test_template_that_is_not_closed_is_named_by_its_column() -> None:
    with pytest.raises(ExpressionInvalid, match="column 5"):
        templates("abc {{ x")


@given(st.text(alphabet="{}'\"\\/r \nab.1"))
def test_templates_keep_every_character_of_any_text(text: str) -> None:
    try:
        pieces = templates(text)
    except ExpressionInvalid:
        return
    literals = [piece for piece in pieces if isinstance(piece, str)]
    assert all(piece in text for piece in literals)
    assert all(text.startswith("{{", piece.position) for piece in pieces if isinstance(piece, Template))
    if len(literals) == len(pieces):
        assert "".join(literals) == text


def test_expressions_are_found_with_pointers_and_keys_are_escaped() -> None:
    template = {"a/b": ["{{ x }}", {"c~": "{{ y }} {{ z }}"}], "n": 1}
    assert list(expressions_in(template, "/with")) == [
        ("/with/a~1b/0", "x"),
        ("/with/a~1b/1/c~0", "y"),
        ("/with/a~1b/1/c~0", "z"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [("s", "<s>"), (None, "<>"), (True, "<true>"), (1.5, "<1.5>"), ([1, "é"], '<[1,"é"]>'), ({"a": 1}, '<{"a":1}>')],
)
def test_value_inside_a_longer_string_becomes_text(value: Any, text: str) -> None:
    assert filled("<{{ v }}>", {"v": value}, Room()) == text


@pytest.mark.parametrize("value", ["s", None, True, 1.5, [1], {"a": 1}])
def test_string_that_is_one_template_keeps_the_type(value: Any) -> None:
    assert filled("{{ v }}", {"v": value}, Room()) == value


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("steps.a.output > 1", {"a"}),
        ("steps['a'].x + steps[\"b\"].y", {"a", "b"}),
        ("'steps.a' + r\"steps.b\"", set()),
        ("trigger.steps.a", set()),
        ("f(x).steps.a", set()),
        (".steps.a", {"a"}),
        ("steps // steps.b\n.a", {"a"}),
        ("steps[trigger.name]", set()),
        ("steps.exists(s, s == 'a')", set()),
        ("has(steps.a.output.x)", {"a"}),
    ],
)
def test_step_references_ignore_string_literals_and_members(source: str, expected: set[str]) -> None:
    assert step_references(source) == expected


def test_paths_end_where_the_source_becomes_dynamic() -> None:
    assert paths("steps.a.list[0].x[i].y") == (Path("steps", ("a", "list", 0, "x")),)
    assert Path("steps", ("a b", 0, "c")).text() == 'steps["a b"][0].c'


def test_only_what_the_expressions_name_is_sent() -> None:
    context = {"trigger": {"body": {"n": 1, "big": 2}, "headers": 2}, "steps": {"a": [1], "b": 2}, "run": {"id": 3}}
    original = copy.deepcopy(context)
    assert needed(["trigger.body.n > steps.a[0]"], context) == {"trigger": {"body": {"n": 1}}, "steps": {"a": [1]}}
    assert needed(["trigger.body.n", "size(trigger.body)"], context) == {"trigger": {"body": {"n": 1, "big": 2}}}
    assert needed(["steps.a", "size(steps)"], context) == {"steps": {"a": [1], "b": 2}}
    assert needed(["steps[x]", "steps.a"], context) == {"steps": {"a": [1], "b": 2}}
    assert needed(["trigger.body[0].n"], context) == {"trigger": {"body": {"n": 1, "big": 2}}}
    assert needed(["workflow.name", "trigger.body.nope.x"], context) == {"workflow": {}, "trigger": {"body": {}}}
    assert context == original


@pytest.mark.parametrize(
    ("source", "path"),
    [
        (" steps.a['b'][0] ", Path("steps", ("a", "b", 0))),
        ("trigger", Path("trigger", ())),
        ("steps.a + 1", None),
        ("steps.a.size()", None),
        ("steps[x]", None),
        ("other.a", None),
        ("(steps.a)", None),
        ("", None),
    ],
)
def test_source_that_is_only_a_path_is_known(source: str, path: Path | None) -> None:
    assert only_path(source) == path


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("steps.a.output.temp", "steps.a.output.temp: no such key 'temp'"),
        ("steps.b.output", "steps.b: no such key 'b'"),
        ("steps.a.output.n.x", "steps.a.output.n.x: steps.a.output.n is a number, which has no 'x'"),
        ("steps.a.output.l[3]", "steps.a.output.l[3]: the list has only 2 items"),
        ("steps.a.output.n", None),
    ],
)
def test_dead_end_is_named_by_its_full_path(source: str, sentence: str | None) -> None:
    context = {"steps": {"a": {"output": {"n": 1, "l": [1, 2]}}}}
    assert dead_end(source, context) == sentence


def test_legacy_templates_read_the_body_and_leave_missing_paths_as_written() -> None:
    body = {"user": {"name": "Ann", "tags": ["x"]}, "n": 3, "none": None}
    template = {"text": "{{user.name}} {{ n }} {{user.tags.0}} {{nope}} {{user.nope.x}} [{{none}}]", "k": 1}
    assert render_legacy(template, body) == {"text": "Ann 3 x {{nope}} {{user.nope.x}} []", "k": 1}
    assert render_legacy("{{a}}", None) == "{{a}}"
    assert render_legacy("{{n}}", body) == "3"
    assert render_legacy("{{ a b }}|{{ }}|{{}}", {"a b": 1}) == "1|{{ }}|{{}}"


def test_a_legacy_template_that_never_closes_costs_no_more_than_its_length() -> None:
    """Sixty thousand blanks took an older expression an hour, in which no other thread of the process ran."""
    text = "{{" + " " * 60_000
    assert render_legacy(text, {}) == text


def test_an_index_of_thousands_of_digits_is_no_index() -> None:
    digits = "9" * 5000
    assert render_legacy(f"{{{{a.{digits}}}}}", {"a": [1]}) == f"{{{{a.{digits}}}}}"
    assert paths(f"steps[{digits}]") == (Path("steps", ()),)


def test_values_are_filled_in_up_to_a_limit_however_often_they_are_named() -> None:
    value = "x" * (FILLED_LIMIT // 10)
    assert len(str(filled("{{ v }}" * 10, {"v": value}, Room()))) == FILLED_LIMIT
    assert render_legacy(["{{v}}"] * 10, {"v": value}) == [value] * 10
    with pytest.raises(ExpressionFailed, match="name smaller parts"):
        filled("{{ v }}" * 11, {"v": value}, Room())
    with pytest.raises(ExpressionFailed, match="name smaller parts"):
        render_legacy(["{{v}}"] * 11, {"v": value})
