"""What a fair queue should do, in plain Python: the oracle for the Lua operations.

Written from the rules in docs/fair-share.md, with dicts where Redis has keys. Every method is one operation and
returns what the operation must return. Arithmetic is in the same order as in Lua, so tags are equal to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

PRIORITY = 2**45
APART = 1e-5
FIRST = 2.0**33
SMOOTHING = 0.2
FIRST_ESTIMATE = 1.0
SETTLED = 30.0


@dataclass
class Flow:
    tag: float = 0.0
    floor: float = 0.0
    estimate: float = FIRST_ESTIMATE


@dataclass
class Lane:
    weight: float = 1.0
    cap: int = 0
    rate: float = 0.0
    burst: float = 1.0
    version: float | None = None
    paused: bool = False
    in_flight: int = 0
    tag: float = 0.0
    floor: float = 0.0
    flow_time: float = 0.0
    tat: float = 0.0
    flows: dict[str, Flow] = field(default_factory=dict)
    order: dict[str, float] = field(default_factory=dict)  # the turn of each flow; below 0 = the first one
    waiting: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def backlog(self) -> int:
        return sum(len(ids) for ids in self.waiting.values())

    @property
    def room(self) -> int:
        if self.paused:
            return 0
        return min(self.backlog, max(self.cap - self.in_flight, 0)) if self.cap else self.backlog

    @property
    def due(self) -> float:
        return self.tat - (self.burst - 1) / self.rate


@dataclass
class Entry:
    tenant: str
    flow: str
    score: float
    nonce: str
    deliveries: int = 0


@dataclass
class Lease:
    token: str
    tenant: str
    flow: str
    charge: float
    estimate: float
    nonce: str
    deadline: float


def corrected(tag: float, floor: float, by: float) -> float:
    return tag + by if by >= 0 else max(tag + by, min(tag, floor))


def joined(one: Lane | Flow, line: dict[str, float], virtual_time: float, now: float) -> float:
    """The turn of one that was idle, whose tag is lifted."""
    begin = min([virtual_time, *(turn for turn in line.values() if turn >= 0)])
    if one.tag > begin:
        return one.tag
    if one.tag < begin:
        one.tag = one.floor = begin
    return now - FIRST


class Model:
    def __init__(self) -> None:
        self.time = 0.0
        self.estimate = FIRST_ESTIMATE
        self.attended: float | None = None
        self.grace = 0.0
        self.seq = 0.0
        self.inbox: list[tuple[str, str, str, int, str, bool]] = []
        self.published = 0
        self.repeated = 0
        self.lanes: dict[str, Lane] = {}
        self.entries: dict[str, Entry] = {}
        self.leases: dict[str, Lease] = {}
        self.ready: dict[str, float] = {}
        self.throttled: dict[str, float] = {}
        self.settled: dict[str, float] = {}
        self.aside: dict[str, Entry] = {}

    # -- operations ----------------------------------------------------------------------------------------------

    def publish(self, id_: str, tenant: str, flow: str, priority: int, nonce: str, *, again: bool) -> None:
        self.inbox.append((id_, tenant, flow, priority, nonce, again))

    def open(self, now: float) -> None:
        """What every operation begins with: the messages in the inbox are filed, in their order."""
        if self.attended is None:
            self.attended = now
        for number, (id_, tenant, flow, priority, nonce, again) in enumerate(self.inbox, start=1):
            self._file(id_, tenant, flow, priority, nonce, again=again, at=now + number * APART)
        self.inbox.clear()

    def _file(self, id_: str, tenant: str, flow: str, priority: int, nonce: str, *, again: bool, at: float) -> None:
        if id_ in self.entries or (again and nonce in self.settled):
            self.repeated += 1
            return
        self.published += 1
        lane = self.lanes.setdefault(tenant, Lane())
        self._enqueue(lane, id_, Entry(tenant, flow, self._next_score(priority, at), nonce), at)
        self._place(tenant, at)

    def claim(self, wanted: int, token: str, lease: float, now: float) -> list[tuple[str, int]]:
        self.open(now)
        self._promote(now)
        claimed: list[tuple[str, int]] = []
        while len(claimed) < wanted and self.ready:
            tenant = min(self.ready, key=lambda t: (self.ready[t], t))
            lane = self.lanes[tenant]
            name = min(lane.order, key=lambda f: (lane.order[f], f))
            id_ = min(lane.waiting[name], key=lambda i: (lane.waiting[name][i], i))
            flow = self._flow(lane, name)
            lane.flow_time = max(lane.flow_time, flow.tag)
            flow.tag += flow.estimate
            lane.flows[name] = flow
            self._leave(lane, name, id_)
            if name in lane.order:
                lane.order[name] = flow.tag
            self.time = max(self.time, lane.tag)
            entry = self.entries[id_]
            charge = flow.estimate / lane.weight
            self.leases[id_] = Lease(token, tenant, name, charge, flow.estimate, entry.nonce, now + lease)
            lane.tag += charge
            lane.in_flight += 1
            if lane.rate:
                lane.tat = max(lane.tat, now) + 1 / lane.rate
            self._place(tenant, now, served=True)
            claimed.append((id_, entry.deliveries))
        return claimed

    def ack(self, id_: str, token: str, seconds: float, now: float) -> int:
        self.open(now)
        lease = self._end(id_, token)
        if lease is None:
            return 0
        del self.entries[id_]
        self.settled[lease.nonce] = now
        lane = self.lanes[lease.tenant]
        lane.in_flight -= 1
        flow = self._settle(lane, lease, seconds)
        flow.estimate += SMOOTHING * (seconds - flow.estimate)
        self.estimate += SMOOTHING * (seconds - self.estimate)
        self._place(lease.tenant, now)
        self.settled = {nonce: at for nonce, at in self.settled.items() if at > now - SETTLED}
        return 1

    def requeue(self, id_: str, token: str, seconds: float, *, behind: bool, now: float) -> int:
        self.open(now)
        lease = self._end(id_, token)
        if lease is None:
            return 0
        self._give_back(id_, lease, now, seconds=seconds, behind=behind, delivered=behind)
        return 1

    def renew(self, id_: str, token: str, lease: float, now: float) -> bool:
        if self.attended is None:
            self.attended = now
        held = self.leases.get(id_)
        if held is None or held.token != token:
            return False
        held.deadline = now + lease
        return True

    def register(self, id_: str, tenant: str, flow: str, *, token: str, nonce: str, lease: float, now: float) -> int:
        self.open(now)
        if id_ in self.leases:
            return int(self.leases[id_].token == token)
        lane = self.lanes.setdefault(tenant, Lane())
        entry = self.entries.get(id_)
        if entry is not None:
            self._leave(lane, entry.flow, id_)
        else:
            entry = self.entries[id_] = Entry(tenant, flow, self._next_score(0, now), nonce)
        at = self._flow(lane, entry.flow)
        charge = at.estimate / lane.weight
        self.leases[id_] = Lease(token, tenant, entry.flow, charge, at.estimate, entry.nonce, now + lease)
        lane.tag += charge
        lane.in_flight += 1
        at.tag += at.estimate
        lane.flows[entry.flow] = at
        self._place(tenant, now)
        return 1

    def reap(self, lease: float, grace: float, now: float) -> int:
        self.open(now)
        if now - (self.attended or 0.0) > lease / 2:
            self.grace = now + grace
        self.attended = now
        self._promote(now)
        if now < self.grace:
            return 0
        expired = sorted((held.deadline, id_) for id_, held in self.leases.items() if held.deadline <= now)
        for _, id_ in expired:
            self._give_back(id_, self.leases.pop(id_), now, delivered=True)
        return len(expired)

    def set_aside(self, id_: str, token: str, now: float) -> int:
        self.open(now)
        lease = self._end(id_, token)
        if lease is None:
            return 0
        self.aside[id_] = self.entries.pop(id_)
        self.lanes[lease.tenant].in_flight -= 1
        self._place(lease.tenant, now)
        return 1

    def revive(self, id_: str, now: float) -> int:
        self.open(now)
        entry = self.aside.pop(id_, None)
        if entry is None:
            return 0
        if id_ not in self.entries:
            lane = self.lanes[entry.tenant]
            entry.score = self._next_score(int(entry.score // PRIORITY), now)
            entry.deliveries += 1
            self._enqueue(lane, id_, entry, now)
            self._place(entry.tenant, now)
        return 1

    def cancel(self, id_: str, now: float) -> int:
        self.open(now)
        if id_ in self.leases:
            return -1
        entry = self.entries.pop(id_, None)
        if entry is None:
            return 0
        self._leave(self.lanes[entry.tenant], entry.flow, id_)
        self._place(entry.tenant, now)
        return 1

    def drain(self, tenant: str, now: float) -> int:
        self.open(now)
        lane = self.lanes.get(tenant)
        ids = [id_ for waiting in lane.waiting.values() for id_ in waiting] if lane else []
        for id_ in ids:
            self.cancel(id_, now)
        return len(ids)

    def configure(
        self, tenant: str, *, version: float, weight: float, cap: int, rate: float, burst: float, now: float
    ) -> int:
        self.open(now)
        known = self.lanes.get(tenant)
        if known and known.version is not None and known.version >= version:
            return 0
        lane = self.lanes.setdefault(tenant, Lane())
        lane.version, lane.weight, lane.cap, lane.rate, lane.burst = version, weight, cap, rate, burst
        self.throttled.pop(tenant, None)
        self._place(tenant, now)
        return 1

    def pause(self, tenant: str, *, paused: bool, now: float) -> int:
        self.open(now)
        if self.lanes.get(tenant, Lane()).paused == paused:
            return 0
        self.lanes.setdefault(tenant, Lane()).paused = paused
        self._place(tenant, now)
        return 1

    # -- rules ---------------------------------------------------------------------------------------------------

    def _flow(self, lane: Lane, name: str) -> Flow:
        return lane.flows.get(name) or Flow(estimate=self.estimate)

    def _next_score(self, priority: int, now: float) -> float:
        self.seq = max(self.seq + 1, math.floor(now * 10000))
        return priority * PRIORITY + self.seq

    def _enqueue(self, lane: Lane, id_: str, entry: Entry, now: float) -> None:
        self.entries[id_] = entry
        waiting = lane.waiting.setdefault(entry.flow, {})
        waiting[id_] = entry.score
        if len(waiting) == 1:
            flow = self._flow(lane, entry.flow)
            tag = flow.tag
            lane.order[entry.flow] = joined(flow, lane.order, lane.flow_time, now)
            if flow.tag > tag:  # else an unknown flow stays unknown, and its estimate is that of its first claim
                lane.flows[entry.flow] = flow

    def _leave(self, lane: Lane, flow: str, id_: str) -> None:
        del lane.waiting[flow][id_]
        if not lane.waiting[flow]:
            del lane.waiting[flow]
            del lane.order[flow]

    def _place(self, tenant: str, now: float, *, served: bool = False) -> None:
        lane = self.lanes[tenant]
        turn = self.ready.pop(tenant, None)
        self.throttled.pop(tenant, None)
        if lane.room < 1:
            return
        if lane.rate and lane.due > now:
            self.throttled[tenant] = lane.due
            return
        if served:
            turn = lane.tag
        elif turn is None:
            turn = joined(lane, self.ready, self.time, now)
        self.ready[tenant] = turn if turn < 0 else lane.tag

    def _promote(self, now: float) -> None:
        for tenant in sorted(self.throttled, key=lambda t: (self.throttled[t], t)):
            if self.throttled[tenant] <= now:
                self._place(tenant, now)

    def _end(self, id_: str, token: str) -> Lease | None:
        lease = self.leases.get(id_)
        if lease is None or lease.token != token:
            return None
        return self.leases.pop(id_)

    def _settle(self, lane: Lane, lease: Lease, seconds: float) -> Flow:
        lane.tag = corrected(lane.tag, lane.floor, seconds / lane.weight - lease.charge)
        flow = self._flow(lane, lease.flow)
        flow.tag = corrected(flow.tag, flow.floor, seconds - lease.estimate)
        lane.flows[lease.flow] = flow
        if lane.order.get(lease.flow, -1.0) >= 0:
            lane.order[lease.flow] = flow.tag
        return flow

    def _give_back(
        self,
        id_: str,
        lease: Lease,
        now: float,
        *,
        seconds: float | None = None,
        behind: bool = False,
        delivered: bool = False,
    ) -> None:
        lane, entry = self.lanes[lease.tenant], self.entries[id_]
        lane.in_flight -= 1
        if seconds is not None:
            self._settle(lane, lease, seconds)
        if behind:
            entry.score = self._next_score(int(entry.score // PRIORITY), now)
        entry.deliveries += int(delivered)
        self._enqueue(lane, id_, entry, now)
        self._place(lease.tenant, now)
