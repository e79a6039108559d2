"""The body of a webhook as a JSON value.

JSON becomes what it says: when the content type says JSON, or when the body is an object or a list (``curl -d`` says
nothing of JSON). Any other text becomes a string, and what is not UTF-8 ``{"encoding": "base64", "data": ...}``. An
empty body is null. Declared JSON that is none, JSON nested deeper than `MAX_DEPTH`, and numbers that no double and no
integer of 4,300 digits can hold, are a BadRequest ``invalid_body``.
"""

from __future__ import annotations

import base64
import re

from pydantic_core import from_json, to_json

from engine.errors import BadRequest
from engine.ports import Json

MAX_DEPTH = 64

# Possessive, and without need of a closing quote: from every quote on it matches, so the whole text is read once.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_LOOKS_LIKE_JSON = re.compile(rb"\s*[\[{]")


def read_body(body: bytes, content_type: str) -> Json:
    """The value of a request's body; see the module."""
    if not body.strip():
        return None
    declared = _is_json(content_type)
    if declared or _LOOKS_LIKE_JSON.match(body):
        if _too_deep(body):
            raise _invalid(f"it is nested deeper than {MAX_DEPTH} levels")
        try:
            return _parsed(body)
        except ValueError as error:
            if declared:
                raise _invalid(f"the content type says JSON, but {error}") from None
    return _text(body)


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _parsed(body: bytes) -> Json:
    value = from_json(body, allow_inf_nan=False)
    if b"Infinity" in (text := to_json(value)):  # 1e999 is infinite, and no JSON; the word may also stand in a string
        try:
            from_json(text, allow_inf_nan=False)
        except ValueError:
            raise _invalid("it holds a number that is too large") from None
    return value


def _too_deep(body: bytes) -> bool:
    """Counted on the text, because a parser may have no answer for it: each round removes the innermost level."""
    brackets = _STRING.sub(b"", body).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if b"[]" not in brackets:
            return brackets.startswith(b"[" * (MAX_DEPTH + 1))
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _text(body: bytes) -> Json:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"encoding": "base64", "data": base64.b64encode(body).decode()}


def _invalid(reason: str) -> BadRequest:
    return BadRequest(f"The body is not accepted: {reason}.", code="invalid_body")
