"""Triggers: what makes runs begin. All come through `fire`, the only door into a run.

`Receiver` takes webhooks, `Scheduler` fires what is due, `Poller` looks at a source. `KINDS` are the kinds of triggers
that a workflow may have, `SOURCES` what may be polled. Importing this package opens nothing.
"""

from triggers.door import fire
from triggers.pollers import Poller
from triggers.registry import KINDS
from triggers.scheduler import Scheduler
from triggers.sources import SOURCES
from triggers.webhooks import Delivery, Receiver

__all__ = ["KINDS", "SOURCES", "Delivery", "Poller", "Receiver", "Scheduler", "fire"]
