"""Limits on the command line: read with a clear refusal, and shown with their unit and where they come from."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from cli.output import show_items
from engine.errors import InvalidInput
from engine.plans import NAMES, UNLIMITED, Limits, parse_limit, require_limit

Values = dict[str, float | int | None]


def parse(name: str, text: str, *, besides: str = "") -> float | int | None:
    """The value of a limit. What is wrong with it is wrong usage; `besides` says what the command takes as well."""
    try:
        return parse_limit(name, text)
    except InvalidInput as error:
        raise typer.BadParameter(error.detail + besides) from None


def require(name: str) -> None:
    """A name that is none is wrong usage."""
    try:
        require_limit(name)
    except InvalidInput as error:
        raise typer.BadParameter(error.detail, param_hint="LIMIT") from None


def parse_all(words: list[str]) -> Values:
    """``LIMIT VALUE LIMIT VALUE ...``, or ``LIMIT=VALUE ...``."""
    pairs = [part for word in words for part in word.split("=", 1)]
    if len(pairs) % 2:
        raise typer.BadParameter(f"{pairs[-1]} has no value: want LIMIT VALUE, such as max_members 10.")
    return {name: parse(name, text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}


def shown(value: float | int | None) -> str:
    return UNLIMITED[0] if value is None else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


def show(
    limits: Limits, *, overrides: Mapping[str, object] | None = None, used: Mapping[str, int] | None = None
) -> None:
    """Every limit in a line; with `used` what is used of it, with `overrides` whether it is the plan's or its own."""
    columns = {
        "limit": lambda name: name,
        "value": lambda name: shown(getattr(limits, name)),
    }
    if used is not None:
        columns["used"] = lambda name: shown(used[name]) if name in used else "-"
    columns["unit"] = lambda name: Limits.model_fields[name].description
    if overrides is not None:
        columns["from"] = lambda name: "its own" if name in overrides else "plan"
    show_items(NAMES, columns, as_json=False)
