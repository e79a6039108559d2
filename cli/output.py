"""How commands speak: data on stdout, what went wrong as one sentence on stderr.

A list is written as it is read, so a long one costs no memory: for people in columns whose width the first rows decide
(later ones may stick out), with `--json` as an array. Libraries are imported where they are used: a command that needs
neither database nor table should start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, TypeVar

import pydantic_core
import typer

from engine.errors import FairlaneError, InvalidInput

MEASURED = 200
"""Rows whose cells decide how wide the columns are."""

T = TypeVar("T")

START_IT = "Start it, or correct the URL; without the variable `fairlane up` runs a server of its own."


def fail(sentence: str) -> None:
    """Say what went wrong."""
    _say(sentence, "red")


def warn(sentence: str) -> None:
    """Say what did not go as it should, although the command did its work."""
    _say(sentence, "yellow")


def _say(sentence: str, style: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(sentence, markup=False, style=style)


def plain(error: FairlaneError) -> str:
    """Its sentence, without the JSON pointers of single fields, which say nothing to whoever types options."""
    if isinstance(error, InvalidInput) and error.detail == "; ".join(map(str, error.faults)):
        return "; ".join(str(f) if f.pointer.count("/") > 1 else f.message for f in error.faults)
    return error.detail


def sentence_for(error: Exception) -> str | None:
    """What to tell a person of an expected failure; None for a bug, which deserves its traceback."""
    if isinstance(error, FairlaneError):
        return plain(error)
    import psycopg
    import redis
    import sqlalchemy.exc

    if isinstance(error, (psycopg.OperationalError, sqlalchemy.exc.OperationalError)):
        cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return f"Postgres does not answer at FAIRLANE_DATABASE_URL: {cause}. {START_IT}"
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        return f"Redis does not answer at FAIRLANE_REDIS_URL: {str(error).rstrip('.')}. {START_IT}"
    return None


def show_json(data: Any) -> None:
    """One JSON document; times in RFC 3339."""
    typer.echo(_json(data))


def show_items(
    items: Iterable[T], columns: Mapping[str, Callable[[T], object]], *, as_json: bool, none: str = "There are none."
) -> None:
    """A list: with `as_json` the items whole, else a cell for each of `columns`, or the sentence `none`."""
    if as_json:
        _show_array(items)
        return
    rows = ([cell(column(item)) for column in columns.values()] for item in items)
    measured = list(islice(rows, MEASURED))
    if not measured:
        typer.echo(none)
        return
    titles = list(columns)
    widths = [max(map(len, cells)) for cells in zip(titles, *measured, strict=True)]
    typer.secho(_line(titles, widths), bold=True)
    for row in chain(measured, rows):
        typer.echo(_line(row, widths))


def show_record(fields: Mapping[str, object]) -> None:
    """One thing for people: a line for each field."""
    width = max(map(len, fields))
    for name, value in fields.items():
        typer.echo(f"{name:<{width}}  {cell(value)}")


def cell(value: object) -> str:
    """A value for people; times in UTC, numbers with separators."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        case float():
            return f"{value:,.6g}"
        case int():
            return f"{value:,}"
        case str():
            return value.replace("\n", " ")
    return pydantic_core.to_json(value).decode()


def _show_array(items: Iterable[Any]) -> None:
    before = "["
    for item in items:
        indented = _json(item).replace("\n", "\n  ")
        typer.echo(f"{before}\n  {indented}", nl=False)
        before = ","
    typer.echo("[]" if before == "[" else "\n]")


def _json(data: Any) -> str:
    return pydantic_core.to_json(data, indent=2).decode()


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
