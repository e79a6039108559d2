"""``fairlane migrate --adopt``: a multi-user database on Postgres becomes one of Fairlane in place, and back.

`preview` looks and changes nothing. What the road found is shown as counts for each table and a line for each row that
is not as it was; `--json` prints the same as one document.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.output import fail, show_json
from engine.errors import BadRequest
from engine.settings import Settings

if TYPE_CHECKING:
    from migrations.legacy.findings import Checksums, Count, Finding, Progress
    from migrations.legacy.road import Parts

KEY_BYTES = 32
SHOWN = 200
"""Findings that are printed, at most."""


def read_key(encoded: str | None) -> bytes | None:
    """The old ENCRYPTION_KEY. Raises BadRequest when it is not 32 bytes in base64."""
    if encoded is None:
        return None
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise BadRequest("The encryption key is not 32 bytes in base64; it is the old system's ENCRYPTION_KEY.")
    return key


def parts(settings: Settings, old_key: bytes | None, *, plan: str, keep_undecryptable: bool) -> Parts:
    """What the road needs of the engine."""
    import actions
    from engine.vault import MasterKeyRing, Vault
    from migrations.legacy.road import Parts
    from triggers import KINDS

    vault = Vault(MasterKeyRing(settings.master_key_ring))
    return Parts(vault, actions.build(), KINDS, old_key, keep_undecryptable, plan)


def check(url: str, encryption_key: str | None, *, plan: str, keep_undecryptable: bool, as_json: bool) -> None:
    """Say what an adoption would do. Exit 1 when it would be refused."""
    from migrations.legacy import checking

    made = parts(Settings.load(), read_key(encryption_key), plan=plan, keep_undecryptable=keep_undecryptable)
    with plan_is_an_option():
        seen = checking.preview(url, made)
    if as_json:
        show_json(asdict(seen))
    else:
        typer.echo(f"A multi-user database in its {seen.form.value} form.")
        typer.echo(
            f"Adopting it makes the schema of revision {seen.revision} and a personal organization on the plan "
            f"{seen.plan} for each user, and keeps the old tables in the schema fairlane_legacy."
        )
        megabytes = -(-seen.disk_bytes // 10**6)
        typer.echo(
            f"It takes about {seen.seconds} s, while the old system stands still, and {megabytes} MB more of disk."
        )
        show_counts(seen.counts)
        show_findings(seen.findings, "shown by --json")
        typer.echo("Nothing was changed.")
    if seen.refused is not None:
        fail(seen.refused)
        raise typer.Exit(1)


def carry_over(url: str, encryption_key: str | None, *, plan: str, keep_undecryptable: bool, as_json: bool) -> None:
    """Adopt the database, and say what became of its rows."""
    from migrations.legacy import adopt

    with plan_is_an_option(), stages() as progress:
        made = parts(Settings.load(), read_key(encryption_key), plan=plan, keep_undecryptable=keep_undecryptable)
        done = adopt.adopt(url, made, progress)
    if as_json:
        show_json(asdict(done))
        return
    show_counts(done.counts, done.checksums)
    show_findings(done.findings, "in the table fairlane_legacy.adoption")
    typer.echo("The database is adopted. The old tables are kept in the schema fairlane_legacy, untouched.")


def take_back_if_adopted(url: str, *, discard_new: bool) -> bool:
    """Undo an adoption; False when there is none."""
    import sqlalchemy

    from migrations.legacy import adopt

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if not adopt.is_adopted(connection):
            return False
    with stages() as progress:
        adopt.take_back(url, discard_new=discard_new, progress=progress)
    typer.echo("The four tables of the multi-user system are as they were; nothing of Fairlane is left.")
    return True


def go_back(url: str, revision: str) -> None:
    """Take the schema back, all the way or not at all."""
    from migrations.legacy import adopt

    with stages() as progress:
        adopt.go_back(url, revision, progress)


def forget(url: str) -> None:
    """Close the way back."""
    from migrations.legacy import adopt

    with stages() as progress:
        adopt.forget(url, progress)
    typer.echo("The old tables and the rows that were set aside are gone; the adoption cannot be taken back any more.")


def show_counts(counts: Mapping[str, Count], checksums: Mapping[str, Checksums] | None = None) -> None:
    """A line for each table: its rows, and the checksums of their contents where these were taken."""
    contents = f"  {'contents before':<16}  after" if checksums is not None else ""
    typer.echo(f"{'table':<12} {'read':>10} {'carried':>10} {'set aside':>10}{contents}")
    for table, count in counts.items():
        sums = "" if checksums is None else f"  {checksums[table].before:<16}  {checksums[table].after}"
        typer.echo(f"{table:<12} {count.read:>10} {count.carried:>10} {count.set_aside:>10}{sums}")


def show_findings(findings: Sequence[Finding], where: str) -> None:
    """A line for each of the first ones, how many there are of each kind, and where the rest is."""
    for finding in findings[:SHOWN]:
        needed = f" (needed by {', '.join(finding.needed_by)})" if finding.needed_by else ""
        row = f"{finding.table} {finding.id}".rstrip()
        typer.echo(f"{finding.kind.value:<10} {row}: {finding.reason}{needed}")
    if len(findings) > SHOWN:
        typer.echo(f"... and {len(findings) - SHOWN} more, {where}.")
    kinds = Counter(finding.kind.value for finding in findings)
    if kinds:
        typer.echo("In all: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()) + ".")


@contextmanager
def plan_is_an_option() -> Iterator[None]:
    """Tell of an unknown plan as of other faults of options, though only the database knows which there are."""
    try:
        yield
    except BadRequest as error:
        if error.error_code != "unknown_plan":
            raise
        raise typer.BadParameter(error.detail, param_hint="--plan") from None


@contextmanager
def stages() -> Iterator[Progress]:
    """A bar on stderr that shows the stage and how far it is; on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _doing, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Waiting for the tables", total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)
