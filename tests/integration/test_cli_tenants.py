"""``fairlane tenants`` and ``fairlane plans`` by their entry point, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from engine.db import Database
from engine.fairshare import Lanes
from engine.plans import NAMES
from tests.command_line import DOWN, CommandLine, configured
from tests.fair_queue import fair_queue


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme'), ('beta', 'Beta')"))
    yield database
    database.close()


@pytest.fixture
def fairlane(database: Database, database_url: str, redis_url: str, tmp_path: Path) -> CommandLine:
    return configured(tmp_path, database_url, redis_url)


def test_a_long_list_is_whole_in_order_and_can_be_narrowed(fairlane: CommandLine, database: Database) -> None:
    with database.system() as session:
        session.execute(
            sa.text(
                "INSERT INTO tenants (id, name, plan, status)"
                " SELECT 't' || lpad(n::text, 4, '0'), '100% ' || n, CASE WHEN n % 2 = 0 THEN 'team' ELSE 'free' END,"
                " CASE WHEN n = 7 THEN 'suspended' WHEN n = 8 THEN 'deleted' ELSE 'active' END"
                " FROM generate_series(1, 450) n"
            )
        )
    rows = fairlane.fine("tenants", "list", "--json").json
    assert [row["id"] for row in rows] == ["acme", "beta", *(f"t{n:04}" for n in range(1, 451) if n != 8)]
    assert rows[0].keys() == {"id", "name", "plan", "status", "created_at"}
    assert rows[0]["created_at"].endswith("Z")
    assert len(fairlane.fine("tenants", "list").out.splitlines()) == 1 + len(rows)
    assert len(fairlane.fine("tenants", "list", "--plan", "team", "--json").json) == 224
    assert [row["id"] for row in fairlane.fine("tenants", "list", "--status", "suspended", "--json").json] == ["t0007"]
    assert [row["id"] for row in fairlane.fine("tenants", "list", "--name", "100% 45", "--json").json] == [
        "t0045",
        "t0450",
    ]
    assert fairlane.fine("tenants", "list", "--name", "nobody", "--json").json == []
    assert fairlane.fine("tenants", "list", "--name", "nobody").out == "There are no such organizations.\n"
    assert fairlane("tenants", "list", "--status", "deleted").code == 2
    no_plan = fairlane("tenants", "list", "--plan", "gold")
    assert (no_plan.code, no_plan.err) == (1, "There is no plan 'gold'; `fairlane plans list` shows them.\n")


def test_an_organization_is_made_on_a_plan_and_for_an_owner(fairlane: CommandLine, database: Database) -> None:
    with database.system() as session:
        session.execute(sa.text("INSERT INTO users (id, email, password_hash) VALUES ('u1', 'ada@example.com', 'x')"))
    made = fairlane.fine("tenants", "create", " Gamma ", "--plan", "team", "--owner", "Ada@example.com", "--json")
    tenant = made.json
    assert (tenant["name"], tenant["plan"], tenant["status"]) == ("Gamma", "team", "active")
    assert tenant["id"].startswith("tenant_")
    assert tenant["limits"].keys() == set(NAMES)
    assert made.err == ""
    with database.system() as session:
        members = session.rows(sa.text("SELECT tenant_id, user_id, role FROM memberships"))
    assert members == [{"tenant_id": tenant["id"], "user_id": "u1", "role": "owner"}]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("Delta", "--owner", "nobody@example.com"), 1, "no account 'nobody@example.com'"),
        (("Delta", "--plan", "gold"), 1, "no plan 'gold'"),
        (("  ",), 2, "want a name"),
        (("a\nb",), 2, "want a name"),
        ((), 2, "Missing argument"),
    ],
)
def test_an_organization_that_cannot_be_made_is_not_made(
    fairlane: CommandLine, words: tuple[str, ...], code: int, sentence: str
) -> None:
    result = fairlane("tenants", "create", *words)
    assert result.code == code
    assert sentence in result.err
    assert len(fairlane.fine("tenants", "list", "--json").json) == 2


def test_an_organization_without_members_is_said_to_have_none(fairlane: CommandLine) -> None:
    assert "Nobody belongs to it yet" in fairlane.fine("tenants", "create", "Gamma").err


def test_showing_one_tells_limits_where_they_come_from_and_what_it_has(fairlane: CommandLine) -> None:
    fairlane.fine("tenants", "set-limit", "acme", "max_members", "unlimited")
    shown = fairlane.fine("tenants", "show", "acme", "--json").json
    assert shown["overrides"] == {"max_members": None}
    assert shown["limits"]["max_members"] is None
    assert shown["limits"]["max_executions_per_month"] == 10000
    assert shown["counts"]["members"] == shown["counts"]["runs_queued"] == 0
    lines = [line.split() for line in fairlane.fine("tenants", "show", "acme").out.splitlines()]
    assert next(line for line in lines if line[:1] == ["max_members"])[:2] == ["max_members", "unlimited"]
    assert next(line for line in lines if line[:1] == ["max_members"])[-2:] == ["its", "own"]
    assert next(line for line in lines if line[:1] == ["max_workflows"])[-1] == "plan"
    assert next(line for line in lines if line[:1] == ["max_workflows"])[:3] == ["max_workflows", "100", "0"]
    assert shown["used"].keys() < shown["limits"].keys()
    assert shown["used"]["max_executions_per_month"] == 0


def test_a_limit_is_set_and_given_back_to_the_plan(fairlane: CommandLine) -> None:
    own = fairlane.fine("tenants", "set-limit", "acme", "max_executions_per_month", "100", "--json").json
    assert own["limits"]["max_executions_per_month"] == 100
    back = fairlane.fine("tenants", "set-limit", "acme", "max_executions_per_month", "default")
    assert back.out == "max_executions_per_month of acme is 10,000 (as on its plan free).\n"
    assert fairlane.fine("tenants", "show", "acme", "--json").json["overrides"] == {}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("acme", "max_executions_per_month", "lots"), 2, "max_executions_per_month cannot be 'lots': want a whole"),
        (("acme", "max_executions_per_month", "plan"), 2, "or unlimited. default is as its plan says."),
        (("acme", "max_executions", "1"), 2, "Did you mean max_executions_per_month?"),
        (("acme", "max_executions", "default"), 2, "There is no limit 'max_executions'"),
        (("acme", "max_members"), 2, "Missing argument"),
        (("nobody", "max_members", "1"), 1, "no organization 'nobody'"),
    ],
)
def test_a_limit_that_cannot_be_set_says_why(
    fairlane: CommandLine, words: tuple[str, ...], code: int, sentence: str
) -> None:
    result = fairlane("tenants", "set-limit", *words)
    assert result.code == code
    assert sentence in " ".join(result.err.replace("│", " ").split())
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_goes_back_to_what_the_plan_says(fairlane: CommandLine, name: str) -> None:
    fairlane.fine("tenants", "set-limit", "acme", name, "5000" if name == "max_payload_bytes" else "5")
    assert fairlane.fine("tenants", "set-limit", "acme", name, "default", "--json").json["overrides"] == {}


def test_a_weight_that_is_set_acts_on_what_waits_already(fairlane: CommandLine, redis_url: str) -> None:
    with fair_queue(redis_url) as queue:
        queue.publish("acme", 40)
        queue.publish("beta", 40)
        fairlane.fine("plans", "set", "free", "max_concurrent_runs", "unlimited")
        assert queue.take_many(10) == {"acme": 5, "beta": 5}
        fairlane.fine("tenants", "set-limit", "beta", "weight", "4")
        assert abs(queue.take_many(20)["beta"] - 16) <= 1
        fairlane.fine("plans", "set", "free", "weight", "4")
        assert abs(queue.take_many(20)["beta"] - 10) <= 1


def test_a_plan_is_changed_for_all_and_an_organization_moves_between_plans(
    fairlane: CommandLine, redis_url: str
) -> None:
    lanes = Lanes(redis_url)
    for tenant in ("acme", "beta"):
        lanes.configure(tenant, version=0)
    assert fairlane.fine("tenants", "set-plan", "acme", "team").out == "acme is on the plan team.\n"
    shown = fairlane.fine("plans", "set", "team", "max_concurrent_runs=70", "weight=3", "--json").json
    assert (shown["name"], shown["tenants"], shown["limits"]["weight"]) == ("team", 1, 3)
    assert {lane.tenant: (lane.cap, lane.weight) for lane in lanes.all()} == {"acme": (70, 3), "beta": (None, 1)}
    assert fairlane("tenants", "set-plan", "acme", "gold").code == 1
    assert fairlane("tenants", "set-plan", "nobody", "team").code == 1


def test_a_plan_is_made_and_listed_beside_the_others(fairlane: CommandLine) -> None:
    assert fairlane("plans", "set", "pro", "weight", "3").code == 1
    fairlane.fine("plans", "set", "pro", "weight", "3", "max_members", "7", "--create")
    rows = {row["name"]: row for row in fairlane.fine("plans", "list", "--json").json}
    assert rows.keys() == {"free", "team", "enterprise", "pro"}
    assert rows["pro"]["limits"]["max_members"] == 7
    assert rows["pro"]["limits"]["max_workflows"] is None
    header, *lines = fairlane.fine("plans", "list").out.splitlines()
    assert header.split() == ["limit", "enterprise", "free", "pro", "team"]
    assert [line.split()[0] for line in lines] == ["tenants", *NAMES]
    assert fairlane.fine("plans", "show", "pro", "--json").json == rows["pro"]
    assert "max_members" in fairlane.fine("plans", "show", "pro").out
    assert fairlane("plans", "set", "pro", "weight", "2", "--create").code == 1
    assert fairlane("plans", "show", "gold").code == 1
    assert fairlane("plans", "set", "pro", "weight").code == 2
    assert fairlane("plans", "set", "pro", "weight", "heavy").code == 2


@pytest.mark.parametrize("name", ["", " ", "Gold", "gold plan", "gold\n", "gold\x1b[31m", "gölD", "g" * 51, "g" * 300])
def test_a_plan_gets_no_name_that_nobody_could_type_or_read(fairlane: CommandLine, name: str) -> None:
    refused = fairlane("plans", "set", name, "weight", "3", "--create")
    told = " ".join(refused.err.replace("│", " ").split())
    assert refused.code == 2
    assert "want 1 to 50 lower-case letters a to z, digits, - and _." in told
    assert "g" * 51 not in told
    assert len(fairlane.fine("plans", "list", "--json").json) == 3


def test_plans_with_names_of_before_stay_in_use(fairlane: CommandLine, database: Database) -> None:
    with database.system() as session:
        session.execute(sa.text("INSERT INTO plans (name, limits, limits_version) VALUES ('Gold Plan', '{}', 1)"))
    assert fairlane.fine("plans", "set", "Gold Plan", "weight", "3", "--json").json["limits"]["weight"] == 3
    assert fairlane.fine("tenants", "set-plan", "acme", "Gold Plan", "--json").json["plan"] == "Gold Plan"
    fairlane.fine("plans", "set", "g" * 50, "weight", "3", "--create")


def test_a_suspended_organization_is_paused_and_resumed(fairlane: CommandLine, redis_url: str) -> None:
    with fair_queue(redis_url) as queue:
        queue.publish("acme", 1)
        assert fairlane.fine("tenants", "suspend", "acme", "--json").json["status"] == "suspended"
        assert queue.take() is None
        assert fairlane.fine("tenants", "resume", "acme").out == "acme is active.\n"
        assert queue.take() == "acme"
    fairlane.fine("lanes", "pause", "acme")
    assert "Its lane is still paused" in fairlane.fine("tenants", "resume", "acme").err
    assert fairlane("tenants", "suspend", "nobody").code == 1


def test_a_change_is_stored_while_redis_is_down_and_says_how_lanes_learn_of_it(
    fairlane: CommandLine, redis_url: str
) -> None:
    Lanes(redis_url).configure("acme", version=0)
    result = fairlane.fine("tenants", "set-limit", "acme", "weight", "9", FAIRLANE_REDIS_URL=DOWN)
    assert "The change is stored, but the lanes do not know it yet" in result.err
    assert fairlane.fine("tenants", "show", "acme", "--json").json["limits"]["weight"] == 9
    assert fairlane("lanes", "check").code == 1
    fairlane.fine("lanes", "check", "--repair")
    lane = Lanes(redis_url).inspect("acme")
    assert lane is not None
    assert lane.weight == 9


def test_the_operator_says_where_an_organization_is_told_of_its_quota(
    fairlane: CommandLine, database: Database
) -> None:
    hook = "https://ops.example.com/fairlane"
    told = fairlane.fine("tenants", "set-notice-url", "acme", hook).out.splitlines()
    assert told[0] == f"Notices of acme go to {hook}."
    assert told[1].startswith("They are signed with whsec_")
    answer = fairlane.fine("tenants", "set-notice-url", "acme", hook, "--json").json
    assert answer["url"] == hook
    assert answer["secret"] not in told[1]
    refused = fairlane("tenants", "set-notice-url", "acme", "http://127.0.0.1/x")
    assert refused.code == 2
    assert "it is a loopback address" in " ".join(refused.err.replace("│", " ").split())
    assert fairlane("tenants", "set-notice-url", "nobody", hook).code == 1
    fairlane.fine("tenants", "set-notice-url", "acme", "none")
    assert fairlane("tenants", "set-notice-url", "acme", "none").err == "There is no URL for notices.\n"
    with database.tenant("acme") as session:
        actions = session.execute(sa.text("SELECT action FROM audit ORDER BY id")).scalars().all()
    assert actions == ["quota.notice_url_set"] * 2 + ["quota.notice_url_removed"]
