"""The faults of `make chaos`: each a function that harms the installation, and what of FACTS it stands for. Those that
harm Redis or Postgres themselves are in ``chaos_servers.py``.

A fault does its harm, lets it last, and undoes it; what lasts longer than a lease is undone later by `Chaos.due`, while
other faults go on. Which process it meets and how long it lasts comes from the seed.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from bench.chaos_ground import WORKERS
from bench.chaos_load import run_of
from bench.chaos_servers import FAULTS
from bench.chaos_state import Chaos, Fault, NotNow, fault

__all__ = ["FAULTS"]


@fault("kill -9 of a worker", "F1", 6)
def kill_worker(chaos: Chaos) -> None:
    name, running = chaos.worker(), chaos.in_hand()
    chaos.ground.end(name)
    chaos.recoveries.after_kill(running)
    chaos.ground.start(name)


@fault("kill -9 of all workers", "F1")
def kill_workers(chaos: Chaos) -> None:
    running = chaos.in_hand()
    for name in WORKERS:
        chaos.ground.end(name)
    chaos.recoveries.after_kill(running)
    for name in WORKERS:
        chaos.ground.start(name)


@fault("kill -9 of beat", "F30")
def kill_beat(chaos: Chaos) -> None:
    chaos.ground.disturb()
    chaos.ground.end("beat")
    chaos.last(0, 3)
    chaos.ground.start("beat")


@fault("kill -9 of the API", "F7, between commit and publish", 3)
def kill_api(chaos: Chaos) -> None:
    chaos.ground.restart("api")


@fault("SIGSTOP of a worker past its lease, then SIGCONT", "F14", 3)
def freeze_worker(chaos: Chaos) -> None:
    if len(chaos.ground.frozen) >= len(WORKERS) - 1:
        raise NotNow
    name, running = chaos.worker(), chaos.in_hand()
    chaos.ground.freeze(name)
    chaos.recoveries.after_kill(running)
    chaos.due.append((time.monotonic() + chaos.ground.lease * 1.2 + 2, lambda: chaos.ground.thaw(name)))


@fault("SIGTERM, every worker in turn", "F5")
def rolling_restart(chaos: Chaos) -> None:
    for name in WORKERS:
        if name not in chaos.ground.frozen:
            chaos.ground.restart(name, signal.SIGTERM)


def _network(server: str, how: str) -> Fault:
    def harm(chaos: Chaos) -> None:
        chaos.ground.disturb()
        link = chaos.ground.links[chaos.worker()]
        proxy = link.postgres if server == "Postgres" else link.redis

        def heal() -> None:
            proxy.heal()
            chaos.ground.disturb()
            chaos.ground.thawed.append(time.time())

        lasts = chaos.rng.uniform(2, 8)
        if how == "cut":
            proxy.refusing = True
            proxy.cut()
            lasts = chaos.rng.choice([lasts, chaos.ground.lease * 1.2])
        elif how == "half-open":
            proxy.silent = True
        else:
            proxy.delay = chaos.rng.uniform(0.02, 0.2)
        chaos.due.append((time.monotonic() + lasts, heal))
        if server == "Redis":
            chaos.redis_lost_at.append(time.time() + lasts)

    return harm


for _server, _number in (("Postgres", "F14"), ("Redis", "F15")):
    for _how in ("cut", "half-open", "slow"):
        fault(f"a worker's network to {_server} {_how}", _number, 1)(_network(_server, _how))


def _reply_dropped(process: Callable[[Chaos], str]) -> Fault:
    def harm(chaos: Chaos) -> None:
        proxy = chaos.ground.links[process(chaos)].postgres
        proxy.triggered.clear()
        proxy.cut_after(b"COMMIT")
        if not proxy.triggered.wait(5):
            proxy.heal()
            raise NotNow

    return harm


fault("a worker's COMMIT whose reply is dropped", "F12", 3)(_reply_dropped(Chaos.worker))
fault("the API's COMMIT whose reply is dropped", "F12", 3)(_reply_dropped(lambda _chaos: "api"))


@fault("a worker's reply from Redis held back, then kill -9", "F3, F4", 3)
def hold_reply(chaos: Chaos) -> None:
    name = chaos.worker()
    proxy = chaos.ground.links[name].redis
    proxy.triggered.clear()
    proxy.hold_after(b"BRPOP" if chaos.rng.random() < 0.5 else b"EVALSHA")
    proxy.triggered.wait(3)
    running = chaos.in_hand()
    chaos.ground.end(name)
    chaos.recoveries.after_kill(running)
    proxy.heal()
    chaos.ground.start(name)


@fault("garbage and unknown tasks on the queue", "F19")
def poison(chaos: Chaos) -> None:
    with chaos.client() as client:
        for rubbish in (b"garbage", b"[1, 2]", b'{"body": "%%%", "headers": {"task": "nobody.knows", "id": "x"}}'):
            client.lpush("runs", rubbish)
            client.lpush("system", rubbish)
            chaos.poisoned += 2


@fault("a second beat for seconds", "F30")
def two_beats(chaos: Chaos) -> None:
    if "beat2" in chaos.ground.processes:
        raise NotNow
    chaos.ground.start("beat2")
    chaos.due.append((time.monotonic() + chaos.rng.uniform(4, 10), lambda: chaos.ground.end("beat2")))


@fault("cancel in a race with the run's end", "F24", 3)
def cancel(chaos: Chaos) -> None:
    """The same moment as the run's own transitions; the answer may be 200 or 409."""
    tenant = chaos.tenant()
    for _ in range(5):
        run = chaos.load.ask(tenant, chaos.rng.choice(("two", "wait", "slow")), f"cancel{chaos.rng.getrandbits(64)}")
        if run:
            chaos.last(0, 1)
            with contextlib.suppress(httpx.HTTPError):
                chaos.cancelled += tenant.client.post(f"/api/runs/{run}/cancel").status_code == 200


@fault("the same webhook 20 times at once", "F17")
def same_webhook(chaos: Chaos) -> None:
    tenant, key = chaos.tenant(), f"same{chaos.rng.getrandbits(64)}"

    def send(_: int) -> str | None:
        try:
            answer = tenant.start("two", key)
        except httpx.HTTPError:
            return None
        return run_of(answer) if answer.status_code == 202 else None

    with ThreadPoolExecutor(20) as pool:
        runs = {run for run in pool.map(send, range(20)) if run}
    for run in runs:
        chaos.load.accepted[run] = tenant
    if len(runs) > 1:
        chaos.load.broken.append(f"one webhook made {sorted(runs)}")


@fault("an organization suspended for seconds", "F27", 1)
def suspend(chaos: Chaos) -> None:
    tenant = chaos.tenant()
    if tenant.suspended:
        raise NotNow
    chaos.ground.fairlane("tenants", "suspend", tenant.id)
    tenant.suspended = True

    def resume() -> None:
        chaos.ground.fairlane("tenants", "resume", tenant.id)
        tenant.suspended = False

    chaos.due.append((time.monotonic() + chaos.rng.uniform(2, 6), resume))


@fault("a credential rotated", "F25")
def rotate(chaos: Chaos) -> None:
    tenant = chaos.tenant()
    try:
        tenant.client.put(f"/api/credentials/{tenant.credential}", json=tenant.new_secret()).raise_for_status()
    except httpx.HTTPError as error:
        raise NotNow from error


@fault("a workflow edited", "F23, its runs keep their version")
def edit(chaos: Chaos) -> None:
    tenant = chaos.tenant()
    document = {"name": "two", **tenant.documents()["two"]}
    document["steps"] = [*document["steps"], tenant.call(f"added{chaos.rng.randrange(1000)}")]
    try:
        tenant.client.put(
            f"/api/workflows/{tenant.workflows['two']}", json={"name": "two", "definition": document}
        ).raise_for_status()
    except httpx.HTTPError as error:
        raise NotNow from error


@fault("a limit changed", "F28", 1)
def change_limit(chaos: Chaos) -> None:
    chaos.ground.fairlane("tenants", "set-limit", chaos.tenant().id, "weight", str(chaos.rng.choice([1, 2, 3])))
