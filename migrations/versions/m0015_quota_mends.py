"""Mends of quotas: roll-ups that outlive a change of cluster, the first limit among starts, plans seeded too narrow.

``usage.xid`` counts for the cluster that wrote the row. ``usage_rollups`` now says of which cluster its mark is, and
up to which row (``from_id``) the ledger was brought along from another: those are told apart by nothing, and rolled up
once, all together. `settle_usage` names the last of them when no transaction is under way that writes any.

Starts without a limit take no counter. They share a lock now, and whoever holds the first limit against the ledger
takes it alone: so those under way are in the ledger when it is counted.
"""

from __future__ import annotations

from alembic import op

from migrations.versions.m0014_quotas import ADMIT, TAKE

revision = "0015"
down_revision = "0014"

ROLLUPS = """
ALTER TABLE usage_rollups
    ADD COLUMN cluster BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN from_id BIGINT DEFAULT 0 NOT NULL;
CREATE FUNCTION this_cluster() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system());
EXCEPTION WHEN insufficient_privilege THEN  -- not to be known here: marks are held against the counter only
    RETURN 0;
END
$$;
CREATE FUNCTION settle_usage() RETURNS bigint LANGUAGE plpgsql
    SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '3s' AS $$
DECLARE
    newest bigint;
BEGIN
    LOCK TABLE usage IN SHARE MODE;
    EXECUTE 'SELECT last_value FROM ' || pg_get_serial_sequence('usage', 'id') INTO newest;
    RETURN newest;
END
$$;
REVOKE ALL ON FUNCTION settle_usage() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION settle_usage() TO fairlane_system;
"""

# What plans were seeded with before anything enforced it, and what they are seeded with since. Whoever changed a plan
# meant what it says now.
SEEDS = """
ALTER TABLE plans NO FORCE ROW LEVEL SECURITY;
UPDATE plans SET limits = limits || '{"max_workflows": 100, "max_members": 25, "max_credentials": 100,
                                      "min_poll_interval": null}'
    WHERE limits = '{"weight": 1, "max_workflows": 20, "max_executions_per_month": 10000, "max_concurrent_runs": 20,
                     "max_runs_per_minute": null, "max_queued_runs": 10000, "max_members": 5, "max_credentials": 20,
                     "max_run_seconds": 900, "min_poll_interval": 60, "log_retention_days": 7}';
UPDATE plans SET limits = limits || '{"max_workflows": 1000, "max_members": 250, "max_credentials": 1000,
                                      "min_poll_interval": null}'
    WHERE limits = '{"weight": 2, "max_workflows": 200, "max_executions_per_month": 250000, "max_concurrent_runs": 50,
                     "max_runs_per_minute": null, "max_queued_runs": 100000, "max_members": 50, "max_credentials": 200,
                     "max_run_seconds": 3600, "min_poll_interval": 30, "log_retention_days": 30}';
UPDATE plans SET limits = limits || '{"min_poll_interval": null}'
    WHERE limits = '{"weight": 4, "max_workflows": null, "max_executions_per_month": null,
                     "max_concurrent_runs": 200, "max_runs_per_minute": null, "max_queued_runs": null,
                     "max_members": null, "max_credentials": null,
                     "max_run_seconds": 14400, "min_poll_interval": 10, "log_retention_days": 365}';
ALTER TABLE plans FORCE ROW LEVEL SECURITY;
"""

UNLIMITED = "hashtextextended('unlimited:' || p_tenant, 0)"

COUNTED = """    IF NOT known THEN  -- it is new, or the limit is: what was admitted without one was not counted here
"""
COUNTED_BEHIND = f"""{COUNTED}        IF p_wait THEN
            PERFORM pg_advisory_xact_lock({UNLIMITED});
        ELSIF NOT pg_try_advisory_xact_lock({UNLIMITED}) THEN
            taken := -1; RETURN;
        END IF;
"""

ADMITTED = """    IF p_monthly IS NULL AND p_queued IS NULL THEN
        RETURN 'admitted';
    END IF;
"""
ADMITTED_STILL = f"""    IF p_monthly IS NULL AND p_queued IS NULL THEN
        IF p_wait THEN
            PERFORM pg_advisory_xact_lock_shared({UNLIMITED});
        ELSIF NOT pg_try_advisory_xact_lock_shared({UNLIMITED}) THEN
            RETURN 'line';
        END IF;
        SELECT ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint,
               ((p.limits || t.limits) ->> 'max_queued_runs')::bigint INTO p_monthly, p_queued
            FROM tenants t JOIN plans p ON p.name = t.plan WHERE t.id = p_tenant;
        IF p_monthly IS NULL AND p_queued IS NULL THEN  -- still, and whoever sets a limit waits for this one
            RETURN 'admitted';
        END IF;
    END IF;
"""


def _changed(function: str, old: str, new: str) -> str:
    if function.count(old) != 1:
        raise AssertionError(f"want once: {old}")
    return function.replace(old, new).replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


def upgrade() -> None:
    op.execute(ROLLUPS)
    op.execute(SEEDS)
    op.execute(_changed(TAKE, COUNTED, COUNTED_BEHIND))
    op.execute(_changed(ADMIT, ADMITTED, ADMITTED_STILL))


def downgrade() -> None:
    """Plans keep what they have."""
    for function in (TAKE, ADMIT):
        op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute(
        """
        DROP FUNCTION settle_usage();
        DROP FUNCTION this_cluster();
        ALTER TABLE usage_rollups
            DROP COLUMN cluster,
            DROP COLUMN from_id;
        """
    )
