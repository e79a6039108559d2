"""What migrations say before they would lose something."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text


class Refused(RuntimeError):
    """The migration would lose something; the message says what."""


def refuse_if(query: str, sentence: str) -> None:
    """Stop the migration, changing nothing, when `query` returns a row."""
    if op.get_bind().execute(text(f"SELECT EXISTS ({query})")).scalar_one():
        raise Refused(sentence)
