"""Fair share inside the broker: a kombu transport, and the operator's view of its lanes.

`register` makes ``fairredis://`` known; `started` tells it when work on a message begins; `counters` says what this
process did; `Lanes` configures and shows the lanes of one queue; `connect` makes a client for any URL that the
transport takes. Nothing here connects before it is used.
"""

from engine.fairshare.address import connect
from engine.fairshare.keeper import counters, started
from engine.fairshare.lanes import Fault, Lane, Lanes, Position, SetAside, Total
from engine.fairshare.transport import register

__all__ = ["Fault", "Lane", "Lanes", "Position", "SetAside", "Total", "connect", "counters", "register", "started"]
