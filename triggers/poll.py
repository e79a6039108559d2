"""The kind `poll`: a source is looked at every so often, and each new item starts a run.

A poll falls due as soon as it is saved or switched on, so that as little as possible passes unseen, and then in the
rhythm of `every`. Falling due only sends a worker to look; what it does is in `triggers.pollers`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from engine.definition import PollTrigger
from triggers.kinds import Decision, Due

LEASE = timedelta(minutes=5)
"""How long a poll may be on its way to a worker, or in its hands, before it falls due again.

No poll takes this long: the fetch ends after 30 s and the reading of a feed after 60 s. One that still waits for its
tenant's turn then is not doubled, because its message has the same id; one that was lost is repeated.
"""


class Poll:
    type = "poll"

    def first_fire(self, workflow_id: str, trigger: PollTrigger, now: datetime) -> datetime | None:  # noqa: ARG002
        return now

    def decide(self, due: Due) -> Decision:
        return Decision(next_fire_at=due.now + LEASE, poll=True)
