"""Workers that cannot reach Postgres or Redis, or whose clock is wrong; and a beat that was away for an hour."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench.harness import Proxy
from tests.installation import Installation, Tenant, installed, wait_for
from tests.outside_services import Answer, Received, Service, json_answer

LEASE = "2"
ECHO = {"id": "one", "action": "debug.echo"}
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += atoi(getenv("WRONG_BY"));
    return failed;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return at ? (*at = now.tv_sec) : now.tv_sec;
}
"""


class Gate(Service):
    """Answers with the how-manieth call with its key a call is, once it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def answer(self, request: Received) -> Answer:
        number = self.keys().count(request.headers["idempotency-key"])
        self.open.wait(60)
        return json_answer(number)

    def keys(self) -> list[str]:
        return [request.headers["idempotency-key"] for request in self.received]

    def step(self) -> dict[str, Any]:
        return {"id": "call", "action": "http.request", "with": {"method": "POST", "url": self.url, "json": {}}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, module_database_url: str) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("cut"), module_database_url) as installation:
        installation.environment["FAIRLANE_LEASE_SECONDS"] = LEASE
        installation.start_beat()
        installation.start_api()
        yield installation


@pytest.fixture(scope="module")
def links(installation: Installation) -> Iterator[dict[str, Proxy]]:
    """The ways of the worker `cut` to its servers."""
    urls = {"FAIRLANE_DATABASE_URL": installation.database_url, "FAIRLANE_REDIS_URL": installation.redis.url}
    ports = {name: int(url.rpartition(":")[2].partition("/")[0]) for name, url in urls.items()}
    proxies = {name: Proxy(port) for name, port in ports.items()}
    through = {name: url.replace(f":{ports[name]}/", f":{proxies[name].port}/") for name, url in urls.items()}
    installation.start_worker("cut", variables=through)
    yield {"Postgres": proxies["FAIRLANE_DATABASE_URL"], "Redis": proxies["FAIRLANE_REDIS_URL"]}
    for proxy in proxies.values():
        proxy.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate
        gate.open.set()


@pytest.fixture
def tenant(installation: Installation) -> Tenant:
    return installation.tenant()


def start(tenant: Tenant, *steps: dict[str, Any]) -> str:
    """A new workflow and its first run."""
    answer = tenant.hook(tenant.workflow(*steps))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


def sql(installation: Installation, statement: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(installation.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def test_a_worker_whose_redis_falls_silent_past_its_lease_runs_nothing_twice_and_consumes_again(
    installation: Installation, links: dict[str, Proxy], gate: Gate, tenant: Tenant
) -> None:
    run_id = start(tenant, gate.step())
    wait_for(gate.keys, "the call")
    links["Redis"].silent = True
    installation.start_worker("other", level="DEBUG")
    wait_for(lambda: "run_dropped" in installation.log("other"), "the message to be delivered again, and dropped")
    gate.open.set()
    run = tenant.finished(run_id)
    assert (run["status"], run["attempt"]) == ("succeeded", 1)
    links["Redis"].heal()
    installation.kill("other")
    assert tenant.finished(start(tenant, ECHO))["status"] == "succeeded"
    assert gate.keys() == [f"{run_id}:call"]


def test_a_worker_that_is_cut_off_past_its_lease_cannot_write_what_it_still_comes_to(
    installation: Installation, links: dict[str, Proxy], gate: Gate, tenant: Tenant
) -> None:
    run_id = start(tenant, gate.step())
    wait_for(gate.keys, "the call")
    for link in links.values():
        link.refusing = True
        link.cut()
    installation.start_worker("another")
    wait_for(lambda: len(gate.keys()) == 2, "another worker to make the call")
    gate.open.set()
    ended = tenant.finished(run_id)
    assert (ended["status"], ended["attempt"], ended["output"]["body"]) == ("succeeded", 2, 2)
    wait_for(lambda: "waiting_for_postgres" in installation.log("cut"), "the first worker to have a result")
    for link in links.values():
        link.heal()
    wait_for(lambda: "run_given_up" in installation.log("cut"), "the first worker to be refused")
    installation.kill("another")
    assert tenant.finished(start(tenant, ECHO))["status"] == "succeeded"
    assert tenant.run(run_id) == ended
    assert gate.keys() == [f"{run_id}:call"] * 2


@pytest.mark.usefixtures("links")
def test_what_a_beat_missed_in_an_hour_is_left_out_or_run_once_or_all_of_it_as_each_schedule_says(
    installation: Installation, tenant: Tenant
) -> None:
    installation.kill("beat")
    schedules = {
        missed: tenant.workflow(ECHO, trigger={"type": "schedule", "every": "10m", "missed": missed})
        for missed in ("skip", "once", "all")
    }
    ids = list(schedules.values())
    missed = "UPDATE triggers SET next_fire_at = now() - interval '65 minutes' WHERE workflow_id = ANY(%s)"
    sql(installation, missed, ids)
    installation.start_beat()
    due = "SELECT count(*) FROM triggers WHERE workflow_id = ANY(%s) AND next_fire_at <= now()"
    wait_for(lambda: sql(installation, due, ids) == [(0,)], "beat to look")
    for missed, count in (("once", 1), ("all", 7)):
        assert len(tenant.succeeded(schedules[missed], count)) == count
    assert tenant.runs(workflow_id=schedules["skip"]) == []


def wrong_clock(folder: Path) -> Path:
    """A library that adds WRONG_BY seconds to the time of day of a process, and leaves its monotonic clock alone."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a library that shifts the clock of a process")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def test_clocks_ten_minutes_fast_and_slow_end_no_lease_early_and_leave_no_dead_workers_run(
    installation: Installation, gate: Gate, tenant: Tenant
) -> None:
    clock = {"LD_PRELOAD": str(wrong_clock(installation.folder))}
    for name in [name for name in installation.processes if name != "api"]:
        installation.kill(name)
    installation.start_beat(variables={**clock, "WRONG_BY": "600"})
    installation.start_worker("fast", variables={**clock, "WRONG_BY": "600"})
    installation.start_worker("slow", variables={**clock, "WRONG_BY": "-600"})
    held = [start(tenant, gate.step()) for _ in range(6)]
    wait_for(lambda: len(gate.keys()) == 6, "six calls, which are too many for one of the workers")
    sleeper = start(tenant, {"id": "sleep", "wait": {"for": "4s"}})
    assert tenant.finished(sleeper)["status"] == "succeeded"
    took = sql(installation, "SELECT extract(epoch FROM finished_at - started_at) FROM runs WHERE id = %s", sleeper)
    assert 4 <= took[0][0] < 15
    assert max(Counter(gate.keys()).values()) == 1, "after two leases and more each is still in the same hands"
    installation.kill("slow")
    wait_for(lambda: len(gate.keys()) > 6, "what the dead worker had to be tried again", seconds=15)
    gate.open.set()
    attempts = Counter(tenant.finished(run_id)["attempt"] for run_id in held)
    assert attempts.keys() == {1, 2}
    assert attempts[2] == len(gate.keys()) - 6
