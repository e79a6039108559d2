"""What migrations say before they would lose something."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text


def refuse_if(query: str, sentence: str) -> None:
    """Stop the migration, changing nothing, when `query` returns a row."""
    if op.get_bind().execute(text(f"SELECT EXISTS ({query})")).scalar_one():
        raise RuntimeError(sentence)
