"""From text to plain JSON values: a workflow document written as JSON or YAML, or given as a mapping.

Refuses, each with a Fault and its place, what a hostile or careless writer could send: more than 256 KiB, deep nesting,
duplicate keys, YAML anchors and aliases (a few lines of them expand to gigabytes), tags, and values that JSON lacks.
YAML scalars are read as YAML 1.2 reads them: ``on`` and ``no`` are text, and so is a date.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import yaml

from engine.errors import Fault, InvalidInput
from engine.ports import Json
from engine.templates import pointer

SIZE_LIMIT = 256 * 1024
DEPTH_LIMIT = 32


def read_document(document: str | bytes | Mapping[str, Json]) -> dict[str, Json]:
    """The document as a dict of JSON values. Raises InvalidInput."""
    if isinstance(document, Mapping):
        value: Json = document
    else:
        value = _from_text(document)
    faults = list(_foreign(value, "", 0))
    if faults:
        raise InvalidInput(faults)
    if not isinstance(value, Mapping):
        raise _fault("a workflow is an object with name, trigger and steps")
    if isinstance(document, Mapping) and len(json.dumps(value)) > SIZE_LIMIT:
        raise _fault(f"the document is larger than {SIZE_LIMIT // 1024} KiB")
    return dict(value)


def _fault(message: str) -> InvalidInput:
    return InvalidInput([Fault("", message)])


def _from_text(document: str | bytes) -> Json:
    if len(document) > SIZE_LIMIT:
        raise _fault(f"the document is larger than {SIZE_LIMIT // 1024} KiB")
    try:
        text = document.decode() if isinstance(document, bytes) else document
    except UnicodeDecodeError:
        raise _fault("the document is not UTF-8") from None
    if not text.lstrip().startswith(("{", "[")):
        return _from_yaml(text)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise _fault(_TOO_DEEP) from None
    except ValueError as error:  # perhaps it is YAML in flow style
        try:
            return _from_yaml(text)
        except InvalidInput:
            raise _fault(f"not JSON: {error}") from None


_TOO_DEEP = f"nested deeper than {DEPTH_LIMIT} levels"


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InvalidInput([Fault("", f"the key '{next(k for k in keys if keys.count(k) > 1)}' is given twice")])
    return result


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON value")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML to JSON values only; libyaml where it is there, since it is ten times faster."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' is given twice", key.start_mark)
            seen.add(name)
        result: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return result


# The core schema of YAML 1.2, without octal and hexadecimal.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), "-+0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    "-+.0123456789",
)


def _from_yaml(text: str) -> Json:
    try:
        _scan(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, narrowed further
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _fault(f"not YAML: {place}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise _fault(f"not YAML: {str(error).splitlines()[0]}") from None


def _scan(text: str) -> None:
    """Refuse by its events, before anything is built, what would make the document large, deep or not plain."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = _problem(event, depth)
        if problem:
            raise yaml.MarkedYAMLError(None, None, problem, cast("yaml.Mark", event.start_mark))


def _problem(event: yaml.Event, depth: int) -> str | None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases are not allowed; write it out"
    if getattr(event, "tag", None) not in (None, "!"):
        return "tags are not allowed; write plain values"
    return _TOO_DEEP if depth > DEPTH_LIMIT else None


def _foreign(value: Json, place: str, depth: int) -> list[Fault]:
    """Faults for everything that JSON cannot hold."""
    if depth > DEPTH_LIMIT:
        return [Fault(place, _TOO_DEEP)]
    match value:
        case None | bool() | int():
            return []
        case str():
            return [] if value.isascii() or _is_text(value) else [Fault(place, "the text has half of a character")]
        case float():
            return [] if math.isfinite(value) else [Fault(place, f"{value} is no JSON value")]
        case Mapping():
            bad = [Fault(place, f"the key {key!r} is not text; quote it") for key in value if not isinstance(key, str)]
            return bad + [
                fault
                for key, item in value.items()
                if isinstance(key, str)
                for fault in _foreign(item, pointer(place, key), depth + 1)
            ]
        case list() | tuple():
            return [
                fault for index, item in enumerate(value) for fault in _foreign(item, pointer(place, index), depth + 1)
            ]
    return [Fault(place, f"a value of type {type(value).__name__} is no JSON value")]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
