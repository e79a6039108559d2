"""Answers to what a run waits for, and what a step that was put aside does now: pure decisions.

An answer is stored with the step as its signal; the next worker that has the run in hand reads it here. A refused
approval fails its step, and `on_error` says what follows from that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.errors import Conflict, ExpressionFailed, Gone
from engine.ports import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What somebody says to a run that waits for it."""

    approved: bool
    by: str
    """Who: a user's id, an API key, or ``link``."""
    data: Json = None
    """Anything that later steps may read."""
    step_id: str | None = None
    """Which step it is for; needed when several wait for an answer."""
    item: str = ""

    def signal(self, at: datetime) -> dict[str, Json]:
        """As it is stored, and as the output of an approved step."""
        return {"approved": self.approved, "by": self.by, "at": at.isoformat(), "data": self.data}


def the_one(rows: Sequence[Mapping[str, Json]], answer: Answer) -> Mapping[str, Json]:
    """Of the steps that wait (step_id, item, expired), that which the answer is for. Raises Conflict or Gone."""
    fitting = [row for row in rows if answer.step_id in (None, row["step_id"]) and answer.item in ("", row["item"])]
    open_ones = [row for row in fitting if not row["expired"]]
    if not fitting:
        raise Conflict("Nothing of this run waits for an answer.", code="run_not_waiting")
    if not open_ones:
        raise Gone("The time for an answer is over.", code="approval_expired")
    if len(open_ones) > 1:
        names = ", ".join(":".join(filter(None, (row["step_id"], row["item"]))) for row in open_ones)
        raise Conflict(f"Several steps wait for an answer: {names}; name one.", code="answer_ambiguous")
    return open_ones[0]


@dataclass(frozen=True, slots=True)
class Done:
    """The wait is over."""

    output: Json


@dataclass(frozen=True, slots=True)
class Refused:
    """The wait ended in a failure of the step."""

    code: str
    message: str


def answered(signal: Mapping[str, Json] | None) -> Done | Refused:
    """What an approval comes to once it is due: answered, or with nobody having answered in time."""
    if signal is None:
        return Refused("approval_expired", "Nobody answered in time.")
    if signal["approved"]:
        return Done(dict(signal))
    return Refused("approval_refused", f"Refused by {signal['by']}.")


def moment(value: Json, source: str) -> datetime:
    """The time that `wait: {until}` came to. Raises ExpressionFailed when it is none."""
    try:
        if not isinstance(value, str):
            raise ValueError
        found = datetime.fromisoformat(value)
    except ValueError:
        raise ExpressionFailed(f"{source}: want a timestamp such as timestamp('2026-01-31T09:00:00Z')") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
