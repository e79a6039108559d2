"""What a worker process has in hand: claimed messages, from the claim until their lease ends.

One `Hands` serves one broker for the whole process, apart from any kombu channel, because a channel dies with its
connection and the work in hand does not: after a reconnect the same leases are renewed and the late acks still count.

A message is in hand as long as somebody could still finish it, that is, as long as its `Message` object is alive.
When Celery drops a request without running it (after a lost connection, or at shutdown) the object is collected, and
the message goes back to the place it had. What is in hand when the process exits in order goes back too; what is in
hand when it is killed comes back when its lease runs out.

The keeper thread (`keeper.py`) calls `run_once`; the thread that consumes calls `exchange`. Nothing here is used
before its connection is: a fork inherits an empty registry.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redis import ConnectionPool
from redis.exceptions import RedisError

from engine.fairshare.envelope import Envelope, seal, unseal
from engine.fairshare.scripts import Keys, Wire, operation

logger = logging.getLogger("fairlane.fairshare")

MAX_BATCH = 64
"""Messages of one claim, and of one batch of acks; the scripts take no more at once."""

INBOX = 128
"""Messages that a batch of publishes may leave in the inbox, as in ``library.lua``."""

PORTION = 8
"""Messages in the inbox after which a publisher of single ones has them filed: so few that Redis is done with them
while the publisher makes its next message, when each of them is another tenant's, too."""

TICKET = b"0"

SIGN_OF_LIFE = 10.0
"""Seconds between two renewals at most, whatever the lease: `Lanes.workers` counts on a third of its own patience."""


@dataclass(slots=True)
class Held:
    """One message in hand. Times are of the process's monotonic clock."""

    tag: str
    id: str
    keys: Keys
    token: str
    born: bytes
    payload: bytes
    deliveries: int
    claimed_at: float
    started_at: float | None = None
    lost: bool = False
    watch: Any = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought: messages, whether more work is ready, seconds until a throttled lane may go on."""

    messages: list[Held] = field(default_factory=list)
    more: bool = False
    due_in: float | None = None


@dataclass(frozen=True, slots=True)
class Tended:
    """What one run of the keeper did; `due_in` is when a throttled lane may go on."""

    returned: int = 0
    renewed: int = 0
    registered: int = 0
    lost: int = 0
    reaped: int = 0
    due_in: float | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    id: str
    token: str
    seconds: float


class Hands:
    """See the module. `tending` is the pool of the keeper's thread, where two threads should not share one: a pool that
    asks several sentinels for two threads at once may miss the living one. `lease` is in seconds, `interval` those
    between two runs of the keeper; `clock` is monotonic."""

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        tending: ConnectionPool | None = None,
        lease: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease = lease
        self.interval = min(1.0, lease / 6)
        self.consumer = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.counters: Counter[str] = Counter()
        self.queues: set[Keys] = set()
        """The queues that this process consumes now."""
        self.wake = threading.Event()
        self._clock = clock
        self._wire = Wire(pool, keep=True)
        self._tending = Wire(tending or pool)
        self._tokens = itertools.count(1)
        self._consumers: Counter[Keys] = Counter()
        self._held: dict[str, Held] = {}
        self._by_id: dict[str, Held] = {}
        self._acks: deque[tuple[Keys, Ack]] = deque()
        self._forgotten: deque[str] = deque()
        self._unanswered: deque[tuple[Keys, str]] = deque()
        self._renew_at = 0.0
        self.planned = 0.0

    def __contains__(self, tag: object) -> bool:
        return tag in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look after."""
        return not (self.queues or self._held or self._acks or self._unanswered or self._forgotten)

    # -- the consuming thread ------------------------------------------------------------------------------------

    def attend(self, keys: Keys) -> None:
        """A channel consumes this queue from now on, until as many called `leave`."""
        self._consumers[keys] += 1
        self.queues.add(keys)
        self.wake.set()

    def leave(self, keys: Keys) -> None:
        self._consumers[keys] -= 1
        if self._consumers[keys] < 1:
            self.queues.discard(keys)

    def exchange(self, keys: Keys | None, wanted: int) -> Claim:
        """Sends the acks that wait, of any queue, and claims up to `wanted` messages of `keys`, in one round trip.

        Raises what a broken connection raises. The acks are then sent again later; what the claim leased, if it ran,
        is recalled by the keeper.
        """
        acks = self._take_acks()
        commands = [operation("ack", at, "", *_flat(batch)) for at, batch in _by_queue(acks)]
        token = f"{self.consumer[-8:]}{next(self._tokens):x}"
        claiming = keys is not None and wanted > 0
        if keys is not None and claiming:
            commands.append(operation("claim", keys, "", self.lease, token, min(wanted, MAX_BATCH)))
        if not commands:
            return Claim()
        try:
            replies = self._wire.call(*commands)
        except BaseException:
            self._acks.extendleft(reversed(acks))
            if keys is not None and claiming:
                self._unanswered.append((keys, token))
                self.wake.set()
            raise
        self._count_acks(replies[:-1] if claiming else replies)
        return self._take(keys, token, replies[-1]) if keys is not None and claiming else Claim()

    def flush(self) -> None:
        """Sends the acks that wait. Raises what a broken connection raises; they are kept for the next time."""
        while self._acks:
            self.exchange(None, 0)

    def expect(self, due_in: float) -> None:
        """A throttled lane may go on in so many seconds: the keeper shall not sleep longer."""
        if self._clock() + due_in < self.planned - 0.001:
            self.planned = self._clock() + due_in
            self.wake.set()

    @property
    def has_acks(self) -> bool:
        return bool(self._acks)

    def watch(self, tag: str, message: object) -> None:
        """From now on the message is in hand as long as `message` lives."""
        held = self._held[tag]
        forgotten = self._forgotten

        def collected(_: object) -> None:
            forgotten.append(tag)

        held.watch = weakref.ref(message, collected)

    def ack(self, tag: str) -> None:
        """The message is done. Never fails: the ack goes out with the next `exchange`, `flush` or run of the keeper."""
        held = self._drop(tag)
        if held is not None:
            self._acks.append((held.keys, Ack(held.id, held.token, self._seconds(held))))

    def requeue(self, tag: str) -> None:
        """The message was rejected: it goes behind the others of its priority. Raises on a broken connection."""
        held = self._held.get(tag)
        if held is not None:
            self._wire.call(operation("requeue", held.keys, "", held.id, held.token, self._seconds(held), "behind"))
            self._drop(tag)

    def set_aside(self, tag: str, reason: str) -> None:
        """The message is not deliverable, or rejected for good. Raises on a broken connection."""
        held = self._held.get(tag)
        if held is not None:
            self._wire.call(operation("set_aside", held.keys, "", held.id, held.token, reason[:500], ""))
            self._drop(tag)
            self.counters["set_aside"] += 1

    def started(self, message_id: str) -> bool:
        """The work on this message, by its Celery task id, begins now; it is charged from here. False when it is not in
        hand."""
        held = self._by_id.get(message_id)
        if held is None:
            return False
        held.started_at = self._clock()
        return True

    def give_back(self, tags: Iterable[str]) -> int:
        """Messages on which no work has begun go back to the place they had. Raises on a broken connection."""
        given = [held for tag in tags if (held := self._held.get(tag)) is not None]
        for keys in {held.keys for held in given}:
            args = [part for held in given if held.keys == keys for part in (held.id, held.token, 0, "place")]
            self._tending.call(operation("requeue", keys, "", *args))
        for held in given:
            self._drop(held.tag)
        self.counters["returned"] += len(given)
        return len(given)

    def abandon(self, tags: Iterable[str]) -> None:
        """Nobody watches these messages, so nothing becomes of them here: the keeper gives them back. Never fails."""
        self._forgotten.extend(tag for tag in tags if (held := self._held.get(tag)) and held.watch is None)
        self.wake.set()

    # -- the keeper ----------------------------------------------------------------------------------------------

    def run_once(self) -> Tended:
        """Looks after everything in hand and after the queues. Raises what a broken connection raises."""
        returned = self._return_forgotten() + self._recall()
        if self._acks:
            self.flush()
        renewed = registered = lost = 0
        if self._clock() >= self._renew_at:
            renewed, registered, lost = self._renew()
            self._renew_at = self._clock() + min(self.lease / 3, SIGN_OF_LIFE)
        reaped, due_in = self._reap()
        return Tended(returned, renewed, registered, lost, reaped, due_in)

    def close(self) -> None:
        """The process ends: acks go out, everything still in hand goes back. A broken connection is only logged."""
        try:
            self.flush()
            self.give_back(list(self._held))
            for keys in self.queues:
                self._tending.call(("ZREM", f"{keys.stem}workers", self.consumer))
        except (RedisError, OSError) as error:
            if self._held or self._acks:
                logger.warning("could not give back what is in hand (%s); it comes back when the leases run out", error)
        self._wire.close()

    def _return_forgotten(self) -> int:
        tags = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        try:
            return self.give_back(tags)
        except BaseException:
            self._forgotten.extendleft(reversed(tags))
            raise

    def _recall(self) -> int:
        recalled = 0
        while self._unanswered:
            keys, token = self._unanswered[0]
            recalled += self._tending.call(operation("recall", keys, "", token))[0]
            self._unanswered.popleft()
        return recalled

    def _renew(self) -> tuple[int, int, int]:
        renewed = registered = lost = 0
        in_hand = list(self._held.values())
        for keys in self.queues | {held.keys for held in in_hand}:
            mine = {held.id: held for held in in_hand if held.keys == keys and not held.lost}
            args = [part for held in mine.values() for part in (held.id, held.token)]
            consumer = self.consumer if keys in self.queues else ""
            born, *missing = self._tending.call(operation("renew", keys, "", self.lease, consumer, *args))[0]
            # What was acknowledged in the meantime is missing too, and rightly.
            gone = [held for id_ in missing if (held := mine[id_.decode()]).tag in self._held]
            for held in gone:
                held.lost = held.born == born
            again = self._register(keys, [held for held in gone if not held.lost], born)
            renewed += len(mine) - len(missing)
            registered += again
            lost += sum(held.lost for held in gone)
        self.counters["registered"] += registered
        return renewed, registered, lost

    def _register(self, keys: Keys, gone: list[Held], born: bytes) -> int:
        """Puts what Redis lost back on record. A lease that ran out is somebody else's by now and is left alone."""
        sealed = [(held, envelope) for held in gone if (envelope := _sealed(held))]
        if not sealed:
            return 0
        logger.warning("%s: Redis lost its data; registering %d messages in hand again", keys.tickets, len(sealed))
        args = [part for held, envelope in sealed for part in (held.id, held.token, envelope.lane, envelope.entry)]
        replies = self._tending.call(operation("register", keys, "", self.lease, *args))[0]
        for (held, _), mine in zip(sealed, replies, strict=True):
            held.born, held.lost = born, not mine
        return sum(replies)

    def _reap(self) -> tuple[int, float | None]:
        reaped, due = 0, []
        for keys in list(self.queues):
            grace = self.lease / 3 + 2 * self.interval
            count, due_in = self._tending.call(operation("reap", keys, "", self.lease, grace, 100))[0]
            reaped += count
            if due_in:
                due.append(float(due_in))
        return reaped, min(due, default=None)

    # -- inside --------------------------------------------------------------------------------------------------

    def _seconds(self, held: Held) -> float:
        return max(self._clock() - (held.started_at or held.claimed_at), 0.0)

    def _drop(self, tag: str) -> Held | None:
        held = self._held.pop(tag, None)
        if held is not None:
            held.watch = None
            if self._by_id.get(_task_id(held.id)) is held:
                del self._by_id[_task_id(held.id)]
        return held

    def _take(self, keys: Keys, token: str, reply: list[Any]) -> Claim:
        born, due_in, more, *fields = reply
        now, messages = self._clock(), []
        for i in range(0, len(fields), 3):
            id_ = fields[i].decode()
            held = Held(f"{token}.{i // 3}", id_, keys, token, born, fields[i + 2], int(fields[i + 1]), now)
            self._held[held.tag] = self._by_id[_task_id(id_)] = held
            messages.append(held)
        if messages and not self.queues:
            self.wake.set()
        self.counters["claims"] += 1
        self.counters["claimed"] += len(messages)
        return Claim(messages, bool(more), float(due_in) if due_in else None)

    def _take_acks(self) -> list[tuple[Keys, Ack]]:
        taken: list[tuple[Keys, Ack]] = []
        with suppress(IndexError):  # the other thread takes them too
            while len(taken) < MAX_BATCH:
                taken.append(self._acks.popleft())
        return taken

    def _count_acks(self, replies: list[list[int]]) -> None:
        for reply in replies:
            self.counters["acked"] += sum(reply)
            self.counters["late"] += len(reply) - sum(reply)


def _task_id(message_id: str) -> str:
    """Celery's id of the task: that of a message without the number of its retry."""
    return message_id.partition("#")[0]


def _by_queue(acks: list[tuple[Keys, Ack]]) -> list[tuple[Keys, list[Ack]]]:
    queues: dict[Keys, list[Ack]] = {}
    for keys, ack in acks:
        queues.setdefault(keys, []).append(ack)
    return list(queues.items())


def _flat(acks: list[Ack]) -> list[str | float]:
    return [part for ack in acks for part in (ack.id, ack.token, ack.seconds)]


def _sealed(held: Held) -> Envelope | None:
    """The envelope that the message was published in; None for what is no message, which then counts as lost."""
    try:
        raw = unseal(held.payload, tag=held.tag, redelivered=held.deliveries > 0)
        priority = raw["properties"].get("priority")
        return seal(raw, priority if isinstance(priority, int) else 0)[0]
    except (ValueError, KeyError, TypeError, AttributeError):
        held.lost = True
        return None


def publish(wire: Wire, keys: Keys, envelope: Envelope, *, again: bool = False) -> None:
    """Posts one message, in two plain writes: Redis spends a third of the time that a script takes.

    Raises what a broken connection raises; the message may be posted then, and to post it again is harmless.
    """
    posted, _ = wire.call(("RPUSH", keys.inbox, envelope.posted(again=again)), ("LPUSH", keys.tickets, TICKET))
    if posted % PORTION == 0:  # of several publishers one
        with suppress(RedisError, OSError):  # the message is safe, and the next operation files it
            wire.tell(operation("file", keys, ""))
