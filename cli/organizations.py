"""``fairlane tenants``, second part: people, the audit, moving between organizations, and leaving."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer

from cli.installation import Installation, opened, operator_here
from cli.options import DEFAULT_DATA, AsJson, Data, TenantId
from cli.output import fail, show_items, show_json, warn
from cli.paging import pages
from cli.progress import progress
from engine import archive, audit, leaving, members, moving, plans, rollout
from engine.audit import Head, Verdict
from engine.errors import InvalidInput, NotFound
from engine.permissions import ROLES, SCOPES
from engine.repository import identity, operator
from engine.repository import members as stored_members
from engine.repository.operator import TenantFilter
from engine.vault import MasterKeyRing, Vault

RoleName = Literal["owner", "admin", "member", "viewer"]
OptionalTenant = Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Without it: every organization.")]

MEMBER: dict[str, Any] = {
    "user": lambda row: row["user_id"],
    "email": lambda row: row["email"],
    "role": lambda row: row["role"],
    "joined": lambda row: row["joined_at"],
}


def add_to(app: typer.Typer) -> None:
    """Make these commands of the group."""
    for command in (join, roles, move, export, restore):
        app.command()(command)
    app.command("members")(list_members)
    app.command("audit")(show_audit)
    app.command("organizations")(switch_organizations)
    app.command("delete")(delete)


def join(
    tenant: TenantId,
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="An account that exists.")],
    role: Annotated[RoleName, typer.Option("--role", help="What it becomes there.")] = "member",
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Let an existing account belong to an organization, or give it another role there."""
    with opened(data) as here, here.database.system() as session:
        plans.of_tenant(session, tenant)
        account = identity.account(session, email)
        if account is None:
            raise NotFound(f"There is no account {email!r}.")
        with session.acting_for(tenant) as own:
            if not members.join(own, operator_here(), account["id"], role):
                members.set_role(own, operator_here(), account["id"], role)
            member = stored_members.get(own, account["id"])
    _report(member, f"{email} is {role} of {tenant}.", as_json=as_json)


def list_members(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """List who belongs to an organization."""
    with opened(data) as here:
        with here.database.system() as session:
            plans.of_tenant(session, tenant)
        with here.database.tenant(tenant) as own:
            rows = stored_members.listed(own, after=None, limit=1_000_000)
        show_items(rows, MEMBER, as_json=as_json, none="Nobody belongs to it.")


def roles(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:  # noqa: ARG001 - it is the same everywhere
    """Show what each role, and each scope of an API key, may do."""
    table = {str(name): sorted(may) for name, may in [*ROLES.items(), *SCOPES.items()]}
    if as_json:
        show_json(table)
    else:
        show_items(
            table.items(), {"role or scope": lambda row: row[0], "may": lambda row: ", ".join(row[1])}, as_json=False
        )


def switch_organizations(
    tenant: TenantId,
    state: Annotated[Literal["on", "off"], typer.Argument(metavar="STATE", help="on or off.")],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Let an organization of the older system invite people, while FAIRLANE_ORGANIZATIONS is `new`."""
    with opened(data) as here:
        with here.database.system() as session:
            rollout.switch(session, operator_here(), tenant, on=state == "on")
        done = {"id": tenant, "organizations": state == "on"}
        _report(done, f"Working together is switched {state} for {tenant}.", as_json=as_json)
        if state == "off" and here.settings.organizations == "all":
            warn("FAIRLANE_ORGANIZATIONS is `all`, which lets everybody; the switch counts while it is `new`.")


def show_audit(
    tenant: OptionalTenant = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain; exit 1 when it was tampered with.")
    ] = False,
    known: Annotated[
        str | None, typer.Option("--known", metavar="NUMBER:HASH", help="An earlier end of the chain, kept elsewhere.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Check an export instead of the database.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Print the audit of an organization as JSON lines, or verify that nobody changed it."""
    if known is not None and tenant is None and file is None:
        raise typer.BadParameter("want one TENANT, or --file.", param_hint="--known")
    if file is not None:
        _tell({str(file): _of_file(file, _head(known))}, as_json=as_json)
        return
    with opened(data) as here:
        if tenant is not None:
            with here.database.system() as session:
                plans.of_tenant(session, tenant)
        if verify:
            _tell({id_: _of_tenant(here, id_, _head(known)) for id_ in _tenants(here, tenant)}, as_json=as_json)
        elif tenant is None:
            raise typer.BadParameter("want one TENANT, or --verify.", param_hint="TENANT")
        else:
            with here.database.tenant(tenant) as own:
                for line in audit.exported(own):
                    typer.echo(line)


def export(
    tenant: TenantId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The zip to write; `-` for stdout.")],
    with_secrets: Annotated[
        bool, typer.Option("--with-secrets", help="Credentials in clear too: keep the file accordingly.")
    ] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Write everything that an organization has into one archive."""
    with opened(data) as here:
        with here.database.system() as session:
            plans.of_tenant(session, tenant)
        vault = Vault(MasterKeyRing(here.settings.master_key_ring)) if with_secrets else None
        with progress("Writing the archive"), _target(file) as target:
            manifest = archive.write(here.database, tenant, target, operator_here(), secrets=vault)
    rows = sum(entry["rows"] for entry in manifest["files"].values())
    if str(file) != "-":
        _report(manifest, f"Wrote {rows:,} rows of {tenant} to {file}.", as_json=as_json)


def delete(
    tenant: TenantId,
    grace_days: Annotated[int, typer.Option("--grace-days", min=0, max=3650, help="Until it is erased.")] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Delete an organization: nobody gets in from now on, and after the grace period it is erased for good."""
    with opened(data) as here:
        with here.database.system() as session:
            name = plans.of_tenant(session, tenant).tenant["name"]
        if not yes and not sys.stdin.isatty():
            raise typer.BadParameter("nobody is there to be asked.", param_hint="--yes")
        if not yes:
            typer.confirm(f"Delete {name!r} ({tenant}), with everything in it?", abort=True)
        with here.database.system() as session:
            here.plans.suspend(session, tenant)
            row = leaving.delete(session, operator_here(), tenant, grace=timedelta(days=grace_days))
        when = f"{row['erase_after']:%Y-%m-%d %H:%M}Z"
        sentence = f"{tenant} is deleted. It is erased after {when}; until then `fairlane tenants restore` undoes it."
        _report(row, sentence, as_json=as_json)


def restore(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Undo the deletion of an organization, in its grace period."""
    with opened(data) as here, here.database.system() as session:
        row = leaving.restore(session, operator_here(), tenant)
        here.plans.resume(session, tenant)
    _report(row, f"{tenant} is active again.", as_json=as_json)


def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Id of the organization that has them.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Id of the one that gets them.")],
    workflow: Annotated[
        list[str] | None, typer.Option("--workflow", metavar="ID", help="A workflow; repeatable.")
    ] = None,
    credential: Annotated[
        list[str] | None, typer.Option("--credential", metavar="ID", help="A credential; repeatable.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All workflows and credentials.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Move workflows and credentials into another organization. Ids stay, so webhooks go on working."""
    if every == bool(workflow or credential):
        raise typer.BadParameter("want --workflow and --credential, or --all.", param_hint="--all")
    cargo = moving.Cargo(workflows=None if every else workflow or (), credentials=None if every else credential or ())
    with opened(data) as here, _mover(here) as mover, here.database.system() as session:
        moved = mover.move(session, operator_here(), cargo, source=source, target=target)
    sentence = f"Moved {len(moved.workflows):,} workflows and {len(moved.credentials):,} credentials to {target}."
    _report({"workflows": moved.workflows, "credentials": moved.credentials}, sentence, as_json=as_json)


def _report(data: Any, sentence: str, *, as_json: bool) -> None:
    if as_json:
        show_json(data)
    else:
        typer.echo(sentence)


@contextmanager
def _mover(here: Installation) -> Iterator[moving.Mover]:
    import actions
    import triggers
    from engine.workflows import Workflows

    vault = Vault(MasterKeyRing(here.settings.master_key_ring))
    with closing(actions.build()) as registry:
        yield moving.Mover(vault, Workflows(registry, triggers.KINDS, vault))


@contextmanager
def _target(file: Path) -> Iterator[IO[bytes]]:
    """Whole or not at all; readable by its owner only."""
    if str(file) == "-":
        yield sys.stdout.buffer
        return
    partial = file.with_name(f"{file.name}.partial")
    partial.touch(mode=0o600)
    try:
        with partial.open("wb") as target:
            yield target
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _tenants(here: Installation, tenant: str | None) -> Iterator[str]:
    if tenant is not None:
        yield tenant
        return
    every = TenantFilter()
    for row in pages(
        here.database,
        lambda session, last, limit: operator.tenants_listed(
            session, every, after=last["id"] if last else "", limit=limit
        ),
    ):
        yield row["id"]


def _of_tenant(here: Installation, tenant: str, known: Head | None) -> Verdict:
    with here.database.tenant(tenant) as own:
        return audit.verify(audit.entries(own), known=known)


def _of_file(file: Path, known: Head | None) -> Verdict:
    try:
        with file.open(encoding="utf-8") as lines:
            return audit.verify(audit.imported(lines), known=known)
    except (OSError, ValueError) as error:
        raise InvalidInput((), detail=f"{file} cannot be read as an export of an audit: {error}") from None


def _head(text: str | None) -> Head | None:
    if text is None:
        return None
    number, _, hexadecimal = text.partition(":")
    try:
        return Head(int(number), bytes.fromhex(hexadecimal))
    except ValueError:
        raise typer.BadParameter("want NUMBER:HASH, as --verify prints it.", param_hint="--known") from None


def _tell(verdicts: dict[str, Verdict], *, as_json: bool) -> None:
    """Each verdict; exit 1 when one of them found something."""
    if as_json:
        show_json(
            [
                {"audit": name, "ok": v.fault is None, "rows": v.rows, "head": _written(v.head), "fault": v.fault}
                for name, v in verdicts.items()
            ]
        )
    for name, verdict in verdicts.items():
        if verdict.fault is not None:
            fail(f"{name}: {verdict.fault}.")
        elif not as_json:
            typer.echo(f"{name}: {verdict.rows:,} rows, unbroken, up to {_written(verdict.head)}")
    if any(verdict.fault for verdict in verdicts.values()):
        raise typer.Exit(1)


def _written(head: Head) -> str:
    return f"{head.number}:{head.hash.hex()}"
