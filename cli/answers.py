"""``fairlane runs resume``: the operator's answer to a run that waits for somebody.

The message that brings the run to a worker is left to the sweeper, so this needs no Redis.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cli.installation import opened, operator_here
from cli.options import DEFAULT_DATA, Data, OfTenant
from cli.replays import LeftToTheSweeper, read_json
from cli.whose import tenant_of
from engine import audit
from engine.answers import Answer
from engine.runs import Runs


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    tenant: OfTenant = None,
    step: Annotated[
        str | None, typer.Option("--step", metavar="STEP", help="Which step, where several wait for an answer.")
    ] = None,
    item: Annotated[str, typer.Option("--item", metavar="N", help="Which item of a step done for each.")] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no, which fails the step.")] = False,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="JSON", help="Something that later steps may read.")
    ] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Answer a run that waits for somebody; it goes on within seconds, when its turn comes."""
    by = operator_here()
    said = Answer(approved=not refuse, by=by.id, data=read_json(answer, "--answer"), step_id=step, item=item)
    with opened(data) as here, here.database.tenant(tenant or tenant_of(here, run)) as session:
        made = Runs(LeftToTheSweeper()).resume(session, run, said)
        audit.record(session, by, "run.answered", run, step=made.step_id, item=item or None, approved=made.approved)
    typer.echo(f"{run}: {made.step_id} is {'approved' if made.approved else 'refused'}.")
