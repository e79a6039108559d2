"""The reckoning of `make chaos` can fail: whatever kind of harm is planted in sound data, its invariant breaks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
import redis

from bench.chaos_load import Receiver, Seen, Tenant
from bench.chaos_oracle import CAP, WATCH, Oracle, Sampler
from engine.db import dump_json
from tests.engine_parts import parts_for
from tests.fair_queue import fair_queue
from tests.installation import wait_for

LEASE = 5.0


@dataclass(frozen=True)
class Done:
    """Two runs of each of two organizations that went as they should, and what the receiver saw of them."""

    url: str
    tenants: list[Tenant]
    accepted: dict[str, Tenant]
    seen: list[Seen]


@dataclass
class World:
    """What the oracle looks at. A test may plant harm: what it does to Postgres is rolled back."""

    done: Done
    connection: psycopg.Connection[Any]
    redis_url: str
    folder: Path
    accepted: dict[str, Any]
    seen: list[Seen]
    thawed: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    redis_lost_at: list[float] = field(default_factory=list)
    until_the_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    open: Counter[str] = field(default_factory=Counter)
    status: int = 404
    """What a stranger is told who asks for a run."""

    def execute(self, statement: str, *parameters: Any) -> None:
        self.connection.execute(statement.encode(), parameters)

    def see(self, **changes: Any) -> None:
        """The receiver sees one more request, like its first but for `changes`."""
        self.seen.append(replace(self.seen[0], **changes))

    @contextlib.contextmanager
    def sql(self) -> Iterator[psycopg.Connection[Any]]:
        yield self.connection

    def broken(self) -> dict[str, list[str]]:
        """What is broken, by invariant, once the sampler has looked a few times."""
        tenants = [replace(tenant, client=self._client()) for tenant in self.done.tenants]
        accepted = {run: next(t for t in tenants if t.id == owner.id) for run, owner in self.accepted.items()}
        server = SimpleNamespace(url=self.redis_url, folder=self.folder / "redis")
        chaos: Any = SimpleNamespace(
            ground=SimpleNamespace(sql=self.sql, redis=server, folder=self.folder, lease=LEASE, thawed=self.thawed),
            load=SimpleNamespace(
                tenants=tenants,
                accepted=accepted,
                broken=[],
                receiver=SimpleNamespace(seen=self.seen, open=self.open, lock=threading.Lock()),
            ),
            recoveries=SimpleNamespace(clean=self.clean, disturbed=[]),
            redis_lost_at=self.redis_lost_at,
            cancelled=0,
            poisoned=0,
        )
        sampler = Sampler(chaos, every=0.001)
        wait_for(lambda: sampler.strangers > 0, "the sampler to look")
        sampler.stop()
        self.after_loss = sampler.after_loss
        return {verdict.invariant[:2]: verdict.broken for verdict in Oracle(chaos, sampler).judge() if verdict.broken}

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url="http://api", transport=httpx.MockTransport(lambda _request: httpx.Response(self.status))
        )


@pytest.fixture(scope="module")
def done(module_database_url: str) -> Iterator[Done]:
    receiver = Receiver()
    accepted: dict[str, Tenant] = {}
    with parts_for(module_database_url) as parts, psycopg.connect(_plain(module_database_url)) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES ('other', 'Other')")
        connection.execute(WATCH.encode())
        connection.commit()
        tenants = [Tenant(number, id_, httpx.Client(), receiver.url) for number, id_ in enumerate(("acme", "other"))]
        for tenant in tenants:
            parts.tenant = tenant.id
            parts.credential("http", tenant.new_secret()["data"], name=f"sink{tenant.number}")
            step = {**tenant.call("one", takes=0), "credential": f"sink{tenant.number}"}
            workflow = parts.workflow(step, workflow_id=f"wf_{tenant.number}")
            for _ in range(2):
                run_id = parts.start(workflow, input={"input": {"m": tenant.marker}})
                assert parts.executor.run(tenant.id, run_id) == "succeeded"
                accepted[run_id] = tenant
        yield Done(module_database_url, tenants, accepted, receiver.seen)
    receiver.close()


def _plain(url: str) -> str:
    return url.replace("+psycopg", "")


@pytest.fixture
def world(done: Done, redis_url: str, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "redis").mkdir()
    with psycopg.connect(_plain(done.url)) as connection:
        world = World(done, connection, redis_url, tmp_path, dict(done.accepted), list(done.seen))
        with world.until_the_end:
            yield world
        connection.rollback()


def test_what_went_well_breaks_nothing(world: World) -> None:
    assert world.broken() == {}
    assert len(world.seen) == len(world.accepted) == 4


def secret(world: World) -> str:
    return world.done.tenants[1].secrets[0]


def put(world: World, key: str, value: str) -> None:
    with redis.Redis.from_url(world.redis_url) as client:
        client.hset(key, "x", value)


def leave(world: World, *, taken: bool) -> None:
    """A message in the queue, whose worker is still there."""
    queue = world.until_the_end.enter_context(fair_queue(world.redis_url))
    queue.publish("acme", 1)
    assert not taken or queue.take() == "acme"


def repeat(world: World) -> float:
    """One effect is seen again, 5 s later, in a second attempt; when."""
    world.execute("UPDATE runs SET attempt = 2")
    world.see(at=world.seen[0].at + 5)
    return world.seen[-1].at


PLANTS: dict[str, tuple[str, Callable[[World], object]]] = {
    "an accepted run is not in Postgres": ("I1", lambda w: w.accepted.update(run_lost=w.done.tenants[0])),
    "a run has not ended": (
        "I1",
        lambda w: w.execute("UPDATE runs SET status = 'queued', finished_at = NULL WHERE tenant_id = 'acme'"),
    ),
    "a run that had ended ends otherwise": ("I2", lambda w: w.execute("UPDATE runs SET status = 'failed'")),
    "a finished step is done again": ("I2", lambda w: w.execute("UPDATE steps SET attempt = attempt + 1")),
    "a schedule fires twice for one time": (
        "I2",
        lambda w: w.execute("""UPDATE runs SET trigger = 'schedule', input = '{"scheduled_at": "2026-01-01"}'"""),
    ),
    "an effect was never seen": ("I3", lambda w: w.seen.pop()),
    "an effect is seen twice in one attempt": ("I3", lambda w: w.see()),
    "an effect is repeated after its step had finished": (
        "I3",
        repeat,
    ),
    "an effect is of no run": ("I3", lambda w: w.see(key="run_of_nobody:one")),
    "a request says another organization": ("I4", lambda w: w.see(tenant="other")),
    "a request has the secret of another organization": ("I4", lambda w: w.see(secret=secret(w))),
    "a row has the data of another organization": (
        "I4",
        lambda w: w.execute(
            "UPDATE runs SET input = %s WHERE tenant_id = 'acme'", dump_json({"m": w.done.tenants[1].marker})
        ),
    ),
    "a stranger is let in": ("I4", lambda w: setattr(w, "status", 200)),
    "more at once than the cap": ("I5", lambda w: w.open.update(acme=CAP + 1)),
    "nobody went on in time": ("I6", lambda w: w.clean.extend([1.0, LEASE + 5.1])),
    "a delivery is still unacknowledged": ("I7", lambda w: put(w, "unacked", "message")),
    "a message still waits": ("I7", lambda w: leave(w, taken=False)),
    "a message is still in hand": ("I7", lambda w: leave(w, taken=True)),
    "a secret in a log": ("I8", lambda w: (w.folder / "worker1.log").write_text(f"sent {secret(w)}")),
    "a secret in a value of Redis": ("I8", lambda w: put(w, "cache", secret(w))),
    "a secret in a file of Redis": ("I8", lambda w: (w.folder / "redis" / "dump").write_text(secret(w))),
    "a secret in a row": ("I8", lambda w: w.execute("UPDATE steps SET output = %s", dump_json([secret(w)]))),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_harm_breaks_its_invariant(world: World, plant: str) -> None:
    invariant, harm = PLANTS[plant]
    harm(world)
    assert invariant in world.broken()


def test_what_a_thawed_process_repeats_and_a_cap_that_redis_forgot_are_told_apart_from_harm(world: World) -> None:
    again = repeat(world)
    world.thawed.append(again - 1)
    world.open.update(acme=CAP + 1)
    world.redis_lost_at.append(time.time() - 1)
    assert world.broken() == {}
    assert world.after_loss > 0
