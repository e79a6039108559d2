"""``fairlane lanes``: what each organization has in the fair queue, pausing it, and whether the queue is whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cli import aside
from cli.installation import Book, Installation, opened
from cli.options import DEFAULT_DATA, AsJson, Data, TenantId, group
from cli.output import fail, show_items, show_json, show_record
from cli.progress import progress
from engine import plans, ports
from engine.errors import Conflict, NotFound
from engine.fairshare import Fault, Lane
from engine.repository import plans as stored

app = group("Lanes: what each organization has in the fair queue.")
app.add_typer(aside.app, name="aside")

BATCH = 500

COLUMNS: dict[str, Callable[[Lane], object]] = {
    "organization": lambda lane: lane.tenant,
    "weight": lambda lane: lane.weight,
    "cap": lambda lane: lane.cap,
    "per minute": lambda lane: lane.rate and lane.rate * 60,
    "state": lambda lane: "paused" if lane.paused else "open",
    "in flight": lambda lane: lane.in_flight,
    "waiting": lambda lane: lane.backlog,
    "oldest": lambda lane: lane.oldest_age and f"{lane.oldest_age:,.0f} s",
    "share": lambda lane: f"{lane.share:.0%}",
}


@app.command("list")
def list_(
    busy: Annotated[bool, typer.Option("--busy", help="Only lanes in which something waits or runs.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """List the lanes."""
    with opened(data) as here:
        lanes = (lane for lane in here.lanes.all() if not busy or lane.backlog or lane.in_flight)
        show_items(lanes, COLUMNS, as_json=as_json, none="There are no such lanes.")


@app.command()
def show(
    tenant: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Without it: the whole queue.")] = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Show the lane of one organization, or the queue as a whole."""
    with opened(data) as here:
        facts = asdict(here.lanes.total()) if tenant is None else _facts(here, tenant)
    if as_json:
        show_json(facts)
    else:
        show_record(facts)


@app.command()
def pause(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Begin no more runs of an organization: they are accepted and wait, also when Redis loses its data."""
    with opened(data) as here, here.database.system() as session:
        here.plans.pause_lane(session, tenant)
    if as_json:
        show_json({"tenant": tenant, "paused": True})
    else:
        typer.echo(f"The lane of {tenant} is paused; `fairlane lanes resume {tenant}` opens it.")


@app.command()
def resume(tenant: TenantId, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Open a paused lane."""
    with opened(data) as here, here.database.system() as session:
        here.plans.resume_lane(session, tenant)
        status = plans.of_tenant(session, tenant).tenant["status"]
    if as_json:
        show_json({"tenant": tenant, "paused": False, "status": status})
    else:
        rests = "" if status == "active" else f", and rests as long as the organization is {status}"
        typer.echo(f"The lane of {tenant} is open{rests}.")


@app.command()
def check(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what is wrong.")] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Check that the queue is whole and each lane is as Postgres wants it; exit 1 with a line for each fault."""
    with opened(data) as here, progress("Looking at every message and lane"):
        faults = _repaired(here) if repair else _faults(here)
    if as_json:
        show_json({"ok": not faults or repair, "repaired": repair, "faults": faults})
    else:
        for fault in faults:
            fail(f"{fault.invariant} {fault.tenant or 'the queue'}: {fault.detail}")
        typer.echo(_verdict(len(faults), repaired=repair))
    if faults and not repair:
        raise typer.Exit(1)


def _verdict(faults: int, *, repaired: bool) -> str:
    if not faults:
        return "The queue is whole, and each lane is as it should be."
    return f"Repaired {faults:,}." if repaired else f"Found {faults:,}; `fairlane lanes check --repair` repairs them."


def _faults(here: Installation) -> list[Fault]:
    """Those that are seen twice: between two looks a worker may just be doing what one look found undone."""
    first = [*here.lanes.check(), *(fault for fault, _ in _differences(here))]
    if not first:
        return []
    second = [*here.lanes.check(), *(fault for fault, _ in _differences(here))]
    seen = {(fault.invariant, fault.tenant) for fault in first}
    return [fault for fault in second if (fault.invariant, fault.tenant) in seen]


def _repaired(here: Installation) -> list[Fault]:
    faults = here.lanes.check(repair=True)
    wrong = dict(_differences(here))
    Book(here.lanes).configure_many({fault.tenant: wanted for fault, wanted in wrong.items()})
    left = {fault for fault, _ in _differences(here)} & wrong.keys()
    if left:
        names = ", ".join(sorted(fault.tenant for fault in left)[:10])
        raise Conflict(
            f"The lanes of {names} know a newer configuration than Postgres has: this Redis belongs to another "
            "database. Stop the workers, empty it, and start them again; the runs are published anew."
        )
    return [*faults, *wrong]


def _differences(here: Installation) -> Iterator[tuple[Fault, ports.Lane]]:
    """Lanes that are not as Postgres wants them, with what it wants."""
    page = here.lanes.page(limit=BATCH)
    while page:
        with here.database.system() as session:
            wanted = stored.lanes(session, [lane.tenant for lane in page])
        for lane in page:
            if lane.tenant in wanted and (wrong := _difference(lane, wanted[lane.tenant])):
                yield Fault("configuration", lane.tenant, wrong), wanted[lane.tenant]
        page = here.lanes.page(after=page[-1].tenant, limit=BATCH)


def _difference(lane: Lane, wanted: ports.Lane) -> str:
    has = {"weight": lane.weight, "cap": lane.cap or 0, "rate": lane.rate or 0, "paused": int(lane.paused)}
    wrong = [key for key, value in has.items() if not math.isclose(value, wanted[key])]
    return ", ".join(f"{key} is {has[key]:g}, Postgres wants {wanted[key]:g}" for key in wrong)


def _facts(here: Installation, tenant: str) -> dict[str, Any]:
    lane = here.lanes.inspect(tenant)
    if lane is not None:
        return asdict(lane)
    with here.database.system() as session:
        wanted = stored.lanes(session, [tenant]).get(tenant)
    if wanted is None:
        raise NotFound(f"There is no organization {tenant!r}; `fairlane tenants list` shows their ids.")
    empty = {"in_flight": 0, "backlog": 0, "flows": 0, "share": 0.0, "oldest_age": None}
    return {
        "tenant": tenant,
        **wanted,
        "cap": wanted["cap"] or None,
        "rate": wanted["rate"] or None,
        "paused": bool(wanted["paused"]),
        **empty,
    }
