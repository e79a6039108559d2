"""Workflows are saved in versions, switched on and off, and deleted; their secrets and credentials are looked after."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from engine.definition import parse
from engine.errors import Conflict, InvalidInput, NotFound
from engine.repository import credentials
from engine.runs import Start
from engine.workflows import MASK, Author, LegacyForm
from tests.trigger_parts import AUTHOR, ECHO, Parts, parts_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        yield parts


def _credential(parts: Parts, name: str, service: str) -> None:
    with parts.database.tenant("a") as session:
        sealed = parts.vault.seal(session, f"cred_{name}", {"bearer": "x"})
        values = {"ciphertext": sealed.ciphertext, "key_version": sealed.key_version, "fingerprint": sealed.fingerprint}
        credentials.insert_credential(session, {"id": f"cred_{name}", "name": name, "service_name": service, **values})


def _document(parts: Parts, *steps: object, trigger: object = None, name: str = "W") -> dict[str, object]:
    return {"name": name, "trigger": trigger or {"type": "manual"}, "steps": list(steps) or [ECHO]}


def _create_faults(parts: Parts, *steps: object, trigger: object = None) -> dict[str, str]:
    workflow = parse(_document(parts, *steps, trigger=trigger), actions=parts.registry)
    with pytest.raises(InvalidInput) as caught, parts.database.tenant("a") as session:
        parts.workflows.create(session, workflow, author=AUTHOR)
    return {fault.pointer: fault.message for fault in caught.value.faults}


def test_a_saved_workflow_is_active_at_version_one(parts: Parts) -> None:
    workflow = parse(_document(parts, name="First"), actions=parts.registry)
    with parts.database.tenant("a") as session:
        row = parts.workflows.create(session, workflow, author=AUTHOR, legacy=LegacyForm("slack_message", "{}"))
        version = parts.workflows.definition(session, row["id"])
    assert (row["name"], row["is_active"], row["version"], row["action_type"]) == ("First", True, 1, "slack_message")
    assert parse(version["definition"], actions=parts.registry) == workflow
    assert version["created_by"] == "user_1"


def test_only_a_document_that_means_something_else_makes_a_version(parts: Parts) -> None:
    workflow_id = parts.save({"type": "manual"})
    parts.save({"type": "manual"}, workflow_id=workflow_id)
    parts.save({"type": "webhook"}, workflow_id=workflow_id)
    with parts.database.tenant("a") as session:
        assert parts.workflows.get(session, workflow_id)["version"] == 2
        assert [row["version"] for row in parts.workflows.versions(session, workflow_id)] == [2, 1]
        assert [row["version"] for row in parts.workflows.versions(session, workflow_id, before=2)] == [1]
        assert parts.workflows.definition(session, workflow_id, 1)["definition"]["trigger"] == {"type": "manual"}
        assert parts.workflows.definition(session, workflow_id)["definition"]["trigger"] == {"type": "webhook"}
        with pytest.raises(NotFound, match="no version 7"):
            parts.workflows.definition(session, workflow_id, 7)


def test_who_expects_another_version_is_told_of_the_conflict(parts: Parts) -> None:
    workflow_id = parts.save({"type": "manual"})
    parts.save({"type": "webhook"}, workflow_id=workflow_id)
    workflow = parse(_document(parts), actions=parts.registry)
    with pytest.raises(Conflict, match="at version 2") as caught, parts.database.tenant("a") as session:
        parts.workflows.update(session, workflow_id, workflow, author=AUTHOR, expected_version=1)
    assert caught.value.error_code == "version_conflict"


def test_of_people_who_save_at_once_each_gets_a_version_of_his_own(parts: Parts) -> None:
    workflow_id = parts.save({"type": "manual"})
    start = threading.Barrier(8)

    def save(number: int) -> None:
        workflow = parse(_document(parts, name=f"W{number}"), actions=parts.registry)
        start.wait()
        with parts.database.tenant("a") as session:
            parts.workflows.update(session, workflow_id, workflow, author=Author(f"user_{number}"))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = parts.rows("SELECT version, created_by FROM workflow_versions ORDER BY version")
    assert [row["version"] for row in rows] == list(range(1, 10))
    assert {row["created_by"] for row in rows} == {f"user_{number}" for number in range(8)} | {"user_1"}


def test_a_name_can_change_alone(parts: Parts) -> None:
    workflow_id = parts.save({"type": "manual"})
    with parts.database.tenant("a") as session:
        row = parts.workflows.rename(session, workflow_id, "  Better  ")
        with pytest.raises(InvalidInput, match="/name"):
            parts.workflows.rename(session, workflow_id, " ")
    assert (row["name"], row["version"]) == ("Better", 1)


def test_switching_off_stops_the_schedule_and_switching_on_begins_it_anew(parts: Parts) -> None:
    workflow_id = parts.save({"type": "schedule", "every": "10m"})
    with parts.database.tenant("a") as session:
        off = parts.workflows.set_active(session, workflow_id, False, reason="too noisy")
    assert (off["is_active"], off["inactive_reason"], off["next_fire_at"]) == (False, "too noisy", None)
    parts.save({"type": "schedule", "every": "5m"}, workflow_id=workflow_id)
    assert parts.trigger_of(workflow_id)["next_fire_at"] is None
    with parts.database.tenant("a") as session:
        on = parts.workflows.set_active(session, workflow_id, True)
    ahead = on["next_fire_at"] - parts.trigger_of(workflow_id)["now"]
    assert timedelta(minutes=4, seconds=50) < ahead <= timedelta(minutes=5)
    assert (on["is_active"], on["inactive_reason"]) == (True, None)


def test_saving_an_unchanged_schedule_keeps_its_rhythm(parts: Parts) -> None:
    workflow_id = parts.save({"type": "schedule", "every": "10m"})
    parts.change("UPDATE triggers SET next_fire_at = '2031-01-01'")
    parts.save({"type": "schedule", "every": "10m"}, workflow_id=workflow_id)
    assert parts.trigger_of(workflow_id)["next_fire_at"].year == 2031
    parts.save({"type": "schedule", "every": "11m"}, workflow_id=workflow_id)
    assert parts.trigger_of(workflow_id)["next_fire_at"].year != 2031


@pytest.mark.parametrize("how", ["switch on", "save"])
def test_a_paused_trigger_goes_on_when_it_is_switched_on_or_saved_again(parts: Parts, how: str) -> None:
    workflow_id = parts.save({"type": "schedule", "every": "10m"})
    parts.change("UPDATE triggers SET next_fire_at = NULL, paused_reason = 'broken', failures = 10")
    if how == "save":
        parts.save({"type": "schedule", "every": "10m"}, workflow_id=workflow_id)
    else:
        with parts.database.tenant("a") as session:
            parts.workflows.set_active(session, workflow_id, True)
    trigger = parts.trigger_of(workflow_id)
    assert trigger["next_fire_at"] is not None
    assert (trigger["paused_reason"], trigger["failures"]) == (None, 0)


def test_deleting_cancels_what_waits_and_hides_the_workflow_but_keeps_its_runs(parts: Parts) -> None:
    workflow_id = parts.save({"type": "schedule", "every": "10m"})
    with parts.database.tenant("a") as session:
        for hold in (None, None, "quota"):
            parts.runs.start(session, Start(workflow_id=workflow_id, trigger="api", input={}, hold=hold))
    first = parts.runs_of(workflow_id)[0]["id"]
    parts.change(
        "UPDATE runs SET status = 'running', attempt = 1, started_at = now(), heartbeat_at = now() WHERE id = :id",
        id=first,
    )
    with parts.database.tenant("a") as session:
        assert parts.workflows.delete(session, workflow_id) == 2
        assert parts.workflows.listed(session) == []
        for call in (parts.workflows.get, parts.workflows.versions, parts.workflows.definition, parts.workflows.delete):
            with pytest.raises(NotFound):
                call(session, workflow_id)
    assert [run["status"] for run in parts.runs_of(workflow_id)] == ["running", "cancelled", "cancelled"]
    assert parts.rows("SELECT 1 FROM triggers") == []


def test_workflows_are_listed_page_by_page(parts: Parts) -> None:
    ids = sorted(parts.save({"type": "manual"}) for _ in range(5))
    with parts.database.tenant("a") as session:
        first = parts.workflows.listed(session, limit=3)
        rest = parts.workflows.listed(session, after=first[-1]["id"], limit=3)
    assert [row["id"] for row in first + rest] == ids


def test_another_tenants_workflow_is_not_found(parts: Parts) -> None:
    workflow_id = parts.save({"type": "manual"}, tenant="b")
    workflow = parse(_document(parts), actions=parts.registry)
    with parts.database.tenant("a") as session:
        assert parts.workflows.listed(session) == []
        for call in (parts.workflows.get, parts.workflows.delete, parts.workflows.definition):
            with pytest.raises(NotFound):
                call(session, workflow_id)
        with pytest.raises(NotFound):
            parts.workflows.update(session, workflow_id, workflow, author=AUTHOR)
        with pytest.raises(NotFound):
            parts.workflows.set_active(session, workflow_id, False)


def test_a_step_that_names_no_credential_of_ours_is_a_fault_that_lists_them(parts: Parts) -> None:
    _credential(parts, "shop", "http")
    _credential(parts, "chat", "slack")
    step = {"id": "call", "action": "http.request", "with": {"method": "GET", "url": "https://example.com"}}
    faults = _create_faults(parts, {**step, "credential": "shopp"}, {**step, "id": "b", "credential": "chat"})
    assert faults == {
        "/steps/0/credential": "there is no credential 'shopp'; want 'shop'",
        "/steps/1/credential": "'chat' is for slack, http.request needs http; want 'shop'",
    }


def test_a_step_that_needs_a_credential_and_names_none_must_have_exactly_one_to_take(parts: Parts) -> None:
    step = {"id": "tell", "action": "slack.message", "with": {"text": "hi"}}
    workflow = parse(_document(parts, step), actions=parts.registry)
    assert _create_faults(parts, step) == {
        "/steps/0/credential": "slack.message needs a credential; add one for slack first"
    }
    _credential(parts, "one", "slack")
    with parts.database.tenant("a") as session:
        parts.workflows.create(session, workflow, author=AUTHOR)
    _credential(parts, "two", "slack")
    assert _create_faults(parts, step) == {
        "/steps/0/credential": "slack.message needs a credential; want one of 'one', 'two'"
    }


def test_a_workflow_that_is_named_must_be_there(parts: Parts) -> None:
    other = parts.save({"type": "manual"})
    run = {"id": "sub", "action": "workflow.run", "with": {"workflow": "wf_nope"}}
    templated = {"id": "any", "action": "workflow.run", "with": {"workflow": "{{ trigger.input.id }}"}}
    document = {**_document(parts, run, templated), "on_failure": {"workflow": "wf_gone"}}
    with pytest.raises(InvalidInput) as caught, parts.database.tenant("a") as session:
        parts.workflows.create(session, parse(document, actions=parts.registry), author=AUTHOR)
    assert {fault.pointer: fault.message for fault in caught.value.faults} == {
        "/on_failure/workflow": "there is no workflow 'wf_gone'",
        "/steps/0/with/workflow": "there is no workflow 'wf_nope'",
    }
    run["with"] = {"workflow": other}
    document["on_failure"] = {"workflow": other}
    sound = parse(document, actions=parts.registry)
    with parts.database.tenant("a") as session:
        parts.workflows.create(session, sound, author=AUTHOR)
    with pytest.raises(InvalidInput, match="its own failures"), parts.database.tenant("a") as session:
        parts.workflows.update(session, other, sound, author=AUTHOR)


def test_credentials_and_workflows_that_are_not_there_are_told_together(parts: Parts) -> None:
    call = {"id": "call", "action": "http.request", "credential": "x", "with": {"url": "https://example.com"}}
    run = {"id": "sub", "action": "workflow.run", "with": {"workflow": "wf_nope"}}
    assert _create_faults(parts, call, run).keys() == {"/steps/0/credential", "/steps/1/with/workflow"}


def test_a_webhooks_secret_is_nowhere_in_clear_and_survives_saving_what_was_read(parts: Parts) -> None:
    workflow_id = parts.save({"type": "webhook", "secret": SECRET})
    with parts.database.tenant("a") as session:
        trigger = parts.workflows.definition(session, workflow_id)["definition"]["trigger"]
    assert trigger == {"type": "webhook", "secret": MASK}
    sealed = parts.trigger_of(workflow_id)["config"]["sealed"]
    parts.save(trigger, workflow_id=workflow_id)
    assert parts.trigger_of(workflow_id)["config"]["sealed"] == sealed
    parts.save({"type": "webhook", "secret": "another"}, workflow_id=workflow_id)
    assert parts.trigger_of(workflow_id)["config"]["sealed"] != sealed
    tables = parts.rows("SELECT to_jsonb(t) AS t FROM triggers t UNION ALL SELECT to_jsonb(v) FROM workflow_versions v")
    assert SECRET not in json.dumps([row["t"] for row in tables], default=str)
    with parts.database.tenant("a") as session:
        assert parts.workflows.get(session, workflow_id)["version"] == 1
    parts.save({"type": "webhook"}, workflow_id=workflow_id)
    assert "sealed" not in parts.trigger_of(workflow_id)["config"]


@pytest.mark.parametrize(
    ("secret", "says"), [(MASK, "no secret to keep"), ("whsec_", "base64"), ("whsec_%%", "base64")]
)
def test_a_secret_that_cannot_be_one_is_refused_with_its_place(parts: Parts, secret: str, says: str) -> None:
    assert says in _create_faults(parts, trigger={"type": "webhook", "secret": secret})["/trigger/secret"]


def test_rotating_keys_takes_webhook_secrets_along(parts: Parts) -> None:
    workflow_id = parts.save({"type": "webhook", "secret": SECRET})
    with parts.database.tenant("a") as session:
        assert parts.vault.rotate(session) == 1
    assert parts.trigger_of(workflow_id)["config"]["sealed"]["key_version"] == 2
    assert [row["version"] for row in parts.rows("SELECT version FROM data_keys")] == [2]
