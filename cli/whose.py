"""Whose run it is, where a command was given its id alone."""

from __future__ import annotations

from cli.installation import Installation
from engine.errors import NotFound
from engine.repository import operator


def tenant_of(here: Installation, run_id: str) -> str:
    """The organization of the run. Raises NotFound."""
    with here.database.system() as session:
        tenant_id = operator.tenant_of_run(session, run_id)
    if tenant_id is None:
        raise no_run(run_id)
    return tenant_id


def no_run(run_id: str) -> NotFound:
    return NotFound(f"There is no run {run_id!r}.")
