"""Row-level security, forced, on every table that belongs to tenants, and the two roles that statements run under.

Neither role owns a table, can log in, or bypasses the policies. The tenant role sees the rows of ``app.tenant_id`` and
nothing without it; the system role sees all. Nobody may change or delete usage and audit rows.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

CURRENT = "nullif(current_setting('app.tenant_id', true), '')"
OWN_ROWS = f"tenant_id = {CURRENT}"
MEMBERS = f"{OWN_ROWS} OR id IN (SELECT user_id FROM memberships WHERE memberships.tenant_id = {CURRENT})"
EVERYTHING = "SELECT, INSERT, UPDATE, DELETE"
APPEND = "SELECT, INSERT"

TABLES: dict[str, tuple[str, str]] = {
    "tenants": (f"id = {CURRENT}", "SELECT, UPDATE"),
    "users": (MEMBERS, "SELECT"),
    "memberships": (OWN_ROWS, EVERYTHING),
    "data_keys": (OWN_ROWS, EVERYTHING),
    "credentials": (OWN_ROWS, EVERYTHING),
    "workflows": (OWN_ROWS, EVERYTHING),
    "workflow_versions": (OWN_ROWS, "SELECT, INSERT, DELETE"),
    "triggers": (OWN_ROWS, EVERYTHING),
    "poll_items": (OWN_ROWS, EVERYTHING),
    "runs": (OWN_ROWS, EVERYTHING),
    "steps": (OWN_ROWS, EVERYTHING),
    "execution_logs": (OWN_ROWS, "SELECT, INSERT, DELETE"),
    "usage": (OWN_ROWS, APPEND),
    "invites": (OWN_ROWS, EVERYTHING),
    "api_keys": (OWN_ROWS, EVERYTHING),
    "audit": (OWN_ROWS, APPEND),
    "logs": (OWN_ROWS, EVERYTHING),
}
"""Table: what the tenant role sees, and what it may do."""

ROLES = """
DO $$
DECLARE role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['fairlane_tenant', 'fairlane_system'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', role_name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles belong to the whole server; another database made it
        END;
        BEGIN  -- also for who made it: since Postgres 16 making a role does not imply that one may switch to it
            EXECUTE format('GRANT %I TO current_user', role_name);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;  -- somebody else made it and grants it; the start-up check tells when that was forgotten
        END;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO fairlane_tenant, fairlane_system', current_schema());
END
$$;
"""


def upgrade() -> None:
    op.execute(ROLES)
    for table, (visible, grants) in TABLES.items():
        op.execute(
            f"""
            ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY tenant ON {table} TO fairlane_tenant USING ({visible}) WITH CHECK ({visible});
            CREATE POLICY system ON {table} TO fairlane_system USING (true) WITH CHECK (true);
            GRANT {grants} ON {table} TO fairlane_tenant;
            GRANT {APPEND if grants == APPEND else EVERYTHING} ON {table} TO fairlane_system;
            """
        )


def downgrade() -> None:
    """The roles stay: other databases of the server may use them."""
    for table in TABLES:
        op.execute(
            f"""
            REVOKE ALL ON {table} FROM fairlane_tenant, fairlane_system;
            DROP POLICY tenant ON {table};
            DROP POLICY system ON {table};
            ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY;
            """
        )
