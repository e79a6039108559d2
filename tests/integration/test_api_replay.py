"""Replays through the real API: what is carried over, what is done again, what is refused, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.api_server import Api, Collector, Person, places, running_api, services_for, settings_for
from tests.installation import Receiver

ECHO = {"id": "first", "action": "debug.echo", "with": {"text": "{{ trigger.input.text }}"}}
BROKEN = {"id": "last", "action": "debug.fail", "with": {"message": "no"}}
MENDED = {"id": "last", "action": "debug.echo", "with": {"all": "{{ steps.first.output.text }}"}}


@dataclass
class World:
    api: Api
    person: Person
    receiver: Receiver
    publisher: Collector

    def post(self, step_id: str = "post", **more: Any) -> dict[str, Any]:
        return {
            "id": step_id,
            "action": "http.request",
            "with": {"method": "POST", "url": self.receiver.url, "json": {"text": "{{ trigger.input.text }}"}},
            **more,
        }

    def workflow(self, *steps: dict[str, Any]) -> str:
        return self.person.workflow(*steps, trigger={"type": "manual"})

    def save(self, workflow_id: str, *steps: dict[str, Any]) -> None:
        document = {"name": "W", "trigger": {"type": "manual"}, "steps": list(steps)}
        answer = self.person.http.put(f"/api/workflows/{workflow_id}", json={"definition": document})
        assert answer.status_code == 200, answer.text

    def ended(self, workflow_id: str, **given: Any) -> str:
        """A run of it, executed."""
        run_id = self.person.run(workflow_id, input={"text": "one", **given})
        self.api.work(self.person.tenant_id, run_id)
        return run_id

    def replay(self, run_id: str, *, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        body = {name.rstrip("_"): value for name, value in body.items()}
        return self.person.http.post(f"/api/runs/{run_id}/replay", json=body, headers=headers)

    def replayed(self, run_id: str, **body: Any) -> dict[str, Any]:
        """The answer to a replay that was accepted, with `end`: the run once a worker had it."""
        answer = self.replay(run_id, **body)
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        self.api.work(self.person.tenant_id, document["id"])
        return document | {"end": self.person.http.get(f"/api/runs/{document['id']}").json()}

    def steps(self, run_id: str) -> dict[str, dict[str, Any]]:
        items = self.person.http.get(f"/api/runs/{run_id}/steps").json()["items"]
        return {item["id"]: item for item in items if "item" not in item or item["item"] is None}

    def log(self, run_id: str) -> list[str]:
        return [line["message"] for line in self.person.http.get(f"/api/runs/{run_id}/logs").json()["items"]]


@pytest.fixture
def world(database_url: str, redis_url: str) -> Iterator[World]:
    receiver, publisher = Receiver(), Collector()
    settings = settings_for(database_url, redis_url, allowed_networks="127.0.0.0/8")
    with running_api(services_for(settings, publisher)) as api:
        yield World(api, api.person(), receiver, publisher)
    receiver.close()


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_from_what_failed_finished_steps_are_carried_over_and_never_run_again(world: World) -> None:
    workflow_id = world.workflow(ECHO, world.post(), BROKEN)
    run_id = world.ended(workflow_id)
    world.save(workflow_id, ECHO, world.post(), MENDED)
    replay = world.replayed(run_id, from_="failed", version="latest")
    assert (replay["replay_of"], replay["trigger"], replay["version"]) == (run_id, "replay", 2)
    assert (replay["carried_over"], replay["repeats"], replay["idempotent"]) == (["first", "post"], [], False)
    assert (replay["end"]["status"], replay["end"]["output"]) == ("succeeded", {"all": "one"})
    assert len(world.receiver.requests) == 1
    before, after = world.steps(run_id), world.steps(replay["id"])
    assert {name: after[name] for name in ("first", "post")} == {name: before[name] for name in ("first", "post")}
    assert world.log(replay["id"])[0].startswith(f"This replays {run_id} in version 2.")
    assert world.person.http.get(f"/api/runs/{run_id}").json()["status"] == "failed"


def test_from_the_start_everything_is_done_again_and_the_answer_says_what_that_repeats(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO, world.post(), world.post("never", **{"if": "false"})))
    replay = world.replayed(run_id)
    assert replay["carried_over"] == []
    assert replay["repeats"] == [{"step": "post", "action": "http.request", "status": "succeeded"}]
    assert replay["end"]["status"] == "succeeded"
    keys = world.receiver.keys()
    assert keys == [f"{run_id}:post", f"{replay['id']}:post"]


def test_from_a_step_that_step_and_what_needs_it_is_done_again(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO, world.post("a"), world.post("b")))
    replay = world.replayed(run_id, from_="b")
    assert replay["carried_over"] == ["first", "a"]
    assert [repeat["step"] for repeat in replay["repeats"]] == ["b"]
    assert world.receiver.keys() == [f"{run_id}:a", f"{run_id}:b", f"{replay['id']}:b"]


def test_the_original_version_is_kept_unless_the_latest_is_asked_for(world: World) -> None:
    workflow_id = world.workflow(ECHO, BROKEN)
    run_id = world.ended(workflow_id)
    world.save(workflow_id, ECHO, MENDED)
    assert world.replayed(run_id, from_="failed")["end"]["status"] == "failed"
    assert world.replayed(run_id, from_="failed", version="latest")["end"]["status"] == "succeeded"


def test_another_input_may_be_given_and_null_is_one(world: World) -> None:
    run_id = world.ended(
        world.workflow({"id": "first", "action": "debug.echo", "with": {"got": "{{ trigger.input }}"}})
    )
    assert world.replayed(run_id)["end"]["output"] == {"got": {"text": "one"}}
    assert world.replayed(run_id, input={"text": "two"})["end"]["output"] == {"got": {"text": "two"}}
    assert world.replayed(run_id, input=None)["end"]["output"] == {"got": None}


def test_a_list_goes_on_behind_the_items_that_succeeded(world: World) -> None:
    each = {
        "id": "all",
        "action": "http.request",
        "for_each": "[1, 2, 3]",
        "with": {
            "method": "POST",
            "url": f"{{{{ item == 2 && trigger.input.text == 'one' ? 'nowhere' : '{world.receiver.url}' }}}}",
            "json": {"item": "{{ item }}"},
        },
    }
    run_id = world.ended(world.workflow(each))
    assert [body["item"] for _, body in world.receiver.requests] == [1]
    again = world.replayed(run_id, from_="failed")
    assert again["end"]["status"] == "failed"
    assert [body["item"] for _, body in world.receiver.requests] == [1]
    world.replayed(run_id, from_="failed", input={"text": "two"})
    assert [body["item"] for _, body in world.receiver.requests] == [1, 1, 2, 3]


def test_a_replay_has_the_lowest_priority(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO))
    replay = world.replay(run_id).json()
    messages = {message.run_id: message.priority for message in world.publisher.messages}
    assert messages == {run_id: 5, replay["id"]: 9}


def test_the_same_key_is_the_same_replay_from_however_many_sides(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO, BROKEN))

    def once(_: int) -> httpx.Response:
        with world.api.client(world.person.token) as client:
            headers = {"Idempotency-Key": "k"}
            return client.post(f"/api/runs/{run_id}/replay", json={"from": "failed"}, headers=headers)

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(once, range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.json()["idempotent"] for answer in answers) == [False] + [True] * 7
    other = world.replay(run_id, from_="failed", headers={"Idempotency-Key": "other"})
    assert other.json()["id"] != answers[0].json()["id"]


def test_what_does_not_fit_is_refused_with_the_reason(world: World) -> None:
    workflow_id = world.workflow(ECHO, BROKEN, world.post("behind"))
    run_id = world.ended(workflow_id)
    assert refused(world.replay(run_id, from_="behind")) == (409, "step_not_reached")
    assert "first, last" in places(world.replay(run_id, from_="middle"))["/from"]
    assert set(places(world.replay(run_id, version="newest"))) == {"/version"}
    fine = world.ended(world.workflow(ECHO))
    assert refused(world.replay(fine, from_="failed")) == (409, "nothing_failed")
    running = world.person.run(workflow_id)
    assert refused(world.replay(running)) == (409, "run_not_ended")
    assert refused(world.replay("run_unknown")) == (404, "not_found")
    world.save(workflow_id, ECHO, {"id": "new", "action": "debug.echo"}, BROKEN)
    assert refused(world.replay(run_id, from_="last", version="latest")) == (409, "step_not_reached")
    world.person.http.patch(f"/api/workflows/{workflow_id}", json={"is_active": False})
    assert refused(world.replay(run_id)) == (409, "workflow_inactive")


def test_a_cancelled_run_goes_on_where_it_stopped(world: World) -> None:
    asks = {"id": "ask", "wait": {"approval": {}}}
    run_id = world.ended(world.workflow(ECHO, asks, MENDED))
    world.person.http.post(f"/api/runs/{run_id}/cancel")
    replay = world.replayed(run_id, from_="failed")
    assert (replay["carried_over"], replay["end"]["status"]) == (["first"], "waiting")


def test_a_replay_can_be_replayed(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO, world.post(), BROKEN))
    first = world.replayed(run_id, from_="failed")
    second = world.replayed(first["id"], from_="failed")
    assert (second["replay_of"], second["carried_over"]) == (first["id"], ["first", "post"])
    assert len(world.receiver.requests) == 1


def test_another_organization_sees_no_run_to_replay(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO))
    stranger = world.api.person()
    assert refused(stranger.http.post(f"/api/runs/{run_id}/replay", json={})) == (404, "not_found")


def test_a_replay_is_in_the_audit(world: World) -> None:
    run_id = world.ended(world.workflow(ECHO))
    replay = world.replay(run_id).json()
    (entry,) = world.person.http.get("/api/audit", params={"action": "run.replayed"}).json()["items"]
    assert (entry["object"], entry["data"]["run_id"]) == (run_id, replay["id"])
