"""Bodies of webhooks: what becomes JSON, what stays text, and what is refused before a parser could fall over it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import BadRequest
from engine.ports import Json
from triggers.bodies import MAX_DEPTH, read_body

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b'{"a": 1}', JSON, {"a": 1}),
        (b'{"a": 1}', "application/vnd.github+json; charset=utf-8", {"a": 1}),
        (b'{"a": 1}', FORM, {"a": 1}),
        (b" \n[1]", "", [1]),
        (b"42", JSON, 42),
        (b"42", "text/plain", "42"),
        (b"", JSON, None),
        (b" \n", "", None),
        (b"a=1&b=2", FORM, "a=1&b=2"),
        (b"[INFO] not JSON", "text/plain", "[INFO] not JSON"),
        (b"{{{{ }}", "", "{{{{ }}"),
        ("grüß".encode(), "text/plain", "grüß"),
        (b"\xff\x00", "image/png", {"encoding": "base64", "data": "/wA="}),
        (b'{"a": "Infinity"}', JSON, {"a": "Infinity"}),
        (b'{"wei": 123456789012345678901234567890}', JSON, {"wei": 123456789012345678901234567890}),
        (b'["[[[[", "\\"[[["]', JSON, ["[[[[", '"[[[']),
    ],
)
def test_a_body_becomes_the_value_that_it_says(body: bytes, content_type: str, value: Json) -> None:
    assert read_body(body, content_type) == value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "content type says JSON"),
        (b'{"a": 1} x', "content type says JSON"),
        (b"\xff", "content type says JSON"),
        (b'"\\ud800"', "content type says JSON"),
        (b"[NaN]", "content type says JSON"),
        (b"[-Infinity]", "content type says JSON"),
        (b"[1e999]", "too large"),
        (b"9" * 5000, "content type says JSON"),
        (nested(MAX_DEPTH + 1), "deeper than 64"),
        (nested(5000), "deeper than 64"),
        (b"[" * 1_000_000, "deeper than 64"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "deeper than 64"),
    ],
)
def test_what_says_that_it_is_json_must_be_json_that_we_can_keep(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        read_body(body, JSON)
    assert caught.value.error_code == "invalid_body"
    assert len(caught.value.detail) < 200


def test_depth_is_refused_whatever_the_content_type() -> None:
    with pytest.raises(BadRequest, match="deeper"):
        read_body(nested(5000), "text/plain")


def test_the_deepest_body_is_taken() -> None:
    assert read_body(nested(MAX_DEPTH), JSON) == json.loads(nested(MAX_DEPTH))


@given(values)
def test_any_json_is_taken_as_it_is(value: Json) -> None:
    assert read_body(json.dumps(value).encode(), JSON) == value


@given(st.binary(max_size=200), st.sampled_from(["", FORM, "text/plain", "application/octet-stream"]))
def test_what_does_not_say_json_is_never_refused_for_its_syntax(body: bytes, content_type: str) -> None:
    json.dumps(read_body(body, content_type))
