"""The channels of the transport: publishing into lanes, claiming for a ticket, and kombu's operations on a fair queue.

Queues that are not fair go through kombu's own code untouched.
"""

# kombu has no annotations, and narrows some attributes to what its own classes assign.
# mypy: disable-error-code="no-untyped-call,assignment,no-any-return"

from __future__ import annotations

import functools
import gc
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty
from time import monotonic
from typing import Any

from kombu.exceptions import OperationalError
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.fairshare import keeper
from engine.fairshare.address import NEXT_AT_ONCE, master
from engine.fairshare.delivery import FairMessage, FairQoS
from engine.fairshare.envelope import Raw, seal, unseal
from engine.fairshare.hands import TICKET, Claim, Hands, Held, publish
from engine.fairshare.lanes import Lanes
from engine.fairshare.scripts import Keys, Wire, loading, operation
from engine.fairshare.unwritable import attentive

logger = logging.getLogger("fairlane.fairshare")


class Channel(redis.Channel):
    """A channel of ``fairredis://`` and ``fairrediss://``."""

    QoS = FairQoS
    Message = FairMessage
    from_transport_options = (*redis.Channel.from_transport_options, "fair_queues", "lease")

    fair_queues: Any = ("runs",)
    lease = 30.0
    socket_timeout: float | None = 3.0
    socket_connect_timeout: float | None = 2.0
    socket_keepalive: bool | None = True

    #: Whether an event loop drives this channel; then messages are claimed in batches.
    looping = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._wire: Wire | None = None
        self._hands: Hands | None = None
        #: The fair queue in which work was left by the last claim.
        self._more: str | None = None
        #: Whether a poll has brought something since the last claim without a ticket.
        self._polled = False
        self._scripts_loaded = False
        self._fair: frozenset[str] = frozenset()
        super().__init__(*args, **kwargs)
        self._fair = frozenset([self.fair_queues] if isinstance(self.fair_queues, str) else self.fair_queues)

    # -- what belongs to the queue -------------------------------------------------------------------------------

    def keys(self, queue: str) -> Keys:
        return Keys.of(queue, self.global_keyprefix)

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self.pool, keep=True)
        return self._wire

    @property
    def hands(self) -> Hands:
        """What this process has in hand from this broker, whatever becomes of this channel."""
        if self._hands is None:
            client = self.connection.client
            broker = (client.as_uri(include_password=True), tuple(client.alt or ()), self.global_keyprefix, self.lease)
            self._hands = keeper.keep(broker, self._make_hands)
        return self._hands

    def _make_hands(self) -> Hands:
        return Hands(self._own_pool(), tending=self._own_pool(), lease=self.lease)

    def holds(self, delivery_tag: str) -> bool:
        return self._hands is not None and delivery_tag in self._hands

    @property
    def has_plain_queues(self) -> bool:
        return any(queue not in self._fair for queue in self.active_queues)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._connparams(asynchronous)
        return parameters | {"connection_class": attentive(parameters["connection_class"])}

    def _own_pool(self) -> Any:
        """A pool with the parameters of this channel that outlives it."""
        managers = self._sentinel_manager, self._async_sentinel_manager
        pool = self._get_pool()
        self._sentinel_manager, self._async_sentinel_manager = managers
        return pool

    # -- publishing ----------------------------------------------------------------------------------------------

    def _inplace_augment_message(self, message: Raw, exchange: str, routing_key: str) -> None:
        """As kombu's, but what goes straight into a fair queue keeps its text as text, and gets a tag only when it is
        delivered."""
        if exchange or routing_key not in self._fair or not isinstance(message["body"], str):
            super()._inplace_augment_message(message, exchange, routing_key)
        else:
            message["properties"]["body_encoding"] = "utf-8"
            message["properties"]["delivery_info"].update(exchange=exchange, routing_key=routing_key)

    def _put(self, queue: str, message: Raw, **kwargs: Any) -> None:
        if queue not in self._fair:
            super()._put(queue, message, **kwargs)
            return
        envelope, again = seal(message, self._get_message_priority(message))
        batch = kwargs.get("_publish_batch")
        if batch is not None:
            self._load_scripts()
            # A client with a key prefix adds it to the first key of an EVALSHA.
            keys = replace(self.keys(queue), tickets=queue)
            batch.add("execute_command", *operation("publish", keys, "", envelope.posted(again=again)))
            return
        try:
            publish(self.wire, self.keys(queue), envelope, again=again)
        except RedisTimeoutError as error:
            raise OperationalError(f"Redis did not answer a publish within {self.socket_timeout} s") from error

    def _load_scripts(self) -> None:
        """A batch is a pipeline, which cannot be asked again when Redis does not know a script."""
        if not self._scripts_loaded:
            self.wire.call(*loading())
            self._scripts_loaded = True

    # -- consuming -----------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        result = super().basic_consume(queue, no_ack, callback, *args, **kwargs)
        if queue in self._fair:
            self.hands.attend(self.keys(queue))
            self.connection._callbacks[queue] = functools.partial(self._consume, callback, no_ack)
        return result

    def _basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.get(consumer_tag) if consumer_tag in self._consumers else None
        super()._basic_cancel(consumer_tag)
        if queue in self._fair:
            self.hands.leave(self.keys(queue))

    def _consume(self, callback: Callable[[Any], Any], no_ack: bool, held: Held) -> None:
        message = self._open(held)
        if message is None:
            return
        self.qos.append(message, held.tag)
        if no_ack:
            self.basic_ack(held.tag)
        callback(message)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        if queue not in self._fair:
            return super().basic_get(queue, no_ack=no_ack, **kwargs)
        for held in self.hands.exchange(self.keys(queue), 1).messages:
            try:
                message = self._open(held)
            except BaseException:
                self.hands.abandon([held.tag])
                raise
            if message is not None:
                self.qos.append(message, held.tag)
                if no_ack:
                    self.basic_ack(held.tag)
                return message
        return None

    def turn(self) -> bool:
        """Before each poll of the event loop: the acks go out, and more work comes back with them if there is any.

        Returns whether messages were delivered.
        """
        hands = self._hands
        if hands is None:
            return False
        queue = self._next_claim()
        if queue is not None:
            self._deliver(queue, hands.exchange(self.keys(queue), self.qos.credit))
        elif hands.has_acks:
            hands.flush()
        return queue is not None

    def _next_claim(self) -> str | None:
        """The queue to claim from without a ticket: work is left there, and no other queue has to wait for its turn."""
        queue, queues = self._more, self.active_queues
        if queue not in queues or self._in_poll or not self.looping or self._closing:
            return None
        if (len(queues) > 1 and not self._polled) or not self.qos.can_consume():
            return None
        self._polled = False
        return queue

    def _on_ticket(self, queue: str, item: bytes) -> bool:
        """Claims for a ticket. Raises Empty when it brought nothing, which is no fault: some tickets are surplus."""
        keys = self.keys(queue)
        if item != TICKET:
            self._adopt(queue, item)
        if self._closing or queue not in self.connection._callbacks:
            self.wire.call(("RPUSH", keys.tickets, TICKET))
            raise Empty
        claim = self.hands.exchange(keys, self.qos.credit if self.looping else 1)
        if not claim.messages:
            raise Empty
        self._deliver(queue, claim)
        return True

    def _deliver(self, queue: str, claim: Claim) -> None:
        self._more = queue if claim.more else None
        if claim.due_in is not None:
            self.hands.expect(claim.due_in)
        callback, delivered = self.connection._callbacks[queue], False
        try:
            for held in claim.messages:
                callback(held)
            delivered = True
        finally:
            if not delivered:
                self.hands.abandon(held.tag for held in claim.messages)

    def _open(self, held: Held) -> FairMessage | None:
        """The message; one that is none is set aside, and that is all that happens."""
        try:
            raw = unseal(held.payload, tag=held.tag, redelivered=held.deliveries > 0)
            return FairMessage(raw, channel=self)
        except Exception as error:  # whatever a broken payload breaks
            logger.error("%s: message %s set aside: %r", held.keys.tickets, held.id, error)
            self.hands.set_aside(held.tag, f"undecodable: {error!r}")
            return None

    def _adopt(self, queue: str, item: bytes) -> None:
        """A list may hold a real message, from a producer that uses ``redis://``: it is published into its lane."""
        try:
            raw = loads(bytes_to_str(item))
            envelope, _ = seal(raw, self._get_message_priority(raw))
        except Exception as error:
            logger.error("%s: something that is no message set aside: %r", queue, error)
            reason = f"not a message: {error!r}"[:500]
            self.wire.call(operation("set_aside", self.keys(queue), "", str(uuid.uuid4()), "", reason, item))
        else:
            publish(self.wire, self.keys(queue), envelope)

    def settle(self, delivery_tag: str) -> None:
        """The ack of a fair message. The event loop sends it in a moment; without one it is sent here."""
        self.hands.ack(delivery_tag)
        if not self.looping:
            self.hands.flush()

    # -- what kombu's channel does with the list, done with the lanes -----------------------------------------------

    def _q_for_pri(self, queue: str, pri: int) -> str:
        if queue in self._fair:
            return queue
        return super()._q_for_pri(queue, pri)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """As kombu's, but each fair queue is one list, whatever the number of priorities."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        keys = dict.fromkeys(self._q_for_pri(queue, pri) for pri in self.priority_steps for queue in queues)
        command = ["BRPOP", *keys, timeout or self.brpop_timeout or 0]
        if self.global_keyprefix:
            command = self.client._prefix_args(command)
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:
        """As kombu's, but what comes out of a fair queue is a ticket."""
        try:
            try:
                reply = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not reply:
                raise Empty
            queue = bytes_to_str(reply[0]).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self._polled = True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if queue in self._fair:
            return self._on_ticket(queue, reply[1])
        self.connection._deliver(loads(bytes_to_str(reply[1])), queue)
        return True

    def _size(self, queue: str) -> int:
        if queue not in self._fair:
            return super()._size(queue)
        keys = self.keys(queue)
        _, stored, leased = self.wire.call(
            operation("file", keys, ""), ("HLEN", f"{keys.stem}messages"), ("HLEN", f"{keys.stem}leased")
        )
        return max(stored - leased, 0)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        if queue not in self._fair:
            return bool(super()._has_queue(queue, **kwargs))
        keys = self.keys(queue)
        return bool(self.wire.call(("EXISTS", f"{keys.stem}messages", keys.inbox))[0])

    def _purge(self, queue: str) -> int:
        if queue not in self._fair:
            return super()._purge(queue)
        return Lanes.over(self.wire, self.keys(queue)).purge()

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if queue in self._fair:
            self._purge(queue)
        super()._delete(queue, *args, **kwargs)

    def close(self) -> None:
        hands = self._hands
        if hands is not None and not self.closed:
            with suppress(*self.connection_errors):
                hands.flush()
        super().close()
        if self._wire is not None:
            self._wire.close()
        if hands is not None and len(hands):
            # Requests that the consumer dropped are often held by reference cycles only; they shall go back now.
            gc.collect()
            hands.wake.set()


class SentinelChannel(Channel, redis.SentinelChannel):
    """A channel of ``fairsentinel://``."""

    from_transport_options = (*redis.SentinelChannel.from_transport_options, "fair_queues", "lease")

    master_name: str | None = None
    sentinel_kwargs: dict[str, Any] | None = None

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        if self.master_name is None:
            self.master_name, _ = master(self.connection.client.virtual_host or "")
        if self.sentinel_kwargs is None:
            timeouts = {"socket_timeout": self.socket_timeout, "socket_connect_timeout": self.socket_connect_timeout}
            self.sentinel_kwargs = timeouts | NEXT_AT_ONCE
        with _stock_alternates(self.connection.client):
            return super()._sentinel_managed_pool(asynchronous)

    def _prepare_virtual_host(self, vhost: Any) -> Any:
        name, slash, number = str(vhost or "").strip("/").partition("/")
        return super()._prepare_virtual_host(vhost if not name or name.isdigit() else number if slash else 0)


@contextmanager
def _stock_alternates(client: Any) -> Iterator[None]:
    """kombu looks for the other sentinels among URLs that begin with its own scheme."""
    given = client.alt
    client.alt = [url.replace("fairsentinel://", "sentinel://") for url in given or ()]
    try:
        yield
    finally:
        client.alt = given
