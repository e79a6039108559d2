"""Workers that die under a run: out of memory, one child of a pool, again and again; and two versions side by side."""

# psutil's types are not installed.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.installation import Installation, Tenant, installed, wait_for
from tests.outside_services import Answer, Received, Service, json_answer

LEASE = "2"
CGROUPS = Path("/sys/fs/cgroup")
MEMORY = 64 * 1024 * 1024
BLOATED = b"[" + b"[]," * 2_000_000 + b"0]"
"""6 MB of JSON that become 130 MB of lists."""
NEWER = "import sys, engine.definition as d; d.FORMAT += 1; from celery.__main__ import main; sys.exit(main())"
"""The program `celery` of a Fairlane whose documents have the next format; all else is as here."""


class Target(Service):
    """What a call meets is a matter of its path: a rule may wait, kill, or answer as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.rules: dict[str, Callable[[Received], Answer]] = {}

    def answer(self, request: Received) -> Answer:
        rule = self.rules.get(request.path)
        return Answer() if rule is None else rule(request)

    def keys(self, path: str) -> list[str]:
        return [request.headers["idempotency-key"] for request in self.received if request.path == path]

    def step(self, path: str) -> dict[str, Any]:
        return {"id": "call", "action": "http.request", "with": {"method": "POST", "url": self.url + path, "json": {}}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, module_database_url: str) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("faults"), module_database_url) as installation:
        installation.environment["FAIRLANE_LEASE_SECONDS"] = LEASE
        installation.start_beat()
        installation.start_api()
        yield installation


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


@pytest.fixture
def tenant(installation: Installation) -> Tenant:
    return installation.tenant()


def start(tenant: Tenant, *steps: dict[str, Any]) -> str:
    """A new workflow and its first run."""
    answer = tenant.hook(tenant.workflow(*steps))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


def prefork(installation: Installation) -> int:
    """The process id of a worker whose pool has child processes.

    Celery takes `-P prefork` for its default, which gives way to `worker_pool` of the configuration; `processes` is
    the same pool and does not.
    """
    if "prefork" not in installation.processes:
        installation.start_worker("prefork", pool="processes")
    return installation.processes["prefork"].pid


def kill_child(worker: int, request: Received) -> None:
    """The child of the worker's pool that holds the connection of this request."""
    for child in psutil.Process(worker).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(link.laddr.port == request.connection for link in child.net_connections("tcp")):
                child.send_signal(signal.SIGKILL)
                return
    raise AssertionError("no child of the worker makes this call")


@contextlib.contextmanager
def memory_limit(name: str, size: int) -> Iterator[Path]:
    """A control group that holds so many bytes (version 2, else 1); the test is skipped where none can be made."""
    offered = CGROUPS / "cgroup.controllers"
    second = offered.exists() and "memory" in offered.read_text().split()
    group = (CGROUPS if second else CGROUPS / "memory") / name
    try:
        group.mkdir()
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(size))
        swap = group / ("memory.swap.max" if second else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if second else str(size))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"needs a control group with a limit of memory, which this user cannot make ({error.strerror})")
    try:
        yield group
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text() or None, "the group to be empty")
        group.rmdir()


def test_a_worker_that_the_kernel_ends_for_its_memory_is_as_one_that_was_killed(
    installation: Installation, target: Target, tenant: Tenant
) -> None:
    if "prefork" in installation.processes:
        installation.kill("prefork")
    target.rules["/bloat"] = lambda request: (
        Answer(body=BLOATED, headers={"content-type": "application/json"})
        if target.keys("/bloat").count(request.headers["idempotency-key"]) == 1
        else json_answer("small")
    )
    with memory_limit(f"fairlane-test-{os.getpid()}", MEMORY) as group:
        installation.start_worker("limited")
        (group / "cgroup.procs").write_text(str(installation.processes["limited"].pid))
        run_id = start(tenant, {**target.step("/before"), "id": "before"}, target.step("/bloat"))
        assert installation.processes["limited"].wait(30) == -signal.SIGKILL
        installation.kill("limited")
    prefork(installation)
    run = tenant.finished(run_id)
    assert (run["status"], run["attempt"], run["output"]["body"]) == ("succeeded", 2, "small")
    assert target.keys("/before") == [f"{run_id}:before"]
    assert target.keys("/bloat") == [f"{run_id}:call"] * 2


def test_a_child_of_the_pool_that_is_killed_costs_its_run_one_attempt_and_the_others_nothing(
    installation: Installation, target: Target, tenant: Tenant
) -> None:
    worker, gate = prefork(installation), threading.Event()

    def slow(_request: Received) -> Answer:
        gate.wait(30)
        return Answer()

    def kills_once(request: Received) -> Answer:
        if len(target.keys("/kills-once")) == 1:
            wait_for(lambda: target.keys("/slow"), "the neighbour to be in its call")
            kill_child(worker, request)
        return Answer()

    target.rules |= {"/slow": slow, "/kills-once": kills_once}
    neighbour = start(tenant, target.step("/slow"))
    run_id = start(tenant, target.step("/kills-once"))
    run = tenant.finished(run_id)
    gate.set()
    assert (run["status"], run["attempt"]) == ("succeeded", 2)
    assert target.keys("/kills-once") == [f"{run_id}:call"] * 2
    other = tenant.finished(neighbour)
    assert (other["status"], other["attempt"]) == ("succeeded", 1)
    assert target.keys("/slow") == [f"{neighbour}:call"]
    assert installation.processes["prefork"].poll() is None


def test_a_run_that_kills_its_process_each_time_fails_after_three_calls_and_others_go_on(
    installation: Installation, target: Target, tenant: Tenant
) -> None:
    worker = prefork(installation)

    def kills(request: Received) -> Answer:
        kill_child(worker, request)
        return Answer()

    target.rules["/poison"] = kills
    run_id = start(tenant, target.step("/poison"))
    others = []
    for calls in (1, 2, 3):
        wait_for(lambda calls=calls: len(target.keys("/poison")) >= calls, f"call {calls}")  # type: ignore[misc]
        others.append(start(tenant, {"id": "one", "action": "debug.echo"}))
    run = tenant.finished(run_id)
    assert (run["status"], run["attempt"], run["error"]["code"]) == ("failed", 4, "crashed")
    assert run["error"]["message"] == "Its worker died 3 times while it executed this run."
    assert target.keys("/poison") == [f"{run_id}:call"] * 3
    assert {(tenant.finished(other)["status"], tenant.run(other)["attempt"]) for other in others} == {("succeeded", 1)}


def test_old_and_new_workers_on_one_queue_do_each_what_they_can_read_and_nothing_is_lost(
    installation: Installation, tenant: Tenant
) -> None:
    """The newer one is this version with the number of its format raised: all that an old worker can see of it."""
    prefork(installation)
    old = tenant.workflow({"id": "one", "action": "debug.echo", "with": {"n": 1}}, name="Old")
    new = tenant.workflow({"id": "one", "action": "debug.echo", "with": {"n": 2}}, name="New")
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        connection.execute(
            """UPDATE workflow_versions SET definition = definition || '{"format": 2}' WHERE workflow_id = %s""", [new]
        )
    newer = [tenant.hook(new, {"n": n}).json()["run_id"] for n in range(2)]
    wait_for(
        lambda: installation.log("prefork").count("task_handed_back") >= 2,
        "the old worker to put them back",
        seconds=12,
    )
    older = [tenant.hook(old, {"n": n}).json()["run_id"] for n in range(5)]
    assert {tenant.finished(run_id)["status"] for run_id in older} == {"succeeded"}
    assert {(tenant.run(run_id)["status"], tenant.run(run_id)["attempt"]) for run_id in newer} == {("queued", 0)}
    installation.start_worker("newer", program=("-c", NEWER))
    older += [tenant.hook(old, {"n": n}).json()["run_id"] for n in range(5)]
    ended = [tenant.finished(run_id) for run_id in newer + older]
    assert {(run["status"], run["attempt"]) for run in ended} == {("succeeded", 1)}
    installation.kill("newer")
