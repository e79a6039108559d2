"""Adopted organizations begin on a plan, and are told when their schedules start more than it admits."""

from __future__ import annotations

import base64
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from engine import billing
from engine.db import Database
from migrations.legacy import plans
from migrations.legacy.findings import Kind
from tests.adopting import adopted_now, rows_of
from tests.command_line import DOWN, configured
from tests.legacy_database import (
    KEY,
    Legacy,
    dump,
)


def _busy() -> Legacy:
    """Of two users one whose schedule of a minute starts 43,200 runs a month."""
    legacy = Legacy()
    users = [legacy.user("busy@example.com", id="busy"), legacy.user("calm@example.com", id="calm")]
    for user in users:
        legacy.credential(user, "slack", "http://x/")
        for active in (user == "busy", False):
            every_minute = {"slack_message": "x", "interval": 1}
            legacy.workflow(user, "schedule", "slack_message", every_minute, is_active=int(active))
    return legacy


def test_schedules_that_start_more_than_the_new_plan_admits_are_told_with_the_plan_that_does(
    empty_database_url: str,
) -> None:
    _busy().write(empty_database_url)
    [told] = adopted_now(empty_database_url).findings
    assert (told.table, told.id, told.kind) == ("users", "busy", Kind.NOTED)
    assert told.reason == (
        "its schedules start about 43,200 runs a month, and the plan free admits 10,000; what comes over that is held."
        " --plan team admits 250,000"
    )
    assert rows_of(empty_database_url, "SELECT DISTINCT plan FROM tenants") == [(plans.FREE,)]
    seeded = rows_of(empty_database_url, "SELECT name, (limits->>'max_executions_per_month')::int FROM plans")
    assert dict(seeded) == plans.SEEDED


def test_a_wider_plan_than_the_widest_with_a_limit_is_the_one_without() -> None:
    said = plans.said_of("team", 250_001, plans.SEEDED)
    assert said is not None
    assert said.endswith(
        "the plan team admits 250,000; what comes over that is held. --plan enterprise admits any number"
    )
    assert plans.said_of("team", 250_000, plans.SEEDED) is plans.said_of("enterprise", 10**9, plans.SEEDED) is None
    narrow = plans.said_of("free", 2, {"free": 1})
    assert narrow is not None
    assert narrow.endswith(
        "the plan free admits 1; what comes over that is held, and so it is on every plan that there is"
    )


def test_adopted_organizations_begin_on_the_plan_that_was_asked_for_and_can_go_back(
    empty_database_url: str, tmp_path: Path
) -> None:
    _busy().write(empty_database_url)
    before = dump(empty_database_url)
    command = configured(tmp_path, empty_database_url, DOWN)
    words = ("migrate", "--adopt", "--encryption-key", base64.b64encode(KEY).decode())
    refused = command(*words, "--plan", "gold")
    assert (refused.code, refused.out) == (2, "")
    assert "There is no plan 'gold'; there will be free, team, enterprise." in refused.err
    assert command("migrate", "--plan", "team").code == 2
    seen = command.fine(*words, "--plan", "team", "--check")
    assert "a personal organization on the plan team for each user" in seen.out
    assert "noted" not in seen.out
    assert "--plan team admits 250,000" in command.fine(*words, "--check").out
    assert dump(empty_database_url) == before
    assert command.fine(*words, "--plan", "team", "--json").json["findings"] == []
    assert rows_of(empty_database_url, "SELECT id, plan FROM tenants ORDER BY 1") == [
        ("tenant_busy", "team"), ("tenant_calm", "team")
    ]  # fmt: skip
    assert rows_of(empty_database_url, "SELECT count(*) FROM plan_terms") == [(0,)]
    with closing(Database(empty_database_url, pool_size=1)) as database, database.tenant("tenant_busy") as session:
        bill = billing.of_tenant(session, f"{datetime.now(UTC):%Y-%m}")
    assert all("team" in line["description"] for line in bill["lines"]), bill["lines"]
    assert [line["from"] for line in bill["lines"]] == [f"{datetime.now(UTC):%Y-%m-%d}"] * 2
    command.fine("migrate", "--back-to", "0001")
    assert dump(empty_database_url) == before
