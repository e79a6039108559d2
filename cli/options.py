"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA = Path(".fairlane")
DEFAULT_CONCURRENCY = 8
DEFAULT_PLAN = "free"


Data = Annotated[
    Path,
    typer.Option("--data", envvar="FAIRLANE_DATA_DIR", help="Folder of the embedded servers.", show_default=True),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Worker processes; as many as there are cores by default.")
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Threads of each worker process.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeepUndecryptable = Annotated[
    bool, typer.Option("--keep-undecryptable", help="Go on when the key opens no credential; all arrive broken.")
]
FirstPlan = Annotated[
    str,
    typer.Option(
        "--plan",
        metavar="NAME",
        help="The plan on which the organizations that are made begin.",
    ),
]
TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="Id of the organization.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", metavar="TENANT", help="Only this organization.")]


def group(summary: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=summary, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
