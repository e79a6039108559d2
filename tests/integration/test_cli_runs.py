"""``fairlane runs`` by its entry point: what ran in which organization, what waits for what, and ending runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from engine.fairshare import Lanes
from tests.command_line import DOWN, CommandLine, configured
from tests.engine_parts import Parts, parts_for
from tests.fair_queue import FairQueue, fair_queue
from tests.fairshare_waiting import until


@dataclass
class World:
    """Two organizations with runs: succeeded and failed ones of acme, and queued ones of both."""

    fairlane: CommandLine
    parts: Parts
    queue: FairQueue
    succeeded: str = ""
    failed: str = ""
    queued: str = ""
    of_beta: list[str] = field(default_factory=list)

    def listed(self, *words: str) -> list[str]:
        return [run["id"] for run in self.fairlane.fine("runs", "list", "--json", *words).json]


@pytest.fixture
def world(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[World]:
    fairlane = configured(tmp_path, database_url, redis_url)
    with parts_for(database_url) as parts, fair_queue(redis_url) as queue:
        made = World(fairlane, parts, queue)
        parts.workflow({"id": "a", "action": "debug.echo", "with": {"text": "hello"}}, workflow_id="wf_good")
        parts.workflow({"id": "a", "action": "debug.fail", "with": {"message": "broken"}}, workflow_id="wf_bad")
        made.succeeded, made.failed = parts.start("wf_good"), parts.start("wf_bad")
        for run_id in (made.succeeded, made.failed):
            parts.executor.run("acme", run_id)
        with parts.database.system() as session:
            session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('beta', 'Beta')"))
        parts.tenant = "beta"
        parts.workflow({"id": "a", "action": "debug.echo"}, workflow_id="wf_beta")
        made.of_beta = [parts.start("wf_beta") for _ in range(3)]
        parts.tenant = "acme"
        made.queued = parts.start("wf_good")
        yield made


def _send(world: World, *run_ids: str) -> None:
    for run_id in run_ids:
        world.queue.send(world.parts.publisher.messages[run_id])


def test_runs_of_all_organizations_are_listed_the_newest_first(world: World) -> None:
    everything = [world.queued, *reversed(world.of_beta), world.failed, world.succeeded]
    assert world.listed() == everything
    header, *rows = world.fairlane.fine("runs", "list").out.splitlines()
    assert header.split()[:3] == ["id", "organization", "workflow"]
    assert [row.split()[0] for row in rows] == everything
    assert rows[-2].split()[3] == "failed"


def test_a_list_is_narrowed_by_organization_workflow_state_and_time(world: World) -> None:
    assert world.listed("--tenant", "acme") == [world.queued, world.failed, world.succeeded]
    assert world.listed("--workflow", "wf_good") == [world.queued, world.succeeded]
    assert world.listed("--status", "failed") == [world.failed]
    assert world.listed("--status", "failed", "--status", "succeeded", "--tenant", "beta") == []
    assert world.listed("--limit", "2") == [world.queued, world.of_beta[-1]]
    assert len(world.listed("--since", "1h")) == 6
    with world.parts.database.system() as session:
        aged = sa.text("UPDATE runs SET queued_at = now() - interval '3 hours' WHERE id = :id")
        session.execute(aged, {"id": world.failed})
    assert world.failed not in world.listed("--since", "2h")
    assert len(world.listed("--since", "2000-01-01T00:00:00Z")) == 6
    assert world.fairlane.fine("runs", "list", "--tenant", "nobody").out == "There are no such runs.\n"
    for wrong in (("--status", "fine"), ("--since", "yesterday"), ("--limit", "-1")):
        assert world.fairlane("runs", "list", *wrong).code == 2


def test_a_list_longer_than_a_page_is_whole_of_one_organization_and_of_all(world: World) -> None:
    with world.parts.database.system() as session:
        session.execute(
            sa.text(
                "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input)"
                " SELECT CASE WHEN n % 2 = 0 THEN 'acme' ELSE 'beta' END, 'run_0' || lpad(n::text, 4, '0'),"
                " CASE WHEN n % 2 = 0 THEN 'wf_good' ELSE 'wf_beta' END, 1, 'queued', 'api', '{}'"
                " FROM generate_series(1, 500) n"
            )
        )
    listed = world.listed("--limit", "0")
    assert listed == sorted(listed, reverse=True)
    assert len(listed) == 506
    assert world.listed("--limit", "450") == listed[:450]
    of_acme = world.listed("--limit", "0", "--tenant", "acme")
    assert of_acme == sorted(of_acme, reverse=True)
    assert len(of_acme) == 253
    assert len(world.listed("--limit", "0", "--status", "queued")) == 504
    assert len(world.listed()) == 100


def test_a_run_is_shown_with_its_steps_and_what_it_logged(world: World) -> None:
    shown = world.fairlane.fine("runs", "show", world.failed, "--logs", "--json").json
    assert (shown["tenant_id"], shown["status"], shown["waits_for"]) == ("acme", "failed", None)
    assert [(step["id"], step["status"]) for step in shown["steps"]] == [("a", "failed")]
    assert any("broken" in str(line) for line in shown["logs"])
    assert "logs" not in world.fairlane.fine("runs", "show", world.failed, "--json").json
    lines = world.fairlane.fine("runs", "show", world.failed, "--logs").out.splitlines()
    assert next(line for line in lines if line.startswith("workflow_id")).endswith("wf_bad")
    assert next(line for line in lines if line.startswith("a ")).endswith("broken")
    assert "No step has finished, nor begun an effect outside." in world.fairlane.fine("runs", "show", world.queued).out
    missing = world.fairlane("runs", "show", "run_0")
    assert (missing.code, missing.err) == (1, "There is no run 'run_0'.\n")
    assert world.fairlane("runs", "show", world.failed, "--tenant", "beta").code == 1


def test_a_run_is_followed_until_it_ends(world: World) -> None:
    command = world.fairlane.start("runs", "show", world.queued, "--follow")
    assert command.stdout is not None
    assert command.stdout.readline().split() == ["-", "run", "-", "queued"]
    world.parts.executor.run("acme", world.queued)
    rest, _ = command.communicate(timeout=60)
    lines = rest.splitlines()
    assert any("debug.echo succeeded." in line for line in lines)
    assert lines[-1].split()[-1] == "succeeded"
    assert command.returncode == 0
    out = world.fairlane.fine("runs", "show", world.failed, "--follow", "--json").out
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["data"]["id"] for event in events if event["event"] == "step"] == ["a"]
    assert events[-1]["data"]["error"]["code"] == "debug_fail"
    assert world.fairlane("runs", "show", "run_0", "--follow").err == "There is no run 'run_0'.\n"


def _waits_for(world: World, run_id: str, **variables: str) -> str | None:
    shown = world.fairlane.fine("runs", "show", run_id, "--json", **variables).json
    reason: str | None = shown["waits_for"]
    return reason


def test_a_queued_run_says_what_it_waits_for(world: World, redis_url: str) -> None:
    _send(world, *world.of_beta)
    first, second, last = world.of_beta
    assert _waits_for(world, first) == "no_worker"
    world.queue.attend()
    until(lambda: not Lanes(redis_url).no_worker, what="the worker's first sign of life")
    assert _waits_for(world, first) == "fair_turn"
    world.fairlane.fine("tenants", "set-limit", "beta", "max_concurrent_runs", "1")
    assert world.queue.take() == "beta"
    assert _waits_for(world, second) == "tenant_concurrency"
    world.fairlane.fine("lanes", "pause", "beta")
    assert _waits_for(world, last) == "paused"
    assert _waits_for(world, last, FAIRLANE_REDIS_URL=DOWN) == "unknown, because Redis does not answer"


def test_cancelling_ends_waiting_runs_and_takes_them_out_of_their_lane(world: World, redis_url: str) -> None:
    _send(world, world.queued, *world.of_beta)
    result = world.fairlane.fine("runs", "cancel", world.queued, world.of_beta[0])
    assert result.out.splitlines() == [
        f"{world.queued} is cancelled; it was queued.",
        f"{world.of_beta[0]} is cancelled; it was queued.",
    ]
    assert world.parts.run_row(world.queued)["status"] == "cancelled"
    assert {lane.tenant: lane.backlog for lane in Lanes(redis_url).all()} == {"acme": 0, "beta": 2}
    again = world.fairlane.fine("runs", "cancel", world.queued)
    assert again.out == f"{world.queued} was cancelled before.\n"


def test_cancelling_says_for_each_run_that_has_ended_or_is_none(world: World) -> None:
    result = world.fairlane("runs", "cancel", world.succeeded, "run_0", world.of_beta[1])
    assert result.code == 1
    assert result.err.splitlines() == [
        f"{world.succeeded} has ended already: succeeded.",
        "There is no run 'run_0'.",
    ]
    assert result.out == f"{world.of_beta[1]} is cancelled; it was queued.\n"
    assert world.parts.run_row(world.succeeded)["status"] == "succeeded"


def test_cancelling_tells_a_program_what_each_run_is_and_was(world: World) -> None:
    result = world.fairlane("runs", "cancel", world.succeeded, "run_0", world.queued, "--json")
    assert result.code == 1
    assert result.json == [
        {"id": world.succeeded, "status": "succeeded", "was": "succeeded"},
        {"id": world.queued, "status": "cancelled", "was": "queued"},
    ]
    assert world.fairlane.fine("runs", "cancel", world.queued, "--json").json == [
        {"id": world.queued, "status": "cancelled", "was": "cancelled"}
    ]


def test_cancelling_needs_no_redis(world: World) -> None:
    result = world.fairlane.fine("runs", "cancel", world.queued, FAIRLANE_REDIS_URL=DOWN)
    assert "its message stays in the lane, and a worker drops it" in result.err
    assert world.parts.run_row(world.queued)["status"] == "cancelled"


def test_a_run_that_waits_is_answered(world: World) -> None:
    ask = {"id": "ask", "wait": {"approval": {}}}
    after = {"id": "after", "action": "debug.echo", "with": {"note": "{{ steps.ask.output.data }}"}}
    world.parts.workflow(ask, after, workflow_id="wf_ask")
    agreed, refused = world.parts.start("wf_ask"), world.parts.start("wf_ask")
    for run_id in (agreed, refused):
        world.parts.executor.run("acme", run_id)
    out = world.fairlane.fine("runs", "resume", agreed, "--answer", '"fine"').out
    assert out == f"{agreed}: ask is approved.\n"
    assert world.fairlane.fine("runs", "resume", refused, "--refuse", "--step", "ask").out.endswith("is refused.\n")
    for run_id in (agreed, refused):
        world.parts.executor.run("acme", run_id)
    assert world.parts.run_row(agreed)["output"] == {"note": "fine"}
    assert world.parts.run_row(refused)["error"]["code"] == "approval_refused"
    again = world.fairlane("runs", "resume", agreed)
    assert (again.code, again.err) == (1, "Nothing of this run waits for an answer.\n")
    assert world.fairlane("runs", "resume", agreed, "--answer", "{").code == 2
    rows = world.parts.rows("SELECT object FROM audit WHERE action = 'run.answered' ORDER BY id")
    assert [row["object"] for row in rows] == [agreed, refused]
