"""Tenants' expressions: CEL conditions, CEL values, and ``{{ CEL }}`` templates, evaluated outside the worker.

No CEL library for Python is safe inside a worker (crashes, memory bombs, loops that hold the GIL), so the worker only
reads source text and JSON; the evaluation happens in a small pool of processes with limits that the kernel keeps
(`engine.cel_child`), one round trip for each call. An expression sees the roots `trigger`, `steps`, `run`, `workflow`,
and only what it names of them is sent.

A condition is true only if its value is the boolean true. `check`, when a workflow is saved, raises ExpressionInvalid
for what does not compile; in a run, everything that has no value (a missing path, a wrong type, a limit) raises
ExpressionFailed, naming the path. An expression that loops, crashes or exhausts memory fails alone: the next one is
answered by a fresh process within milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from types import TracebackType
from typing import Literal, Self, TypeAlias

from engine.cel_pool import EvaluatorDied, Pool
from engine.cel_source import Path, at, dead_end, item_root, kind, needed, only_path, step_references
from engine.cel_wire import DEPTH_LIMIT, ROOTS
from engine.errors import ExpressionFailed, ExpressionInvalid, Fault
from engine.ports import Json
from engine.templates import Room, Template, expressions_in, filled, legacy_data, mapped, render_legacy, templates

__all__ = [
    "CONTEXT_LIMIT",
    "ROOTS",
    "SOURCE_LIMIT",
    "Evaluator",
    "Room",
    "Template",
    "expressions_in",
    "item_root",
    "legacy_data",
    "render_legacy",
    "step_references",
    "templates",
]

SOURCE_LIMIT = 2 * 1024
"""Bytes of one expression's source."""
CONTEXT_LIMIT = 256 * 1024
"""Bytes of JSON that the expressions of one call may read."""
CHECKED_TOGETHER = 200
"""Expressions compiled in one round trip: far inside the deadline, at about 0.1 ms each."""

Use: TypeAlias = Literal["condition", "value"]

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Evaluator:
    """Evaluates for any number of threads; one per worker process. `deadline` is CPU time per call.

    Processes start when first needed and end with `close`, or with this process. Safe to create before a fork.
    """

    def __init__(self, *, children: int = 2, deadline: timedelta = timedelta(milliseconds=250)) -> None:
        self._deadline = deadline
        self._pool = Pool(size=children, deadline=deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the evaluator processes; may be called twice."""
        self._pool.close()

    def processes(self) -> list[int]:
        """Pids of the processes that this evaluator keeps, for operators and tests."""
        return self._pool.processes()

    def condition(self, source: str, context: Mapping[str, Json]) -> bool:
        """Whether the expression is the boolean true. Any value that is not a boolean raises ExpressionFailed."""
        (value,) = self._evaluate([source], context)
        if not isinstance(value, bool):
            raise ExpressionFailed(f"{_short(source)}: a condition must be true or false, this is {kind(value)}")
        return value

    def value(self, source: str, context: Mapping[str, Json]) -> Json:
        """The expression's value as JSON: timestamps as RFC 3339, durations as ``90s``, bytes as base64."""
        return self._evaluate([source], context)[0]

    def render(self, template: Json, context: Mapping[str, Json], *, room: Room | None = None) -> Json:
        """`template` with every ``{{ CEL }}`` in its strings replaced, in one round trip; itself when there are none.

        A string that is exactly one template becomes the value with its type; inside a longer string the value becomes
        text: a string as it is, null as nothing, everything else as compact JSON. `room` is shared by calls that belong
        together, and bounds what all values have together.
        """
        try:
            sources = list(dict.fromkeys(source for _, source in expressions_in(template)))
        except ExpressionInvalid as error:
            raise ExpressionFailed(error.detail) from None
        if not sources:
            return template
        values = dict(zip(sources, self._evaluate(sources, context), strict=True))
        counted = room or Room()
        return mapped(template, lambda text: filled(text, values, counted))

    def check(self, sources: Sequence[tuple[str, str, Use]]) -> None:
        """Compile and type-check ``(pointer, source, use)``; raises ExpressionInvalid with a fault for each bad one."""
        faults: list[Fault] = []
        sound: list[tuple[str, str, Use]] = []
        for place, source, use in sources:
            problem = _oversized(source)
            if problem is None:
                sound.append((place, source, use))
            else:
                faults.append(Fault(place, problem))
        remaining = iter(sound)
        while group := list(islice(remaining, CHECKED_TOGETHER)):
            faults += self._check_group(group)
        if faults:
            raise ExpressionInvalid(faults)

    def _check_group(self, group: Sequence[tuple[str, str, Use]]) -> list[Fault]:
        try:
            answers = self._call(_encode(["check", [source for _, source, _ in group]]).encode(errors="replace"))
        except _Exhausted as error:
            if len(group) == 1:
                return [Fault(group[0][0], str(error))]
            # One of them is a bomb. Ask singly, and stop at the first: the rest is told after that one is mended.
            return next((faults for item in group if (faults := self._check_group([item]))), [])
        return [
            Fault(place, problem)
            for (place, source, use), answer in zip(group, answers, strict=True)
            if (problem := _compile_problem(source, use, answer)) is not None
        ]

    def _evaluate(self, sources: Sequence[str], context: Mapping[str, Json]) -> list[Json]:
        """The value of each source, all of them in one round trip; raises for the first that has none.

        A source that is only a path, as most templates are, is read here: that is no evaluation, just a look.
        """
        values: dict[str, Json] = {}
        for source in sources:
            path = only_path(source)
            if path is not None:
                values[source] = _look(path, context)
            elif (problem := _oversized(source)) is not None:
                raise ExpressionFailed(f"{_short(source)}: {problem}")
        if computed := [source for source in sources if source not in values]:
            values |= zip(computed, self._compute(computed, context), strict=True)
        return [values[source] for source in sources]

    def _compute(self, sources: Sequence[str], context: Mapping[str, Json]) -> list[Json]:
        try:
            answers = self._call(_request(sources, context))
        except _Exhausted as error:
            raise ExpressionFailed(f"{_short(sources[0])}: {error}") from None
        return [_result(source, answer, context) for source, answer in zip(sources, answers, strict=True)]

    def _call(self, request: bytes) -> list[Json]:
        """The answers to one request, one for each source. Raises _Exhausted."""
        try:
            answers: list[Json] = json.loads(self._pool.call(request))
        except EvaluatorDied as error:
            limit = self._deadline // timedelta(milliseconds=1)
            sentence = f"the expression took longer than {limit} ms" if error.slow else "the evaluator crashed on it"
            raise _Exhausted(sentence) from None
        if answers == ["memory"]:
            raise _Exhausted("the expression needs too much memory")
        if answers == ["large"]:
            raise _Exhausted("the result is larger than 256 KiB")
        return answers


class _Exhausted(Exception):
    """A call passed a limit of its evaluator; the text is the sentence for the tenant."""


def _look(path: Path, context: Mapping[str, Json]) -> Json:
    try:
        return at(path, context)
    except KeyError as error:
        raise ExpressionFailed(str(error.args[0])) from None


def _result(source: str, answer: Sequence[Json], context: Mapping[str, Json]) -> Json:
    match answer:
        case ["value", value]:
            return value
        case ["invalid", message]:
            raise ExpressionFailed(f"{_short(source)}: {_compiler_message(message)}")
    message = str(answer[1])
    missing = re.search(r'Key not found in map : "(.*)"', message)
    found = dead_end(source, context, key=missing[1] if missing else None) if _about_a_path(message) else None
    raise ExpressionFailed(found or f"{_short(source)}: {_plain(message)}")


def _about_a_path(message: str) -> bool:
    return any(word in message for word in ("Key not found", "Index error", "Applying SELECT", "No value with name"))


def _request(sources: Sequence[str], context: Mapping[str, Json]) -> bytes:
    """The frame for an evaluation, with the part of the context that the sources name, inside its limits."""
    part = needed(sources, context)
    try:
        # A lone surrogate is no UTF-8; JSON text may hold one, Postgres and CEL cannot.
        body = _encode(["eval", sources, part]).encode(errors="replace")
    except (ValueError, TypeError, RecursionError) as error:
        raise ExpressionFailed(f"the data of this run is not JSON: {error}") from None
    if len(body) > CONTEXT_LIMIT + SOURCE_LIMIT * len(sources):
        raise ExpressionFailed(f"the expression reads more than {CONTEXT_LIMIT // 1024} KiB; name smaller parts")
    if body.count(b"{") + body.count(b"[") > DEPTH_LIMIT and _too_deep(part):
        raise ExpressionFailed(f"the data that the expression reads is nested deeper than {DEPTH_LIMIT} levels")
    return body


def _too_deep(value: Json) -> bool:
    level: list[Json] = [value]
    for _ in range(DEPTH_LIMIT + 1):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, Mapping) else container)
            if isinstance(item, Mapping | list | tuple)
        ]
        if not level:
            return False
    return True


def _oversized(source: str) -> str | None:
    if not source.strip():
        return "an expression is missing; write CEL such as trigger.body.amount > 100"
    if len(source) > SOURCE_LIMIT or len(source.encode(errors="replace")) > SOURCE_LIMIT:
        return f"the expression is longer than {SOURCE_LIMIT} bytes; do part of it in an earlier step"
    return None


def _compile_problem(source: str, use: Use, answer: Sequence[Json]) -> str | None:
    match answer:
        case ["type", name]:
            if use == "condition" and name not in ("BOOL", "DYN"):
                return f"a condition must be true or false, '{_short(source)}' is {_named(name)}"
            return None
        case [_, message]:
            return _compiler_message(str(message))
    raise AssertionError(answer)


def _compiler_message(message: str) -> str:
    """The compiler's first complaint with its place: ``column 5: ...``, or ``line 2, column 5: ...``."""
    found = re.search(r"ERROR: <input>:(\d+):(\d+): (.*)", message)
    if not found:
        return _plain(message)
    line, column, text = found.groups()
    place = f"column {column}" if line == "1" else f"line {line}, column {column}"
    text = re.sub(r"(, expecting \{).*|( expecting \{).*", "", text)
    unknown = re.match(r"undeclared reference to '([^'.]+)", text)
    if unknown:
        text = f"unknown name or function '{unknown[1]}'; an expression sees {', '.join(ROOTS)} and CEL's functions"
    return f"{place}: {text[:1].lower()}{text[1:]}"


def _plain(message: str) -> str:
    text = re.sub(r"^[A-Z_]+: ", "", message).split("\n")[0]
    return f"{text[:1].lower()}{text[1:500]}"


def _named(type_name: str) -> str:
    base = type_name.split("<")[0].lower()
    article = "an" if base[:1] in "aeiou" else "a"
    return "null" if base == "null" else f"{article} {base}"


def _short(source: str) -> str:
    return source if len(source) <= 120 else f"{source[:117]}..."
