"""``fairlane tenants usage``, ``over-quota``, ``set-notice-url``: what is used, and what happens at the limit."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from actions import build
from cli.installation import Installation, opened, operator_here
from cli.options import DEFAULT_DATA, AsJson, Data, TenantId
from cli.output import plain, show_items, show_json, show_record
from engine import notices, plans, usage
from engine.db import TenantSession
from engine.errors import ActionError, InvalidInput

NOWHERE = "none"
WORKFLOWS: dict[str, Any] = {
    name.replace("_", " "): lambda row, name=name: row[name]
    for name in ("workflow_id", "executions", "action_calls", "worker_seconds", "held", "rejected")
}


def show(
    tenant: TenantId,
    period: Annotated[
        str | None, typer.Option("--period", metavar="YYYY-MM", help="A month, UTC; this one without it.")
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Show what an organization used in a month, exact up to now."""
    try:
        month = usage.Period.of(datetime.now(UTC)) if period is None else usage.Period.parse(period)
    except InvalidInput as error:
        raise typer.BadParameter(plain(error), param_hint="--period") from None
    with opened(data) as here:
        with here.database.system() as session:
            plans.of_tenant(session, tenant)
        with here.database.tenant(tenant) as own:
            report = asdict(usage.report(own, month))
    if as_json:
        show_json(report)
        return
    show_record({name: value for name, value in report.items() if not name.startswith("by_")})
    typer.echo()
    show_items(report["by_workflow"], WORKFLOWS, as_json=False, none="Nothing was used in this month.")


def over_quota(
    tenant: TenantId,
    policy: Annotated[
        Literal["hold", "reject"],
        typer.Argument(metavar="POLICY", help="hold: keep them until there is room, as at first; reject: answer 429."),
    ],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Say what becomes of runs over an organization's monthly limit (max_executions_per_month).

    hold: they are stored, and start by themselves when a month begins or the limit is raised.

    reject: by API, webhook or replay they get 429 with Retry-After; what nobody would try again is held.
    """
    with opened(data) as here, here.database.system() as session:
        here.plans.set_policy(session, tenant, policy)
    if as_json:
        show_json({"tenant": tenant, "over_quota": policy})
    else:
        typer.echo(f"Runs of {tenant} over its monthly limit are {'held' if policy == 'hold' else 'refused'}.")


def set_notice_url(
    tenant: TenantId,
    url: Annotated[str, typer.Argument(metavar="URL", help=f"Where notices go: an http or https URL, or {NOWHERE}.")],
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Say where an organization is told that its month is nearly used up."""
    with opened(data) as here, here.database.system() as session:
        plans.of_tenant(session, tenant)
        with session.acting_for(tenant) as own:
            row = _notice_url(here, own, url)
    if as_json:
        show_json({"tenant": tenant, **row})
    elif row["url"] is None:
        typer.echo(f"Notices of {tenant} go nowhere but into the audit, and by mail to the owners.")
    else:
        typer.echo(f"Notices of {tenant} go to {row['url']}.")
        typer.echo(f"They are signed with {row['secret']}; it is not shown again.")


def _notice_url(here: Installation, session: TenantSession, url: str) -> dict[str, Any]:
    if url == NOWHERE:
        notices.delete_target(session, operator_here())
        return {"url": None}
    try:
        build(allowed_networks=here.settings.allowed_networks).client.check(url)
    except ActionError as error:
        raise typer.BadParameter(error.detail) from None
    key = here.settings.secret_key.get_secret_value()
    return notices.set_target(session, operator_here(), url, key=key)


def add_to(app: typer.Typer) -> None:
    app.command("usage")(show)
    app.command("over-quota")(over_quota)
    app.command("set-notice-url")(set_notice_url)
