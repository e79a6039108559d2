"""Triggers: what makes runs begin. All come through `fire`, the only door into a run.

`Receiver` takes webhooks, `Scheduler` fires what is due. `KINDS` are the kinds of triggers that a workflow may have.
Importing this package opens nothing.
"""

from triggers.door import fire
from triggers.registry import KINDS
from triggers.scheduler import Scheduler
from triggers.webhooks import Delivery, Receiver

__all__ = ["KINDS", "Delivery", "Receiver", "Scheduler", "fire"]
