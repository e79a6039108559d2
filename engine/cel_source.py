"""Reading CEL source without evaluating it: which paths an expression names, and where a ``{{ }}`` template ends.

A tokenizer, not a parser: it knows strings, numbers, names and comments, so braces and names inside a string literal
mislead nobody. Where the source is dynamic (``steps[trigger.body.name]``) it answers with the part that is certain.
Nothing here fails on wrong source; the compiler says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from engine.cel_wire import ITEM_ROOTS, ROOTS
from engine.ports import Json

MAX_INDEX_DIGITS = 18

_TOKEN = re.compile(
    r"""
      (?P<space>  \s+ | //[^\n]* )
    | (?P<string> (?:[rR][bB]?|[bB][rR]) (?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
                | [bB]? (?: \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
                          | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' ) )
    | (?P<number> (?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?) [uU]? )
    | (?P<name>   [A-Za-z_][A-Za-z0-9_]* )
    | (?P<mark>   . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """One word of the source; kind is ``string``, ``number``, ``name`` or ``mark``."""

    kind: str
    text: str


Key: TypeAlias = str | int


@dataclass(frozen=True, slots=True)
class Path:
    """A chain such as ``steps.a.output["b"][0]``: the root, then the keys that are written out."""

    root: str
    keys: tuple[Key, ...]

    def text(self, length: int | None = None) -> str:
        """As one would write it in CEL, the first `length` keys of it."""
        parts = [self.root]
        for key in self.keys[:length]:
            if isinstance(key, int):
                parts.append(f"[{key}]")
            else:
                parts.append(f".{key}" if re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII) else f'["{key}"]')
        return "".join(parts)


def template_end(text: str, start: int) -> int | None:
    """Index of the ``}}`` that closes the template whose expression begins at `start`; None when nothing does."""
    depth = 0
    position = start
    while position < len(text):
        if depth == 0 and text.startswith("}}", position):
            return position
        match = _TOKEN.match(text, position)
        assert match is not None, "the last alternative takes any character"  # noqa: S101
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        position = match.end()
    return None


@lru_cache(maxsize=4096)
def paths(source: str) -> tuple[Path, ...]:
    """Every path from a root that the source names, in order. A method's name (``.size()``) is no key."""
    tokens = _tokens(source)
    return tuple(
        _path(tokens, index)[0]
        for index, token in enumerate(tokens)
        if token.kind == "name" and token.text in ROOTS and not _is_member(tokens, index)
    )


@lru_cache(maxsize=4096)
def only_path(source: str) -> Path | None:
    """The path, if the source is one path and nothing else: its value needs no evaluator."""
    tokens = _tokens(source)
    if not tokens or tokens[0].kind != "name" or tokens[0].text not in ROOTS:
        return None
    path, end = _path(tokens, 0)
    return path if end == len(tokens) else None


def _tokens(source: str) -> list[Token]:
    return [Token(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(source) if match.lastgroup != "space"]


def _is_member(tokens: Sequence[Token], index: int) -> bool:
    """Whether the name at `index` is selected from a value, as in ``a.steps``; ``.steps`` alone is the root again."""
    if index == 0 or tokens[index - 1].text != ".":
        return False
    return index >= 2 and (tokens[index - 2].kind != "mark" or tokens[index - 2].text in ")]}")


def _path(tokens: Sequence[Token], index: int) -> tuple[Path, int]:
    """The path that begins at `index`, and the index of the first token behind it."""
    root = tokens[index].text
    keys: list[Key] = []
    rest = index + 1
    while (step := _key(tokens, rest)) is not None:
        keys.append(step[0])
        rest = step[1]
    return Path(root, tuple(keys)), rest


def _key(tokens: Sequence[Token], at: int) -> tuple[Key, int] | None:
    """The key selected by the tokens from `at` on, and where the next would begin; None when the chain ends there."""
    texts = [token.text for token in tokens[at : at + 3]]
    if len(texts) >= 2 and texts[0] == "." and tokens[at + 1].kind == "name":
        return None if texts[2:] == ["("] else (texts[1], at + 2)
    if len(texts) == 3 and texts[0] == "[" and texts[2] == "]":
        word = tokens[at + 1]
        if word.kind == "number" and is_index(word.text):
            return int(word.text), at + 3
        if word.kind == "string" and word.text[0] in "\"'" and "\\" not in word.text:
            return word.text.strip(word.text[0]), at + 3
    return None


def is_index(text: str) -> bool:
    """Whether it is a number that a list can have a place for; of far more digits Python refuses to read one."""
    return text.isdecimal() and len(text) <= MAX_INDEX_DIGITS


def step_references(source: str) -> set[str]:
    """Ids of the steps that the expression reads, as ``steps.x`` or ``steps["x"]``."""
    return {str(path.keys[0]) for path in paths(source) if path.root == "steps" and path.keys}


def item_root(source: str) -> str | None:
    """``item`` or ``index`` where the expression reads it; a macro's own variable of that name is none."""
    tokens = _tokens(source)
    own = {
        token.text
        for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if before.text == "(" and after.text == ","
    }
    return next((path.root for path in paths(source) if path.root in ITEM_ROOTS and path.root not in own), None)


def needed(sources: Sequence[str], context: Mapping[str, Json]) -> dict[Key, Json]:
    """The part of `context` that the sources can read: whole values at the ends of their paths, nothing beside them."""
    result: dict[Key, Json] = {}
    for keys in _ends(tuple(sources)):
        target: dict[Key, Json] = result
        value: Mapping[Any, Json] = context
        for key, following in zip(keys, (*keys[1:], None), strict=True):
            if key not in value:
                break
            item = value[key]
            if not isinstance(following, str) or not isinstance(item, Mapping):
                target[key] = item
                break
            inner = target.setdefault(key, {})
            if inner is item:  # a shorter path wants all of it
                break
            target, value = inner, item
        result.setdefault(keys[0], {})
    return result


@lru_cache(maxsize=4096)
def _ends(sources: tuple[str, ...]) -> tuple[tuple[Key, ...], ...]:
    """Root and keys of every path, the shortest first, so that whole values come before parts of them."""
    found = {(path.root, *path.keys) for source in sources for path in paths(source)}
    return tuple(sorted(found, key=len))


def at(path: Path, context: Mapping[str, Json]) -> Json:
    """The value at the end of the path. Raises KeyError with a sentence about the place where it ends too early."""
    value: Json = context.get(path.root, {})
    for length, part in enumerate(path.keys, start=1):
        if not _leads_on(value, part):
            raise KeyError(_complaint(path, length, value))
        value = value[part]
    return value


def dead_end(source: str, context: Mapping[str, Json], *, key: str | None = None) -> str | None:
    """A sentence about the first path of the source that leads nowhere in `context`; None if all lead somewhere.

    `key` is what the evaluator missed, where it said so: a path that ends at another key is not the cause.
    """
    for path in paths(source):
        value: Json = context.get(path.root, {})
        for length, part in enumerate(path.keys, start=1):
            if not _leads_on(value, part):
                if key is None or part == key:
                    return _complaint(path, length, value)
                break
            value = value[part]
    return None


def _leads_on(value: Json, part: Key) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def _complaint(path: Path, length: int, value: Json) -> str:
    part, parent = path.keys[length - 1], path.text(length - 1)
    if isinstance(value, Mapping):
        return f"{path.text(length)}: no such key '{part}'"
    if isinstance(value, list) and isinstance(part, int):
        return f"{path.text(length)}: the list has only {len(value)} items"
    return f"{path.text(length)}: {parent} is {kind(value)}, which has no '{part}'"


def kind(value: Json) -> str:
    """What a person calls the type of a JSON value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"
