"""Answers to runs that wait: by members and by signed links, in JSON and from a page; and who may not answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import unescape
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.api_server import Api, Person, running_api, services_for, settings_for

ASK = {"id": "ask", "wait": {"approval": {"message": "Pay <{{ trigger.input.amount }}>?", "expires": "3d"}}}
AFTER = {"id": "after", "action": "debug.echo", "with": {"answer": "{{ steps.ask.output.data }}"}}


@dataclass
class World:
    api: Api
    person: Person

    def asking(self, *steps: dict[str, Any]) -> str:
        """A run that waits for an answer."""
        workflow_id = self.person.workflow(*(steps or (ASK, AFTER)), trigger={"type": "manual"}, name="Pay & go")
        run_id = self.person.run(workflow_id, input={"amount": 5})
        self.api.work(self.person.tenant_id, run_id)
        assert self.run(run_id)["status"] == "waiting"
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.person.http.get(f"/api/runs/{run_id}").json()
        return found

    def worked(self, run_id: str) -> dict[str, Any]:
        self.api.work(self.person.tenant_id, run_id)
        return self.run(run_id)

    def answer(self, run_id: str, **body: Any) -> httpx.Response:
        return self.person.http.post(f"/api/runs/{run_id}/resume", json=body)

    def link(self, run_id: str, *, lifetime: timedelta = timedelta(days=1)) -> str:
        """As expressions see it in ``run.resume_url``, without the name of the server."""
        url = self.api.services.links.url(self.person.tenant_id, run_id, lifetime=lifetime)
        return url.removeprefix(self.api.services.settings.public_url)


@pytest.fixture
def world(database_url: str, redis_url: str) -> Iterator[World]:
    with running_api(services_for(settings_for(database_url, redis_url))) as api:
        yield World(api, api.person())


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_member_agrees_and_what_they_say_reaches_later_steps(world: World) -> None:
    run_id = world.asking()
    asked = world.person.http.get(f"/api/runs/{run_id}/resume").json()
    assert (asked["workflow"], asked["status"]) == ("Pay & go", "waiting")
    (ask,) = asked["asks"]
    assert (ask["step"], ask["reason"], ask["message"]) == ("ask", "approval", "Pay <5>?")
    answer = world.answer(run_id, data={"note": "fine"})
    assert answer.status_code == 200
    assert answer.json() == {"run_id": run_id, "step": "ask", "item": None, "approved": True, "status": "queued"}
    assert world.person.http.get(f"/api/runs/{run_id}/resume").json()["asks"] == []
    ended = world.worked(run_id)
    assert (ended["status"], ended["output"]) == ("succeeded", {"answer": {"note": "fine"}})


def test_a_refusal_fails_the_step(world: World) -> None:
    run_id = world.asking()
    assert world.answer(run_id, approved=False).json()["approved"] is False
    ended = world.worked(run_id)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "approval_refused")


def test_an_answer_counts_once(world: World) -> None:
    run_id = world.asking()
    assert world.answer(run_id).status_code == 200
    assert refused(world.answer(run_id, approved=False)) == (409, "run_not_waiting")
    assert world.worked(run_id)["status"] == "succeeded"
    assert refused(world.answer(run_id)) == (409, "run_not_waiting")


def test_of_several_that_wait_one_is_named(world: World) -> None:
    both = [{**ASK, "id": name, "needs": []} for name in ("left", "right")]
    run_id = world.asking(*both)
    assert refused(world.answer(run_id)) == (409, "answer_ambiguous")
    assert world.answer(run_id, step="left").json()["step"] == "left"
    assert world.answer(run_id, step="right").json()["step"] == "right"
    assert world.worked(run_id)["status"] == "succeeded"


def test_an_answer_that_comes_too_late_is_told(world: World) -> None:
    run_id = world.asking()
    with world.api.services.database.system() as session:
        session.execute(sa.text("UPDATE steps SET wake_at = now() - interval '1 second'"))
    assert refused(world.answer(run_id)) == (410, "approval_expired")
    assert world.person.http.get(f"/api/runs/{run_id}/resume").json()["asks"] == []


def test_whoever_holds_the_link_answers_without_an_account(world: World) -> None:
    run_id = world.asking()
    anybody = world.api.client()
    assert anybody.get(world.link(run_id)).json()["asks"][0]["message"] == "Pay <5>?"
    answer = anybody.post(world.link(run_id), json={"data": 1})
    assert answer.json()["approved"] is True
    assert world.worked(run_id)["output"] == {"answer": 1}
    (entry,) = world.person.http.get("/api/audit", params={"action": "run.answered"}).json()["items"]
    assert (entry["actor"], entry["object"], entry["data"]["approved"]) == ("link", run_id, True)


def test_opening_the_link_any_number_of_times_answers_nothing(world: World) -> None:
    run_id = world.asking()
    anybody = world.api.client()
    for accept in ("*/*", "text/html", "application/json"):
        assert anybody.get(world.link(run_id), headers={"Accept": accept}).status_code == 200
        assert anybody.head(world.link(run_id)).status_code == 405
    assert world.run(run_id)["status"] == "waiting"


@pytest.mark.parametrize(("label", "ends"), [("Agree", "succeeded"), ("Refuse", "failed")])
def test_a_browser_gets_a_page_with_two_buttons_that_work(world: World, label: str, ends: str) -> None:
    run_id = world.asking()
    browser = world.api.client(accept="text/html,application/xhtml+xml")
    page = browser.get(world.link(run_id))
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src" not in page.headers["content-security-policy"]
    assert "<h1>Pay &amp; go</h1>" in page.text
    assert "Pay &lt;5&gt;?" in page.text
    (action,) = re.findall(rf'<button formaction="([^"]*)">{label}</button>', page.text)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    sent = browser.post(page.url.join(unescape(action)), content=b"", headers=form)
    assert (sent.status_code, "Thank you" in sent.text) == (200, True)
    assert world.worked(run_id)["status"] == ends
    assert "Nothing waits" in browser.get(world.link(run_id)).text


def test_a_link_that_is_forged_expired_or_of_another_run_answers_nothing(world: World) -> None:
    run_id, other = world.asking(), world.asking()
    anybody = world.api.client()
    link = world.link(run_id)
    assert refused(anybody.post(world.link(run_id, lifetime=timedelta(seconds=-1)))) == (410, "link_expired")
    assert refused(anybody.post(f"{link[:-4]}AAAA")) == (404, "not_found")
    assert refused(anybody.post(link.replace(run_id, other))) == (404, "not_found")
    assert refused(anybody.get(link.replace(run_id, other))) == (404, "not_found")
    assert refused(anybody.post(f"/api/runs/{run_id}/resume?token=x")) == (404, "not_found")
    assert {world.run(one)["status"] for one in (run_id, other)} == {"waiting"}


def test_a_link_is_good_for_nothing_else(world: World) -> None:
    run_id = world.asking()
    token = world.link(run_id).partition("=")[2]
    anybody = world.api.client()
    assert refused(anybody.get(f"/api/runs/{run_id}", params={"token": token})) == (401, "unauthenticated")
    assert refused(anybody.post(f"/api/runs/{run_id}/cancel", params={"token": token})) == (401, "unauthenticated")
    assert world.api.client(token).get("/api/me").status_code == 401


def test_without_a_link_it_takes_the_permission_to_start_runs(world: World) -> None:
    run_id = world.asking()
    tenant_id = world.person.tenant_id
    url = f"/api/runs/{run_id}/resume"
    assert refused(world.api.client().post(url)) == (401, "unauthenticated")
    assert refused(world.api.client().get(url)) == (401, "unauthenticated")
    viewer = world.api.member(tenant_id, "viewer")
    assert viewer.get(url).status_code == 200
    assert refused(viewer.post(url)) == (403, "forbidden")
    assert refused(world.api.key(tenant_id, "runs:read").post(url)) == (403, "forbidden")
    assert refused(world.api.key(tenant_id, "runs:write").get(url)) == (403, "forbidden")
    assert refused(world.api.person().http.post(url)) == (404, "not_found")
    assert world.api.key(tenant_id, "runs:write").post(url).status_code == 200


def test_a_run_that_waits_for_other_things_says_so(world: World) -> None:
    sleeping = world.asking({"id": "nap", "wait": {"for": "1h"}})
    assert refused(world.answer(sleeping)) == (409, "run_not_waiting")
    child = world.person.workflow(ASK, trigger={"type": "manual"}, name="Child")
    parent = world.asking({"id": "sub", "action": "workflow.run", "with": {"workflow": child, "input": {"amount": 1}}})
    why = world.person.http.get(f"/api/runs/{parent}/waiting").json()
    assert why["reason"] == "sleeping"


def test_a_run_behind_its_workflows_limit_says_so(world: World) -> None:
    document = {"trigger": {"type": "manual"}, "steps": [ASK], "concurrency": {"limit": 1}}
    workflow_id = world.person.http.post("/api/workflows", json={"name": "W", "definition": document}).json()["id"]
    first, second = (world.person.run(workflow_id, input={"amount": n}) for n in range(2))
    world.worked(first)
    assert world.worked(second)["status"] == "waiting"
    why = world.person.http.get(f"/api/runs/{second}/waiting").json()
    assert why["reason"] == "tenant_concurrency"
