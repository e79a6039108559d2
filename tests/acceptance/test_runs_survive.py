"""What was accepted ends, whatever is killed; and a step that finished is not seen twice by the outside."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from engine.fairshare import Lanes
from tests.installation import ROOT, Installation, installed, wait_for

DEAF = (
    "import sys, engine.cel_pool as pool; pool._environment = lambda: {'PYTHONHOME': '/nowhere'};"
    " from celery.__main__ import main; sys.exit(main())"
)
"""The program `celery` with an evaluator that cannot start."""


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    with installed(tmp_path, database_url) as installation:
        installation.start_api()
        yield installation


def call(installation: Installation, step_id: str, **keys: Any) -> dict[str, Any]:
    """A step that posts its own id to the receiver."""
    return {
        "id": step_id,
        "action": "http.request",
        "with": {"method": "POST", "url": f"{installation.receiver.url}/{step_id}", "json": {"step": step_id}},
        **keys,
    }


def test_a_webhook_becomes_a_finished_run_with_steps_and_log(installation: Installation) -> None:
    installation.start_worker()
    tenant = installation.tenant()
    workflow = tenant.workflow(
        call(installation, "first"),
        {
            "id": "second",
            "if": "trigger.body.amount > 100",
            "action": "debug.echo",
            "with": {"a": "{{ trigger.body }}"},
        },
    )
    answer = tenant.hook(workflow, {"amount": 150})
    assert answer.status_code == 202
    assert answer.json()["status"] == "triggered"
    run = tenant.finished(answer.json()["run_id"])
    assert (run["status"], run["output"]) == ("succeeded", {"a": {"amount": 150}})
    steps = tenant.client.get(f"/api/runs/{run['id']}/steps").json()["items"]
    assert [(step["id"], step["status"]) for step in steps] == [("first", "succeeded"), ("second", "succeeded")]
    assert tenant.client.get(f"/api/runs/{run['id']}/logs").json()["items"]
    assert installation.receiver.keys() == [f"{run['id']}:first"]


def test_two_hundred_webhooks_at_once_are_each_exactly_one_run(installation: Installation) -> None:
    installation.start_worker()
    tenant = installation.tenant()
    workflow = tenant.workflow({"id": "one", "action": "debug.echo", "with": {"n": "{{ trigger.body.n }}"}})
    padding = "x" * 10_000
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda n: tenant.hook(workflow, {"n": n, "padding": padding}), range(200)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 200
    done = tenant.succeeded(workflow, 200)
    assert sorted(run["output"]["n"] for run in done) == list(range(200))


def test_a_run_goes_on_behind_its_last_finished_step_when_its_worker_is_killed(installation: Installation) -> None:
    installation.start_worker("worker1")
    installation.start_beat()
    tenant = installation.tenant()
    workflow = tenant.workflow(call(installation, "first"), call(installation, "second"))
    run_id = tenant.hook(workflow).json()["run_id"]
    wait_for(lambda: len(installation.receiver.requests) >= 1, "the first step")
    tenant.finished(run_id)
    installation.receiver.requests.clear()

    installation.receiver.gate.clear()
    run_id = tenant.hook(workflow).json()["run_id"]
    wait_for(lambda: installation.receiver.keys() == [f"{run_id}:first"], "the first step to be tried")
    installation.receiver.gate.set()
    installation.receiver.gate.clear()
    wait_for(lambda: installation.receiver.keys()[1:] == [f"{run_id}:second"], "the second step to be tried")
    installation.kill("worker1")
    installation.receiver.gate.set()
    installation.start_worker("worker2")
    run = tenant.finished(run_id)
    assert (run["status"], run["attempt"]) == ("succeeded", 2)
    keys = installation.receiver.keys()
    assert keys.count(f"{run_id}:first") == 1, "a finished step is never run again"
    assert keys.count(f"{run_id}:second") == 2, "the call in flight is repeated, with the same key"


def test_a_worker_that_is_stopped_warmly_finishes_what_it_runs(installation: Installation) -> None:
    installation.start_worker()
    tenant = installation.tenant()
    workflow = tenant.workflow(call(installation, "first"))
    installation.receiver.gate.clear()
    run_id = tenant.hook(workflow).json()["run_id"]
    wait_for(lambda: installation.receiver.requests, "the step to be tried")
    installation.processes["worker"].send_signal(signal.SIGTERM)
    installation.receiver.gate.set()
    installation.processes["worker"].wait(30)
    run = tenant.run(run_id)
    assert (run["status"], run["attempt"]) == ("succeeded", 1)


def test_webhooks_are_accepted_while_redis_is_down_and_run_afterwards(installation: Installation) -> None:
    installation.start_worker()
    installation.start_beat()
    tenant = installation.tenant()
    workflow = tenant.workflow({"id": "one", "action": "debug.echo"})
    tenant.finished(tenant.hook(workflow).json()["run_id"])
    installation.redis.kill()
    answers = [tenant.hook(workflow, {"n": n}) for n in range(10)]
    assert {answer.status_code for answer in answers} == {202}
    installation.redis.start()
    for answer in answers:
        assert tenant.finished(answer.json()["run_id"])["status"] == "succeeded"


def test_nothing_is_lost_when_redis_loses_its_data(installation: Installation) -> None:
    installation.start_beat()
    tenant = installation.tenant()
    workflow = tenant.workflow({"id": "one", "action": "debug.echo"})
    run_ids = [tenant.hook(workflow, {"n": n}).json()["run_id"] for n in range(50)]
    installation.redis.kill()
    installation.redis.start()
    installation.start_worker()
    assert {tenant.finished(run_id)["status"] for run_id in run_ids} == {"succeeded"}
    assert {tenant.run(run_id)["attempt"] for run_id in run_ids} == {1}


def test_a_run_that_no_evaluator_can_judge_has_one_message_however_often_it_was_handed_back(
    installation: Installation,
) -> None:
    installation.start_beat()
    installation.start_worker("deaf", program=("-c", DEAF))
    tenant = installation.tenant()
    step = {"id": "one", "if": "trigger.body.amount > 100", "action": "debug.echo", "with": {}}
    run_id = tenant.hook(tenant.workflow(step), {"amount": 150}).json()["run_id"]
    wait_for(lambda: installation.log("deaf").count("task_handed_back") >= 2, "the run to be handed back twice")
    installation.kill("deaf", signal.SIGTERM)
    with redis.Redis.from_url(installation.redis.url) as client:
        lanes = Lanes(client)
        wait_for(lambda: lanes.total().backlog, "the sweeper to publish it")
        assert (lanes.total().backlog, lanes.total().in_flight) == (1, 0)
    installation.start_worker("worker")
    assert tenant.finished(run_id)["status"] == "succeeded"


def test_a_schedule_fires_once_with_two_beats(installation: Installation) -> None:
    installation.start_worker()
    installation.start_beat("beat1")
    installation.start_beat("beat2")
    tenant = installation.tenant()
    workflow = tenant.workflow(
        {"id": "one", "action": "debug.echo", "with": {"at": "{{ trigger.scheduled_at }}"}},
        trigger={"type": "schedule", "every": "1s"},
    )
    runs = tenant.succeeded(workflow, 4)
    fires = [run["output"]["at"] for run in runs]
    assert len(fires) == len(set(fires))


def test_the_stock_celery_commands_work(installation: Installation) -> None:
    installation.start_worker()
    answer = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", "inspect", "active", "--timeout", "5"],
        cwd=ROOT,
        env=installation.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "1 node online" in answer.stdout + answer.stderr
