"""``{{ CEL }}`` inside strings: taking templates apart, putting values in, and the older ``{{dotted.path}}`` form.

Pure text work; the values of CEL expressions come from `engine.expressions`. A template that is not closed raises
ExpressionInvalid with its position. Values that would make a few kilobytes of template into gigabytes, because the
text names a large one very often, raise ExpressionFailed. Every text is read in time that grows with its length only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from engine.cel_source import is_index, template_end
from engine.errors import ExpressionFailed, ExpressionInvalid, Fault
from engine.ports import Json

FILLED_LIMIT = 10 * 1024 * 1024
"""Characters that all values of one `with` may have together, each counted as often as it is named."""


@dataclass(frozen=True, slots=True)
class Template:
    """One ``{{ source }}``; `position` is the index of its first brace in the text."""

    source: str
    position: int


Piece: TypeAlias = str | Template


@lru_cache(maxsize=4096)
def templates(text: str) -> tuple[Piece, ...]:
    """The text as literal strings and templates in turn. ``{{ "{{" }}`` is how to write the braces themselves."""
    pieces: list[Piece] = []
    position = 0
    while (opening := text.find("{{", position)) >= 0:
        closing = template_end(text, opening + 2)
        if closing is None:
            raise ExpressionInvalid([Fault("", f"column {opening + 1}: '{{{{' has no closing '}}}}'")])
        if opening > position:
            pieces.append(text[position:opening])
        pieces.append(Template(text[opening + 2 : closing].strip(), opening))
        position = closing + 2
    if position < len(text):
        pieces.append(text[position:])
    return tuple(pieces)


def pointer(base: str, key: str | int) -> str:
    """`base` extended by one reference token (RFC 6901)."""
    return f"{base}/{str(key).replace('~', '~0').replace('/', '~1')}"


def strings_in(value: Json, base: str = "") -> Iterator[tuple[str, str]]:
    """Each string of a JSON value that may hold templates, with its pointer. Keys are never templates."""
    if isinstance(value, str):
        if "{{" in value:
            yield base, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(item, pointer(base, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from strings_in(item, pointer(base, index))


def expressions_in(template: Json, base: str = "") -> Iterator[tuple[str, str]]:
    """(pointer, CEL source) of each template inside a JSON value, in order."""
    for place, text in strings_in(template, base):
        for piece in templates(text):
            if isinstance(piece, Template):
                yield place, piece.source


def mapped(value: Json, change: Callable[[str], Json]) -> Json:
    """A copy of a JSON value with every string that may hold templates replaced by ``change(string)``."""
    if isinstance(value, str):
        return change(value) if "{{" in value else value
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(item, change) for item in value]
    return value


class Room:
    """How much may still be filled in. One for each `with`."""

    def __init__(self, limit: int = FILLED_LIMIT) -> None:
        self._left = limit

    def text(self, value: Json) -> str:
        """The value `as_text`, counted. Raises ExpressionFailed when there is no room for it."""
        text = as_text(value)
        self._left -= len(text)
        if self._left < 0:
            raise ExpressionFailed(
                f"its values have more than {FILLED_LIMIT:,} characters together; name smaller parts"
            )
        return text


def filled(text: str, values: Mapping[str, Json], room: Room) -> Json:
    """The text with the value of each source in place; alone in its string a value keeps its type."""
    pieces = templates(text)
    if len(pieces) == 1 and isinstance(pieces[0], Template):
        value = values[pieces[0].source]
        room.text(value)
        return value
    return "".join(piece if isinstance(piece, str) else room.text(values[piece.source]) for piece in pieces)


def as_text(value: Json) -> str:
    """A value inside a longer string: strings as they are, null as nothing, everything else as compact JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_LEGACY = re.compile(r"\{\{([^{}]+)\}\}")


def render_legacy(template: Json, body: Json, *, room: Room | None = None) -> Json:
    """Fill ``{{user.name}}`` from `body`, as the multi-user system did: as text; a missing path stays as written."""
    counted = room or Room()

    def fill(match: re.Match[str]) -> str:
        value = body
        for part in match[1].strip().split("."):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and is_index(part) and int(part) < len(value):
                value = value[int(part)]
            else:
                return match[0]
        return counted.text(value)

    return mapped(template, lambda text: _LEGACY.sub(fill, text))


def legacy_data(
    roots: Mapping[str, Json], *, step: str | None = None, defaults: Mapping[str, Json] | None = None
) -> Json:
    """What legacy paths lead into: an earlier step's output, else the webhook's body with `defaults` under it."""
    if step is not None:
        return _within(roots.get("steps"), step, "output")
    body = _within(roots.get("trigger"), "body")
    if not defaults or not (body is None or isinstance(body, Mapping)):
        return body
    return {**defaults, **(body or {})}


def _within(value: Json, *names: str) -> Json:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
