"""What a worker process has in hand, through broken connections, forks and two threads at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from bench.harness import Proxy
from embedded.redis import RedisServer
from engine.fairshare import Lanes
from engine.fairshare.envelope import Envelope
from engine.fairshare.hands import PORTION, Hands, Held
from engine.fairshare.hands import publish as post
from engine.fairshare.scripts import Command, Keys, Wire, operation, scripts
from tests.fairshare_waiting import until

KEYS = Keys.of("runs")
MESSAGE = '{"body": "", "headers": {"id": "good", "tenant_id": "t"}, "properties": {"priority": 0}}'


@pytest.fixture
def pool(redis_url: str) -> Iterator[redis.ConnectionPool]:
    pool = redis.ConnectionPool.from_url(redis_url, socket_timeout=0.3)
    yield pool
    pool.disconnect()


@pytest.fixture
def hands(pool: redis.ConnectionPool) -> Iterator[Hands]:
    hands = Hands(pool, lease=6)
    hands.attend(KEYS)
    hands.run_once()
    yield hands
    hands.close()


@pytest.fixture
def lanes(redis_url: str) -> Lanes:
    return Lanes(redis_url)


def publish(pool: redis.ConnectionPool, *ids: str) -> None:
    Wire(pool).call(operation("publish", KEYS, "", *(Envelope(i, "t", "f", 0, i, "", "{}").posted() for i in ids)))


class Body:
    """Stands for the message object that Celery holds on to."""


def take(hands: Hands, number: int = 1) -> tuple[list[Held], list[Body]]:
    messages = hands.exchange(KEYS, number).messages
    bodies = [Body() for _ in messages]
    for held, body in zip(messages, bodies, strict=True):
        hands.watch(held.tag, body)
    return messages, bodies


def test_a_message_that_nobody_holds_any_more_goes_back_even_if_redis_did_not_answer_at_first(
    hands: Hands, lanes: Lanes, pool: redis.ConnectionPool, redis_server: RedisServer
) -> None:
    publish(pool, "m1")
    _, bodies = take(hands)
    bodies.clear()
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError):
            hands.run_once()
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    assert hands.run_once().returned == 1
    position = lanes.position("m1")
    assert position is not None
    assert position.state == "waiting"


class Interrupted:
    """A wire on which something else happens just before the next call."""

    def __init__(self, wire: Wire, meanwhile: Any) -> None:
        self._wire, self._meanwhile = wire, meanwhile

    def call(self, *commands: Command) -> list[Any]:
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()
        return self._wire.call(*commands)


def test_an_ack_between_the_look_and_the_renewal_is_no_lost_lease(hands: Hands, pool: redis.ConnectionPool) -> None:
    publish(pool, "m1", "m2")
    (first, second), bodies = take(hands, 2)

    def finish() -> None:
        hands.ack(first.tag)
        hands.flush()

    hands._tending = Interrupted(hands._tending, finish)  # type: ignore[assignment]
    assert hands._renew() == (1, 0, 0)
    assert second.tag in hands
    assert len(bodies) == 2


def test_two_threads_that_send_acks_send_each_of_them_once(
    hands: Hands, lanes: Lanes, pool: redis.ConnectionPool
) -> None:
    number = 600
    publish(pool, *(f"m{i}" for i in range(number)))
    in_hand = [take(hands, 64) for _ in range(number // 64 + 1)]
    errors: list[BaseException] = []

    def send() -> None:
        try:
            while len(hands) or hands.has_acks:
                hands.flush()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for messages, _ in in_hand:
        for held in messages:
            hands.ack(held.tag)
    for thread in threads:
        thread.join(20)
    assert errors == []
    assert lanes.total().counters["acked"] == number
    assert "late" not in lanes.total().counters


def test_a_claim_whose_reply_is_lost_leaves_nothing_leased(lanes: Lanes, redis_server: RedisServer) -> None:
    proxy = Proxy(redis_server.port)
    pool = redis.ConnectionPool.from_url(f"redis://127.0.0.1:{proxy.port}/0", socket_timeout=2)
    hands = Hands(pool, lease=6)
    hands.attend(KEYS)
    publish(pool, "m1", "m2")
    hands.run_once()
    proxy.cut_after(scripts()["claim"].sha.encode())
    with pytest.raises(redis.ConnectionError):
        hands.exchange(KEYS, 2)
    assert lanes.total().in_flight == 2
    assert hands.run_once().returned == 2
    assert [message.id for message in hands.exchange(KEYS, 2).messages] == ["m1", "m2"]
    hands.close()
    proxy.close()


def test_whoever_stops_consuming_is_no_worker_any_more_but_keeps_what_is_in_hand(
    hands: Hands, lanes: Lanes, pool: redis.ConnectionPool, redis_url: str
) -> None:
    publish(pool, "m1")
    (held,), bodies = take(hands)
    hands.leave(KEYS)
    with redis.Redis.from_url(redis_url) as client:
        client.delete("{runs}:workers")
        before: Any = client.zscore("{runs}:leases", "m1")
        hands._renew()
        after: Any = client.zscore("{runs}:leases", "m1")
    assert after > before
    assert lanes.no_worker
    idle = [hands.idle]
    hands.ack(held.tag)
    hands.flush()
    assert [*idle, hands.idle] == [False, True]
    assert len(bodies) == 1


def test_work_on_a_retried_task_is_charged_from_its_start(pool: redis.ConnectionPool, lanes: Lanes) -> None:
    now = 100.0
    hands = Hands(pool, lease=6, clock=lambda: now)
    publish(pool, "task-1#2")
    (held,), bodies = take(hands)
    now = 150.0
    assert hands.started("task-1")
    now = 150.5
    hands.ack(held.tag)
    hands.flush()
    lane = lanes.inspect("t")
    assert lane is not None
    assert lane.recent_seconds == pytest.approx(0.5, abs=0.01)
    assert len(bodies) == 1


def test_a_forked_child_uses_a_connection_and_a_lock_of_its_own(redis_url: str, lanes: Lanes) -> None:
    pool = redis.ConnectionPool.from_url(redis_url)
    wire = Wire(pool, keep=True)
    post(wire, KEYS, Envelope("parent", "t", "f", 0, "p", "", "{}"))
    with wire._lock:  # as another thread would hold it at that moment
        child = os.fork()
        if child == 0:
            status = 1
            try:
                post(wire, KEYS, Envelope("child", "t", "f", 0, "c", "", "{}"))
                status = 0
            finally:
                os._exit(status)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(pid)

    try:
        until(has_ended, within=10, what="the end of the child")
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    assert ended == [0]
    assert wire.call(("PING",))[0] in (b"PONG", "PONG", True)
    assert lanes.holds(["parent", "child"]) == {"parent", "child"}
    wire.close()
    pool.disconnect()


def test_a_server_that_forgot_the_scripts_is_taught_them_again(redis_url: str, pool: redis.ConnectionPool) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    publish(pool, "m1")
    assert Wire(pool).call(operation("holds", KEYS, "m1"))[0] == [1]


def test_the_keeper_puts_back_a_lost_ticket_and_frees_what_a_dead_worker_held(
    hands: Hands, lanes: Lanes, pool: redis.ConnectionPool, redis_url: str
) -> None:
    publish(pool, "m1", "m2")
    Wire(pool).call(operation("claim", KEYS, "", 0.01, "of-a-dead-worker", 1))
    with redis.Redis.from_url(redis_url) as client:
        client.delete("runs")
        until(lambda: hands.run_once().reaped + lanes.total().counters.get("expired", 0) > 0, within=10)
        assert client.llen("runs") > 0
    assert lanes.total().backlog == 2
    assert lanes.check() == []


def test_what_is_no_message_does_not_keep_the_others_from_being_registered(
    hands: Hands, lanes: Lanes, pool: redis.ConnectionPool, redis_url: str
) -> None:
    for id_, text in (("bad", "no json"), ("good", MESSAGE)):
        post(Wire(pool), KEYS, Envelope(id_, "t", "f", 0, id_, "", text))
    _, bodies = take(hands, 2)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert hands._renew() == (0, 1, 1)
    assert lanes.holds(["bad", "good"]) == {"good"}
    assert len(bodies) == 2


def test_publishing_alone_leaves_no_more_in_the_inbox_and_the_list_than_a_look_can_file(
    lanes: Lanes, pool: redis.ConnectionPool, redis_url: str
) -> None:
    wire = Wire(pool, keep=True)
    with redis.Redis.from_url(redis_url) as client:
        for number in range(500):
            post(wire, KEYS, Envelope(f"m{number}", f"t{number % 7}", "f", 0, f"n{number}", "", "{}"))
            assert client.llen("{runs}:inbox") <= PORTION
            assert client.llen("runs") <= 128 + PORTION
    assert lanes.total().backlog == 500
    assert lanes.check() == []


class TestDepths:
    """What every lane has, for whoever watches all of them at once."""

    @pytest.mark.parametrize("page", [1, 2, 3, 4, 1000])
    def test_they_name_each_lane_once_whatever_the_size_of_a_page(
        self, pool: redis.ConnectionPool, hands: Hands, lanes: Lanes, page: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engine.fairshare.lanes.DEPTHS", page)
        for number, tenant in enumerate(("c", "a", "b"), start=1):
            for n in range(number):
                posted = Envelope(f"{tenant}{n}", tenant, "f", 0, f"{tenant}{n}", "", MESSAGE).posted()
                Wire(pool).call(operation("publish", KEYS, "", posted))
        take(hands)
        found = list(lanes.depths())
        assert [tenant for tenant, _, _ in found] == ["a", "b", "c"]
        assert {(lane.tenant, lane.backlog, lane.in_flight) for lane in lanes.all()} == set(found)
        assert sum(running for _, _, running in found) == 1
        assert sum(waiting for _, waiting, _ in found) == 5

    def test_there_are_none_of_a_new_queue(self, lanes: Lanes) -> None:
        assert list(lanes.depths()) == []
