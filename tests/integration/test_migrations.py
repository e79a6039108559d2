"""The history of the schema: it leads to the models, and back as far as nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

import migrations
from embedded.ports import free_port
from engine.models import metadata
from tests.command_line import DOWN, configured
from tests.legacy_database import clean, dump

CHECKS = sa.text(
    "SELECT conrelid::regclass::text AS on_table, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
)
LEGACY_ROWS = {
    "users": "SELECT id, email, password_hash, created_at FROM users ORDER BY id",
    "credentials": "SELECT id, user_id, service_name, encrypted_key, created_at FROM credentials ORDER BY id",
    "workflows": "SELECT id, user_id, name, trigger_type, action_type, config_json, action_chain, parameters,"
    " is_active, last_executed_at, created_at FROM workflows ORDER BY id",
    "logs": "SELECT id, workflow_id, status, message, executed_at FROM logs ORDER BY id",
}


@pytest.fixture
def connection(empty_database_url: str) -> Iterator[Connection]:
    engine = sa.create_engine(empty_database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _seed_legacy(connection: Connection) -> None:
    connection.execute(
        sa.text(
            """
            INSERT INTO users VALUES
                ('u1', 'ada@example.com', '$2a$10$x', '2026-01-01T10:00:00Z'),
                ('u2', 'o''brien+x@example.com', '$2a$10$y', '2026-01-02T10:00:00Z');
            INSERT INTO credentials VALUES
                ('c1', 'u1', 'slack', 'AAAA', '2026-01-03T00:00:00Z'),
                ('c2', 'u1', 'slack', 'BBBB', '2026-01-04T00:00:00Z'),
                ('c3', 'u2', 'slack', 'CCCC', '2026-01-04T00:00:00Z');
            INSERT INTO workflows VALUES
                ('w1', 'u1', 'Orders', 'webhook', 'slack_message', '{}', NULL, '[]', true, NULL,
                 '2026-01-05T00:00:00Z');
            INSERT INTO logs VALUES ('l1', 'w1', 'success', 'sent', '2026-01-06T00:00:00Z');
            """
        )
    )


def _rows(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    return {name: [tuple(row) for row in connection.execute(sa.text(query))] for name, query in LEGACY_ROWS.items()}


def test_the_migrations_lead_to_exactly_the_models(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url)
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    assert compare_metadata(context, metadata) == []


def test_the_check_constraints_are_those_of_the_models(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url)
    migrated = {tuple(row) for row in connection.execute(CHECKS)}
    connection.execute(sa.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    metadata.create_all(connection)
    assert migrated == {tuple(row) for row in connection.execute(CHECKS)}
    assert len(migrated) > 8


def test_a_second_upgrade_changes_nothing(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url)
    migrations.upgrade(empty_database_url)
    assert migrations.current(connection) == migrations.head()


def test_every_user_gets_a_personal_organization_and_owns_it(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url, "0001")
    _seed_legacy(connection)
    migrations.upgrade(empty_database_url)
    tenants = connection.execute(sa.text("SELECT id, name, created_at::date::text FROM tenants ORDER BY id")).all()
    assert [tuple(row) for row in tenants] == [
        ("tenant_u1", "ada@example.com's Organization", "2026-01-01"),
        ("tenant_u2", "o'brien+x@example.com's Organization", "2026-01-02"),
    ]
    owners = connection.execute(sa.text("SELECT tenant_id, user_id, role FROM memberships ORDER BY 1")).all()
    assert [tuple(row) for row in owners] == [("tenant_u1", "u1", "owner"), ("tenant_u2", "u2", "owner")]


def test_workflows_credentials_and_logs_follow_their_user(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url, "0001")
    _seed_legacy(connection)
    migrations.upgrade(empty_database_url)
    names = connection.execute(sa.text("SELECT id, tenant_id, name FROM credentials ORDER BY id")).all()
    assert [tuple(row) for row in names] == [
        ("c1", "tenant_u1", "slack"),
        ("c2", "tenant_u1", "slack 2"),
        ("c3", "tenant_u2", "slack"),
    ]
    for table in ("workflows", "logs"):
        assert connection.execute(sa.text(f"SELECT tenant_id FROM {table}")).scalars().all() == ["tenant_u1"]


def test_a_downgrade_restores_the_legacy_tables_row_for_row(empty_database_url: str, connection: Connection) -> None:
    migrations.upgrade(empty_database_url, "0001")
    _seed_legacy(connection)
    before = _rows(connection)
    migrations.upgrade(empty_database_url)
    migrations.downgrade(empty_database_url, "0001")
    assert _rows(connection) == before


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')", "organizations that are not personal"),
        ("UPDATE workflows SET config_json = NULL", "workflows exist that have no legacy form"),
        ("UPDATE workflows SET user_id = NULL", "workflows of shared organizations exist"),
        (
            "UPDATE credentials SET encrypted_key = NULL, ciphertext = '\\x00', key_version = 1",
            "credentials exist that have no legacy form",
        ),
    ],
)
def test_a_downgrade_refuses_what_would_lose_data(
    empty_database_url: str, connection: Connection, statement: str, sentence: str
) -> None:
    migrations.upgrade(empty_database_url, "0001")
    _seed_legacy(connection)
    migrations.upgrade(empty_database_url)
    connection.execute(sa.text(statement))
    with pytest.raises(RuntimeError, match=sentence):
        migrations.downgrade(empty_database_url, "0001")
    assert connection.execute(sa.text("SELECT count(*) FROM tenants")).scalar_one() >= 2


@pytest.mark.parametrize("words", [("--back-to", "9999"), ("--to", "nonsense"), ("--back-to", "-1"), ("--to", "+1")])
def test_a_revision_that_there_is_none_of_is_refused_with_those_that_there_are(
    empty_database_url: str, connection: Connection, tmp_path: Path, words: tuple[str, str]
) -> None:
    refused = configured(tmp_path, empty_database_url, DOWN)("migrate", *words)
    assert (refused.code, refused.out) == (2, "")
    end = "base" if words[0] == "--back-to" else "head"
    assert f"There is no revision '{words[1]}'; there are 0001 to {migrations.head()}, and {end}." in refused.err
    assert migrations.current(connection) is None


@pytest.mark.parametrize("words", [("migrate",), ("migrate", "--to", "0002"), ("up", "--port", "0")])
def test_a_database_of_the_multi_user_system_is_not_touched_before_it_is_adopted(
    empty_database_url: str, redis_url: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    clean().write(empty_database_url)
    before = dump(empty_database_url)
    words = tuple(str(free_port()) if word == "0" else word for word in words)
    refused = configured(tmp_path, empty_database_url, redis_url)(*words)
    assert refused.code == 1
    assert refused.err == (
        "This is a database of the multi-user system: adopt it with `fairlane migrate --adopt` (docs/migration.md). "
        "Nothing was changed.\n"
    )
    assert dump(empty_database_url) == before


@pytest.mark.parametrize("words", [("doctor",), ("tenants", "list")])
def test_whoever_looks_into_a_database_of_the_multi_user_system_is_told_to_adopt_it(
    empty_database_url: str, redis_url: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    clean().write(empty_database_url)
    said = configured(tmp_path, empty_database_url, redis_url)(*words)
    assert (said.code, said.err) == (
        1,
        "This is a database of the multi-user system: adopt it with `fairlane migrate --adopt` (docs/migration.md).\n",
    )


@pytest.mark.parametrize("back_to", ["base", "0001"])
def test_going_back_from_a_database_that_is_not_ours_or_is_there_already_is_one_sentence(
    empty_database_url: str, tmp_path: Path, back_to: str
) -> None:
    command = configured(tmp_path, empty_database_url, DOWN)
    clean().write(empty_database_url)
    said = command("migrate", "--back-to", back_to)
    assert len((said.out + said.err).splitlines()) == 1
    assert "revision base" in said.out + said.err


def test_a_revision_that_the_history_does_not_lead_to_is_refused_with_where_the_schema_is(
    empty_database_url: str, connection: Connection, tmp_path: Path
) -> None:
    command = configured(tmp_path, empty_database_url, DOWN)
    assert command.fine("migrate", "--to", "0002").out == "The schema is at revision 0002.\n"
    assert command.fine("migrate", "--to", "0001").out == "The schema is at revision 0002.\n"
    refused = command("migrate", "--back-to", "0003")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "There is no way back to 0003: the schema is at revision 0002. Nothing was changed.\n"
    connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for words in ((), ("--back-to", "0001")):
        refused = command("migrate", *words)
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.startswith(
            f"The schema is at revision 9999, and this release knows 0001 to {migrations.head()}"
        )
