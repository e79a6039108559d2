"""Commands whose replies are left for later, on a kept connection: never taken for the answer to something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from bench.harness import Proxy
from engine.fairshare import scripts
from engine.fairshare.envelope import Envelope
from engine.fairshare.scripts import Keys, Wire, operation
from engine.fairshare.unwritable import Unwritable, attentive, unwritable

KEYS = Keys.of("runs")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wire(client: redis.Redis) -> Iterator[Wire]:
    wire = Wire(client.connection_pool, keep=True)
    yield wire
    wire.close()


def post(client: redis.Redis) -> None:
    client.rpush(KEYS.inbox, Envelope("m", "t", "f", 0, "n", "", "{}").posted())


def test_what_was_told_is_done_and_its_replies_and_errors_are_nobodys_answer(wire: Wire, client: redis.Redis) -> None:
    wire.tell(("SET", "told", "yes"))
    wire.tell(("LPUSH", "told", "no list"))
    assert wire.call(("ECHO", "asked"), ("GET", "told")) == [b"asked", b"yes"]
    assert client.get("told") == b"yes"


def test_an_operation_that_redis_does_not_know_is_taught_with_the_next_call(wire: Wire, client: redis.Redis) -> None:
    post(client)
    client.script_flush()
    wire.tell(operation("file", KEYS, ""))
    assert wire.call(("ECHO", "asked")) == [b"asked"]
    assert client.hexists("{runs}:messages", "m")


def test_a_connection_with_a_reply_still_to_come_is_looked_at_after_a_silence_and_kept(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    [kept] = wire.call(("CLIENT", "ID"))
    monkeypatch.setattr(scripts, "STALE_AFTER", 0.0)
    wire.tell(("ECHO", "told"))
    assert wire.call(("CLIENT", "ID")) == [kept]


def test_a_connection_that_broke_behind_what_was_told_owes_nothing_any_more(redis_url: str) -> None:
    with closing(Proxy(redis.ConnectionPool.from_url(redis_url).connection_kwargs["port"])) as proxy:
        pool = redis.ConnectionPool.from_url(redis_url, socket_timeout=2)
        pool.connection_kwargs["port"] = proxy.port
        wire = Wire(pool, keep=True)
        wire.call(("PING",))
        wire.tell(("ECHO", "told"))
        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            wire.call(("ECHO", "lost"))
        assert wire.call(("ECHO", "asked")) == [b"asked"]
        wire.close()
        pool.disconnect()


def test_a_connection_on_which_what_was_told_is_never_answered_is_left_for_another(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Proxy(redis.ConnectionPool.from_url(redis_url).connection_kwargs["port"])) as proxy:
        pool = redis.ConnectionPool.from_url(redis_url, socket_timeout=1)
        pool.connection_kwargs["port"] = proxy.port
        wire = Wire(pool, keep=True)
        [kept] = wire.call(("CLIENT", "ID"))
        monkeypatch.setattr(scripts, "STALE_AFTER", 0.0)
        proxy.hold_after(b"told")
        wire.tell(("ECHO", "told"))
        [other] = wire.call(("CLIENT", "ID"))
        assert other != kept
        wire.close()
        pool.disconnect()


def test_a_connection_given_back_with_a_reply_to_come_answers_the_next_borrower_nothing_of_it(
    wire: Wire, client: redis.Redis
) -> None:
    wire.tell(("ECHO", "told"))
    wire.close()
    assert client.echo("asked") == b"asked"


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", Unwritable),
        ("Error running script (call to f_1): @user_script:41: @user_script: 41: -MISCONF Errors writing", Unwritable),
        ("-READONLY You can't write against a read only replica.", Unwritable),
        ("NOREPLICAS Not enough good replicas to write.", Unwritable),
        ("BUSY Redis is busy running a script.", Unwritable),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", type(None)),
        ("ERR unknown command 'BUSYNESS', with args beginning with: ", type(None)),
    ],
)
def test_what_a_server_refuses_for_its_own_sake_is_told_from_a_fault_of_the_command(text: str, whose: type) -> None:
    assert isinstance(unwritable(redis.ResponseError(text)), whose)


def test_a_server_without_memory_counts_as_broken_on_every_road(redis_url: str, client: redis.Redis) -> None:
    pool = redis.ConnectionPool.from_url(redis_url, connection_class=attentive(redis.Connection))
    wire = Wire(client.connection_pool, keep=True)
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unwritable, match="takes no writes"):
            wire.call(("SET", "a", "b"))
        with redis.Redis(connection_pool=pool) as refused, pytest.raises(Unwritable, match="takes no writes"):
            refused.set("a", "b")
    finally:
        client.config_set("maxmemory", "0")
    with redis.Redis(connection_pool=pool) as allowed:
        assert allowed.set("a", "b")
    assert wire.call(("GET", "a")) == [b"b"]
    wire.close()
    pool.disconnect()
