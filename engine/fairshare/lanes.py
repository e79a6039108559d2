"""The lanes of one fair queue as an operator sees them: configure, pause, look, cancel, check.

A lane is what one tenant has in the queue. Everything here acts on what already waits, at once, and costs O(log n)
unless its docstring says otherwise. Safe to share between threads. Redis errors (`redis.RedisError`) are raised as
they come; every call may be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis

from engine.fairshare.address import connect
from engine.fairshare.envelope import lane_words, name
from engine.fairshare.scripts import Command, Keys, Wire, operation

Reason = Literal["fair_turn", "tenant_concurrency", "rate", "paused", "in_flight", "unknown"]

PAGE = 500
"""Lanes, messages or ids that one command handles; longer work is done in as many commands as it takes."""

DEPTHS = 1000
"""Lanes of which one command reads the depths: about a millisecond of Redis."""

ALIVE_FOR = 30.0
"""Seconds since it was last heard of that a worker counts as present."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane now. Times in seconds; `share` is of all worker-seconds of the last minutes, between 0 and 1."""

    tenant: str
    weight: float
    cap: int | None
    rate: float | None
    burst: int
    paused: bool
    version: int | None
    in_flight: int
    backlog: int
    flows: int
    lag: float
    rate_due_in: float
    recent_seconds: float
    share: float
    oldest_age: float | None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message is. `ahead` counts messages of its own flow, `lanes_ahead` tenants that are served before its own
    (None while its tenant is not ready); both None once it is in flight, when `since` tells how long."""

    state: Literal["waiting", "in_flight"]
    tenant: str
    flow: str
    reason: Reason
    ahead: int | None = None
    lanes_ahead: int | None = None
    rate_due_in: float = 0.0
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """The whole queue now, and its counters since its data began."""

    backlog: int
    in_flight: int
    lanes: int
    ready: int
    throttled: int
    tickets: int
    set_aside: int
    workers: int
    virtual_time: float
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message that could not be delivered, or was rejected for good. `at` is Unix time."""

    id: str
    at: float
    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken invariant (I1 to I4, see docs/fair-share.md), of one tenant or ('') of the queue."""

    invariant: str
    tenant: str
    detail: str


class Lanes:
    """The lanes of `queue`. `prefix` is the transport's ``global_keyprefix``; `redis_` a client, or any URL that the
    transport takes (`address.py`)."""

    def __init__(self, redis_: redis.Redis | str, queue: str = "runs", prefix: str = "") -> None:
        client = connect(redis_) if isinstance(redis_, str) else redis_
        self._wire = Wire(client.connection_pool)
        self._keys = Keys.of(queue, prefix)

    @classmethod
    def over(cls, wire: Wire, keys: Keys) -> Lanes:
        """The lanes behind an open wire."""
        lanes = cls.__new__(cls)
        lanes._wire, lanes._keys = wire, keys
        return lanes

    # -- setting -------------------------------------------------------------------------------------------------

    def configure(
        self,
        tenant: str,
        *,
        weight: float | None = None,
        cap: int | None = None,
        rate: float | None = None,
        burst: int | None = None,
        paused: bool | None = None,
        version: int | None = None,
    ) -> bool:
        """Sets what is given. Cap and rate (runs per second) 0 mean none.

        `version` orders configurations: one as old as the lane's or older changes nothing and returns False. Without
        it, the time in microseconds. Messages carry a version, too (0 unless they say), so they never undo an
        operator.
        """
        given = {"weight": weight, "cap": cap, "rate": rate, "burst": burst, "paused": paused, "version": version or 0}
        words = lane_words(given)
        if version is None:
            words = f"-{words[1:]}"
        return bool(self._run("configure", "", name(tenant), words))

    def configure_many(self, configurations: Mapping[str, Mapping[str, float]], *, only_known: bool = False) -> int:
        """Tells many lanes what messages would tell them; returns how many of them took it over.

        `only_known` leaves out tenants that the queue never heard of. O(tenants), in batches.
        """
        changed, tenants, known = 0, list(configurations), "1" if only_known else ""
        for start in range(0, len(tenants), PAGE):
            words = [(name(tenant), lane_words(configurations[tenant])) for tenant in tenants[start : start + PAGE]]
            changed += sum(self._wire.call(*(self._operation("configure", "", *pair, known) for pair in words)))
        return changed

    def pause(self, tenant: str) -> bool:
        """Starts nothing more of this tenant; what is in flight goes on. False when it is paused already.

        Only the lane knows of it: what must outlast the loss of Redis's data goes into its configuration.
        """
        return bool(self._run("pause", "", name(tenant), "1"))

    def resume(self, tenant: str) -> bool:
        return bool(self._run("pause", "", name(tenant), "0"))

    # -- looking -------------------------------------------------------------------------------------------------

    def inspect(self, tenant: str) -> Lane | None:
        """The lane of a tenant; None when the queue never heard of it. The oldest message is looked for in the 128
        flows that are served next."""
        return _lane(name(tenant), self._run("inspect", "", name(tenant), 128))

    def page(self, *, after: str = "", limit: int = 100) -> list[Lane]:
        """Lanes in the order of their tenant, those behind `after`. O(limit)."""
        start = f"({after}" if after else "-"
        command = ("ZRANGEBYLEX", f"{self._keys.stem}lanes", start, "+", "LIMIT", 0, min(limit, PAGE))
        tenants = [tenant.decode() for tenant in self._wire.call(self._operation("file", ""), command)[1]]
        replies = (
            self._wire.call(*(self._operation("inspect", "", tenant, 16) for tenant in tenants)) if tenants else []
        )
        found = (_lane(tenant, reply) for tenant, reply in zip(tenants, replies, strict=True))
        return [lane for lane in found if lane is not None]

    def all(self) -> Iterator[Lane]:
        """Every lane, read page by page."""
        page = self.page(limit=PAGE)
        while page:
            yield from page
            page = self.page(after=page[-1].tenant, limit=PAGE)

    def depths(self) -> Iterator[tuple[str, int, int]]:
        """Of every lane (tenant, how many wait, how many are in flight), read page by page; cheaper than `all`."""
        last = ""
        while True:
            words = self._run("depths", last, DEPTHS).decode().split("\x1f")
            for tenant, backlog, in_flight in zip(words[::3], words[1::3], words[2::3], strict=False):
                yield tenant, int(backlog), int(in_flight)
            if len(words) < 3 * DEPTHS:
                return
            last = words[-3]

    def total(self) -> Total:
        """The queue as a whole. O(1)."""
        stem = self._keys.stem
        _, stored, leased, lanes, ready, throttled, tickets, aside, state = self._wire.call(
            self._operation("file", ""),
            ("HLEN", f"{stem}messages"),
            ("HLEN", f"{stem}leased"),
            ("ZCARD", f"{stem}lanes"),
            ("ZCARD", f"{stem}ready"),
            ("ZCARD", f"{stem}throttled"),
            ("LLEN", self._keys.tickets),
            ("HLEN", f"{stem}aside"),
            ("HGETALL", f"{stem}state"),
        )
        pairs = state.items() if isinstance(state, dict) else zip(state[::2], state[1::2], strict=True)
        fields = {key.decode(): value.decode() for key, value in pairs}
        counters = {key: int(value) for key, value in fields.items() if key not in _NOT_COUNTERS}
        return Total(
            backlog=max(stored - leased, 0),
            in_flight=leased,
            lanes=lanes,
            ready=ready,
            throttled=throttled,
            tickets=tickets,
            set_aside=aside,
            workers=len(self.workers()),
            virtual_time=float(fields.get("time", 0)),
            counters=counters,
        )

    def position(self, message_id: str) -> Position | None:
        """Where a message is; None when the queue does not have it."""
        reply = self._run("position", "", message_id)
        if reply is None:
            return None
        state, tenant, flow, *rest = reply
        if state == b"leased":
            return Position("in_flight", tenant.decode(), flow.decode(), "in_flight", since=float(rest[0]))
        ahead, lanes_ahead, reason, due = rest
        return Position(
            "waiting",
            tenant.decode(),
            flow.decode(),
            reason.decode(),
            ahead=ahead,
            lanes_ahead=None if lanes_ahead == b"" else int(lanes_ahead),
            rate_due_in=float(due),
        )

    def why(self, message_id: str) -> Reason:
        """What a message waits for."""
        position = self.position(message_id)
        return position.reason if position else "unknown"

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        """Which of these messages the queue has, waiting or in flight. O(number of ids)."""
        held: set[str] = set()
        for start in range(0, len(message_ids), PAGE):
            ids = message_ids[start : start + PAGE]
            held.update(id_ for id_, here in zip(ids, self._run("holds", *ids), strict=True) if here)
        return held

    def workers(self) -> list[str]:
        """The worker processes that were heard of within the length of a lease."""
        now = self._now()
        command = ("ZRANGEBYSCORE", f"{self._keys.stem}workers", now - ALIVE_FOR, "+inf")
        return [worker.decode() for worker in self._wire.call(command)[0]]

    @property
    def no_worker(self) -> bool:
        """Whether nobody is there to run anything."""
        return not self.workers()

    # -- removing ------------------------------------------------------------------------------------------------

    def cancel(self, message_id: str) -> bool | None:
        """Removes a waiting message: True; False when there is none; None when it is in flight (and stays)."""
        result = self._run("cancel", "", message_id)
        return None if result < 0 else bool(result)

    def drain(self, tenant: str) -> int:
        """Removes everything of a tenant that waits; returns how many. O(n), in batches."""
        removed, left = 0, 1
        while left:
            count, left = self._run("drain", "", name(tenant), PAGE)
            removed += count
            if not count:
                break
        return removed

    def purge(self) -> int:
        """Removes everything that waits; returns how many. O(n), in batches."""
        return sum(self.drain(lane.tenant) for lane in self.all() if lane.backlog)

    # -- what was set aside --------------------------------------------------------------------------------------

    def set_aside(self, *, limit: int = 100) -> list[SetAside]:
        """Some of the messages that were set aside, in no particular order. O(limit)."""
        found: list[SetAside] = []
        cursor: Any = 0
        while len(found) < limit:
            cursor, entries = self._wire.call(("HSCAN", f"{self._keys.stem}aside", cursor, "COUNT", limit))[0]
            pairs = entries.items() if isinstance(entries, dict) else zip(entries[::2], entries[1::2], strict=True)
            found.extend(_set_aside(key, value) for key, value in pairs)
            if int(cursor) == 0:
                break
        return found[:limit]

    def revive(self, message_ids: Sequence[str]) -> list[str]:
        """Puts messages that were set aside back, behind the others; returns the ids that wait now. What never was a
        message of this queue stays aside."""
        replies = self._run("revive", "", *message_ids) if message_ids else []
        return [id_ for id_, done in zip(message_ids, replies, strict=True) if done]

    def forget(self, message_ids: Sequence[str]) -> int:
        """Deletes messages that were set aside; returns how many."""
        return int(self._wire.call(("HDEL", f"{self._keys.stem}aside", *message_ids))[0]) if message_ids else 0

    # -- the epoch -----------------------------------------------------------------------------------------------

    def epoch(self) -> str | None:
        """The marker set by `mark_epoch`; None on a Redis that lost its data, or never had any."""
        marker = self._wire.call(("HGET", f"{self._keys.stem}state", "epoch"))[0]
        return marker.decode() if marker else None

    def mark_epoch(self) -> str:
        """Says that everything that should be here has been published; returns the marker. One that is there stays."""
        marker = f"{self._now():.6f}"
        self._wire.call(("HSETNX", f"{self._keys.stem}state", "epoch", marker))
        return self.epoch() or marker

    # -- checking ------------------------------------------------------------------------------------------------

    def check(self, *, repair: bool = False) -> list[Fault]:
        """The invariants that do not hold; with `repair` they hold afterwards. O(n), page by page, each page at once.

        I4 (a ticket for ready work) may be reported while a worker is just about to use the last one.
        """
        wanted = "1" if repair else ""
        faults = list(self._pages("check_messages", wanted, "0", PAGE, end="0"))
        faults.extend(self._pages("check_lanes", wanted, "", PAGE, 10_000, end=""))
        return faults

    def _pages(self, script: str, repair: str, cursor: str, *limits: int, end: str) -> Iterator[Fault]:
        while True:
            position, *fields = (part.decode() for part in self._run(script, "", repair, cursor, *limits))
            yield from (Fault(*fields[i : i + 3]) for i in range(0, len(fields), 3))
            if position == end:
                return
            cursor = position

    # -- inside --------------------------------------------------------------------------------------------------

    def _operation(self, script: str, *args: str | float) -> Command:
        return operation(script, self._keys, *args)

    def _run(self, script: str, *args: str | float) -> Any:
        return self._wire.call(self._operation(script, *args))[0]

    def _now(self) -> float:
        seconds, micros = self._wire.call(("TIME",))[0]
        return int(seconds) + int(micros) / 1e6


_NOT_COUNTERS = frozenset(("time", "estimate", "seq", "recent", "recent_at", "born", "epoch", "attended", "grace"))


def _lane(tenant: str, reply: Iterable[bytes] | None) -> Lane | None:
    if reply is None:
        return None
    weight, cap, rate, burst, paused, version, in_flight, backlog, flows, tag, time, due, recent, all_recent, oldest = (
        reply
    )
    served, everything = float(recent), float(all_recent)
    return Lane(
        tenant=tenant,
        weight=float(weight),
        cap=int(float(cap)) or None,
        rate=float(rate) or None,
        burst=int(float(burst)),
        paused=paused == b"1",
        version=int(float(version)) if version else None,
        in_flight=int(in_flight),
        backlog=int(backlog),
        flows=int(flows),
        lag=max(float(tag) - float(time), 0.0),
        rate_due_in=float(due),
        recent_seconds=served,
        share=min(served / everything, 1.0) if everything > 0 and math.isfinite(everything) else 0.0,
        oldest_age=float(oldest) if oldest else None,
    )


def _set_aside(message_id: bytes, value: bytes) -> SetAside:
    head, _, payload = value.partition(b"\n")
    at, _, reason = head.partition(b"\x1f")
    if payload.startswith(b"1\x1f"):
        payload = payload.partition(b"\n")[2]
    return SetAside(message_id.decode(errors="replace"), float(at), reason.decode(errors="replace"), payload)
