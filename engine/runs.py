"""A run from the outside: start, cancel, answer, and the message that brings it to a worker.

What `Runs.start` returns exists: it is inserted in the caller's transaction, and published only after that transaction
is durable. When publishing fails, or the process dies before it, the sweeper publishes; so a caller never waits for a
broker that is down, and never loses a run to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from engine import ids, quotas
from engine.answers import Answer, the_one
from engine.db import Row, TenantSession, dump_json
from engine.errors import Conflict, NotFound, Unavailable
from engine.ports import Json, Publisher, RunMessage
from engine.quotas import FROM_OUTSIDE, MEASURED, QUOTA, Verdict
from engine.repository import quotas as stored_quotas
from engine.repository import relatives, waits
from engine.repository import runs as stored
from engine.repository.allowances import limits
from engine.states import RunState

FLOODED = "poll_flood"
"""The `hold` of runs that one poll found too many of at once; they wait for `Runs.release_held`."""
RELEASED_AT_ONCE = 100
"""Runs over a quota that one transaction lets go at most; the organization's starts may wait until it ends."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A wish to run a workflow once."""

    workflow_id: str
    trigger: str
    """What started it: ``webhook``, ``schedule``, ``poll``, ``api``, ``replay``, ``workflow`` or ``on_failure``."""
    input: Mapping[str, Json]
    """The root ``trigger`` of its expressions."""
    idempotency_key: str | None = None
    """Within the tenant: a second start with the same key is the first one's run."""
    priority: int = 5
    """0 runs before 9, within the workflow's own flow."""
    version: int | None = None
    """The current version unless given."""
    replay_of: str | None = None
    hold: str | None = None
    """A reason to store it as `held` instead of queueing it."""
    parent_run_id: str | None = None
    """The run that waits for this one."""
    depth: int = 0
    """How many runs led to it, one by the other."""


@dataclass(frozen=True, slots=True)
class Started:
    """The stored run, and whether it was there before."""

    run: Row
    existing: bool


@dataclass(frozen=True, slots=True)
class Ties:
    """Whom a run's end concerns."""

    workflow_id: str
    parent_run_id: str | None
    concurrency_key: str | None
    has_children: bool = True
    """Whether there may be runs that it waits for."""

    @property
    def bind(self) -> bool:
        return self.has_children or self.parent_run_id is not None or self.concurrency_key is not None


@dataclass(frozen=True, slots=True)
class Answered:
    """Which step of which run an answer went to."""

    run_id: str
    step_id: str
    item: str
    approved: bool


class Runs:
    """Starts and ends runs; `publisher` is how a committed run reaches a worker.

    `clock` says in which month a run is started; without one that is the database's own.
    """

    def __init__(self, publisher: Publisher, *, clock: Callable[[], datetime] | None = None) -> None:
        self._publisher = publisher
        self._clock = clock

    def start(self, session: TenantSession, request: Start) -> Started:
        """Store a run and publish it after commit; over a quota it is held instead, or refused (`engine.quotas`).

        Raises NotFound for a workflow that is not this tenant's, Conflict ``workflow_inactive`` for one that is off,
        ``tenant_suspended`` when the whole organization is, StartRefused for a start from outside over a quota.
        """
        run = stored.insert(session, {**_columns(request), "at": self._now()})
        if run is None:
            return Started(self._existing(session, request), existing=True)
        lane, verdict, rejects = (run.pop(name) for name in ("lane", "verdict", "rejects"))
        if verdict == Verdict.ADMITTED:
            message = RunMessage(run["id"], session.tenant_id, run["workflow_id"], run["priority"], lane=lane)
            session.after_commit(lambda: self.publish_or_leave(message))
        elif verdict is not None:
            run |= self._hold_or_refuse(session, run, Verdict(verdict), rejects=rejects)
        return Started(run, existing=False)

    def _hold_or_refuse(self, session: TenantSession, run: Row, verdict: Verdict, *, rejects: bool) -> Row:
        now = self._now()
        if run["trigger"] in FROM_OUTSIDE:
            refusal = quotas.refusal(
                verdict,
                tenant_id=session.tenant_id,
                workflow_id=run["workflow_id"],
                rejects=rejects,
                now=now or datetime.now(UTC),
            )
            if refusal is not None:
                raise refusal
        return stored_quotas.hold(session, run["id"], now, verdict=verdict.value)

    def _now(self) -> datetime | None:
        return None if self._clock is None else self._clock()

    def cancel(self, session: TenantSession, run_id: str, *, by: str) -> bool:
        """End a run that has not ended, and those that it waits for; False when it had. Its log says `by` whom or what.

        Steps that had begun fail with the code ``cancelled``: what they do may have happened all the same. A worker
        that has it in hand hears of it within two seconds, and can write nothing more.
        """
        found = relatives.ties(session, run_id)
        if found is None:
            return False
        self.before_end(session, run_id, Ties(**found))
        ended = stored.cancel(session, run_id, why=f"The run was cancelled by {by}.") is not None
        if ended:
            self.cancel_children(session, run_id)
        return ended

    def cancel_children(self, session: TenantSession, run_id: str) -> None:
        """End the runs that an ended run waited for, and theirs."""
        for child in relatives.live_children(session, run_id):
            self.cancel(session, child, by=f"the end of the run {run_id}, which waited for it")

    def before_end(self, session: TenantSession, run_id: str, ties: Ties) -> None:
        """What a run's end means for others; in the transaction that ends it, and before its row is locked.

        The limits of the runs below it are locked here too, since they are cancelled with it, when its row is locked.
        """
        limits = relatives.keys_below(session, run_id) if ties.has_children else set()
        if ties.concurrency_key is not None:
            limits.add((ties.workflow_id, ties.concurrency_key))
        for workflow_id, key in sorted(limits):
            relatives.lock_key(session, workflow_id, key)
        if ties.concurrency_key is not None:
            self._publish(session, relatives.hand_over(session, ties.workflow_id, ties.concurrency_key, ending=run_id))
        if ties.parent_run_id is not None:
            self.signal(session, ties.parent_run_id)

    def signal(self, session: TenantSession, run_id: str) -> None:
        """Something has come that the run may wait for. One too many only makes it look once more."""
        row = relatives.signal(session, run_id)
        if row is not None and row["status"] == RunState.QUEUED:
            self._publish(session, [row])

    def hand_over(self, session: TenantSession, workflow_id: str, key: str) -> int:
        """Queue the runs that wait for a place under a limit where there are any; how many."""
        relatives.lock_key(session, workflow_id, key)
        rows = relatives.hand_over(session, workflow_id, key)
        self._publish(session, rows)
        return len(rows)

    def resume(self, session: TenantSession, run_id: str, answer: Answer) -> Answered:
        """Give a run the answer that it waits for; it goes on in its tenant's turn.

        Raises NotFound, Conflict ``run_not_waiting`` when nothing (more) waits for an answer, ``answer_ambiguous``
        when several steps do and none is named, Gone ``approval_expired`` when it comes too late.
        """
        rows = waits.lock_and_list(session, run_id)
        if rows is None:
            raise NotFound(f"There is no run {run_id}.")
        row = the_one(rows, answer)
        waits.answer(session, run_id, row["step_id"], row["item"], answer.signal(datetime.now(UTC)))
        self.signal(session, run_id)
        return Answered(run_id, row["step_id"], row["item"], answer.approved)

    def _publish(self, session: TenantSession, rows: Sequence[Row]) -> None:
        """Once the transaction is durable."""
        messages = [
            RunMessage(row["id"], session.tenant_id, row["workflow_id"], row["priority"], row["attempt"], row["lane"])
            for row in rows
        ]
        if messages:
            session.after_commit(lambda: self.publish_or_leave(*messages))

    def release_held(self, session: TenantSession, workflow_id: str) -> int:
        """Let the runs that a flood of one poll held back into the line of those over a quota; how many.

        `engine.held` lets them go within seconds, oldest first, as many as the limits admit; then they count.
        """
        return stored_quotas.into_line(session, workflow_id, reason=FLOODED, quota=QUOTA)

    def release_over_quota(self, session: TenantSession, now: datetime | None) -> int:
        """Queue the oldest runs that are held over a quota, as many as fit and at most RELEASED_AT_ONCE.

        In their order when the caller is the tenant's only one (`repository.quotas.alone`) until they are published.
        """
        released = stored_quotas.release(session, now, limit=RELEASED_AT_ONCE)
        self._publish(session, released)
        return len(released)

    def publish_or_leave(self, *messages: RunMessage) -> None:
        """Publish what is committed; a broker that does not answer costs a log line, and the sweeper goes on."""
        try:
            self._publisher.publish(messages)
        except Unavailable as error:
            runs, tenant_id = [m.run_id for m in messages][:10], messages[0].tenant_id
            log.warning("runs_not_published", tenant=tenant_id, runs=runs, reason=error.detail)

    @staticmethod
    def _existing(session: TenantSession, request: Start) -> Row:
        if request.idempotency_key is not None:
            run = stored.by_idempotency_key(session, request.idempotency_key)
            if run is not None:
                return run
        _refuse_payload(session, request)
        workflow = stored.why_not_started(session, request.workflow_id)
        if workflow is None:
            raise NotFound(f"There is no workflow {request.workflow_id}.")
        if workflow["tenant_status"] != "active":
            raise Conflict("The organization is suspended; nothing of it starts.", code="tenant_suspended")
        reason = workflow["inactive_reason"] or "it was switched off"
        raise Conflict(f"The workflow {request.workflow_id} is not active: {reason}.", code="workflow_inactive")


def _refuse_payload(session: TenantSession, request: Start) -> None:
    """Raises PayloadRefused when the input is larger than the plan allows."""
    size, most = _input_bytes(request, dump_json(request.input)), limits(session).get("max_payload_bytes")
    if most is not None and size > most:
        raise quotas.PayloadRefused(size, most, tenant_id=session.tenant_id, workflow_id=request.workflow_id)


def _input_bytes(request: Start, text: str) -> int:
    """What the limit is held against; 0 for what has none."""
    return len(text.encode()) if request.trigger in MEASURED else 0


def _columns(request: Start) -> Row:
    text = dump_json(request.input)
    return {
        "run_id": ids.new_id("run"),
        "outside": request.trigger in FROM_OUTSIDE,
        "workflow_id": request.workflow_id,
        "version": request.version,
        "status": (RunState.HELD if request.hold else RunState.QUEUED).value,
        "trigger": request.trigger,
        "input": text,
        "input_bytes": _input_bytes(request, text),
        "priority": request.priority,
        "idempotency_key": request.idempotency_key,
        "replay_of": request.replay_of,
        "parent_run_id": request.parent_run_id,
        "depth": request.depth,
        "wait_reason": request.hold,
    }
