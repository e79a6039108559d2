"""Workflows: saved with a version for every change, switched on and off, deleted.

A version never changes; saving a document that means the same as the current version makes none. A webhook's secret is
not part of any version: it is sealed in the row of the trigger, and documents show `MASK` in its place, so that a
document that was read can be saved again without knowing the secret.

Saving checks what a document alone cannot show: that the credentials it names exist and fit. Two people who save at
once are not merged: the second waits for the first, and with `expected_version` it is a Conflict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from engine import allowances, ids
from engine.db import Row, TenantSession
from engine.definition import Step, Trigger, WebhookTrigger, Workflow, canonical, version_hash
from engine.errors import Conflict, Fault, InvalidInput, NotFound
from engine.ports import Action, Json
from engine.repository import credentials, relatives
from engine.repository import triggers as stored_triggers
from engine.repository import workflows as stored
from engine.vault import Vault
from engine.workflow import RUN_WORKFLOW

MASK = "**********"
"""What a document shows instead of a webhook's secret; saving it keeps the secret."""
_UNSPOILT: Row = {"failures": 0, "last_error": None, "paused_reason": None}
"""What a trigger that begins anew has forgotten."""


@dataclass(frozen=True, slots=True)
class TriggerRow:
    """What is stored of a trigger: its document without the secret, and when it falls due first (None: never)."""

    type: str
    config: Mapping[str, Json]
    next_fire_at: datetime | None = None


class TriggerKinds(Protocol):
    """What this service must know of triggers; `triggers.KINDS` is it."""

    def row(self, workflow_id: str, trigger: Trigger, now: datetime) -> TriggerRow:
        """The row of a trigger that is saved at `now`, without its secret. Raises InvalidInput if it makes no sense."""
        ...

    def next_fire(self, workflow_id: str, config: Mapping[str, Json], now: datetime) -> datetime | None:
        """When a stored trigger that is switched on at `now` falls due; None when it does not by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Author:
    """Who saves: `actor` is written into the version, `user_id` into a new workflow (None for an API key)."""

    actor: str
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class LegacyForm:
    """The older form of a document as its author wrote it, kept to be shown."""

    action_type: str
    config_json: str


class Workflows:
    """The service. Every method works in the caller's transaction and raises NotFound for another tenant's workflow."""

    def __init__(self, actions: Mapping[str, Action], kinds: TriggerKinds, vault: Vault) -> None:
        self._actions = actions
        self._kinds = kinds
        self._vault = vault

    def create(
        self, session: TenantSession, workflow: Workflow, *, author: Author, legacy: LegacyForm | None = None
    ) -> Row:
        """Save a new workflow, active, as version 1.

        Raises InvalidInput: faults of what it names, all at once; QuotaExceeded ``quota_workflows``.
        """
        self._check_named(session, workflow)
        workflow_id = ids.new_id("wf")
        values = {**_columns(workflow, legacy), "id": workflow_id, "user_id": author.user_id, "version": 1}
        stored.insert_workflow(session, values)
        allowances.check(session, allowances.WORKFLOWS)
        self._save_trigger(session, workflow_id, workflow.trigger, active=True)
        stored.insert_version(session, workflow_id, 1, _version(workflow, author))
        return self.get(session, workflow_id)

    def update(
        self,
        session: TenantSession,
        workflow_id: str,
        workflow: Workflow,
        *,
        author: Author,
        legacy: LegacyForm | None = None,
        expected_version: int | None = None,
    ) -> Row:
        """Save a changed document; a new version only if it means something else than the current one.

        Raises Conflict ``version_conflict`` when the current version is not `expected_version`, InvalidInput as
        `create` does.
        """
        current = _found(stored.lock(session, workflow_id), workflow_id)
        if expected_version not in (None, current["version"]):
            raise _conflict(workflow_id, current["version"])
        self._check_named(session, workflow, own_id=workflow_id)
        self._save_trigger(session, workflow_id, workflow.trigger, active=current["is_active"])
        values = _columns(workflow, legacy)
        if version_hash(_masked(workflow)) != stored.version_hash(session, workflow_id, current["version"]):
            values["version"] = current["version"] + 1
            if not stored.insert_version(session, workflow_id, values["version"], _version(workflow, author)):
                raise _conflict(workflow_id, values["version"])
        stored.change(session, workflow_id, values)
        return self.get(session, workflow_id)

    def rename(self, session: TenantSession, workflow_id: str, name: str) -> Row:
        """Change the name only; versions keep the one that they were saved with."""
        name = name.strip()
        if not 1 <= len(name) <= 200:
            raise InvalidInput([Fault("/name", "a name has 1 to 200 characters")])
        if not stored.change(session, workflow_id, {"name": name}):
            raise _missing(workflow_id)
        return self.get(session, workflow_id)

    def set_active(self, session: TenantSession, workflow_id: str, active: bool, *, reason: str | None = None) -> Row:
        """Switch it on or off; `reason` says why it is off. Switching on also resumes a trigger that was paused.

        Runs that were accepted go on.
        """
        workflow = _found(stored.lock(session, workflow_id), workflow_id)
        trigger = stored_triggers.get(session, workflow_id, lock=True)
        if active and workflow["version"] == 0:
            raise Conflict(f"The workflow {workflow_id} has no definition to run; save one first.")
        stored.change(session, workflow_id, {"is_active": active, "inactive_reason": None if active else reason})
        if trigger is not None and not active:
            stored_triggers.change(session, workflow_id, {"next_fire_at": None})
        elif trigger is not None and (not workflow["is_active"] or trigger["paused_reason"]):
            next_fire_at = self._kinds.next_fire(workflow_id, trigger["config"], trigger["now"])
            values = {"next_fire_at": next_fire_at, **_UNSPOILT}
            stored_triggers.change(session, workflow_id, values)
        return self.get(session, workflow_id)

    def delete(self, session: TenantSession, workflow_id: str) -> int:
        """Delete it; its runs stay to be read. Those that wait are cancelled, those that run go on; how many waited.

        What the cancelled ones waited for is cancelled too, and runs that wait for them learn of it.
        """
        if not stored.change(session, workflow_id, {"deleted_at": stored.now(session), "is_active": False}):
            raise _missing(workflow_id)
        stored_triggers.delete(session, workflow_id)
        return relatives.cancel_pending(session, workflow_id)

    def get(self, session: TenantSession, workflow_id: str) -> Row:
        """The columns of `repository.workflows.PUBLIC`."""
        return _found(stored.get(session, workflow_id), workflow_id)

    def listed(self, session: TenantSession, *, after: str | None = None, limit: int = 50) -> list[Row]:
        """At most `limit` workflows behind the id `after`, in the order of their ids: the oldest first."""
        return stored.listed(session, after=after, limit=limit)

    def definition(self, session: TenantSession, workflow_id: str, version: int | None = None) -> Row:
        """One version, the current one unless given: version, definition (a document), created_at, created_by."""
        row = stored.definition(session, workflow_id, version)
        if row is None and version is not None:
            raise NotFound(f"The workflow {workflow_id} has no version {version}.")
        return _found(row, workflow_id)

    def versions(
        self, session: TenantSession, workflow_id: str, *, before: int | None = None, limit: int = 50
    ) -> list[Row]:
        """version, created_at, created_by; the newest first, below `before`."""
        self.get(session, workflow_id)
        return stored.versions(session, workflow_id, before=before, limit=limit)

    def check_credentials(self, session: TenantSession, workflow: Workflow) -> None:
        """Every step that needs a credential has exactly one, and of its service. Raises InvalidInput."""
        if faults := self._credential_faults(session, workflow):
            raise InvalidInput(faults)

    def _check_named(self, session: TenantSession, workflow: Workflow, *, own_id: str | None = None) -> None:
        """The credentials and the other workflows that it names are there. Raises InvalidInput."""
        faults = self._credential_faults(session, workflow)
        named = dict(_named_workflows(workflow))
        there = stored.existing(session, set(named.values())) if named else set()
        faults += [Fault(place, f"there is no workflow {name!r}") for place, name in named.items() if name not in there]
        if workflow.on_failure is not None and workflow.on_failure.workflow == own_id:
            faults.append(Fault("/on_failure/workflow", "a workflow cannot deal with its own failures; name another"))
        if faults:
            raise InvalidInput(faults)

    def _credential_faults(self, session: TenantSession, workflow: Workflow) -> list[Fault]:
        names = credentials.names(session)
        return [
            Fault(f"/steps/{number}/credential", sentence)
            for number, step in enumerate(workflow.steps)
            for sentence in self._wrong_credential(step, names)
        ]

    def _wrong_credential(self, step: Step, names: Mapping[str, str]) -> Iterator[str]:
        if step.action is None:
            return
        action = self._actions[step.action]
        fitting = [name for name, service in names.items() if service == action.service]
        if step.credential is not None and step.credential not in names:
            yield f"there is no credential {step.credential!r}; {_choice(action.service, fitting)}"
        elif step.credential is not None and step.credential not in fitting:
            given = names[step.credential]
            yield f"{step.credential!r} is for {given}, {action.name} needs {action.service}; " + _choice(
                action.service, fitting
            )
        elif step.credential is None and action.credential_required and len(fitting) != 1:
            yield f"{action.name} needs a credential; {_choice(action.service, fitting)}"

    def _save_trigger(self, session: TenantSession, workflow_id: str, trigger: Trigger, *, active: bool) -> None:
        """Store the trigger. The rhythm of one that did not change goes on; a changed one begins anew, not paused."""
        row = self._kinds.row(workflow_id, trigger, stored.now(session))
        secret = self._sealed(session, workflow_id, trigger)  # before the row is locked, in the order of key rotation
        before = stored_triggers.get(session, workflow_id, lock=True)
        if isinstance(trigger, WebhookTrigger) and trigger.secret == MASK:
            secret = _kept_secret(before)
        values: Row = {"type": row.type, "config": {**row.config, **secret}}
        if before is None or before["config"] != values["config"] or before["paused_reason"]:
            next_fire_at = row.next_fire_at if active else None
            values |= {"next_fire_at": next_fire_at, **_UNSPOILT}
        if before is None or before["config"] != values["config"]:
            allowances.check_trigger(session, trigger)
        stored_triggers.put(session, workflow_id, values)

    def _sealed(self, session: TenantSession, workflow_id: str, trigger: Trigger) -> Row:
        """A new secret as the row of the trigger holds it; nothing when there is none."""
        if not isinstance(trigger, WebhookTrigger) or trigger.secret in (None, MASK):
            return {}
        place = stored_triggers.secret_place(workflow_id)
        sealed = self._vault.seal(session, place, {"secret": trigger.secret})
        return {
            "sealed": stored_triggers.sealed(
                sealed.ciphertext, key_version=sealed.key_version, fingerprint=sealed.fingerprint
            )
        }


def _kept_secret(before: Row | None) -> Row:
    if before is None or "sealed" not in before["config"]:
        raise InvalidInput([Fault("/trigger/secret", "there is no secret to keep; write the secret itself")])
    return {"sealed": before["config"]["sealed"]}


def _named_workflows(workflow: Workflow) -> Iterator[tuple[str, str]]:
    """Ids of the workflows that a document names, each with its place; a template's value is not known yet."""
    if workflow.on_failure is not None:
        yield "/on_failure/workflow", workflow.on_failure.workflow
    for number, step in enumerate(workflow.steps):
        name = step.with_.get("workflow")
        if step.action == RUN_WORKFLOW and isinstance(name, str) and "{{" not in name:
            yield f"/steps/{number}/with/workflow", name


def _columns(workflow: Workflow, legacy: LegacyForm | None) -> Row:
    return {
        "name": workflow.name,
        "trigger_type": workflow.trigger.type,
        "action_type": None if legacy is None else legacy.action_type,
        "config_json": None if legacy is None else legacy.config_json,
    }


def _version(workflow: Workflow, author: Author) -> Row:
    masked = _masked(workflow)
    return {"definition": canonical(masked), "hash": version_hash(masked), "created_by": author.actor}


def _masked(workflow: Workflow) -> Workflow:
    """The workflow as it is stored and shown."""
    trigger = workflow.trigger
    if not isinstance(trigger, WebhookTrigger) or trigger.secret is None:
        return workflow
    return workflow.model_copy(update={"trigger": trigger.model_copy(update={"secret": MASK})})


def _choice(service: str | None, fitting: list[str]) -> str:
    if not fitting:
        return f"add one for {service} first"
    return f"want one of {', '.join(map(repr, sorted(fitting)))}" if len(fitting) > 1 else f"want {fitting[0]!r}"


def _found(row: Row | None, workflow_id: str) -> Row:
    if row is None:
        raise _missing(workflow_id)
    return row


def _missing(workflow_id: str) -> NotFound:
    return NotFound(f"There is no workflow {workflow_id}.")


def _conflict(workflow_id: str, version: int) -> Conflict:
    return Conflict(
        f"The workflow {workflow_id} was changed by somebody else and is at version {version}; read it again.",
        code="version_conflict",
    )
