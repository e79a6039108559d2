"""What becomes of a delivered message of a fair queue: acknowledged, given back, or set aside; and how many may come.

The leases belong to `Hands`; kombu's own bookkeeping here only counts, for the prefetch.
"""

# kombu has no annotations, and narrows some attributes to what its own classes assign.
# mypy: disable-error-code="no-untyped-call,assignment,no-any-return"

from __future__ import annotations

from typing import Any

from kombu.transport import redis, virtual

from engine.fairshare.hands import MAX_BATCH


class FairMessage(virtual.Message):
    """A message that is set aside, not lost, when the consumer acknowledges it because it cannot be decoded."""

    undecodable: str | None = None

    def _decode(self) -> Any:
        try:
            return super()._decode()
        except Exception as error:
            self.undecodable = repr(error)
            raise

    def ack(self, multiple: bool = False) -> None:
        if (self.undecodable or self.errors) and self.channel.holds(self.delivery_tag):
            self.channel.qos.set_aside(self.delivery_tag, f"undecodable: {self.undecodable or self.errors[0][1]!r}")
            self._state = "REJECTED"
        else:
            super().ack(multiple=multiple)


class FairQoS(redis.QoS):
    """Counts what was delivered, as kombu does; the leases of fair messages are kept by `Hands`."""

    def append(self, message: Any, delivery_tag: str) -> None:
        if self.channel.holds(delivery_tag):
            virtual.QoS.append(self, None, delivery_tag)
            self.channel.hands.watch(delivery_tag, message)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self._is_fair(delivery_tag):
            self.channel.settle(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not self._is_fair(delivery_tag):
            super().reject(delivery_tag, requeue=requeue)
            return
        if not requeue:
            self.set_aside(delivery_tag, "rejected")
            return
        try:
            self.channel.hands.requeue(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def set_aside(self, delivery_tag: str, reason: str) -> None:
        try:
            self.channel.hands.set_aside(delivery_tag, reason)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """At the end of the channel. Fair messages stay in hand as long as somebody can still finish them."""
        for tag in [tag for tag, message in self._delivered.items() if message is None]:
            del self._delivered[tag]
        if self._delivered:
            super().restore_unacked(client=client)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        if self.channel.has_plain_queues:
            super().restore_visible(*args, **kwargs)

    def _is_fair(self, delivery_tag: str) -> bool:
        """Also after the channel was closed: then `Hands` still has the message."""
        return self.channel.holds(delivery_tag) or self._delivered.get(delivery_tag, self) is None

    @property
    def credit(self) -> int:
        """How many messages may be claimed now. One at a time where somebody else decides as well."""
        if not self.can_consume():
            return 0
        if "can_consume" in vars(self):  # replaced by Celery's worker_disable_prefetch
            return 1
        return min(self.can_consume_max_estimate() or MAX_BATCH, MAX_BATCH)
