"""``fairlane import-legacy``: a SQLite file of the multi-user system into a database without users.

It is all or nothing, and a second import is refused. The report is printed, and written whole to ``--report`` as JSON,
also when the sums do not add up; then nothing was changed, and the exit code is 1. It holds no secret.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pydantic_core
import typer

from cli import adoption, commands
from cli.options import DEFAULT_DATA, DEFAULT_PLAN, AsJson, Data, FirstPlan, KeepUndecryptable
from cli.output import fail, show_json
from embedded import ensure
from engine.errors import BadRequest
from engine.settings import Settings

if TYPE_CHECKING:
    from migrations.legacy.importing import Imported

STDOUT = Path("-")


def import_legacy(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The old SQLite file.")],
    encryption_key: Annotated[
        str, typer.Option("--encryption-key", help="The old ENCRYPTION_KEY, in base64.", show_envvar=False)
    ],
    keep_undecryptable: KeepUndecryptable = False,
    plan: FirstPlan = DEFAULT_PLAN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all but keep it: report, and change nothing.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", dir_okay=False, allow_dash=True, help="Write the report there, as JSON."
        ),
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Import the database of the multi-user system, all or nothing, and report every row."""
    try:
        key = adoption.read_key(encryption_key)
    except BadRequest as error:
        raise typer.BadParameter(error.detail, param_hint="--encryption-key") from None
    if report == STDOUT:
        report, as_json = None, True
    if report is not None:
        _require_writable(report, file)
    with (
        ensure(data) if commands.given_database_url() is None else nullcontext(),
        adoption.plan_is_an_option(),
        adoption.stages() as progress,
    ):
        from migrations.legacy.importing import import_file

        settings = Settings.load()
        parts = adoption.parts(settings, key, plan=plan, keep_undecryptable=keep_undecryptable)
        done = import_file(settings.database_url, file, parts, progress, dry_run=dry_run)
    if report is not None:
        report.write_bytes(pydantic_core.to_json(asdict(done), indent=2) + b"\n")
    if as_json:
        show_json(asdict(done))
    else:
        _show(done, report)
    if not done.adds_up:
        fail("The sums do not add up: rows or contents are missing. Nothing was changed.")
        raise typer.Exit(1)


def _require_writable(report: Path, file: Path) -> None:
    """Refuse, before anything is done, a place where the report cannot be written afterwards."""
    if report.exists() and report.samefile(file):
        raise typer.BadParameter("the report would overwrite the file to import", param_hint="--report")
    if not os.access(report if report.exists() else report.absolute().parent, os.W_OK):
        raise typer.BadParameter(f"{report} cannot be written", param_hint="--report")


def _show(done: Imported, report: Path | None) -> None:
    typer.echo(f"{done.file}: a multi-user database in its {done.form} form, SHA-256 {done.sha256}.")
    adoption.show_counts(done.counts, done.checksums)
    where = f"in {report}" if report is not None else "shown by --json, or written by --report FILE"
    adoption.show_findings(done.findings, where)
    if done.adds_up:
        typer.echo("Nothing was changed: this was a dry run." if done.dry_run else "The file is imported.")
