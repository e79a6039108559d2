"""``fairlane tenants``: organizations, the plan and the limits of each, and whether they may run at all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from cli import limits, organizations, usage
from cli.installation import Installation, opened, operator_here
from cli.options import DEFAULT_DATA, AsJson, Data, TenantId, group
from cli.output import show_items, show_json, show_record, warn
from cli.paging import pages
from engine import allowances, audit, billing, ids, members, plans
from engine.errors import NotFound
from engine.permissions import Role
from engine.plans import DEFAULT, TenantLimits
from engine.repository import identity, operator
from engine.repository.operator import TenantFilter

app = group("Organizations: their plans and limits, their people, and whether they may run.")

COLUMNS: dict[str, Any] = {
    "id": lambda row: row["id"],
    "name": lambda row: row["name"],
    "plan": lambda row: row["plan"],
    "status": lambda row: row["status"],
    "created": lambda row: row["created_at"],
}


@app.command("list")
def list_(
    plan: Annotated[str | None, typer.Option("--plan", help="Only those on this plan.")] = None,
    status: Annotated[
        Literal["active", "suspended"] | None, typer.Option("--status", help="Only those in this state.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only those with this in their name.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """List the organizations."""
    wanted = TenantFilter(plan=plan, status=status, name=name)
    with opened(data) as here:
        if plan is not None:
            with here.database.system() as session:
                plans.get(session, plan)
        rows = pages(
            here.database,
            lambda session, last, limit: operator.tenants_listed(
                session, wanted, after=last["id"] if last else "", limit=limit
            ),
        )
        show_items(rows, COLUMNS, as_json=as_json, none="There are no such organizations.")


@app.command()
def show(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Show one organization: its limits, and how much it has of what they limit."""
    with opened(data) as here, here.database.system() as session:
        found = plans.of_tenant(session, tenant)
        counts = operator.counts(session, tenant)
        with session.acting_for(tenant) as own:
            used = {item["name"]: item["used"] for item in allowances.quotas(own, datetime.now(UTC))}
            rules = {"over_quota": allowances.policy(own), "customer": billing.customer(own)}
    if as_json:
        show_json(_whole(found) | rules | {"counts": counts, "used": used})
        return
    show_record(found.tenant | {"lane": "paused" if found.paused else "open"} | rules | counts)
    typer.echo()
    limits.show(found.limits, overrides=found.overrides, used=used)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    plan: Annotated[str, typer.Option("--plan", help="The plan it begins on.")] = "free",
    owner: Annotated[str | None, typer.Option("--owner", metavar="EMAIL", help="An account that shall own it.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Make an organization."""
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise typer.BadParameter("want a name of 1 to 200 printable characters.", param_hint="NAME")
    with opened(data) as here, here.database.system() as session:
        plans.get(session, plan)
        account = None if owner is None else identity.account(session, owner)
        if owner is not None and account is None:
            raise NotFound(f"There is no account {owner!r}: its owner registers first.")
        tenant_id = ids.new_id("tenant")
        operator.insert_tenant(session, tenant_id=tenant_id, name=name.strip(), plan=plan)
        with session.acting_for(tenant_id) as own:
            audit.record(own, operator_here(), "tenant.created", tenant_id, name=name.strip())
            if account is not None:
                members.join(own, operator_here(), account["id"], Role.OWNER)
        made = plans.of_tenant(session, tenant_id)
    _report(made, f"Made the organization {name.strip()!r} on the plan {plan}: {tenant_id}", as_json=as_json)
    if account is None:
        warn("Nobody belongs to it yet: an account becomes its owner by --owner EMAIL.")


@app.command("set-plan")
def set_plan(
    tenant: TenantId,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Put an organization on another plan; limits of its own stay."""
    with opened(data) as here:
        with here.database.system() as session:
            here.plans.set_plan(session, tenant, plan)
        _report_now(here, tenant, f"{tenant} is on the plan {plan}.", as_json=as_json)


@app.command("set-limit")
def set_limit(
    tenant: TenantId,
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="Name of the limit, such as max_members.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A number, 'unlimited', or 'default': as its plan.")],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Let one limit of an organization differ from its plan."""
    by_plan = value.lower() == DEFAULT
    limits.require(limit)
    values = {} if by_plan else {limit: limits.parse(limit, value, besides=f" {DEFAULT} is as its plan says.")}
    with opened(data) as here:
        with here.database.system() as session:
            if by_plan:
                here.plans.unset_limits(session, tenant, limit)
            else:
                here.plans.set_limits(session, tenant, values)
            own = plans.of_tenant(session, tenant)
        holds = limits.shown(getattr(own.limits, limit))
        whose = f"as on its plan {own.tenant['plan']}" if by_plan else "its own"
        _report(own, f"{limit} of {tenant} is {holds} ({whose}).", as_json=as_json)


@app.command()
def suspend(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Begin nothing more for an organization and let nobody in; what waits stays, what runs ends."""
    with opened(data) as here:
        with here.database.system() as session:
            here.plans.suspend(session, tenant)
        _report_now(here, tenant, f"{tenant} is suspended; `fairlane tenants resume` undoes it.", as_json=as_json)


@app.command()
def resume(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Let a suspended organization go on where it was."""
    with opened(data) as here:
        with here.database.system() as session:
            here.plans.resume(session, tenant)
        own = _report_now(here, tenant, f"{tenant} is active.", as_json=as_json)
    if own.paused:
        warn(f"Its lane is still paused: `fairlane lanes resume {tenant}` opens it.")


organizations.add_to(app)
usage.add_to(app)


def _report_now(here: Installation, tenant_id: str, sentence: str, *, as_json: bool) -> TenantLimits:
    with here.database.system() as session:
        own = plans.of_tenant(session, tenant_id)
    _report(own, sentence, as_json=as_json)
    return own


def _report(own: TenantLimits, sentence: str, *, as_json: bool) -> None:
    if as_json:
        show_json(_whole(own))
    else:
        typer.echo(sentence)


def _whole(own: TenantLimits) -> dict[str, Any]:
    return own.tenant | {"lane_paused": own.paused, "limits": own.limits, "overrides": own.overrides}
