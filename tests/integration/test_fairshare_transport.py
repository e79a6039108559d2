"""What only the fair transport does: claims by credit, turns beside other queues, strangers in its list, timeouts."""

# kombu and Celery have no annotations.
# mypy: disable-error-code="no-untyped-call,attr-defined,untyped-decorator"

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Consumer, Queue
from kombu.exceptions import OperationalError

from embedded.redis import RedisServer
from engine.fairshare import Lanes, register
from engine.fairshare.envelope import Envelope
from engine.fairshare.scripts import Keys, Wire, operation
from tests.fairshare_waiting import until

register()


@pytest.fixture
def lanes(redis_url: str) -> Lanes:
    return Lanes(redis_url)


def make_app(redis_url: str, **configuration: Any) -> Celery:
    app = Celery("transport", broker=f"fair{redis_url}", set_as_current=False)
    app.conf.update(
        task_default_queue="runs",
        task_queues=[Queue("runs"), Queue("system")],
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    app.conf.update(configuration)
    return app


@contextmanager
def working(app: Celery, concurrency: int) -> Iterator[None]:
    options: dict[str, Any] = {"pool": "threads", "concurrency": concurrency, "perform_ping_check": False}
    with start_worker(app, shutdown_timeout=20, **options):
        yield


@pytest.mark.parametrize(
    ("configuration", "in_hand"),
    [
        ({"worker_prefetch_multiplier": 1}, 2),
        ({"worker_prefetch_multiplier": 3}, 6),
        ({"worker_prefetch_multiplier": 3, "worker_disable_prefetch": True}, 2),
    ],
)
def test_a_worker_claims_as_much_as_it_may_prefetch(
    redis_url: str, lanes: Lanes, configuration: dict[str, Any], in_hand: int
) -> None:
    app, go_on, running = make_app(redis_url, **configuration), threading.Event(), threading.Semaphore(0)

    @app.task(name="wait", shared=False)
    def wait() -> None:
        running.release()
        go_on.wait(20)

    for _ in range(8):
        wait.apply_async(headers={"tenant_id": "t"})
    try:
        with working(app, 2):
            assert running.acquire(timeout=15)
            assert running.acquire(timeout=15)
            until(lambda: lanes.total().in_flight == in_hand, within=10, what=f"{in_hand} messages in hand")
            assert lanes.total().backlog == 8 - in_hand
            go_on.set()
            until(lambda: lanes.total().counters.get("acked") == 8, what="the end of all")
    finally:
        go_on.set()
    assert lanes.check() == []


def test_other_queues_of_the_worker_get_their_turn_beside_a_backlog(redis_url: str, lanes: Lanes) -> None:
    app, done = make_app(redis_url), threading.Event()
    left: list[int] = []

    @app.task(name="brief", shared=False)
    def brief() -> None:
        pass

    @app.task(name="other", shared=False)
    def other() -> None:
        left.append(lanes.total().backlog)
        done.set()

    for _ in range(1000):
        brief.apply_async(headers={"tenant_id": "t"})
    other.apply_async(queue="system")
    with working(app, 2):
        assert done.wait(20)
        until(lambda: lanes.total().counters.get("acked") == 1000, what="the end of the backlog")
    assert left[0] > 500


def test_what_a_stock_client_pushes_gets_a_lane(redis_url: str, lanes: Lanes) -> None:
    with Connection(redis_url) as stock, stock.Producer() as producer:
        producer.publish({"n": 1}, routing_key="runs", headers={"id": "m1", "tenant_id": "acme"})
    got: list[Any] = []
    with Connection(f"fair{redis_url}") as connection:
        with Consumer(connection.channel(), [Queue("runs")], on_message=got.append):
            connection.drain_events(timeout=10)
        assert got[0].decode() == {"n": 1}
        position = lanes.position("m1")
        assert position is not None
        assert position.tenant == "acme"
        got[0].ack()


def test_a_ticket_that_comes_after_the_consumer_was_cancelled_wakes_the_next_one(redis_url: str, lanes: Lanes) -> None:
    got: list[Any] = []
    with Connection(f"fair{redis_url}") as connection, Connection(f"fair{redis_url}") as publisher:
        channel = connection.channel()
        consumer = Consumer(channel, [Queue("runs"), Queue("system")], on_message=got.append)
        consumer.consume()
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.1)  # now a BRPOP is out
        consumer.cancel_by_queue("runs")
        with publisher.Producer() as producer:
            producer.publish({"n": 1}, routing_key="runs", headers={"id": "m1", "tenant_id": "t"})
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.3)
        assert got == []
        assert lanes.total().backlog == 1
        with Consumer(publisher.channel(), [Queue("runs")], on_message=got.append):
            publisher.drain_events(timeout=5)
        assert got[0].decode() == {"n": 1}
        got[0].ack()


def test_a_publish_does_not_wait_longer_than_its_timeout_for_a_redis_that_hangs(redis_server: RedisServer) -> None:
    options = {"socket_timeout": 0.3}
    with Connection(f"fair{redis_server.url}", transport_options=options) as connection:
        producer = connection.Producer()
        producer.publish({}, routing_key="runs", headers={"id": "warm"})
        assert redis_server.process is not None
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            with pytest.raises(OperationalError, match="did not answer"):
                producer.publish({}, routing_key="runs", headers={"id": "m1"}, retry=True)
            assert time.monotonic() - begin < 2
        finally:
            redis_server.process.send_signal(signal.SIGCONT)
        producer.publish({}, routing_key="runs", headers={"id": "m2"})
        assert Lanes(redis_server.url).holds(["m2"]) == {"m2"}


def test_what_cannot_even_be_set_aside_now_is_set_aside_later(redis_server: RedisServer, redis_url: str) -> None:
    lanes, keys = Lanes(redis_url), Keys.of("runs")
    with redis.Redis.from_url(redis_url) as client:
        posted = [Envelope(id_, "t", "f", 0, id_, "", "no message").posted() for id_ in ("m1", "m2")]
        Wire(client.connection_pool).call(operation("publish", keys, "", *posted))
    options = {"socket_timeout": 0.5, "lease": 3600}
    with Connection(f"fair{redis_url}", transport_options=options) as connection:
        channel = connection.channel()
        proceed, set_aside, server = threading.Event(), channel.hands.set_aside, redis_server.process
        assert server is not None

        def freeze_first(tag: str, reason: str) -> None:
            if not proceed.is_set():
                server.send_signal(signal.SIGSTOP)
            set_aside(tag, reason)

        channel.hands.set_aside = freeze_first
        with Consumer(channel, [Queue("runs")]):
            try:
                with pytest.raises((redis.TimeoutError, OperationalError)):
                    connection.drain_events(timeout=5)
            finally:
                server.send_signal(signal.SIGCONT)
                proceed.set()
            until(lambda: lanes.total().in_flight == 0, within=10, what="both being given back")

            def all_aside() -> bool:
                with suppress(socket.timeout):
                    connection.drain_events(timeout=0.2)
                return lanes.total().set_aside == 2

            until(all_aside, within=10, what="both being set aside")
            until(lambda: len(channel.hands) == 0, within=10, what="empty hands")


def test_a_failed_publish_may_be_repeated(redis_url: str, lanes: Lanes) -> None:
    with Connection(f"fair{redis_url}") as connection:
        producer = connection.Producer()
        for _ in range(3):
            producer.publish({}, routing_key="runs", headers={"id": "m1", "tenant_id": "t"})
        assert lanes.total().backlog == 1
        assert lanes.total().counters == {"published": 1, "repeated": 2}


@pytest.fixture(autouse=True)
def empty_plain_queues(redis_url: str) -> Iterator[None]:
    yield
    with redis.Redis.from_url(redis_url) as client:
        client.delete("system")
