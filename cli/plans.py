"""``fairlane plans``: what organizations may use. A change holds for all organizations of the plan at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cli import limits
from cli.installation import Installation, opened
from cli.options import DEFAULT_DATA, AsJson, Data, group
from cli.output import show_items, show_json
from cli.progress import progress
from engine import plans
from engine.db import SystemSession
from engine.errors import InvalidInput
from engine.plans import NAMES, Limits

app = group("Plans: what organizations may use.")

PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="Name of the plan.")]


@app.command("list")
def list_(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Compare the plans."""
    with opened(data) as here, here.database.system() as session:
        rows = plans.listed(session)
    if as_json:
        show_items(rows, {}, as_json=True)
        return
    columns: dict[str, Callable[[str], object]] = {"limit": lambda name: name}
    for row in rows:
        columns[row["name"]] = lambda name, row=row: _shown(row, name)  # type: ignore[misc]
    show_items(["tenants", *NAMES], columns, as_json=False)


@app.command()
def show(plan: PlanName, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Show one plan, with the units of its limits."""
    with opened(data) as here, here.database.system() as session:
        row = plans.get(session, plan)
    _report(row, as_json=as_json)


@app.command("set")
def set_(
    plan: PlanName,
    values: Annotated[list[str], typer.Argument(metavar="LIMIT VALUE...", help="Limits and their new values.")],
    create: Annotated[bool, typer.Option("--create", help="Make the plan; what is not given is unlimited.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Change limits of a plan, for all its organizations at once; --create makes a new plan."""
    given = limits.parse_all(values)
    with opened(data) as here:
        with progress("Telling the lanes of the plan"), here.database.system() as session:
            if create:
                _create(here, session, plan, Limits.model_validate(given))
            else:
                here.plans.change_plan(session, plan, given)
        with here.database.system() as session:
            row = plans.get(session, plan)
    _report(row, as_json=as_json)


def _create(here: Installation, session: SystemSession, name: str, values: Limits) -> None:
    try:
        here.plans.create_plan(session, name, values)
    except InvalidInput as error:
        raise typer.BadParameter(error.detail, param_hint="PLAN") from None


def _shown(row: dict[str, Any], name: str) -> object:
    return row["tenants"] if name == "tenants" else limits.shown(getattr(row["limits"], name))


def _report(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(row)
        return
    typer.echo(f"Plan {row['name']}; organizations on it: {row['tenants']:,}\n")
    limits.show(row["limits"])
