"""The hot statements: ``queries.sql`` parsed once into named queries.

A query begins with ``-- name: x`` and one line of why. ``:parameter`` marks a value; a cast is written ``::type`` as
usual. They run on the driver itself, which prepares them on the server after a few executions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files

_HEADER = re.compile(r"^-- name: (\w+)\n-- (.+)\n", re.MULTILINE)
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)\b")


@dataclass(frozen=True, slots=True)
class Query:
    """One named statement, with its parameters in the driver's form, ``%(name)s``."""

    name: str
    why: str
    text: str


def parse(source: str) -> dict[str, Query]:
    """The queries of a file by name; ValueError when two share a name or one has no line of why."""
    heads = list(_HEADER.finditer(source))
    if len(heads) != source.count("-- name:"):
        raise ValueError("every query needs `-- name: x` and, on the next line, `-- why`")
    ends = [head.start() for head in heads[1:]] + [len(source)]
    queries: dict[str, Query] = {}
    for head, end in zip(heads, ends, strict=True):
        name, why = head.groups()
        if name in queries:
            raise ValueError(f"query {name} stands twice")
        body = source[head.end() : end].strip().removesuffix(";").replace("%", "%%")
        queries[name] = Query(name, why, _PARAMETER.sub(r"%(\1)s", body))
    return queries


QUERIES = parse(files(__package__).joinpath("queries.sql").read_text("utf-8"))
