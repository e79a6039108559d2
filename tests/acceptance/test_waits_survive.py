"""Runs that wait, go through lists, or run other workflows end as they should, whatever is killed meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from engine.answers import Answer
from engine.db import Database
from engine.resume_links import ResumeLinks
from engine.runs import Runs
from tests.engine_parts import ListPublisher
from tests.installation import Installation, Tenant, installed, wait_for


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        yield installation


def call(installation: Installation, step_id: str, **keys: Any) -> dict[str, Any]:
    """A step that posts to the receiver."""
    url = f"{installation.receiver.url}/{step_id}"
    return {"id": step_id, "action": "http.request", "with": {"method": "POST", "url": url, "json": {}}, **keys}


def waiting(tenant: Tenant, run_id: str) -> dict[str, Any]:
    """The run once it waits."""

    def waits() -> dict[str, Any] | None:
        row = tenant.run(run_id)
        return row if row["status"] == "waiting" else None

    return wait_for(waits, f"the run {run_id} to wait")


def test_a_wait_outlives_every_process_and_a_redis_that_lost_its_data(installation: Installation) -> None:
    installation.start_worker("worker1")
    installation.start_beat("beat1")
    tenant = installation.tenant()
    workflow = tenant.workflow(
        call(installation, "before"), {"id": "sleep", "wait": {"for": "6s"}}, call(installation, "after")
    )
    run_id = tenant.hook(workflow).json()["run_id"]
    waiting(tenant, run_id)
    installation.kill("worker1")
    installation.kill("beat1")
    installation.redis.kill()
    installation.redis.start()
    installation.start_worker("worker2")
    installation.start_beat("beat2")
    run = tenant.finished(run_id)
    assert run["status"] == "succeeded"
    assert installation.receiver.keys() == [f"{run_id}:before", f"{run_id}:after"]


def test_a_list_goes_on_behind_its_finished_items_when_its_worker_is_killed(installation: Installation) -> None:
    installation.start_worker("worker1")
    installation.start_beat()
    tenant = installation.tenant()
    step = call(installation, "each", for_each={"items": "trigger.body.list", "parallel": 2})
    workflow = tenant.workflow(
        step, {"id": "end", "action": "debug.echo", "with": {"n": "{{ size(steps.each.output) }}"}}
    )
    installation.receiver.gate.clear()
    run_id = tenant.hook(workflow, {"list": list(range(8))}).json()["run_id"]
    wait_for(lambda: len(installation.receiver.requests) == 2, "the first two items to be tried")
    installation.receiver.gate.set()
    installation.receiver.gate.clear()
    wait_for(lambda: len(installation.receiver.requests) >= 4, "the next two")
    installation.kill("worker1")
    tried = Counter(installation.receiver.keys())
    installation.receiver.gate.set()
    installation.start_worker("worker2")
    run = tenant.finished(run_id)
    assert (run["status"], run["output"]) == ("succeeded", {"n": 8})
    keys = Counter(installation.receiver.keys())
    assert keys.keys() == {f"{run_id}:each:{n}" for n in range(8)}
    assert sum(keys.values()) - 8 <= 2, "only the calls in flight at the kill are repeated"
    finished = [key for key, _ in list(tried.items())[:2]]
    assert {keys[key] for key in finished} == {1}, "a finished item is never done again"


def test_a_parent_gets_what_its_child_came_to_when_both_their_workers_are_killed(installation: Installation) -> None:
    installation.start_worker("worker1")
    installation.start_beat()
    tenant = installation.tenant()
    child = tenant.workflow(
        call(installation, "work"),
        {"id": "out", "action": "debug.echo", "with": {"n": "{{ trigger.input.n }}"}},
        name="Child",
    )
    parent = tenant.workflow(
        {"id": "sub", "action": "workflow.run", "with": {"workflow": child, "input": {"n": 7}}},
        {"id": "end", "action": "debug.echo", "with": {"got": "{{ steps.sub.output.output.n }}"}},
        name="Parent",
    )
    installation.receiver.gate.clear()
    run_id = tenant.hook(parent).json()["run_id"]
    waiting(tenant, run_id)
    wait_for(lambda: installation.receiver.requests, "the child to work")
    installation.kill("worker1")
    installation.receiver.gate.set()
    installation.start_worker("worker2")
    run = tenant.finished(run_id)
    assert (run["status"], run["output"]) == ("succeeded", {"got": 7})
    children = tenant.runs(workflow_id=child)
    assert [(row["status"], row["trigger"]) for row in children] == [("succeeded", "workflow")]
    assert set(installation.receiver.keys()) == {f"{children[0]['id']}:work"}


def test_an_answer_wakes_a_run_whose_worker_is_gone(installation: Installation, database_url: str) -> None:
    """By a signed link out of a message that the run itself sent."""
    installation.start_worker("worker1")
    installation.start_beat()
    tenant = installation.tenant()
    ask = call(installation, "tell")
    ask["with"]["json"] = {"link": "{{ run.resume_url }}"}
    workflow = tenant.workflow(ask, {"id": "ask", "wait": {"approval": {}}}, call(installation, "pay"))
    run_id = tenant.hook(workflow).json()["run_id"]
    waiting(tenant, run_id)
    installation.kill("worker1")
    (_, body) = installation.receiver.requests[0]
    link = ResumeLinks("s" * 40, "http://x").read(body["link"].partition("token=")[2])
    assert (link.tenant_id, link.run_id) == (tenant.id, run_id)
    _answer(database_url, link.tenant_id, link.run_id)
    installation.start_worker("worker2")
    assert tenant.finished(run_id)["status"] == "succeeded"
    assert installation.receiver.keys() == [f"{run_id}:tell", f"{run_id}:pay"]


def _answer(database_url: str, tenant_id: str, run_id: str) -> None:
    """Nothing is published here: the sweeper of the installation finds what was queued."""
    database = Database(database_url)
    with database.tenant(tenant_id) as session:
        Runs(ListPublisher()).resume(session, run_id, Answer(approved=True, by="link"))
    database.close()


def test_a_cancelled_run_stops_in_the_middle_of_a_call_within_two_seconds(
    installation: Installation, database_url: str
) -> None:
    installation.start_worker()
    tenant = installation.tenant()
    workflow = tenant.workflow(call(installation, "slow"), call(installation, "never"))
    installation.receiver.gate.clear()
    run_id = tenant.hook(workflow).json()["run_id"]
    wait_for(lambda: installation.receiver.requests, "the call")
    assert tenant.client.post(f"/api/runs/{run_id}/cancel").status_code == httpx.codes.OK
    given_up = b"run_given_up"
    wait_for(
        lambda: given_up in (installation.folder / "worker.log").read_bytes(), "the worker to give it up", seconds=2
    )
    assert tenant.run(run_id)["status"] == "cancelled"
    assert installation.receiver.keys() == [f"{run_id}:slow"]
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM steps WHERE step_id = 'never'")).scalar_one() == 0
    engine.dispose()
