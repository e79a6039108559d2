"""``fairlane tenants``: people, audit, archive, moving and leaving, by the entry point, on real servers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from engine import audit
from engine.audit import Actor
from engine.db import Database
from engine.leaving import Eraser
from tests.command_line import CommandLine, configured
from tests.trigger_parts import Parts, parts_for


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        parts.change("INSERT INTO users (id, email, password_hash) VALUES ('u1', 'Ada@example.com', 'x')")
        yield parts


@pytest.fixture
def database(parts: Parts) -> Database:
    return parts.database


@pytest.fixture
def fairlane(parts: Parts, database_url: str, redis_url: str, tmp_path: Path) -> CommandLine:
    return configured(tmp_path, database_url, redis_url)


def status(parts: Parts, tenant: str) -> str:
    return str(parts.rows("SELECT status FROM tenants WHERE id = :id", id=tenant)[0]["status"])


def test_an_account_joins_gets_another_role_and_is_listed(fairlane: CommandLine) -> None:
    fairlane.fine("tenants", "join", "a", "ada@EXAMPLE.com", "--role", "owner")
    refused = fairlane("tenants", "join", "a", "ada@example.com", "--role", "member")
    assert (refused.code, "only owner" in refused.err) == (1, True)
    (member,) = fairlane.fine("tenants", "members", "a", "--json").json
    assert (member["email"], member["role"]) == ("Ada@example.com", "owner")
    assert "Ada@example.com" in fairlane.fine("tenants", "members", "a").out
    assert "no account" in fairlane("tenants", "join", "a", "nobody@example.com").err
    assert fairlane("tenants", "join", "nowhere", "ada@example.com").code == 1


def test_what_an_operator_does_stands_in_the_audit_under_their_name(fairlane: CommandLine) -> None:
    for command in (
        ("set-plan", "a", "team"),
        ("set-limit", "a", "max_members", "7"),
        ("suspend", "a"),
        ("resume", "a"),
    ):
        fairlane.fine("tenants", *command)
    lines = [json.loads(line) for line in fairlane.fine("tenants", "audit", "a").out.splitlines()]
    assert [line["action"] for line in lines] == [
        "tenant.plan_set",
        "tenant.limits_set",
        "tenant.suspended",
        "tenant.resumed",
    ]
    assert {line["actor"].partition(":")[0] for line in lines} == {"operator"}
    assert lines[1]["data"] == {"max_members": 7}


def test_audits_are_verified_one_all_or_an_export(
    fairlane: CommandLine, parts: Parts, database_url: str, tmp_path: Path
) -> None:
    for tenant in "ab":
        with parts.database.tenant(tenant) as session:
            for number in range(3):
                audit.record(session, Actor("u1"), "x.y", str(number))
    export = tmp_path / "audit.jsonl"
    export.write_text(fairlane.fine("tenants", "audit", "a").out)
    heads = {v["audit"]: v["head"] for v in fairlane.fine("tenants", "audit", "--verify", "--json").json}
    assert heads.keys() == {"a", "b"}
    fairlane.fine("tenants", "audit", "--file", str(export), "--known", heads["a"])
    fairlane.fine("tenants", "audit", "a", "--verify", "--known", heads["a"])

    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica; DELETE FROM audit WHERE tenant_id = 'a' AND id = 3")
    fairlane.fine("tenants", "audit", "a", "--verify")
    broken = fairlane("tenants", "audit", "a", "--verify", "--known", heads["a"])
    assert (broken.code, "its end is gone" in broken.err) == (1, True)
    export.write_text(export.read_text().replace('"1"', '"9"'))
    assert fairlane("tenants", "audit", "--file", str(export)).code == 1
    assert fairlane("tenants", "audit").code == 2
    assert fairlane("tenants", "audit", "--verify", "--known", heads["a"]).code == 2
    assert fairlane("tenants", "audit", "a", "--verify", "--known", "x").code == 2


def test_everything_is_exported_into_one_private_file(fairlane: CommandLine, parts: Parts, tmp_path: Path) -> None:
    workflow_id = parts.save({"type": "webhook"})
    target = tmp_path / "a.zip"
    fairlane.fine("tenants", "export", "a", str(target))
    with zipfile.ZipFile(target) as made:
        (row,) = [json.loads(line) for line in made.read("workflows.jsonl").splitlines()]
    assert row["id"] == workflow_id
    assert target.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.glob("a.zip*")) == ["a.zip"]
    assert fairlane("tenants", "export", "nowhere", str(target)).code == 1


def test_an_organization_is_deleted_after_asking_restored_and_at_last_erased(
    fairlane: CommandLine, parts: Parts
) -> None:
    assert fairlane("tenants", "delete", "a").code == 2
    assert status(parts, "a") == "active"
    fairlane.fine("tenants", "delete", "a", "--yes")
    assert status(parts, "a") == "deleted"
    assert fairlane("tenants", "show", "a").code == 1
    fairlane.fine("tenants", "restore", "a")
    assert status(parts, "a") == "active"
    assert fairlane("tenants", "restore", "a").code == 1
    fairlane.fine("tenants", "delete", "a", "--yes", "--grace-days", "0")
    assert Eraser(parts.database).run_once().tenants == 1
    assert [row["id"] for row in fairlane.fine("tenants", "list", "--json").json] == ["b"]


def test_workflows_move_by_command(fairlane: CommandLine, parts: Parts) -> None:
    workflow_id = parts.save({"type": "webhook"})
    other = parts.save({"type": "webhook"})
    assert fairlane("tenants", "move", "a", "b").code == 2
    assert fairlane("tenants", "move", "a", "b", "--all", "--workflow", workflow_id).code == 2
    moved = fairlane.fine("tenants", "move", "a", "b", "--workflow", workflow_id, "--json").json
    assert moved == {"workflows": [workflow_id], "credentials": []}
    fairlane.fine("tenants", "move", "a", "b", "--all")
    rows = parts.rows("SELECT id, tenant_id FROM workflows ORDER BY id")
    assert [(row["id"], row["tenant_id"]) for row in rows] == [(workflow_id, "b"), (other, "b")]
    assert fairlane("tenants", "move", "a", "nowhere", "--all").code == 1


def test_working_together_is_switched_for_one_organization(fairlane: CommandLine, database: Database) -> None:
    fairlane.fine("tenants", "organizations", "a", "off")
    with database.system() as session:
        rows = session.rows(sa.text("SELECT id, organizations FROM tenants ORDER BY id"))
    assert [(row["id"], row["organizations"]) for row in rows] == [("a", False), ("b", True)]
    fairlane.fine("tenants", "organizations", "a", "on")
    assert fairlane("tenants", "organizations", "nowhere", "on").code == 1


def test_the_table_of_roles_is_shown(fairlane: CommandLine) -> None:
    table = fairlane.fine("tenants", "roles", "--json").json
    assert "members:manage" in table["admin"]
    assert "members:manage" not in table["member"]
    assert "runs:write" in fairlane.fine("tenants", "roles").out
