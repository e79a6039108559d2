"""Workflows: the old form becomes version 1 and a trigger. One that cannot run is kept, inactive, with the reason.

Ids stay, and so do the URLs of webhooks. A schedule keeps its rhythm: it falls due one interval after its last
execution. Those that are overdue are spread over their interval, those that never ran over the first minutes, so that
not everything starts at once after the switch; the place of a workflow in that spread depends on its id only.

Where a user has several credentials of one service the document names the one that is used.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from engine.db import dump_json
from engine.definition import ScheduleTrigger, WebhookTrigger, Workflow, canonical, from_legacy, parse, version_hash
from engine.errors import Fault, InvalidInput
from engine.ports import Action, Json
from engine.workflows import TriggerKinds
from migrations.legacy import plans
from migrations.legacy.findings import Finding, Kind, Progress
from migrations.legacy.secrets import Secrets

AUTHOR = "legacy"
FIRST_RUNS = timedelta(minutes=10)
"""Over how long, at most, schedules that never ran are spread."""
BATCH = 500
UNCONVERTED = 0
"""The version that holds what could not be converted, so that its runs refer to something."""
_LONGEST_NAME = 200

_NEXT = text(
    "SELECT * FROM workflows WHERE CAST(:after AS text) IS NULL OR id > CAST(:after AS text) ORDER BY id LIMIT :limit"
)
_VERSION = text(
    "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash, created_by)"
    " VALUES (:tenant_id, :id, :version, CAST(:definition AS jsonb), :hash, :author)"
)
_TRIGGER = text(
    "INSERT INTO triggers (tenant_id, workflow_id, type, config, next_fire_at)"
    " VALUES (:tenant_id, :id, :type, CAST(:config AS jsonb), :next_fire_at)"
)
_WORKFLOW = text(
    "UPDATE workflows SET version = :version, is_active = :is_active, inactive_reason = :inactive_reason, "
    "updated_at = now() WHERE tenant_id = :tenant_id AND id = :id"
)


@dataclass(frozen=True, slots=True)
class Planned:
    """What becomes of one workflow: the columns to write, and what somebody should know."""

    columns: dict[str, Any]
    trigger: dict[str, Any] | None
    findings: tuple[Finding, ...] = ()
    credentials: tuple[str, ...] = ()
    """Ids of those that it uses."""
    runs_a_month: int = 0
    """That its schedule starts."""


@dataclass(slots=True)
class Notes:
    """What is to be told of all workflows."""

    used_by: dict[str, list[str]] = field(default_factory=dict)
    """Id of a credential to the workflows that use it."""
    _findings: list[Finding] = field(default_factory=list)
    _runs_a_month: Counter[str] = field(default_factory=Counter)
    """By organization."""

    def add(self, plan: Planned) -> None:
        self._findings += plan.findings
        for credential_id in plan.credentials:
            self.used_by.setdefault(credential_id, []).append(plan.columns["id"])
        self._runs_a_month[plan.columns["tenant_id"]] += plan.runs_a_month

    def findings(self, plan: str, offered: plans.Admitted) -> list[Finding]:
        """Those of the workflows, and of users whose schedules alone start more than `plan` admits."""
        return self._findings + [
            Finding("users", tenant_id.removeprefix("tenant_"), Kind.NOTED, said)
            for tenant_id, number in sorted(self._runs_a_month.items())
            if (said := plans.said_of(plan, number, offered)) is not None
        ]


@dataclass(frozen=True, slots=True)
class Converter:
    """How workflows are converted at the moment `now`."""

    actions: Mapping[str, Action]
    kinds: TriggerKinds
    secrets: Secrets
    now: datetime

    def plan(self, row: Mapping[str, Any]) -> Planned:
        """Decide about one row of `workflows`; writes nothing and never fails."""
        try:
            return self._converted(row)
        except InvalidInput as error:
            reason = "; ".join(map(_said, error.faults))
        except (ValueError, RecursionError, UnicodeError) as error:
            reason = f"it cannot be read: {type(error).__name__}"
        return self._kept(row, reason[:2000].encode(errors="replace").decode().replace("\0", "\ufffd"))

    def _converted(self, row: Mapping[str, Any]) -> Planned:
        document = from_legacy(
            _name(row),
            row["trigger_type"],
            row["action_type"],
            row["config_json"],
            action_chain=row["action_chain"],
            parameters=row["parameters"],
            actions=self.actions.keys(),
        )
        used, missing = self._choose_credentials(row["tenant_id"], document)
        workflow = parse(document, actions=self.actions)
        columns = _columns(row, 1, dump_json(canonical(workflow)), version_hash(workflow))
        notes = tuple(
            Finding("workflows", row["id"], Kind.NOTED, reason) for reason in self._notes(row, workflow, missing)
        )
        trigger = self._trigger(row, workflow, active=row["is_active"])
        return Planned(columns, trigger, notes, used, _runs_a_month(workflow) if row["is_active"] else 0)

    def _notes(self, row: Mapping[str, Any], workflow: Workflow, missing: list[str]) -> Iterator[str]:
        for service in missing:
            yield f"its user has no credential for {service}; its runs will fail"
        if not isinstance(workflow.trigger, ScheduleTrigger) or workflow.trigger.every is None:
            return
        if (said := odd_interval(row["config_json"], workflow.trigger.every)) is not None:
            yield said
        last = row["last_executed_at"]
        if last is not None and last >= self.now:
            yield f"its last execution is in the future, {last.astimezone(UTC):%Y-%m-%d %H:%M:%S}; it counts as now"

    def _choose_credentials(self, tenant_id: str, document: dict[str, Any]) -> tuple[tuple[str, ...], list[str]]:
        """Name the credential where there are several; the ids of those used, and services that have none."""
        used, missing = [], []
        for step in document["steps"]:
            action = self.actions[step["action"]]
            if action.service is None:
                continue
            chosen = self.secrets.choice(tenant_id, action.service)
            if chosen is not None:
                used.append(chosen[1])
                if self.secrets.several(tenant_id, action.service):
                    step["credential"] = chosen[0]
            elif action.credential_required:
                missing.append(action.service)
        return tuple(dict.fromkeys(used)), list(dict.fromkeys(missing))

    def _trigger(self, row: Mapping[str, Any], workflow: Workflow, *, active: bool) -> dict[str, Any]:
        made = self.kinds.row(row["id"], workflow.trigger, self.now)
        next_fire_at = made.next_fire_at if active else None
        if active and isinstance(workflow.trigger, ScheduleTrigger) and workflow.trigger.every is not None:
            next_fire_at = next_fire(row["id"], workflow.trigger.every, row["last_executed_at"], self.now)
        return {**_keys(row), "type": made.type, "config": dump_json(made.config), "next_fire_at": next_fire_at}

    def _kept(self, row: Mapping[str, Any], reason: str) -> Planned:
        """As version 0, which cannot be switched on; a webhook's URL answers that the workflow is inactive."""
        document: dict[str, Json] = {
            "name": _name(row),
            "trigger": {"type": row["trigger_type"]},
            "steps": [{"id": "action", "action": row["action_type"], "with": {"config_json": row["config_json"]}}],
        }
        text_of = dump_json(document)
        columns = _columns(row, UNCONVERTED, text_of, hashlib.sha256(text_of.encode()).hexdigest())
        columns |= {"is_active": False, "inactive_reason": reason}
        trigger = None
        if row["trigger_type"] == "webhook":
            made = self.kinds.row(row["id"], WebhookTrigger(type="webhook", legacy=True), self.now)
            trigger = {**_keys(row), "type": made.type, "config": dump_json(made.config), "next_fire_at": None}
        return Planned(columns, trigger, (Finding("workflows", row["id"], Kind.INACTIVE, reason),))


def next_fire(workflow_id: str, interval: timedelta, last: datetime | None, now: datetime) -> datetime:
    """When a schedule falls due after the switch; see the module."""
    if last is None:
        return now + _part_of(workflow_id, min(interval, FIRST_RUNS))
    if last >= now:  # a clock was wrong; waiting for it might take years
        return now + interval
    due = last.astimezone(UTC) + interval
    return due if due > now else now + _part_of(workflow_id, interval)


def odd_interval(config_json: str, every: timedelta) -> str | None:
    """What to say when `every` is not what the settings ask for; None when it is, or when they ask for nothing."""
    config = json.loads(config_json) if config_json.strip() else None
    asked = config.get("interval") if isinstance(config, dict) else None
    minutes = every // timedelta(minutes=1)
    is_number = isinstance(asked, int | float) and not isinstance(asked, bool)
    if asked is None or (is_number and asked == minutes):
        return None
    shown = json.dumps(asked)[:100]
    if is_number and asked <= 0:
        return f"its interval is {shown}; it runs every {minutes} minutes, as it did in the old system"
    return f"its interval is {shown}, not a whole number of minutes up to a year; it runs every {minutes} minutes"


def _runs_a_month(workflow: Workflow) -> int:
    every = workflow.trigger.every if isinstance(workflow.trigger, ScheduleTrigger) else None
    return 0 if every is None else timedelta(days=30) // every


def _part_of(workflow_id: str, span: timedelta) -> timedelta:
    """A part of `span` that is even over many ids."""
    share = int.from_bytes(hashlib.sha256(workflow_id.encode()).digest()[:4])
    return timedelta(seconds=int(span.total_seconds() * share / 2**32))


def convert(connection: Connection, converter: Converter, progress: Progress) -> Notes:
    """Convert all, a batch at a time. The system role is set."""
    total = int(connection.execute(text("SELECT count(*) FROM workflows")).scalar_one())
    notes = Notes()
    after: str | None = None
    done = 0
    while rows := [dict(row) for row in connection.execute(_NEXT, {"after": after, "limit": BATCH}).mappings()]:
        planned = [converter.plan(row) for row in rows]
        _write(connection, planned)
        for plan in planned:
            notes.add(plan)
        after = rows[-1]["id"]
        done += len(rows)
        progress("Converting workflows", done, total)
    return notes


def _write(connection: Connection, planned: list[Planned]) -> None:
    columns = [plan.columns for plan in planned]
    connection.execute(_VERSION, columns)
    connection.execute(_WORKFLOW, columns)
    if triggers := [plan.trigger for plan in planned if plan.trigger is not None]:
        connection.execute(_TRIGGER, triggers)


def _said(fault: Fault) -> str:
    """A fault of the document as a whole has no place in it."""
    return f"{fault.pointer.lstrip('/')}: {fault.message}" if fault.pointer else fault.message


def _keys(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"tenant_id": row["tenant_id"], "id": row["id"]}


def _columns(row: Mapping[str, Any], version: int, definition: str, digest: str) -> dict[str, Any]:
    return {
        **_keys(row),
        "version": version,
        "definition": definition,
        "hash": digest,
        "author": AUTHOR,
        "is_active": row["is_active"],
        "inactive_reason": None,
    }


def _name(row: Mapping[str, Any]) -> str:
    """As a document may be called; the row keeps the name as it was written."""
    return row["name"].strip()[:_LONGEST_NAME].strip() or "Untitled"
