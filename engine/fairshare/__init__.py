"""Fair share inside the broker: a kombu transport, and the operator's view of its lanes.

`register` makes ``fairredis://`` known; `started` tells it when work on a message begins; `counters` says what this
process did; `Lanes` configures and shows the lanes of one queue. Nothing here connects before it is used.
"""

from engine.fairshare.keeper import counters, started
from engine.fairshare.lanes import Fault, Lane, Lanes, Position, SetAside, Total
from engine.fairshare.transport import register

__all__ = ["Fault", "Lane", "Lanes", "Position", "SetAside", "Total", "counters", "register", "started"]
