"""How commands speak: data on stdout, what went wrong as one sentence on stderr.

Libraries are imported where they are used: a command that needs neither database nor table should start fast.
"""

from __future__ import annotations

import json
from typing import Any

import typer

from engine.errors import FairlaneError


def fail(sentence: str) -> None:
    """Say what went wrong."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(sentence, markup=False, style="red")


def sentence_for(error: Exception) -> str | None:
    """What to tell a person of an expected failure; None for a bug, which deserves its traceback."""
    if isinstance(error, FairlaneError):
        return error.detail
    import psycopg
    import redis
    import sqlalchemy.exc

    if isinstance(error, (psycopg.OperationalError, sqlalchemy.exc.OperationalError)):
        cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return f"Postgres does not answer at FAIRLANE_DATABASE_URL: {cause}"
    if isinstance(error, redis.ConnectionError):
        return f"Redis does not answer at FAIRLANE_REDIS_URL: {error}"
    return None


def show_json(data: Any) -> None:
    """One JSON document."""
    typer.echo(json.dumps(data, indent=2, default=str))


def show_table(*columns: str, rows: list[tuple[str, ...]]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
