"""The only door into a run: API, webhooks, schedules and polls all come through `fire`."""

from __future__ import annotations

from engine.db import TenantSession
from engine.runs import Runs, Start, Started


def fire(session: TenantSession, runs: Runs, start: Start) -> Started:
    """Store one run in the caller's transaction; it is published once that is durable.

    With an idempotency key that was used before, it is the first one's run. Raises NotFound, and Conflict
    ``workflow_inactive``; after either the transaction can go on.
    """
    return runs.start(session, start)
