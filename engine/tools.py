"""What the executor works with, put together once per process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.db import Database
from engine.expressions import Evaluator
from engine.ports import Action
from engine.resume_links import ResumeLinks
from engine.runs import Runs
from engine.vault import Vault


@dataclass(frozen=True, slots=True)
class Tools:
    """Shared by all threads of a worker; none of it holds the state of a run."""

    database: Database
    vault: Vault
    actions: Mapping[str, Action]
    evaluator: Evaluator
    runs: Runs
    links: ResumeLinks | None = None
    """Makes `run.resume_url`; without it there is none."""
