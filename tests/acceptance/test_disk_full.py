"""The disk of Postgres or of Redis is full: nothing acknowledged is lost, the answer is clear, and it ends by itself.

Each server has a file system of some megabytes of its own, which only root may make: others see these tests skipped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

import migrations
from embedded.postgres import PostgresServer
from embedded.redis import RedisServer
from tests.installation import Installation, Tenant, wait_for

MEGABYTE = 1024 * 1024
BODY = {"padding": "x" * 20_000}


class Disk:
    """A file system in memory that can be filled to its last page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (MEGABYTE, 4096):
                try:
                    while True:
                        file.write(b"\1" * size)
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "fairlane-test", str(folder)]
    run = subprocess.run(mount, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"needs a small file system, which this user cannot mount ({run.stderr.strip()})")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass
class Ground:
    installation: Installation
    postgres: PostgresServer
    postgres_disk: Disk
    redis_disk: Disk


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("full")
    with disk(folder / "one", 160) as one, disk(folder / "other", 4) as other:
        wal = ("min_wal_size=32MB", "max_wal_size=32MB")
        postgres = PostgresServer(one.folder / "server", fast=True, extra=wal).start()
        broker = RedisServer(other.folder / "server", extra=("--appendonly", "yes")).start()
        try:
            migrations.upgrade(postgres.url)
            installation = Installation(folder, postgres.url, broker)
            try:
                installation.start_beat()
                installation.start_worker()
                installation.start_api()
                yield Ground(installation, postgres, one, other)
            finally:
                installation.close()
        finally:
            broker.stop()
            postgres.stop()


def refused(answer: httpx.Response) -> str:
    """What a refusal says that asks to come again."""
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
    assert answer.headers["retry-after"]
    return str(answer.json()["detail"])


def accepted_until_full(tenant: Tenant, workflow: str) -> tuple[list[str], str]:
    """The runs that were accepted, and what the first refusal said."""
    runs: list[str] = []
    while (answer := tenant.hook(workflow, BODY)).status_code == httpx.codes.ACCEPTED:
        runs.append(answer.json()["run_id"])
        assert len(runs) < 2000, "the disk does not fill"
    return runs, refused(answer)


def end_for_want_of_a_log(url: str) -> None:
    """Make Postgres begin the next segment of its log, for which there is no room: it gives up."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        while True:
            connection.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'test', repeat('x', 1000))")


def test_while_the_disk_of_postgres_is_full_nothing_is_accepted_and_what_was_accepted_runs_afterwards(
    ground: Ground,
) -> None:
    """First its tables find no room, which it survives; then its log, after which it must be started again."""
    installation = ground.installation
    tenant = installation.tenant()
    call = {"method": "POST", "url": installation.receiver.url, "json": {}}
    called = tenant.workflow({"id": "one", "action": "http.request", "with": call}, name="Called")
    echoed = tenant.workflow({"id": "one", "action": "debug.echo"}, name="Echoed")
    installation.receiver.gate.clear()
    in_hand = tenant.hook(called).json()["run_id"]
    wait_for(lambda: installation.receiver.requests, "a call to be under way")

    ground.postgres_disk.fill()
    runs, detail = accepted_until_full(tenant, echoed)
    assert "again" in detail
    assert "No space left on device" in ground.installation.log("api"), "the operator is told why"
    installation.receiver.gate.set()
    ground.postgres_disk.free()
    runs.append(wait_for(lambda: tenant.hook(echoed, BODY).json().get("run_id"), "webhooks to be accepted again"))

    ground.postgres_disk.fill()
    runs += accepted_until_full(tenant, echoed)[0]
    with pytest.raises(psycopg.OperationalError):
        end_for_want_of_a_log(installation.database_url)
    refused(tenant.hook(echoed, BODY))
    ground.postgres.kill()
    ground.postgres_disk.free()
    ground.postgres.start()
    runs.append(wait_for(lambda: tenant.hook(echoed, BODY).json().get("run_id"), "webhooks to be accepted at last"))

    assert {tenant.finished(run_id)["status"] for run_id in [in_hand, *runs]} == {"succeeded"}
    assert installation.receiver.keys() == [f"{in_hand}:one"]


def test_while_the_disk_of_redis_is_full_runs_are_accepted_all_the_same_and_run_afterwards(ground: Ground) -> None:
    tenant = ground.installation.tenant()
    workflow = tenant.workflow({"id": "one", "action": "debug.echo"})
    ground.redis_disk.fill()
    wait_for(lambda: not takes_writes(ground.installation.redis.url), "Redis to notice")
    answers = [tenant.hook(workflow, {"n": n}) for n in range(10)]
    assert {answer.status_code for answer in answers} == {httpx.codes.ACCEPTED}
    wait_for(lambda: "takes no writes" in ground.installation.log("worker"), "the worker to notice")
    ground.redis_disk.free()
    for answer in answers:
        assert tenant.finished(answer.json()["run_id"])["status"] == "succeeded"


def takes_writes(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        try:
            client.set("test", "x" * 1000)
        except redis.ResponseError as error:
            return "No space left on device" not in str(error)
    return True
