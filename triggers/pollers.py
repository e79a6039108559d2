"""Looks at one source once, and starts a run for each item that was not there before.

A poll is a message in its tenant's lane like a run, so that polling costs the tenant its own share. `Poller.poll` takes
the trigger for `poll.LEASE`, fetches without a transaction, and stores everything in one: the items seen, the runs, the
cursor and when the poll falls due again, no sooner than the plan allows. So whatever dies, an item has its run or is
still to be found. Only whoever took the trigger last may store: what an earlier one found is dropped, and so is a poll
of a trigger that was changed, switched off or deleted meanwhile.

The first poll only remembers what is there (the baseline), unless the trigger says ``initial: all``. A trigger with
another source or another `with` begins anew. More than `FLOOD` new items at once become held runs, with the reason
`FLOODED`, until somebody releases them by `engine.runs.Runs.release_held`.

A failed poll says why in the trigger's `last_error`, which the next success clears. It is repeated after twice the
interval, then four times, and so on; after `MAX_FAILURES` in a row the trigger is paused with the last reason. When
Postgres does not answer this raises Unavailable. A poll that meets a quota, or whose tenant was suspended meanwhile, is
undone and falls due again after the lease; that is no failure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog

from engine import tracing
from engine.allowances import between_polls
from engine.db import Database, Row, TenantSession, dump_json
from engine.definition import PollTrigger
from engine.definition_checks import check_trigger
from engine.errors import Conflict, FairlaneError, Fatal, InvalidInput, QuotaExceeded, RetryLater, Unavailable
from engine.ports import HttpClient, Json, PollItem, PollResult, PollSource, RetryPolicy
from engine.repository import triggers as stored
from engine.retry import backoff
from engine.runs import FLOODED, Runs, Start
from triggers.cron import Every
from triggers.door import fire
from triggers.keys import short
from triggers.kinds import load
from triggers.poll import LEASE, Poll
from triggers.sources import SOURCES

FLOOD = 100
"""More new items at once are probably somebody's mistake; a person decides whether they shall run."""
MAX_ITEMS = 5000
MAX_ITEM_LENGTH = 1024 * 1024
"""Characters of JSON."""
MAX_FAILURES = 10
LONGEST_BACKOFF = timedelta(hours=6)
"""A failing source is looked at this often at least, unless `every` is longer."""
REMEMBERED = timedelta(days=30)
"""How long an item is known after its source listed it for the last time."""

log = structlog.get_logger(__name__)


class Outcome(StrEnum):
    POLLED = "polled"
    FAILED = "failed"
    PAUSED = "paused"
    DROPPED = "dropped"
    """Nothing was changed: it is not due, no longer ours, or over a quota."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one poll did."""

    outcome: Outcome
    new: int = 0
    """Items that were never seen before, in the baseline too."""
    started: int = 0
    held: bool = False
    """Whether the runs wait to be released."""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """What a taken trigger asks for: where to look, from where on, and what becomes of what is found."""

    workflow_id: str
    trigger: PollTrigger
    source: PollSource
    parameters: Any
    fingerprint: str
    """Of source and `with`: a cursor and items of another one mean nothing."""
    first: bool
    cursor: Json

    def starts(self, items: Sequence[PollItem]) -> list[Start]:
        """A run for each item; none when this poll takes the baseline."""
        if self.first and self.trigger.initial == "baseline":
            return []
        hold = FLOODED if len(items) > FLOOD else None
        return [self._start(item, hold) for item in items]

    def _start(self, item: PollItem, hold: str | None) -> Start:
        key = short(item.id)
        data = {"item": item.data, "item_id": item.id, "source": self.source.name}
        try:
            size = len(dump_json(data))
        except ValueError:
            raise Fatal(f"The item {key} of the source is not JSON.") from None
        if size > MAX_ITEM_LENGTH:
            raise Fatal(f"The item {key} has {size:,} characters; at most {MAX_ITEM_LENGTH:,} are taken.")
        return Start(
            workflow_id=self.workflow_id,
            trigger=Poll.type,
            input=data,
            idempotency_key=f"poll:{self.workflow_id}:{self.fingerprint}:{key}",
            hold=hold,
        )


class Poller:
    """See the module. One for each process; threads may share it."""

    def __init__(
        self, database: Database, runs: Runs, client: HttpClient, *, sources: Mapping[str, PollSource] = SOURCES
    ) -> None:
        self._database = database
        self._runs = runs
        self._client = client
        self._sources = sources

    def poll(self, tenant_id: str, workflow_id: str) -> Result:
        """Poll once. Raises Unavailable; then nothing has happened, and it falls due again after the lease."""
        about = {"fairlane.tenant": tenant_id, "fairlane.workflow": workflow_id}
        with tracing.span("poll", about, kind="consumer") as span:
            result = self._poll(tenant_id, workflow_id)
            span.note({"fairlane.status": result.outcome.value})
            return result

    def _poll(self, tenant_id: str, workflow_id: str) -> Result:
        with self._database.tenant(tenant_id) as session:
            taken = stored.take_poll(session, workflow_id, lease=LEASE)
        if taken is None:
            return Result(Outcome.DROPPED)
        try:
            look = self._read(taken)
            return self._store(taken, look, self._fetch(look))
        except InvalidInput as error:
            return self._pause(taken, f"The trigger cannot be read: {error.detail}")
        except Unavailable:
            raise
        except (Conflict, QuotaExceeded) as error:
            if error.error_code in ("unstorable", "quota_payload"):
                return self._fail(taken, error)
            log.warning("poll_put_off", tenant=tenant_id, workflow=workflow_id, reason=error.detail)
            return Result(Outcome.DROPPED, reason=error.detail)
        except FairlaneError as error:
            return self._fail(taken, error)

    def _read(self, taken: Row) -> _Look:
        trigger = load(taken["config"])
        faults = check_trigger(trigger, self._sources)
        if faults or not isinstance(trigger, PollTrigger):
            raise InvalidInput(faults)
        source = self._sources[trigger.source]
        fingerprint, before = _fingerprint(trigger), taken["cursor"] or {}
        first = before.get("of") != fingerprint
        return _Look(
            workflow_id=taken["workflow_id"],
            trigger=trigger,
            source=source,
            parameters=source.input_model.model_validate(trigger.with_),
            fingerprint=fingerprint,
            first=first,
            cursor=None if first else before["at"],
        )

    def _fetch(self, look: _Look) -> PollResult:
        try:
            found = look.source.poll(look.parameters, look.cursor, self._client)
        except FairlaneError:
            raise
        except Exception as error:
            log.exception("poll_source_broke", source=look.source.name, workflow=look.workflow_id)
            raise Fatal(f"The source {look.source.name} broke ({type(error).__name__}).") from error
        if len(found.items) > MAX_ITEMS:
            raise Fatal(f"The source lists {len(found.items):,} items; at most {MAX_ITEMS:,} are taken.")
        return found

    def _store(self, taken: Row, look: _Look, found: PollResult) -> Result:
        with self._database.tenant(taken["tenant_id"]) as session, stored.attempt(session):
            now = _still_ours(session, taken)
            if now is None:
                return Result(Outcome.DROPPED)
            new = _new_items(session, look, found)
            starts = look.starts(new)
            started = sum(not fire(session, self._runs, start).existing for start in starts)
            rhythm = Every(max(look.trigger.every, between_polls(session)))
            values = {
                "cursor": {"of": look.fingerprint, "at": found.cursor},
                "failures": 0,
                "last_error": None,
                "next_fire_at": rhythm.following(taken["last_fired_at"] or now, now),
            }
            stored.change(session, look.workflow_id, values)
        held = any(start.hold for start in starts)
        if held:
            log.warning("poll_flooded", tenant=taken["tenant_id"], workflow=look.workflow_id, items=len(new))
        return Result(Outcome.POLLED, new=len(new), started=started, held=held)

    def _fail(self, taken: Row, error: FairlaneError) -> Result:
        failures = taken["failures"] + 1
        if failures >= MAX_FAILURES:
            reason = f"{failures} polls failed in a row; the last one: {error.detail}"
            return self._pause(taken, reason, failures=failures, last_error=error.detail)
        delay = _delay(load(taken["config"]), failures, error)
        log.warning("poll_failed", workflow=taken["workflow_id"], failures=failures, reason=error.detail)
        with self._database.tenant(taken["tenant_id"]) as session:
            now = _still_ours(session, taken)
            if now is None:
                return Result(Outcome.DROPPED)
            values = {
                "failures": failures,
                "last_error": error.detail,
                "next_fire_at": now + max(delay, between_polls(session)),
            }
            stored.change(session, taken["workflow_id"], values)
        return Result(Outcome.FAILED, reason=error.detail)

    def _pause(self, taken: Row, reason: str, **last: Any) -> Result:
        """`last` is what else is stored of the last failure."""
        values = {"next_fire_at": None, "paused_reason": reason, **last}
        with self._database.tenant(taken["tenant_id"]) as session:
            if _still_ours(session, taken) is None:
                return Result(Outcome.DROPPED)
            stored.change(session, taken["workflow_id"], values)
        log.warning("poll_paused", tenant=taken["tenant_id"], workflow=taken["workflow_id"], reason=reason)
        return Result(Outcome.PAUSED, reason=reason)


def _fingerprint(trigger: PollTrigger) -> str:
    text = json.dumps([trigger.source, trigger.with_], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _still_ours(session: TenantSession, taken: Row) -> datetime | None:
    """The present moment, with the trigger locked; None when somebody took, changed, switched off or deleted it."""
    row = stored.get(session, taken["workflow_id"], lock=True)
    if row is None or row["next_fire_at"] != taken["next_fire_at"]:
        return None
    now: datetime = row["now"]
    return now


def _new_items(session: TenantSession, look: _Look, found: PollResult) -> list[PollItem]:
    """Those never seen, in their order; from now on they are seen. Forgets what the source has long ceased to list."""
    if look.first:
        stored.forget_items(session, look.workflow_id)
    listed: dict[str, PollItem] = {}
    for item in found.items:
        listed.setdefault(short(item.id), item)
    new = stored.remember_items(session, look.workflow_id, listed)
    if new:
        stored.forget_items(session, look.workflow_id, older_than=REMEMBERED)
    return [item for key, item in listed.items() if key in new]


def _delay(trigger: Any, failures: int, error: FairlaneError) -> timedelta:
    """Doubles with every failure; not before the other side wants to be asked again."""
    every = trigger.every
    delay = backoff(RetryPolicy(initial=2 * every, maximum=max(every, LONGEST_BACKOFF)), failures)
    after = error.after if isinstance(error, RetryLater) else None
    return max(delay, after or timedelta())
