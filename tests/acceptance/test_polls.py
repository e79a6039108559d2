"""Polls by real beats and workers: new items run once, a flood waits for a person, a lost poll is repeated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.installation import Installation, installed, wait_for
from tests.outside_services import Answer, Received
from tests.poll_parts import ListService


class GatedList(ListService):
    """Answers only while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, request: Received) -> Answer:
        self.gate.wait(60)
        return super().answer(request)


@pytest.fixture
def service() -> Iterator[GatedList]:
    with GatedList() as service:
        yield service
        service.gate.set()


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        installation.start_beat()
        yield installation


def polled(service: GatedList) -> dict[str, Any]:
    parameters = {"url": f"{service.url}/orders", "items": "orders", "newest_first": True}
    return {"type": "poll", "source": "http.json", "every": "1h", "with": parameters}


def baseline_taken(installation: Installation, workflow_id: str) -> bool:
    (cursor,) = query(installation, "SELECT cursor FROM triggers WHERE workflow_id = %s", workflow_id)
    return cursor is not None


def fall_due(installation: Installation, workflow_id: str) -> None:
    query(installation, "UPDATE triggers SET next_fire_at = now() WHERE workflow_id = %s RETURNING 1", workflow_id)


def query(installation: Installation, statement: str, workflow_id: str) -> tuple[Any, ...]:
    with psycopg.connect(installation.database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(statement.encode(), [workflow_id]).fetchone()
    assert row is not None
    return row


def test_new_items_run_once_and_a_flood_waits_until_it_is_released(
    installation: Installation, service: GatedList
) -> None:
    installation.start_worker()
    tenant = installation.tenant()
    service.ids = [1, 2]
    echo = {"id": "echo", "action": "debug.echo", "with": {"total": "{{ trigger.item.total }}"}}
    workflow = tenant.workflow(echo, trigger=polled(service))
    wait_for(lambda: baseline_taken(installation, workflow), "the baseline")
    service.ids.append(3)
    fall_due(installation, workflow)
    (run,) = tenant.succeeded(workflow, 1)
    assert (run["trigger"], run["input"]["item_id"], run["output"]) == ("poll", "3", {"total": 30})

    service.ids += range(4, 105)
    fall_due(installation, workflow)
    held = wait_for(lambda: tenant.runs(workflow_id=workflow, status="held"), "the flood")
    assert {run["wait_reason"] for run in held} == {"poll_flood"}
    answer = tenant.client.post(f"/api/workflows/{workflow}/release")
    assert (answer.status_code, answer.json()) == (200, {"released": 101})
    done = tenant.succeeded(workflow, 102)
    assert sorted(int(run["input"]["item_id"]) for run in done) == list(range(3, 105))


def test_the_poll_of_a_killed_worker_is_repeated_and_starts_each_item_once(
    installation: Installation, service: GatedList
) -> None:
    installation.start_worker("worker1")
    tenant = installation.tenant()
    service.ids = [1, 2]
    service.gate.clear()
    echo = {"id": "echo", "action": "debug.echo", "with": {}}
    workflow = tenant.workflow(echo, trigger={**polled(service), "initial": "all"})
    wait_for(lambda: service.received, "the first poll to be on its way")
    installation.kill("worker1")
    service.gate.set()
    installation.start_worker("worker2")
    done = tenant.succeeded(workflow, 2)
    assert sorted(run["input"]["item_id"] for run in done) == ["1", "2"]
    assert len(service.received) == 2
    assert len(tenant.runs(workflow_id=workflow)) == 2
