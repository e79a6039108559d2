"""``fairlane tenants usage``, ``over-quota`` and what ``show`` says of limits, on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from engine.db import Database
from engine.usage import RollUp
from tests.command_line import CommandLine, configured

USED = """
INSERT INTO tenants (id, name) VALUES ('acme', 'Acme'), ('beta', 'Beta');
INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id, action, quantity, seconds, bytes_in, bytes_out) VALUES
    ('acme', '2026-02-01', 'execution', 'run_1', 'wf_1', NULL, 1, 0, 0, 0),
    ('acme', '2026-02-27', 'execution', 'run_2', 'wf_2', NULL, 1, 0, 0, 0),
    ('acme', '2026-02-27', 'action_call', 'run_2', 'wf_2', 'debug.echo', 3, 0.5, 20, 10),
    ('acme', '2026-02-28T23:59:59Z', 'worker_seconds', 'run_2', 'wf_2', NULL, 1, 1.25, 0, 0),
    ('acme', '2026-03-01', 'execution', 'run_3', 'wf_1', NULL, 1, 0, 0, 0),
    ('acme', '2026-02-03', 'held', 'run_4', 'wf_1', NULL, 1, 0, 0, 0),
    ('beta', '2026-02-01', 'execution', 'run_5', 'wf_3', NULL, 1, 0, 0, 0);
INSERT INTO usage (tenant_id, at, kind, workflow_id, outcome)
    VALUES ('acme', '2026-02-04', 'rejected', 'wf_1', 'quota_queue');
INSERT INTO usage (tenant_id, kind, run_id, workflow_id) VALUES ('acme', 'execution', 'run_6', 'wf_1')
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.system() as session:
        for statement in USED.split(";"):
            session.execute(sa.text(statement))
    yield database
    database.close()


@pytest.fixture
def fairlane(database: Database, database_url: str, redis_url: str, tmp_path: Path) -> CommandLine:
    return configured(tmp_path, database_url, redis_url)


def test_a_month_of_one_organization_is_told_in_sums_and_by_workflow(fairlane: CommandLine, database: Database) -> None:
    for _ in range(2):  # before and after the roll-up
        report = fairlane.fine("tenants", "usage", "acme", "--period", "2026-02", "--json").json
        assert [report[name] for name in ("executions", "action_calls", "held", "rejected")] == [2, 3, 1, 1]
        assert (report["worker_seconds"], report["bytes_in"], report["bytes_out"]) == (1.25, 20, 10)
        assert report["by_action"] == [
            {"action": "debug.echo", "calls": 3, "seconds": 0.5, "bytes_in": 20, "bytes_out": 10}
        ]
        RollUp(database).run_once()
    assert fairlane.fine("tenants", "usage", "acme", "--json").json["executions"] == 1
    told = fairlane.fine("tenants", "usage", "acme", "--period", "2026-02").out.splitlines()
    record, table = told[: told.index("")], told[told.index("") + 1 :]
    assert [line.split() for line in record[:3]] == [["period", "2026-02"], ["executions", "2"], ["action_calls", "3"]]
    assert table[0].startswith("workflow id")
    assert [line.split() for line in table[1:]] == [
        ["wf_1", "1", "0", "0", "1", "1"],
        ["wf_2", "1", "3", "1.25", "0", "0"],
    ]
    none = fairlane.fine("tenants", "usage", "beta", "--period", "2025-12").out.splitlines()
    assert none[-2:] == ["", "Nothing was used in this month."]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("usage", "nobody"), 1, "no organization 'nobody'"),
        (("usage", "acme", "--period", "2026-13"), 2, "want a month such as 2026-11"),
        (("over-quota", "nobody", "reject"), 1, "no organization 'nobody'"),
        (("over-quota", "acme", "drop"), 2, "Invalid value for 'POLICY': 'drop' is not one of 'hold', 'reject'."),
    ],
)
def test_what_cannot_be_told_or_set_says_why(
    fairlane: CommandLine, words: tuple[str, ...], code: int, sentence: str
) -> None:
    result = fairlane("tenants", *words)
    assert result.code == code
    assert sentence in " ".join(result.err.replace("│", " ").split())


def test_the_policy_is_set_told_and_audited(fairlane: CommandLine, database: Database) -> None:
    assert fairlane.fine("tenants", "show", "acme", "--json").json["over_quota"] == "hold"
    refused = fairlane.fine("tenants", "over-quota", "acme", "reject")
    assert ["over_quota", "reject"] in [
        line.split() for line in fairlane.fine("tenants", "show", "acme").out.splitlines()
    ]
    assert refused.out == "Runs of acme over its monthly limit are refused.\n"
    policy = sa.text("SELECT limits ->> 'over_quota' FROM tenants WHERE id = 'acme'")
    with database.system() as session:
        assert session.execute(policy).scalar_one() == "reject"
    told = fairlane.fine("tenants", "over-quota", "acme", "hold", "--json").json
    assert told == {"tenant": "acme", "over_quota": "hold"}
    with database.tenant("acme") as own:
        assert own.execute(sa.text("SELECT count(*) FROM audit")).scalar_one() == 2
    help_text = " ".join(fairlane.fine("tenants", "over-quota", "--help").out.replace("│", " ").split())
    assert "get 429 with Retry-After" in help_text


def test_what_is_used_stands_beside_its_limit(fairlane: CommandLine) -> None:
    fairlane.fine("tenants", "set-limit", "acme", "max_executions_per_month", "7")
    lines = [line.split() for line in fairlane.fine("tenants", "show", "acme").out.splitlines()]
    assert next(line for line in lines if line[:1] == ["max_executions_per_month"])[:3] == [
        "max_executions_per_month",
        "7",
        "1",
    ]
