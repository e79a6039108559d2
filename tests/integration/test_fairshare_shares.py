"""Who gets how much, and who waits how long: the shipped Lua operations in virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
import redis

from bench.bound import random_load
from bench.simulator import Job, Simulator


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def jobs(rng: random.Random, tenant: str, *, number: int, mean: float, flow: str = "f") -> Iterator[Job]:
    return (Job(0, tenant, rng.lognormvariate(math.log(mean) - 0.18, 0.6), flow) for _ in range(number))


@pytest.mark.parametrize("seed", range(10))
def test_no_newcomer_waits_longer_than_the_bound(client: redis.Redis, seed: int) -> None:
    rng = random.Random(seed)
    sim = Simulator(client, slots=rng.randint(1, 12))
    bound = random_load(sim, rng, arrivals=50)
    sim.close()
    assert bound.watched > 30


def test_shares_are_by_weight_and_worker_seconds_whatever_the_lengths(client: redis.Redis) -> None:
    rng, weights = random.Random(1), {"a": 1, "b": 1, "c": 2, "d": 4}
    lengths = {"a": 0.4, "b": 4.0, "c": 0.08, "d": 1.2}
    sim = Simulator(client, slots=8)
    for tenant, weight in weights.items():
        sim.configure(tenant, f"{weight} - - -")
        sim.publish(jobs(rng, tenant, number=int(450 * weight / lengths[tenant]), mean=lengths[tenant]))
    sim.fill()
    sim.run(until=300)
    sim.close()
    total = sum(sim.seconds.values())
    assert {t: sim.seconds[t] / total for t in weights} == pytest.approx(
        {t: w / 8 for t, w in weights.items()}, rel=0.04
    )


def test_a_new_weight_acts_on_the_backlog_at_once(client: redis.Redis) -> None:
    rng, sim = random.Random(2), Simulator(client, slots=8)
    for tenant in "xy":
        sim.publish(jobs(rng, tenant, number=3000, mean=0.05))
    sim.fill()
    sim.run(until=5)
    sim.configure("x", "4 - - -")
    begin = len(sim.served)
    sim.run(until=sim.now + 2)
    sim.close()
    seconds = {t: sum(s.job.seconds for s in sim.served[begin:] if s.job.tenant == t) for t in "xy"}
    assert seconds["x"] / sum(seconds.values()) == pytest.approx(0.8, rel=0.05)


def test_many_flows_get_a_tenant_no_more_than_one(client: redis.Redis) -> None:
    rng, sim = random.Random(3), Simulator(client, slots=8)
    for flow in range(300):
        sim.publish(jobs(rng, "many", number=8, mean=0.1, flow=f"f{flow}"))
    sim.publish(jobs(rng, "one", number=2400, mean=0.1))
    sim.fill()
    sim.run(until=25)
    sim.close()
    assert sim.seconds["many"] / sum(sim.seconds.values()) == pytest.approx(0.5, rel=0.04)


def test_a_hot_flow_does_not_starve_its_siblings(client: redis.Redis) -> None:
    rng, sim = random.Random(4), Simulator(client, slots=4)
    sim.publish(jobs(rng, "t", number=3000, mean=0.1, flow="hot"))
    sim.fill()
    sim.run(until=5)
    for flow in "abc":
        sim.publish(jobs(rng, "t", number=400, mean=0.3, flow=flow))
    begin = len(sim.served)
    sim.run(until=65)
    sim.close()
    served = sim.served[begin:]
    seconds = {flow: sum(s.job.seconds for s in served if s.job.flow == flow) for flow in ("hot", "a", "b", "c")}
    assert seconds == pytest.approx(dict.fromkeys(seconds, sum(seconds.values()) / 4), rel=0.1)


def test_idling_earns_no_credit(client: redis.Redis) -> None:
    rng, sim = random.Random(5), Simulator(client, slots=2)
    sim.publish(jobs(rng, "busy", number=3000, mean=0.1))
    sim.fill()
    sim.run(until=60)
    sim.publish(jobs(rng, "late", number=1000, mean=0.1))
    begin = len(sim.served)
    sim.run(until=80)
    sim.close()
    late = sum(s.job.seconds for s in sim.served[begin:] if s.job.tenant == "late")
    assert late / sum(s.job.seconds for s in sim.served[begin:]) == pytest.approx(0.5, rel=0.05)


def test_what_a_busy_tenant_has_learned_about_its_flows_does_not_expire(client: redis.Redis) -> None:
    sim = Simulator(client, slots=1)
    sim.now = 1e6
    sim.publish(Job(0, "t", seconds) for seconds in (0.1, 4000.0))
    sim.fill()
    sim.step()
    assert 80_000 < client.ttl("{sim}:flows:t") <= 86_400
    client.expire("{sim}:flows:t", 1000)
    sim.run()
    assert client.ttl("{sim}:flows:t") > 80_000
    sim.close()
