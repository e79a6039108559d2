"""The Lua operations against the plain-Python model, over random sequences of every operation, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from embedded.redis import RedisServer
from engine.fairshare.envelope import Envelope
from engine.fairshare.hands import INBOX
from engine.fairshare.lanes import Lanes
from engine.fairshare.scripts import Keys, Wire, operation
from tests.fairshare_model import Model

LEASE = 30.0
GRACE = 12.0
ids = st.sampled_from([f"m{i}" for i in range(24)])
tenants = st.sampled_from(["a", "b", "c"])
flows = st.sampled_from(["f", "g"])
amounts = st.sampled_from([0.0, 0.01, 0.3, 1.0, 7.0, 45.0])


class Queue(RuleBasedStateMachine):
    """Every rule does one thing to Redis and to the model, and compares what they answer."""

    client: redis.Redis

    @initialize()
    def empty(self) -> None:
        self.client.flushall()
        self.wire = Wire(self.client.connection_pool)
        self.keys = Keys.of("q")
        self.lanes = Lanes(self.client, "q")
        self.model = Model()
        self.now = 1000.0
        self.counter = 0
        self.handed: dict[tuple[str, str], tuple[str, str, str]] = {}
        self.nonces: list[str] = []
        self.unfiled = False

    def run(self, name: str, *args: Any) -> Any:
        self.unfiled = name == "publish" or (name == "renew" and self.unfiled)
        return self.wire.call(operation(name, self.keys, self.now, *args))[0]

    def unique(self) -> str:
        self.counter += 1
        return f"n{self.counter}"

    @rule(batch=st.lists(st.tuples(ids, tenants, flows, st.integers(0, 2)), min_size=1, max_size=6), look=st.booleans())
    def publish(self, batch: list[tuple[str, str, str, int]], look: bool) -> None:
        posted = []
        for id_, tenant, flow, priority in batch:
            nonce = self.unique()
            self.nonces.append(nonce)
            posted.append(Envelope(id_, tenant, flow, priority, nonce, "", f"payload of {id_}").posted())
            self.model.publish(id_, tenant, flow, priority, nonce, again=False)
        left = self.run("publish", *posted)
        if look:
            self.run("file")
        if look or len(self.model.inbox) >= INBOX:
            self.model.open(self.now)
            self.unfiled = False
        assert look or left == len(self.model.inbox)

    @precondition(lambda self: bool(self.nonces))
    @rule(id_=ids, tenant=tenants, data=st.data())
    def publish_again_after_a_lost_reply(self, id_: str, tenant: str, data: st.DataObject) -> None:
        nonce = data.draw(st.sampled_from(self.nonces))
        self.run("publish", Envelope(id_, tenant, "f", 0, nonce, "", "again").posted(again=True))
        self.model.publish(id_, tenant, "f", 0, nonce, again=True)

    @rule(wanted=st.integers(1, 5), with_ticket=st.booleans())
    def claim(self, wanted: int, with_ticket: bool) -> None:
        if with_ticket:
            self.client.rpop("q")
        token = self.unique()
        _, _, more, *fields = self.run("claim", LEASE, token, wanted)
        claimed = [(fields[i].decode(), int(fields[i + 1])) for i in range(0, len(fields), 3)]
        assert claimed == self.model.claim(wanted, token, LEASE, self.now)
        assert bool(more) == bool(self.model.ready)
        for id_, _ in claimed:
            entry = self.model.entries[id_]
            self.handed[id_, token] = (entry.tenant, entry.flow, entry.nonce)

    @precondition(lambda self: bool(self.model.leases))
    @rule(data=st.data(), seconds=amounts)
    def ack(self, data: st.DataObject, seconds: float) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.model.leases)))
        token = self.model.leases[id_].token
        assert self.run("ack", id_, token, seconds) == [1]
        assert self.model.ack(id_, token, seconds, self.now) == 1

    @precondition(lambda self: bool(self.handed))
    @rule(data=st.data(), seconds=amounts)
    def ack_what_was_once_in_hand(self, data: st.DataObject, seconds: float) -> None:
        id_, token = data.draw(st.sampled_from(sorted(self.handed)))
        assert self.run("ack", id_, token, seconds) == [self.model.ack(id_, token, seconds, self.now)]

    @precondition(lambda self: bool(self.handed))
    @rule(data=st.data(), seconds=amounts, behind=st.booleans())
    def requeue(self, data: st.DataObject, seconds: float, behind: bool) -> None:
        id_, token = data.draw(st.sampled_from(sorted(self.handed)))
        reply = self.run("requeue", id_, token, seconds, "behind" if behind else "place")
        assert reply == [self.model.requeue(id_, token, seconds, behind=behind, now=self.now)]

    @precondition(lambda self: bool(self.handed))
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        id_, token = data.draw(st.sampled_from(sorted(self.handed)))
        _, *gone = self.run("renew", LEASE, "worker", id_, token)
        assert (not gone) == self.model.renew(id_, token, LEASE, self.now)

    @precondition(lambda self: bool(self.handed))
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        _, token = data.draw(st.sampled_from(sorted(self.handed)))
        mine = [id_ for id_, lease in self.model.leases.items() if lease.token == token]
        listed = names(self.client.hkeys("{q}:leased"))
        assert self.run("recall", token) == len(mine)
        self.model.open(self.now)
        for id_ in (id_ for id_ in listed if id_ in mine):
            self.model.requeue(id_, token, 0.0, behind=False, now=self.now)

    @rule(seconds=amounts)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reap(self) -> None:
        assert self.run("reap", LEASE, GRACE, 100)[0] == self.model.reap(LEASE, GRACE, self.now)

    @rule(id_=ids)
    def cancel(self, id_: str) -> None:
        assert self.run("cancel", id_) == self.model.cancel(id_, self.now)

    @rule(tenant=tenants)
    def drain(self, tenant: str) -> None:
        assert self.run("drain", tenant, 100) == [self.model.drain(tenant, self.now), 0]

    @rule(
        tenant=tenants,
        version=st.integers(1, 20),
        weight=st.sampled_from([0.5, 1.0, 4.0]),
        cap=st.sampled_from([0, 1, 2]),
        rate=st.sampled_from([0.0, 0.5, 10.0]),
        burst=st.sampled_from([1.0, 3.0]),
    )
    def configure(self, tenant: str, version: int, weight: float, cap: int, rate: float, burst: float) -> None:
        reply = self.run("configure", tenant, f"{version} {weight} {cap} {rate} {burst}")
        assert reply == self.model.configure(
            tenant, version=version, weight=weight, cap=cap, rate=rate, burst=burst, now=self.now
        )

    @rule(tenant=tenants, paused=st.booleans())
    def pause(self, tenant: str, paused: bool) -> None:
        assert self.run("pause", tenant, "1" if paused else "0") == self.model.pause(
            tenant, paused=paused, now=self.now
        )

    @precondition(lambda self: bool(self.handed))
    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        id_, token = data.draw(st.sampled_from(sorted(self.handed)))
        assert self.run("set_aside", id_, token, "rejected", "") == self.model.set_aside(id_, token, self.now)

    @rule(id_=ids)
    def revive(self, id_: str) -> None:
        assert self.run("revive", id_) == [self.model.revive(id_, self.now)]

    @precondition(lambda self: bool(self.model.leases))
    @rule(published_again=st.booleans())
    def redis_loses_everything_and_workers_register(self, published_again: bool) -> None:
        held = {id_: lease.token for id_, lease in self.model.leases.items()}
        self.client.flushall()
        self.model = Model()
        for id_, token in sorted(held.items()):
            tenant, flow, nonce = self.handed[id_, token]
            if published_again:
                self.run("publish", Envelope(id_, tenant, flow, 0, nonce, "", "again").posted())
                self.model.publish(id_, tenant, flow, 0, nonce, again=False)
            entry = Envelope(id_, tenant, flow, 0, nonce, "", "from the hands").entry
            reply = self.run("register", LEASE, id_, token, "", entry)
            assert reply == [
                self.model.register(id_, tenant, flow, token=token, nonce=nonce, lease=LEASE, now=self.now)
            ]

    @invariant()
    def redis_holds_what_the_model_holds(self) -> None:
        if self.unfiled:
            return
        assert self.client.exists("{q}:inbox") == 0
        counted = self.client.hmget("{q}:state", "published", "repeated")
        assert [int(value or 0) for value in counted] == [self.model.published, self.model.repeated]
        assert scores(self.client, "{q}:ready") == self.model.ready
        assert scores(self.client, "{q}:throttled") == self.model.throttled
        leases = {id_: lease.deadline for id_, lease in self.model.leases.items()}
        assert scores(self.client, "{q}:leases") == leases
        assert set(names(self.client.hkeys("{q}:messages"))) == set(self.model.entries)
        assert set(names(self.client.hkeys("{q}:aside"))) == set(self.model.aside)
        for tenant, lane in self.model.lanes.items():
            assert scores(self.client, f"{{q}}:order:{tenant}") == lane.order
            for flow in ("f", "g"):
                assert scores(self.client, f"{{q}}:flow:{tenant}\x1f{flow}") == lane.waiting.get(flow, {})

    @invariant()
    def i1_to_i3_hold(self) -> None:
        if not self.unfiled:  # a check files as of now, and this is not the virtual now
            assert self.lanes.check() == []

    @invariant()
    def i4_ready_work_has_a_ticket(self) -> None:
        assert not self.model.ready or self.client.llen("q") > 0
        assert self.client.llen("q") <= 128


def names(replies: Any) -> list[str]:
    return [reply.decode() for reply in replies]


def scores(client: redis.Redis, key: str) -> dict[str, float]:
    members: Any = client.zrange(key, 0, -1, withscores=True)
    return {member.decode(): score for member, score in members}


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def test_the_scripts_do_what_the_model_says_over_random_sequences(client: redis.Redis) -> None:
    class OnThisServer(Queue):
        pass

    OnThisServer.client = client
    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
