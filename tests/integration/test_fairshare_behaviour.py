"""One suite of a broker's behaviour, run on stock ``redis://``, on our plain queues, and on our fair queues."""

# kombu and Celery have no annotations.
# mypy: disable-error-code="no-untyped-call,attr-defined,untyped-decorator,var-annotated"

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Consumer, Exchange, Producer, Queue

from engine.fairshare import register
from tests.fairshare_waiting import until

register()


@dataclass(frozen=True)
class Broker:
    url: str
    queue: str
    options: dict[str, Any]

    def connect(self) -> Connection:
        return Connection(self.url, transport_options=dict(self.options))


@pytest.fixture(params=["stock", "plain", "fair", "fair-with-prefix"])
def broker(request: pytest.FixtureRequest, redis_url: str) -> Broker:
    kind = str(request.param)
    url = redis_url if kind == "stock" else f"fair{redis_url}"
    options: dict[str, Any] = {"polling_interval": 0.1} | ({} if kind == "stock" else {"fair_queues": ["runs"]})
    if kind == "fair-with-prefix":
        options["global_keyprefix"] = "fl:"
    return Broker(url, "runs" if kind.startswith("fair") else "plain", options)


class Client:
    """A connection with one queue, and what its consumer got."""

    def __init__(self, connection: Connection, queue: str) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.queue = Queue(queue)
        self.queue(self.channel).declare()
        self.producer = Producer(self.channel)
        self.got: list[Any] = []
        self.consumer = Consumer(self.channel, [self.queue], on_message=self.got.append)

    def publish(self, body: Any, **options: Any) -> None:
        headers = {"id": str(uuid.uuid4()), **options.pop("headers", {})}
        self.producer.publish(body, routing_key=self.queue.name, headers=headers, **options)

    def size(self) -> int:
        count: int = self.queue(self.channel).queue_declare(passive=True).message_count if self.exists() else 0
        return count

    def exists(self) -> bool:
        return bool(self.channel._has_queue(self.queue.name))

    def take(self, number: int) -> list[Any]:
        """The bodies of the next messages; fails when they do not come."""
        self.got.clear()
        self.consumer.consume()
        while len(self.got) < number:
            self.connection.drain_events(timeout=5)
        return [message.decode() for message in self.got[:number]]

    def nothing_comes(self) -> bool:
        self.got.clear()
        self.consumer.consume()
        with pytest.raises(socket.timeout):
            self.connection.drain_events(timeout=0.2)
        return not self.got


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    with broker.connect() as connection:
        yield Client(connection, broker.queue)


def test_what_is_published_is_consumed_in_order_and_gone_after_ack(client: Client) -> None:
    for number in range(5):
        client.publish({"n": number})
    assert client.size() == 5
    assert client.take(5) == [{"n": number} for number in range(5)]
    for message in client.got:
        message.ack()
    assert client.size() == 0
    assert client.nothing_comes()


def test_headers_properties_and_content_type_come_along(client: Client) -> None:
    client.publish({"a": 1}, headers={"id": "x", "note": "ü"}, correlation_id="c-1", reply_to="answers")
    client.take(1)
    message = client.got[0]
    assert message.headers["note"] == "ü"
    assert message.properties["correlation_id"] == "c-1"
    assert message.properties["reply_to"] == "answers"
    assert message.content_type == "application/json"


@pytest.mark.parametrize("compression", ["gzip", None])
@pytest.mark.parametrize("body", [b"\x00\xff\xfe", b"plain", "text ü"])
def test_any_body_comes_out_as_it_went_in(client: Client, body: bytes | str, compression: str | None) -> None:
    client.publish(body, compression=compression)
    assert client.take(1) == [body]


def test_a_rejected_message_does_not_come_again(client: Client) -> None:
    client.publish("bad")
    client.take(1)
    client.got[0].reject()
    assert client.nothing_comes()


def test_a_requeued_message_comes_again_marked_as_redelivered(client: Client) -> None:
    client.publish("again")
    client.take(1)
    assert not client.got[0].delivery_info.get("redelivered")
    client.got[0].requeue()
    assert client.take(1) == ["again"]
    assert client.got[0].delivery_info["redelivered"] is True


def test_a_requeued_message_goes_behind_the_others(client: Client) -> None:
    client.channel.basic_qos(0, 1, False)
    for body in ("first", "second"):
        client.publish(body)
    client.take(1)
    client.got[0].requeue()
    assert client.take(1) == ["second"]


def test_priority_zero_goes_first(client: Client) -> None:
    client.publish("low", priority=9)
    client.publish("high", priority=0)
    client.publish("middle", priority=3)
    assert client.take(3) == ["high", "middle", "low"]


def test_prefetch_bounds_what_is_in_hand(client: Client) -> None:
    client.channel.basic_qos(0, 2, False)
    for number in range(3):
        client.publish(number)
    client.take(2)
    first = client.got[0]
    with pytest.raises(socket.timeout):
        client.connection.drain_events(timeout=0.2)
    first.ack()
    assert client.take(1) == [2]


def test_get_takes_one_message_or_none(client: Client) -> None:
    queue = client.queue(client.channel)
    assert queue.get() is None
    client.publish("one")
    message = queue.get()
    assert message.decode() == "one"
    message.ack()
    assert queue.get() is None


def test_a_consumer_without_acks_is_done_at_delivery(client: Client) -> None:
    client.consumer.no_ack = True
    client.publish("one")
    assert client.take(1) == ["one"]
    assert client.size() == 0


def test_purge_removes_what_waits_and_says_how_much(client: Client) -> None:
    for number in range(4):
        client.publish(number)
    assert client.queue(client.channel).purge() == 4
    assert client.size() == 0


def test_a_batch_is_published_as_one_by_one(client: Client) -> None:
    with client.producer.batch():
        for number in range(3):
            client.publish(number)
    assert client.take(3) == [0, 1, 2]


def test_a_cancelled_consumer_gets_nothing(client: Client) -> None:
    client.publish(1)
    client.take(1)
    client.consumer.cancel()
    client.publish(2)
    client.got.clear()
    with pytest.raises(socket.timeout):
        client.connection.drain_events(timeout=0.2)
    assert client.got == []


def test_named_exchanges_route_to_the_queue(client: Client) -> None:
    queue = Queue(client.queue.name, Exchange("events", "topic"), routing_key="run.*")
    queue(client.channel).declare()
    client.producer.publish({"n": 1}, exchange="events", routing_key="run.done", headers={"id": "e1"})
    client.producer.publish({"n": 2}, exchange="events", routing_key="other", headers={"id": "e2"})
    assert client.take(1) == [{"n": 1}]
    client.got[0].ack()
    assert client.nothing_comes()


# -- through Celery ----------------------------------------------------------------------------------------------


@pytest.fixture
def app(broker: Broker) -> Celery:
    app = Celery("behaviour", broker=broker.url, set_as_current=False)
    app.conf.update(
        broker_transport_options=dict(broker.options),
        task_default_queue=broker.queue,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    return app


def test_tasks_run_at_once_later_and_again(app: Celery) -> None:
    ran: list[tuple[str, datetime]] = []

    @app.task(name="note", bind=True, max_retries=3, shared=False)
    def note(self: Any, what: str) -> None:
        ran.append((what, datetime.now(UTC)))
        if what == "again" and self.request.retries < 1:
            raise self.retry(countdown=0)

    with start_worker(app, perform_ping_check=False, shutdown_timeout=20):
        begin = datetime.now(UTC)
        note.apply_async(("later",), eta=begin + timedelta(seconds=1))
        note.apply_async(("now",))
        note.apply_async(("again",))
        until(lambda: len(ran) == 4)
    assert [what for what, _ in ran] == ["now", "again", "again", "later"]
    assert ran[-1][1] - begin >= timedelta(seconds=1)


def test_control_commands_and_events_go_through(app: Celery) -> None:
    @app.task(name="quiet", shared=False)
    def quiet() -> None:
        return None

    app.conf.worker_send_task_events = True
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        with (
            start_worker(app, perform_ping_check=False, shutdown_timeout=20, task_events=True) as worker,
            receiver.consumer_context() as (listening, _, _),
        ):
            replies = app.control.inspect(timeout=5, limit=1).ping()
            assert replies == {worker.hostname: {"ok": "pong"}}
            assert "quiet" in app.control.inspect(timeout=5, limit=1).registered()[worker.hostname]
            listening.drain_events(timeout=5)  # kombu subscribes at its first poll; this is the confirmation
            quiet.apply_async()
            while "task-succeeded" not in seen:
                listening.drain_events(timeout=10)
    assert {"task-received", "task-started", "task-succeeded"} <= set(seen)
