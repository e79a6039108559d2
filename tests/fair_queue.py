"""The fair queue ``runs`` for tests: real messages in a real Redis, taken one by one as a worker would take them."""

# kombu has no annotations.
# mypy: disable-error-code="no-untyped-call,attr-defined"

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kombu import Connection, Producer, Queue

from engine.fairshare import register
from engine.ports import RunMessage

register()
_numbers = count(1)


@dataclass
class FairQueue:
    """Messages stay in hand once they are taken: nothing is acknowledged, so every charge is the first estimate."""

    channel: Any
    in_hand: list[Any] = field(default_factory=list)

    def publish(self, tenant: str, number: int, *, lane: Mapping[str, float] | None = None) -> None:
        for _ in range(number):
            self.send(RunMessage(f"run_{next(_numbers)}", tenant, "wf_1", lane=lane))

    def send(self, message: RunMessage) -> None:
        headers = {"id": message.id, "tenant_id": message.tenant_id, "flow": message.flow, "lane": message.lane}
        producer = Producer(self.channel)
        producer.publish({"tenant": message.tenant_id}, routing_key="runs", headers=headers)

    def take(self) -> str | None:
        """The tenant of the next message; None when nothing may start now."""
        message = Queue("runs", channel=self.channel).get()
        if message is None:
            return None
        self.in_hand.append(message)
        tenant: str = message.decode()["tenant"]
        return tenant

    def take_many(self, number: int) -> Counter[str | None]:
        """How many of the next messages each tenant has."""
        return Counter(self.take() for _ in range(number))

    def attend(self) -> None:
        """Become known as a worker, soon, without taking anything."""
        Queue("runs", channel=self.channel).consume(callback=lambda _: None, no_ack=False)

    def reject(self, number: int) -> None:
        """Take messages and refuse them for good."""
        for _ in range(number):
            assert self.take() is not None
            self.in_hand.pop().reject()

    def finish_all(self) -> None:
        """Acknowledge what is in hand."""
        for message in self.in_hand:
            message.ack()
        self.in_hand.clear()


@contextmanager
def fair_queue(redis_url: str) -> Iterator[FairQueue]:
    options = {"fair_queues": ["runs"], "polling_interval": 0.1}
    with Connection(f"fair{redis_url}", transport_options=options) as connection:
        channel = connection.channel()
        Queue("runs")(channel).declare()
        queue = FairQueue(channel)
        yield queue
        queue.finish_all()
        channel.close()
