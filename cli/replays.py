"""``fairlane runs replay``: starting runs again that have ended, by name or by what they have in common.

Each run is a transaction of its own, and the batch is part of its replay's idempotency key: a command that was
interrupted goes on with ``--batch``, and replays nothing twice. Messages are left to the sweeper, which publishes runs
that are not in Redis within seconds; so this needs no Redis, and live runs come first anyway.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import typer

import actions
from cli.installation import Installation, operator_here
from cli.output import fail, plain, show_items, show_json
from cli.progress import progress
from engine import audit, ids
from engine.db import TenantSession
from engine.errors import Conflict, FairlaneError, InvalidInput, NotFound
from engine.ports import PollMessage, RunMessage
from engine.quotas import StartRefused, note_refusal
from engine.replay import ABSENT, Plan, Replayed, Replays, Wish
from engine.repository import replays as stored
from engine.runs import Runs

PAGE = 200

COLUMNS: dict[str, Any] = {
    "step": lambda step: step["step"],
    "action": lambda step: step["action"],
    "was": lambda step: step["status"],
    "runs": lambda step: step["runs"],
}


class LeftToTheSweeper:
    """The `engine.ports.Publisher` of a process that does not talk to the broker."""

    def publish(self, messages: Iterable[RunMessage]) -> None:
        """The sweeper finds them missing there, and publishes them."""

    def publish_poll(self, message: PollMessage) -> None:
        """The scheduler fires it again when it is due."""

    def holds(self, message_ids: Sequence[str]) -> set[str]:  # noqa: ARG002 (the shape of the port)
        return set()


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The options of the command."""

    start: str
    version: Any
    input: Any = ABSENT
    batch: str | None = None
    dry_run: bool = False

    def wish(self, run_id: str) -> Wish:
        return Wish(run_id=run_id, start=self.start, version=self.version, input=self.input, key=self.batch)


@dataclass(slots=True)
class Tally:
    """What a batch did, or would do."""

    batch: str
    dry_run: bool
    replayed: int = 0
    replayed_before: int = 0
    refused: int = 0
    repeats: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """How often a step with effects outside is done again, by step, action and what had become of it."""

    def add(self, plan: Plan, *, existing: bool) -> None:
        if existing:
            self.replayed_before += 1
            return
        self.replayed += 1
        self.repeats.update((repeat.step, repeat.action, repeat.status) for repeat in plan.repeats)

    def refuse(self, run_id: str, reason: str) -> None:
        self.refused += 1
        fail(f"{run_id}: {reason}")

    def document(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "dry_run": self.dry_run,
            "replayed": self.replayed,
            "replayed_before": self.replayed_before,
            "refused": self.refused,
            "repeats": [
                {"step": step, "action": action, "status": status, "runs": runs}
                for (step, action, status), runs in sorted(self.repeats.items())
            ],
        }


def read_json(text: str | None, option: str) -> Any:
    """The value of an option that takes JSON; None when it was not given."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"this is not JSON: {error}", param_hint=option) from None


def replay_named(here: Installation, runs: Iterable[tuple[str, str]], how: How, *, as_json: bool) -> bool:
    """Replay each (tenant, run), and say what comes of it; False when one of them was refused."""
    documents = []
    fine = True
    with closing(actions.build()) as registry:
        replays = Replays(Runs(LeftToTheSweeper()), registry)
        for tenant_id, run_id in runs:
            try:
                document = _one(here, replays, tenant_id, how, run_id)
            except (Conflict, NotFound, InvalidInput, StartRefused) as error:
                fail(f"{run_id}: {plain(error)}")
                _note(here, error)
                fine = False
                continue
            documents.append(document)
            if not as_json:
                _tell(document)
    if as_json:
        show_json(documents)
    return fine


def _one(here: Installation, replays: Replays, tenant_id: str, how: How, run_id: str) -> dict[str, Any]:
    with here.database.tenant(tenant_id) as session:
        if how.dry_run:
            plan, replay, existing = replays.plan(session, how.wish(run_id)), None, False
        else:
            made = _start(session, replays, how.wish(run_id))
            plan, replay, existing = made.plan, made.run["id"], made.existing
    return {
        "run": run_id,
        "replay": replay,
        "existing": existing,
        "version": plan.version,
        "carried_over": plan.carried_over,
        "repeats": plan.repeats,
    }


def _start(session: TenantSession, replays: Replays, wish: Wish) -> Replayed:
    made = replays.start(session, wish)
    if not made.existing:
        audit.record(session, operator_here(), "run.replayed", wish.run_id, run_id=made.run["id"])
    return made


def _tell(document: dict[str, Any]) -> None:
    run, replay = document["run"], document["replay"]
    match replay, document["existing"]:
        case None, _:
            typer.echo(f"{run} would be replayed.")
        case _, True:
            typer.echo(f"{run} was replayed before by {replay}.")
        case _:
            typer.echo(f"{run} is replayed by {replay}.")
    if document["carried_over"]:
        typer.echo(f"  keeps {', '.join(document['carried_over'])}")
    for repeat in document["repeats"]:
        typer.echo(f"  does again {repeat.step} ({repeat.action}, which had {_became(repeat.status)})")


def _became(status: str) -> str:
    return "been begun" if status == "running" else status


def replay_many(here: Installation, wanted: stored.Ended, how: How, *, as_json: bool) -> bool:
    """Replay all that are `wanted`, and show the sum of it; False when one of them was refused."""
    batch = how.batch or ids.new_id("batch")
    if how.batch is None and not how.dry_run:
        typer.echo(f"This is {batch}. Should it be interrupted, give --batch {batch} to go on.", err=True)
    named = How(start=how.start, version=how.version, input=how.input, batch=batch, dry_run=how.dry_run)
    tally = Tally(batch, how.dry_run)
    with here.database.system() as session:
        total = stored.count(session, wanted, batch=batch)
    with closing(actions.build()) as registry, progress("Replaying runs", total=total) as done:
        replays = Replays(Runs(LeftToTheSweeper()), registry)
        for tenant_id, run_id in _chosen(here, wanted, batch):
            _count_one(here, replays, tenant_id, named, run_id, tally)
            done()
    _sum_up(tally, as_json=as_json)
    return not tally.refused


def _count_one(here: Installation, replays: Replays, tenant_id: str, how: How, run_id: str, tally: Tally) -> None:
    wish = how.wish(run_id)
    try:
        with here.database.tenant(tenant_id) as session:
            if how.dry_run:
                plan, existing = replays.plan(session, wish), stored.made(session, run_id, tally.batch)
            else:
                replayed = _start(session, replays, wish)
                plan, existing = replayed.plan, replayed.existing
    except (Conflict, NotFound, InvalidInput, StartRefused) as error:
        tally.refuse(run_id, plain(error))
        _note(here, error)
    else:
        tally.add(plan, existing=existing)


def _note(here: Installation, error: FairlaneError) -> None:
    """The ledger counts what a quota refused."""
    if isinstance(error, StartRefused):
        note_refusal(here.database, error)


def _chosen(here: Installation, wanted: stored.Ended, batch: str) -> Iterator[tuple[str, str]]:
    """(tenant, run), the oldest first; no transaction is open in between."""
    after = ""
    while True:
        with here.database.system() as session:
            rows = stored.page(session, wanted, batch=batch, after=after, limit=PAGE)
        yield from ((row["tenant_id"], row["id"]) for row in rows)
        if len(rows) < PAGE:
            return
        after = rows[-1]["id"]


def _sum_up(tally: Tally, *, as_json: bool) -> None:
    document = tally.document()
    if as_json:
        show_json(document)
        return
    verb = "would be replayed" if tally.dry_run else "replayed"
    before = f", {tally.replayed_before:,} were before" if tally.replayed_before else ""
    refused = f", {tally.refused:,} refused" if tally.refused else ""
    typer.echo(f"{tally.replayed:,} {verb}{before}{refused}.")
    if document["repeats"]:
        typer.echo("\nDone again, with effects outside:")
        show_items(document["repeats"], COLUMNS, as_json=False)
