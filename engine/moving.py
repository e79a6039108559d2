"""Workflows and credentials move from one organization into another, keeping their ids: all of it, or nothing.

Ids stay, so webhooks that others call go on working. A workflow takes its versions, trigger, runs and logs along; what
it cost stays in the ledger of the organization that it ran in, and so does the audit, in which both have a row.
Credentials and webhook secrets are encrypted anew under the key of the new organization. Nothing moves when a workflow
of either side would be left without a credential that it needs, or with two to choose from, or while one of them runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine import audit
from engine.audit import Actor
from engine.db import Row, SystemSession, TenantSession
from engine.definition import load
from engine.errors import Conflict, InvalidInput, NotFound
from engine.repository import credentials, identity, triggers
from engine.repository import moving as stored
from engine.vault import Vault
from engine.workflows import Workflows


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What shall move; None is everything of its kind, also workflows that are deleted, with their runs."""

    workflows: Sequence[str] | None = ()
    credentials: Sequence[str] | None = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """The ids of what moved."""

    workflows: Sequence[str]
    credentials: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Opened:
    """The secrets on their way, in clear: a credential's by its row, a webhook's by its workflow."""

    credentials: list[tuple[Row, dict[str, Any]]]
    webhooks: list[tuple[str, dict[str, Any]]]


class Mover:
    """Moves between organizations; `workflows` knows what each workflow needs."""

    def __init__(self, vault: Vault, workflows: Workflows) -> None:
        self._vault = vault
        self._workflows = workflows

    def move(self, session: SystemSession, by: Actor, cargo: Cargo, *, source: str, target: str) -> Moved:
        """In the caller's transaction. Raises NotFound, Conflict with what is in the way, VaultError."""
        for tenant_id in (source, target):
            if identity.tenant_by_id(session, tenant_id) is None:
                raise NotFound(f"There is no organization {tenant_id!r}.")
        if source == target:
            raise Conflict("They are in that organization already.")
        broken = self._broken(session, source) | self._broken(session, target)
        with session.acting_for(source) as own:
            moved, opened = self._take(own, cargo)
        if keys := stored.taken_keys(session, source, target, moved.workflows):
            raise Conflict(f"Both have runs with the same idempotency key ({', '.join(keys)}).")
        self._check_names(session, target, opened)
        stored.move_workflows(session, source, target, moved.workflows)
        stored.move_credentials(session, source, target, moved.credentials)
        with session.acting_for(target) as new:
            self._seal(new, opened)
            _record(new, by, "workflows.moved_in", source, moved)
        with session.acting_for(source) as own:
            _record(own, by, "workflows.moved_out", target, moved)
        after = self._broken(session, source) | self._broken(session, target)
        if faults := [sentence for workflow_id, sentence in after.items() if workflow_id not in broken]:
            raise Conflict(f"Workflows would not work any more: {'; '.join(faults)}.")
        return moved

    def _take(self, own: TenantSession, cargo: Cargo) -> tuple[Moved, _Opened]:
        credentials.lock_keys(own, exclusive=True)
        workflow_ids = stored.workflow_ids(own, cargo.workflows)
        rows = stored.credential_rows(own, cargo.credentials)
        _require_all("workflow", cargo.workflows, workflow_ids)
        _require_all("credential", cargo.credentials, [row["id"] for row in rows])
        if running := stored.running(own, workflow_ids):
            raise Conflict(f"{running} of the runs are in a worker's hands; switch the workflows off, and wait.")
        wanted = {row["id"] for row in rows}
        opened = [
            (row, self._vault.open(own, row).get_secret_value())
            for row in credentials.all_with_keys(own)
            if row["id"] in wanted
        ]
        webhooks = [
            (row["workflow_id"], self._vault.open(own, row).get_secret_value())
            for row in triggers.sealed_secrets(own)
            if row["workflow_id"] in set(workflow_ids)
        ]
        return Moved(workflow_ids, [row["id"] for row in rows]), _Opened(opened, webhooks)

    def _seal(self, new: TenantSession, opened: _Opened) -> None:
        for row, data in opened.credentials:
            sealed = self._vault.seal(new, row["id"], data)
            credentials.replace_secret(
                new, row["id"], sealed.ciphertext, key_version=sealed.key_version, fingerprint=sealed.fingerprint
            )
        for workflow_id, data in opened.webhooks:
            sealed = self._vault.seal(new, triggers.secret_place(workflow_id), data)
            triggers.replace_sealed(
                new, workflow_id, sealed.ciphertext, key_version=sealed.key_version, fingerprint=sealed.fingerprint
            )

    @staticmethod
    def _check_names(session: SystemSession, target: str, opened: _Opened) -> None:
        with session.acting_for(target) as new:
            there = credentials.names(new)
        if taken := sorted(row["name"] for row, _ in opened.credentials if row["name"] in there):
            raise Conflict(f"There are credentials of the same name already: {', '.join(taken)}.")

    def _broken(self, session: SystemSession, tenant_id: str) -> dict[str, str]:
        """Of each workflow that lacks a credential, by its id, a sentence. One that cannot be judged here is none."""
        found = {}
        with session.acting_for(tenant_id) as own:
            for row in stored.current_documents(own):
                try:
                    self._workflows.check_credentials(own, load(row["definition"]))
                except InvalidInput as error:
                    found[row["id"]] = f"{row['name']!r} of {tenant_id} ({row['id']}): {error.detail}"
                except KeyError:  # an action that this process does not have
                    continue
        return found


def _require_all(kind: str, wanted: Sequence[str] | None, found: Sequence[str]) -> None:
    missing = sorted(set(wanted or ()) - set(found))
    if missing:
        raise NotFound(f"There is no {kind} {', '.join(missing)} in the organization.")


def _record(session: TenantSession, by: Actor, action: str, other: str, moved: Moved) -> None:
    audit.record(session, by, action, other, workflows=list(moved.workflows), credentials=list(moved.credentials))
