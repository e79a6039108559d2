"""``fairlane runs replay`` by its entry point: one run, many, a batch that was interrupted, and what is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.command_line import DOWN, CommandLine, configured
from tests.engine_parts import Parts, parts_for
from tests.installation import wait_for

POST = {"id": "post", "action": "http.request", "with": {"method": "POST", "url": "http://127.0.0.1:1/"}}
ECHO = {"id": "first", "action": "debug.echo", "with": {"text": "hello"}}


@dataclass
class World:
    fairlane: CommandLine
    parts: Parts

    def failed(self, count: int = 1, workflow_id: str = "wf_bad") -> list[str]:
        """Runs that have failed in their step ``post``."""
        ids = [self.parts.start(workflow_id) for _ in range(count)]
        for run_id in ids:
            self.parts.executor.run("acme", run_id)
        return ids

    def replays(self) -> dict[str, list[str]]:
        """By the run that they repeat."""
        rows = self.parts.rows("SELECT id, replay_of FROM runs WHERE replay_of IS NOT NULL ORDER BY id")
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(row["replay_of"], []).append(row["id"])
        return found

    def replay(self, *words: str, **variables: str) -> Any:
        return self.fairlane.fine("runs", "replay", *words, "--json", **variables).json


@pytest.fixture
def world(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[World]:
    with parts_for(database_url) as parts:
        parts.workflow(ECHO, POST, workflow_id="wf_bad")
        parts.workflow(ECHO, workflow_id="wf_good", name="Good")
        yield World(configured(tmp_path, database_url, redis_url), parts)


def test_a_run_is_replayed_from_what_failed_and_the_answer_says_what_is_done_again(world: World) -> None:
    (run_id,) = world.failed()
    out = world.fairlane.fine("runs", "replay", run_id).out
    (replay,) = world.replays()[run_id]
    assert out.splitlines() == [
        f"{run_id} is replayed by {replay}.",
        "  keeps first",
        "  does again post (http.request, which had failed)",
    ]
    row = world.parts.run_row(replay)
    assert (row["status"], row["priority"], row["trigger"]) == ("queued", 9, "replay")
    world.parts.publisher.messages.clear()
    world.parts.fill("UPDATE runs SET queued_at = now() - interval '10 seconds'")
    assert world.parts.sweep_and_run() == [replay]
    assert world.parts.statuses(replay) == {"first": "succeeded", "post": "failed"}


def test_a_dry_run_shows_the_same_and_changes_nothing(world: World) -> None:
    (run_id,) = world.failed()
    (document,) = world.replay(run_id, "--dry-run")
    assert (document["replay"], document["carried_over"]) == (None, ["first"])
    assert world.fairlane.fine("runs", "replay", run_id, "--dry-run").out.startswith(f"{run_id} would be replayed.")
    many = world.replay("--workflow", "wf_bad", "--dry-run")
    assert (many["dry_run"], many["replayed"], many["replayed_before"]) == (True, 1, 0)
    assert world.replays() == {}


def test_version_input_and_starting_point_are_chosen_by_options(world: World) -> None:
    (run_id,) = world.failed()
    (document,) = world.replay(run_id, "--from", "start", "--version", "latest", "--input", '{"n": 2}')
    assert document["carried_over"] == []
    assert world.parts.run_row(document["replay"])["input"] == {"input": {"n": 2}}


def test_many_are_replayed_by_what_they_have_in_common(world: World) -> None:
    failed = world.failed(3)
    (fine,) = world.failed(1, "wf_good")
    world.parts.fill(f"UPDATE runs SET queued_at = now() - interval '3 days' WHERE id = '{failed[0]}'")
    document = world.replay("--workflow", "wf_bad", "--status", "failed", "--since", "1d")
    assert (document["replayed"], document["refused"]) == (2, 0)
    assert document["repeats"] == [{"step": "post", "action": "http.request", "status": "failed", "runs": 2}]
    assert world.replays().keys() == set(failed[1:])
    assert world.replay("--status", "succeeded", "--from", "start", "--tenant", "acme")["replayed"] == 1
    assert fine in world.replays()
    assert world.replay("--workflow", "wf_bad", "--tenant", "nobody")["replayed"] == 0


def test_a_batch_replays_each_run_once_however_often_it_is_given(world: World) -> None:
    failed = world.failed(3)
    first = world.replay("--workflow", "wf_bad", "--batch", "b")
    again = world.replay("--workflow", "wf_bad", "--batch", "b")
    assert (first["replayed"], first["replayed_before"]) == (3, 0)
    assert (again["replayed"], again["replayed_before"], again["repeats"]) == (0, 3, [])
    assert [len(world.replays()[run_id]) for run_id in failed] == [1, 1, 1]
    world.replay("--workflow", "wf_bad", "--batch", "other")
    assert [len(world.replays()[run_id]) for run_id in failed] == [2, 2, 2]


def test_a_batch_does_not_replay_its_own_replays_that_failed_again(world: World) -> None:
    (run_id,) = world.failed()
    world.replay("--workflow", "wf_bad", "--batch", "b")
    (replay,) = world.replays()[run_id]
    world.parts.executor.run("acme", replay)
    assert world.parts.run_row(replay)["status"] == "failed"
    assert world.replay("--workflow", "wf_bad", "--batch", "b")["replayed"] == 0
    assert world.replay("--workflow", "wf_bad", "--batch", "c")["replayed"] == 2


def test_a_batch_that_was_killed_goes_on_where_it_was(world: World) -> None:
    run_id = world.failed()[0]
    world.parts.fill(
        "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, finished_at)"
        " SELECT 'acme', 'run_0' || lpad(n::text, 5, '0'), 'wf_bad', 1, 'failed', 'api', '{\"input\": {}}', now()"
        " FROM generate_series(1, 1500) n"
    )
    command = world.fairlane.start("runs", "replay", "--workflow", "wf_bad", "--batch", "b")
    wait_for(lambda: len(world.replays()) > 20, "the batch to be under way")
    command.send_signal(signal.SIGKILL)
    command.communicate()
    before = len(world.replays())
    assert before < 1501
    rest = world.replay("--workflow", "wf_bad", "--batch", "b")
    assert (rest["replayed"], rest["replayed_before"]) == (1501 - before, before)
    assert {len(made) for made in world.replays().values()} == {1}
    assert run_id in world.replays()


def test_a_batch_without_a_name_gets_one_that_is_told(world: World) -> None:
    world.failed()
    result = world.fairlane.fine("runs", "replay", "--workflow", "wf_bad")
    name = result.err.split()[2].rstrip(".")
    assert name.startswith("batch_")
    assert result.out.splitlines()[0] == "1 replayed."
    assert world.replay("--workflow", "wf_bad", "--batch", name)["replayed_before"] == 1


def test_what_does_not_fit_is_told_for_each_run_and_the_others_go_on(world: World) -> None:
    (failed,) = world.failed()
    (fine,) = world.failed(1, "wf_good")
    queued = world.parts.start("wf_good")
    result = world.fairlane("runs", "replay", fine, queued, failed, "--tenant", "acme")
    assert result.code == 1
    assert [line.partition(":")[0] for line in result.err.splitlines()] == [fine, queued]
    assert world.replays().keys() == {failed}
    with world.parts.database.system() as session:
        session.execute(sa.text("UPDATE workflows SET is_active = false WHERE id = 'wf_bad'"))
    many = world.fairlane("runs", "replay", "--workflow", "wf_bad", "--json")
    assert (many.code, json.loads(many.out)["refused"]) == (1, 1)
    assert world.fairlane("runs", "replay", "run_0").err == "There is no run 'run_0'.\n"


def test_what_a_quota_refuses_is_told_and_counted_and_the_others_go_on(world: World) -> None:
    failed = world.failed(3)
    limits = '{"max_executions_per_month": 4, "over_quota": "reject"}'
    world.parts.fill(f"UPDATE tenants SET limits = '{limits}', limits_version = nextval('limits_version')")
    named = world.fairlane("runs", "replay", *failed, "--tenant", "acme")
    assert (named.code, len(world.replays())) == (1, 1)
    assert [line.partition(":")[0] for line in named.err.splitlines()] == failed[1:]
    many = world.fairlane("runs", "replay", "--workflow", "wf_bad", "--batch", "b", "--json")
    assert (many.code, json.loads(many.out)["refused"]) == (1, 3)
    ledger = world.parts.rows("SELECT outcome, sum(quantity) AS n FROM usage WHERE kind = 'rejected' GROUP BY 1")
    assert ledger == [{"outcome": "quota_executions", "n": 5}]


def test_a_starting_point_that_is_no_step_is_told_in_words_of_the_command_line(world: World) -> None:
    (run_id,) = world.failed()
    refused = world.fairlane("runs", "replay", run_id, "--from", "nowhere")
    assert refused.err.startswith(f"{run_id}: want start, failed or a step of version 1 (first, post)")


def test_wrong_usage_is_told_apart_from_failure(world: World) -> None:
    for words in (
        (),
        ("run_1", "--workflow", "wf_bad"),
        ("--status", "running"),
        ("run_1", "--input", "{"),
        ("run_1", "--version", "newest"),
    ):
        assert world.fairlane("runs", "replay", *words).code == 2


def test_replaying_needs_no_redis(world: World) -> None:
    (run_id,) = world.failed()
    (document,) = world.replay(run_id, FAIRLANE_REDIS_URL=DOWN)
    assert world.parts.run_row(document["replay"])["status"] == "queued"


def test_a_replay_is_in_the_audit_of_its_organization(world: World) -> None:
    (run_id,) = world.failed()
    (document,) = world.replay(run_id)
    (row,) = world.parts.rows("SELECT actor, object, data FROM audit WHERE action = 'run.replayed'")
    assert row["actor"].startswith("operator:")
    assert (row["object"], row["data"]["run_id"]) == (run_id, document["replay"])
