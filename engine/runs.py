"""A run from the outside: start, cancel, and the message that brings it to a worker.

What `Runs.start` returns exists: it is inserted in the caller's transaction, and published only after that transaction
is durable. When publishing fails, or the process dies before it, the sweeper publishes; so a caller never waits for a
broker that is down, and never loses a run to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from engine import ids
from engine.db import Row, TenantSession, dump_json
from engine.errors import Conflict, NotFound, Unavailable
from engine.ports import Json, Publisher, RunMessage
from engine.repository import runs as stored
from engine.states import RunState

FLOODED = "poll_flood"
"""The `hold` of runs that one poll found too many of at once; they wait for `Runs.release_held`."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A wish to run a workflow once."""

    workflow_id: str
    trigger: str
    """What started it: ``webhook``, ``schedule``, ``poll``, ``api`` or ``replay``."""
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


@dataclass(frozen=True, slots=True)
class Started:
    """The stored run, and whether it was there before."""

    run: Row
    existing: bool


class Runs:
    """Starts and ends runs; `publisher` is how a committed run reaches a worker."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def start(self, session: TenantSession, request: Start) -> Started:
        """Store a run and publish it after commit.

        Raises NotFound for a workflow that is not this tenant's, Conflict ``workflow_inactive`` for one that is off,
        ``tenant_suspended`` when the whole organization is.
        """
        run = stored.insert(session, _columns(request))
        if run is None:
            return Started(self._existing(session, request), existing=True)
        if run["status"] == RunState.QUEUED:
            message = RunMessage(
                run["id"], session.tenant_id, run["workflow_id"], run["priority"], lane=run.pop("lane")
            )
            session.after_commit(lambda: self.publish_or_leave(message))
        return Started(run, existing=False)

    def cancel(self, session: TenantSession, run_id: str) -> bool:
        """End a run that has not ended; False when it had. A worker that has it in hand loses it at its next write."""
        return stored.cancel(session, run_id) is not None

    def release_held(self, session: TenantSession, workflow_id: str) -> int:
        """Queue the runs that a flood of one poll held back, oldest first; how many. Those over a quota stay held."""
        released = stored.release(session, workflow_id, reason=FLOODED)
        messages = [
            RunMessage(row["id"], session.tenant_id, workflow_id, row["priority"], row["attempt"], row["lane"])
            for row in released
        ]
        if messages:
            session.after_commit(lambda: self.publish_or_leave(*messages))
        return len(messages)

    def publish_or_leave(self, *messages: RunMessage) -> None:
        """Publish what is committed; a broker that does not answer costs a log line, and the sweeper goes on."""
        try:
            self._publisher.publish(messages)
        except Unavailable as error:
            log.warning("runs_not_published", runs=[m.run_id for m in messages][:10], reason=error.detail)

    @staticmethod
    def _existing(session: TenantSession, request: Start) -> Row:
        if request.idempotency_key is not None:
            run = stored.by_idempotency_key(session, request.idempotency_key)
            if run is not None:
                return run
        workflow = stored.why_not_started(session, request.workflow_id)
        if workflow is None:
            raise NotFound(f"There is no workflow {request.workflow_id}.")
        if workflow["tenant_status"] != "active":
            raise Conflict("The organization is suspended; nothing of it starts.", code="tenant_suspended")
        reason = workflow["inactive_reason"] or "it was switched off"
        raise Conflict(f"The workflow {request.workflow_id} is not active: {reason}.", code="workflow_inactive")


def _columns(request: Start) -> Row:
    return {
        "run_id": ids.new_id("run"),
        "workflow_id": request.workflow_id,
        "version": request.version,
        "status": (RunState.HELD if request.hold else RunState.QUEUED).value,
        "trigger": request.trigger,
        "input": dump_json(request.input),
        "priority": request.priority,
        "idempotency_key": request.idempotency_key,
        "replay_of": request.replay_of,
        "wait_reason": request.hold,
    }
