"""Tenants are kept apart by the database itself: every table, every kind of statement, every hole that is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import errors as pg

from engine.db import SYSTEM_ROLE, TENANT_ROLE, Database, TenantSession
from engine.errors import ConfigurationError, Unavailable
from engine.models import metadata

TENANT_TABLES = sorted(table.name for table in metadata.tables.values() if "tenant_id" in table.c)

SEED = """
INSERT INTO tenants (id, name) VALUES ('{t}', '{t}');
INSERT INTO users (id, email, password_hash, tenant_id) VALUES ('user_{t}', '{t}@example.com', 'x', '{t}');
INSERT INTO memberships (tenant_id, user_id, role) VALUES ('{t}', 'user_{t}', 'owner');
INSERT INTO data_keys (tenant_id, version, master_key_id, wrapped) VALUES ('{t}', 1, 'k', '\\x00');
INSERT INTO credentials (id, tenant_id, service_name, name, ciphertext, key_version)
    VALUES ('cred_{t}', '{t}', 'http', 'http', '\\x00', 1);
INSERT INTO workflows (id, tenant_id, name, trigger_type) VALUES ('wf_{t}', '{t}', 'W', 'manual');
INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)
    VALUES ('{t}', 'wf_{t}', 1, '{{}}', 'h');
INSERT INTO triggers (tenant_id, workflow_id, type, config) VALUES ('{t}', 'wf_{t}', 'manual', '{{}}');
INSERT INTO poll_items (tenant_id, workflow_id, item_id) VALUES ('{t}', 'wf_{t}', 'i');
INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input)
    VALUES ('{t}', 'run_{t}', 'wf_{t}', 1, 'queued', 'api', '{{}}');
INSERT INTO steps (tenant_id, run_id, step_id, status, attempt) VALUES ('{t}', 'run_{t}', 's', 'running', 1);
INSERT INTO execution_logs (tenant_id, run_id, level, message) VALUES ('{t}', 'run_{t}', 'info', 'm');
INSERT INTO usage (tenant_id, kind, run_id, workflow_id) VALUES ('{t}', 'execution', 'run_{t}', 'wf_{t}');
INSERT INTO usage_hourly (tenant_id, hour, kind, workflow_id, quantity, seconds, bytes_in, bytes_out)
    VALUES ('{t}', now(), 'execution', 'wf_{t}', 1, 0, 0, 0);
INSERT INTO usage_monthly (tenant_id, period, kind, workflow_id, quantity, seconds, bytes_in, bytes_out)
    VALUES ('{t}', '2026-01-01', 'execution', 'wf_{t}', 1, 0, 0, 0);
INSERT INTO quota_counters (tenant_id, period, slot, used, room) VALUES ('{t}', '2026-01-01', 0, 1, 0);
INSERT INTO quota_notices (tenant_id, period, percent, used, monthly) VALUES ('{t}', '2026-01-01', 80, 8, 10);
INSERT INTO notice_deliveries (tenant_id, period, percent, channel, target)
    VALUES ('{t}', '2026-01-01', 80, 'webhook', '');
INSERT INTO notice_targets (tenant_id, url, salt) VALUES ('{t}', 'https://{t}.example.com', 'x');
INSERT INTO invites (id, tenant_id, email, role, token_hash, expires_at)
    VALUES ('inv_{t}', '{t}', 'x@example.com', 'member', '{t}'::bytea, now());
INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, scopes)
    VALUES ('key_{t}', '{t}', 'k', 'fl_', '{t}'::bytea, '{{}}');
INSERT INTO audit (tenant_id, actor, action) VALUES ('{t}', 'user_{t}', 'x.y');
INSERT INTO decryptions (tenant_id, credential_id, run_id, step_id, attempt)
    VALUES ('{t}', 'cred_{t}', 'run_{t}', 's', 1);
INSERT INTO logs (id, workflow_id, tenant_id, status) VALUES ('log_{t}', 'wf_{t}', '{t}', 'success');
INSERT INTO plan_terms (tenant_id, plan, since) VALUES ('{t}', 'free', now());
INSERT INTO invoices (tenant_id, period, id, document, position, closed_at)
    VALUES ('{t}', '2026-01', 'inv_{t}', '{{}}', 0, now());
INSERT INTO billing_accounts (tenant_id, customer, export_from) VALUES ('{t}', 'cus_{t}', now());
INSERT INTO meter_exports (tenant_id, hour, seq, identifier, customer, quantity)
    VALUES ('{t}', now(), 1, 'meter_{t}', 'cus_{t}', 1);
"""


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    """Two tenants, ``a`` and ``b``, each with one row in every table; a pool of one connection, to be reused."""
    with psycopg.connect(module_database_url.replace("+psycopg", "")) as admin:
        admin.execute(SEED.format(t="a") + SEED.format(t="b"))
    database = Database(module_database_url, pool_size=1)
    yield database
    database.close()


def _run(session: TenantSession, statement: str, **parameters: Any) -> Any:
    return session.execute(sa.text(statement), parameters)


def _refused(database: Database, statement: str) -> psycopg.Error:
    with pytest.raises(sa.exc.DBAPIError) as caught, database.tenant("a") as session:
        _run(session, statement)
    original = caught.value.orig
    assert isinstance(original, psycopg.Error)
    return original


def test_the_seed_reaches_every_table_with_a_tenant(database: Database) -> None:
    with database.system() as session:
        for table in TENANT_TABLES:
            found = set(session.execute(sa.text(f"SELECT tenant_id FROM {table}")).scalars())
            assert found >= {"a", "b"}, table


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_a_tenant_sees_its_own_rows_only(database: Database, table: str) -> None:
    with database.tenant("a") as session:
        assert set(_run(session, f"SELECT tenant_id FROM {table}").scalars()) == {"a"}


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_a_tenant_cannot_change_or_delete_another_tenants_rows(database: Database, table: str) -> None:
    grants = metadata.tables[table].info["grants"]
    for verb, statement in {
        "UPDATE": f"UPDATE {table} SET tenant_id = tenant_id WHERE tenant_id = 'b'",
        "DELETE": f"DELETE FROM {table} WHERE tenant_id = 'b'",
    }.items():
        if verb in grants:
            with database.tenant("a") as session:
                assert _run(session, statement).rowcount == 0
        else:
            assert isinstance(_refused(database, statement), pg.InsufficientPrivilege)


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_a_tenant_cannot_write_a_row_for_another(database: Database, table: str) -> None:
    columns = [c.name for c in metadata.tables[table].c if c.identity is None]
    names = ", ".join(f'"{c}"' for c in columns)
    values = ", ".join("'b'" if c == "tenant_id" else f'"{c}"' for c in columns)
    error = _refused(database, f"INSERT INTO {table} ({names}) SELECT {values} FROM {table}")
    assert isinstance(error, pg.InsufficientPrivilege)


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_a_tenant_cannot_give_its_row_away(database: Database, table: str) -> None:
    error = _refused(database, f"UPDATE {table} SET tenant_id = 'b'")
    assert isinstance(error, pg.InsufficientPrivilege)


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_without_a_tenant_nothing_is_seen(module_database_url: str, table: str) -> None:
    with psycopg.connect(module_database_url.replace("+psycopg", "")) as connection:
        connection.execute(f"SET ROLE {TENANT_ROLE}")
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_reference_to_another_tenants_row_is_refused(database: Database) -> None:
    error = _refused(
        database,
        "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
        " VALUES ('a', 'wf_b', 9, '{}', 'h')",
    )
    assert isinstance(error, pg.ForeignKeyViolation)


def test_a_run_cannot_refer_to_another_tenants_workflow(database: Database) -> None:
    error = _refused(
        database,
        "INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input)"
        " VALUES ('a', 'run_x', 'wf_b', 1, 'queued', 'api', '{}')",
    )
    assert isinstance(error, pg.ForeignKeyViolation)


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_truncate_which_no_policy_stops_is_not_granted(database: Database, table: str) -> None:
    assert isinstance(_refused(database, f"TRUNCATE {table} CASCADE"), pg.InsufficientPrivilege)


@pytest.mark.parametrize("table", ["usage", "audit", "invoices"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET tenant_id = tenant_id", "DELETE FROM {}"])
def test_nobody_of_ours_changes_the_ledger_the_audit_or_an_invoice(database: Database, table: str, verb: str) -> None:
    assert isinstance(_refused(database, verb.format(table)), pg.InsufficientPrivilege)
    with pytest.raises(sa.exc.ProgrammingError), database.system() as session:
        session.execute(sa.text(verb.format(table)))


def test_the_tenant_does_not_leak_into_the_next_transaction_of_the_connection(database: Database) -> None:
    with database.tenant("a") as session:
        pid = _run(session, "SELECT pg_backend_pid()").scalar_one()
    with database.tenant("b") as session:
        assert _run(session, "SELECT pg_backend_pid()").scalar_one() == pid
        assert _run(session, "SELECT id FROM runs").scalars().all() == ["run_b"]
    with database.system() as session:
        role, tenant = session.execute(sa.text("SELECT current_user, current_setting('app.tenant_id', true)")).one()
        assert (role, tenant) == (SYSTEM_ROLE, "")


def test_the_tenant_does_not_leak_out_of_a_failed_transaction(database: Database) -> None:
    _refused(database, "SELECT 1 / 0")
    with database.tenant("b") as session:
        assert _run(session, "SELECT id FROM runs").scalars().all() == ["run_b"]


def test_the_system_acts_for_one_tenant_and_then_for_all_again(database: Database) -> None:
    with database.system() as session:
        with session.acting_for("a") as tenant:
            assert tenant.execute(sa.text("SELECT id FROM runs")).scalars().all() == ["run_a"]
        assert set(session.execute(sa.text("SELECT id FROM runs")).scalars()) == {"run_a", "run_b"}


def test_the_system_sees_all_again_when_acting_for_a_tenant_raised(database: Database) -> None:
    with database.system() as session:
        with pytest.raises(LookupError), session.acting_for("a"):
            raise LookupError
        assert set(session.execute(sa.text("SELECT id FROM runs")).scalars()) == {"run_a", "run_b"}


def test_a_tenant_named_like_an_injection_is_just_a_name(database: Database) -> None:
    with database.tenant("b', true), set_config('role', 'postgres") as session:
        assert _run(session, "SELECT current_user").scalar_one() == TENANT_ROLE
        assert _run(session, "SELECT count(*) FROM runs").scalar_one() == 0


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_every_table_forces_its_policies_and_both_have_a_check(database: Database, table: str) -> None:
    with database.system() as session:
        enabled, forced = session.execute(
            sa.text("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = cast(:t AS regclass)"),
            {"t": table},
        ).one()
        policies = session.rows(
            sa.text(
                "SELECT policyname, roles::text, qual, with_check FROM pg_policies WHERE tablename = :t"
            ).bindparams(t=table)
        )
    assert (enabled, forced) == (True, True)
    assert {(p["policyname"], p["roles"]) for p in policies} == {
        ("tenant", f"{{{TENANT_ROLE}}}"),
        ("system", f"{{{SYSTEM_ROLE}}}"),
    }
    assert all(p["qual"] and p["with_check"] for p in policies)


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_the_tenant_role_may_do_what_the_model_says(database: Database, table: str) -> None:
    with database.system() as session:
        granted = session.execute(
            sa.text(
                "SELECT p.name FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p (name)"
                " WHERE has_table_privilege(:role, :table, p.name)"
            ),
            {"role": TENANT_ROLE, "table": table},
        ).scalars()
        assert set(granted) == set(metadata.tables[table].info["grants"])


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_every_tenant_table_has_an_index_that_begins_with_the_tenant(database: Database, table: str) -> None:
    with database.system() as session:
        first_columns = session.execute(
            sa.text(
                "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
                " AND a.attnum = i.indkey[0] WHERE i.indrelid = cast(:t AS regclass)"
            ),
            {"t": table},
        ).scalars()
        assert "tenant_id" in set(first_columns)


def test_there_is_no_view_through_which_rows_could_be_seen(database: Database) -> None:
    with database.system() as session:
        views = session.execute(
            sa.text(
                "SELECT relname FROM pg_class WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace"
            )
        ).scalars()
        assert list(views) == []


def test_no_table_is_partitioned_so_no_partition_can_be_read_around_the_policy(database: Database) -> None:
    with database.system() as session:
        parts = session.execute(sa.text("SELECT relname FROM pg_class WHERE relkind = 'p' OR relispartition")).scalars()
        assert list(parts) == []


def test_the_start_up_check_passes_on_a_migrated_database(database: Database) -> None:
    database.verify()


@pytest.mark.parametrize(
    ("change", "undo", "sentence"),
    [
        (f"ALTER ROLE {TENANT_ROLE} BYPASSRLS", f"ALTER ROLE {TENANT_ROLE} NOBYPASSRLS", "bypasses row-level security"),
        (f"ALTER ROLE {TENANT_ROLE} SUPERUSER", f"ALTER ROLE {TENANT_ROLE} NOSUPERUSER", "is a superuser"),
        (f"ALTER ROLE {SYSTEM_ROLE} LOGIN", f"ALTER ROLE {SYSTEM_ROLE} NOLOGIN", "can log in"),
        (f"CREATE TABLE stray (); ALTER TABLE stray OWNER TO {TENANT_ROLE}", "DROP TABLE stray", "owns a table"),
        (
            "ALTER TABLE runs NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE runs FORCE ROW LEVEL SECURITY",
            "runs has no forced",
        ),
    ],
)
def test_the_start_up_check_refuses_a_hole(
    database: Database, module_database_url: str, change: str, undo: str, sentence: str
) -> None:
    with psycopg.connect(module_database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(change)
        try:
            with pytest.raises(ConfigurationError, match=sentence):
                database.verify()
        finally:
            admin.execute(undo)


def test_connections_that_died_while_idle_are_replaced_unseen(database: Database, module_database_url: str) -> None:
    with database.tenant("a"):
        pass
    with psycopg.connect(module_database_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fairlane'")
    with database.tenant("a") as session:
        assert _run(session, "SELECT id FROM runs").scalars().all() == ["run_a"]


def test_a_database_that_is_away_is_unavailable_and_says_so() -> None:
    away = Database("postgresql+psycopg://nobody@127.0.0.1:9/none")
    with pytest.raises(Unavailable, match="does not answer"), away.tenant("a"):
        pass


def test_what_follows_a_commit_happens_after_it_and_not_after_a_rollback(database: Database) -> None:
    seen: list[str] = []
    with contextlib.suppress(ZeroDivisionError), database.tenant("a") as session:
        session.after_commit(lambda: seen.append("rolled back"))
        raise ZeroDivisionError
    with database.tenant("a") as session:
        session.after_commit(lambda: seen.append("committed"))
        assert seen == []
    assert seen == ["committed"]
