"""How large things may be that runs are given and that steps answer: the plan's limit, at each of its points."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from engine.quotas import PayloadRefused, note_refusal
from tests.api_server import ECHO, Api, Person, running_api, services_for, settings_for
from tests.engine_parts import Parts, parts_for
from tests.poll_parts import TWIN, poll_parts_for
from triggers.pollers import Outcome

LIMIT = 2000
LARGE = "x" * LIMIT


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        parts.fill(f"UPDATE tenants SET limits = '{{\"max_payload_bytes\": {LIMIT}}}'")
        yield parts


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


def limited(api: Api, trigger: str) -> tuple[Person, str]:
    """Somebody with the limit, and a workflow that such a trigger starts."""
    person = api.person()
    workflow_id = person.workflow(ECHO, trigger={"type": trigger})
    with api.services.database.system() as session:
        driver: Any = session._connection.connection.driver_connection
        limits = json.dumps({"max_payload_bytes": LIMIT})
        driver.execute("UPDATE tenants SET limits = %s::jsonb WHERE id = %s", (limits, person.tenant_id))
    return person, workflow_id


def text_of(root: str, size: int) -> dict[str, Any]:
    """An input that is so many bytes with what is around it, in characters of two bytes."""
    rest = size - len(json.dumps({root: {"text": ""}}, separators=(",", ":")))
    return {"text": "é" * (rest // 2) + "x" * (rest % 2)}


def test_an_input_of_just_the_limit_is_taken_and_one_byte_more_is_not(parts: Parts) -> None:
    parts.workflow({"id": "echo", "action": "debug.echo", "with": {}})
    parts.start(input={"input": text_of("input", LIMIT)})
    with pytest.raises(PayloadRefused) as refused:
        parts.start(input={"input": text_of("input", LIMIT + 1)})
    assert refused.value.detail == (
        "The run would be given 2,001 bytes of JSON; the plan allows 2,000 (max_payload_bytes)."
    )
    note_refusal(parts.database, refused.value)
    assert parts.rows("SELECT count(*) AS n FROM runs") == [{"n": 1}]
    assert parts.rows("SELECT outcome FROM usage WHERE kind = 'rejected'") == [{"outcome": "quota_payload"}]


def test_what_failed_is_dealt_with_however_large_it_was(parts: Parts) -> None:
    parts.workflow({"id": "echo", "action": "debug.echo", "with": {}})
    parts.start(trigger="failure", input={"input": LARGE})
    parts.start(trigger="schedule", input={"input": LARGE})
    parts.fill("UPDATE tenants SET limits = '{}'")
    parts.start(input={"input": LARGE})


def test_a_key_that_was_used_finds_its_run_whatever_comes_with_it(parts: Parts) -> None:
    parts.workflow({"id": "echo", "action": "debug.echo", "with": {}})
    assert parts.start(idempotency_key="k") == parts.start(idempotency_key="k", input={"input": LARGE})


def test_a_step_that_gives_a_run_too_much_fails_at_once(parts: Parts) -> None:
    parts.workflow({"id": "echo", "action": "debug.echo", "with": {}}, workflow_id="wf_child")
    run = parts.execute(
        {"id": "call", "action": "workflow.run", "with": {"workflow": "wf_child", "input": {"text": LARGE}}}
    )
    assert (run["status"], run["error"]["code"], run["error"]["step"]) == ("failed", "quota_payload", "call")
    assert parts.steps_of(run["id"])["call"]["attempt"] == 1


def test_what_a_step_answers_is_cut_to_the_limit_and_marked(parts: Parts) -> None:
    steps = [{"id": name, "action": "debug.echo", "with": {"text": text}} for name, text in (("a", "x"), ("b", LARGE))]
    run = parts.execute(*steps)
    stored = parts.steps_of(run["id"])
    assert run["status"] == "succeeded"
    assert "cut" not in stored["a"]["output"]
    assert (stored["b"]["output"]["cut"], len(stored["b"]["output"]["head"])) == (True, LIMIT // 8)


def test_the_api_answers_413_with_a_code_of_its_own(api: Api) -> None:
    person, workflow_id = limited(api, "manual")
    url = f"/api/workflows/{workflow_id}/runs"
    answer = person.http.post(url, json={"input": {"text": LARGE}})
    assert (answer.status_code, answer.json()["code"]) == (413, "quota_payload")
    assert "Retry-After" not in answer.headers
    run_id = person.http.post(url, json={"input": {"text": "x"}}).json()["run"]["id"]
    person.http.post(f"/api/runs/{run_id}/cancel")
    answer = person.http.post(f"/api/runs/{run_id}/replay", json={"from": "start", "input": {"text": LARGE}})
    assert (answer.status_code, answer.json()["code"]) == (413, "quota_payload")
    assert person.http.get("/api/usage").json()["rejected"] == 2


def test_so_does_a_webhook_and_it_counts_headers_and_query(api: Api) -> None:
    _, workflow_id = limited(api, "webhook")
    url = f"/api/webhooks/{workflow_id}"
    assert api.client().post(url, json={"text": "x"}).status_code == 202
    large: tuple[dict[str, Any], ...] = (
        {"json": {"text": LARGE}},
        {"headers": {"x-large": LARGE}},
        {"params": {"q": LARGE}},
    )
    for given in large:
        answer = api.client().post(url, **given)
        assert (answer.status_code, answer.json()["code"]) == (413, "quota_payload")


def test_a_poll_with_an_item_that_is_too_large_fails_and_says_so(database_url: str) -> None:
    with poll_parts_for(database_url) as parts:
        with parts.database.system() as session:
            session.execute(sa.text("UPDATE tenants SET limits = '{\"max_payload_bytes\": 1024}' WHERE id = 'a'"))
        workflow_id = parts.save({**TWIN, "initial": "all"})
        parts.twin.items = ["small", "x" * 600]
        result = parts.poll(workflow_id)
        assert (result.outcome, parts.started(workflow_id)) == (Outcome.FAILED, [])
        assert "the plan allows 1,024 (max_payload_bytes)" in str(result.reason)
