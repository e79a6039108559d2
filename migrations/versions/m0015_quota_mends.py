"""Mends of quotas: roll-ups that outlive a change of cluster, the first limit among starts, plans seeded too narrow.

``usage.xid`` counts for the cluster that wrote the row. ``usage_rollups`` now says of which cluster its mark is, and
up to which row (``from_id``) the ledger was brought along from another: those are told apart by nothing, and rolled up
once, all together. `settle_usage` names the last of them when no transaction is under way that writes any.

Starts without a limit take no counter. They share the lock `unlimited` now, and whoever holds the first limit against
the ledger takes it alone: so those under way are in the ledger when it is counted.

What processes of 0014 call stays until they have been restarted, and hands on to what is new.
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
    EXECUTE 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM ' || pg_get_serial_sequence('usage', 'id')
        INTO newest;
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

# As before, and: what the counters say counts for one version of the limits only, since one that was away for a while
# may come back as it was; and see above for `unlimited`.
TAKE_NOW = """
CREATE FUNCTION quota_take(
    p_tenant text, p_but text, p_at timestamptz, p_monthly bigint, p_queued bigint, p_version bigint,
    p_wanted bigint, p_wait boolean,
    OUT taken bigint, OUT reason text
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    slots CONSTANT int := 8;
    month CONSTANT date := date_trunc('month', p_at AT TIME ZONE 'UTC')::date;
    gate CONSTANT bigint := hashtextextended('quota:' || p_tenant, 0);
    unlimited CONSTANT bigint := hashtextextended('unlimited:' || p_tenant, 0);
    total bigint;
    known boolean;
    seen int;
    free_month bigint;
    free_queue bigint;
    left_over bigint;
BEGIN
    IF p_wait THEN
        PERFORM pg_advisory_xact_lock(gate);
    ELSIF NOT pg_try_advisory_xact_lock(gate) THEN
        taken := -1; RETURN;
    END IF;
    INSERT INTO quota_counters (tenant_id, period, slot, used, room, monthly, queued)
        SELECT p_tenant, month, n, 0, 0, -1, -1 FROM generate_series(0, slots - 1) n
        WHERE NOT EXISTS (SELECT 1 FROM quota_counters c WHERE c.tenant_id = p_tenant AND c.period = month);
    IF p_wait THEN
        PERFORM 1 FROM quota_counters c
            WHERE c.tenant_id = p_tenant AND c.period = month ORDER BY slot FOR NO KEY UPDATE;
    ELSE
        SELECT count(*) INTO seen FROM (
            SELECT 1 FROM quota_counters c
            WHERE c.tenant_id = p_tenant AND c.period = month FOR NO KEY UPDATE SKIP LOCKED) s;
        IF seen < slots THEN
            taken := -1; RETURN;
        END IF;
    END IF;
    SELECT sum(c.used), bool_and(c.monthly IS NOT DISTINCT FROM p_monthly AND c.version = p_version) INTO total, known
        FROM quota_counters c WHERE c.tenant_id = p_tenant AND c.period = month;
    IF NOT known THEN  -- it is new, or the limit is: what was admitted without one was not counted here
        IF p_wait THEN
            PERFORM pg_advisory_xact_lock(unlimited);
        ELSIF NOT pg_try_advisory_xact_lock(unlimited) THEN
            taken := -1; RETURN;
        END IF;
        SELECT coalesce(sum(u.quantity), 0) INTO total FROM usage u
        WHERE u.tenant_id = p_tenant AND u.kind = 'execution'
          AND u.at >= month::timestamp AT TIME ZONE 'UTC'
          AND u.at < (month + interval '1 month') AT TIME ZONE 'UTC';
    END IF;
    free_month := greatest(0, coalesce(p_monthly - total, 1000000000));
    free_queue := 1000000000;
    IF p_queued IS NOT NULL THEN
        SELECT greatest(0, p_queued - count(*)) INTO free_queue FROM (
            SELECT 1 FROM runs r
            WHERE r.tenant_id = p_tenant AND r.finished_at IS NULL AND r.wait_reason IS NULL AND r.priority >= 0
              AND r.status = 'queued' AND r.id <> p_but
            LIMIT p_queued) waiting;
    END IF;
    taken := least(p_wanted, free_month, free_queue);
    reason := CASE WHEN taken < p_wanted THEN CASE WHEN free_queue <= free_month THEN 'queue' ELSE 'executions' END END;
    left_over := least(free_month, free_queue) - taken;
    UPDATE quota_counters c SET
        used = CASE c.slot WHEN 0 THEN total + taken ELSE 0 END,
        room = left_over / slots + (c.slot < left_over % slots)::int,
        monthly = p_monthly, queued = p_queued, version = p_version
    WHERE c.tenant_id = p_tenant AND c.period = month;
END
$$
"""

ADMIT_NOW = """
CREATE FUNCTION admit(
    p_tenant text, p_run text, p_at timestamptz, p_monthly bigint, p_queued bigint, p_version bigint,
    p_rejects boolean, p_wait boolean
) RETURNS text LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    month CONSTANT date := date_trunc('month', p_at AT TIME ZONE 'UTC')::date;
    unlimited CONSTANT bigint := hashtextextended('unlimited:' || p_tenant, 0);
    held bigint;
    got record;
BEGIN
    PERFORM 1 FROM runs r WHERE r.tenant_id = p_tenant AND r.wait_reason = 'quota' LIMIT 1;
    IF FOUND AND NOT p_rejects THEN  -- others came before
        IF p_queued IS NOT NULL THEN
            SELECT count(*) INTO held FROM (
                SELECT 1 FROM runs r WHERE r.tenant_id = p_tenant AND r.wait_reason = 'quota' LIMIT p_queued) line;
            IF held >= p_queued THEN
                RETURN 'queue';
            END IF;
        END IF;
        RETURN 'line';
    END IF;
    IF p_monthly IS NULL AND p_queued IS NULL THEN
        IF p_wait THEN
            PERFORM pg_advisory_xact_lock_shared(unlimited);
        ELSIF NOT pg_try_advisory_xact_lock_shared(unlimited) THEN
            RETURN 'line';
        END IF;
        SELECT ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint,
               ((p.limits || t.limits) ->> 'max_queued_runs')::bigint,
               greatest(p.limits_version, t.limits_version) INTO p_monthly, p_queued, p_version
            FROM tenants t JOIN plans p ON p.name = t.plan WHERE t.id = p_tenant;
        IF p_monthly IS NULL AND p_queued IS NULL THEN  -- still; whoever counts for the first limit waits for this one
            RETURN 'admitted';
        END IF;
    END IF;
    BEGIN  -- in a block of its own: a row that turns out to be used up stays locked, until the block is undone
        UPDATE quota_counters u SET used = u.used + 1, room = u.room - 1
            WHERE u.tenant_id = p_tenant AND u.period = month AND u.slot = (
                SELECT c.slot FROM quota_counters c
                WHERE c.tenant_id = p_tenant AND c.period = month AND c.room > 0
                  AND c.monthly IS NOT DISTINCT FROM p_monthly AND c.queued IS NOT DISTINCT FROM p_queued
                  AND c.version = p_version
                ORDER BY (c.slot + pg_backend_pid()) % 8 LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED);
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'QU001';
        END IF;
        RETURN 'admitted';
    EXCEPTION WHEN SQLSTATE 'QU001' THEN
        NULL;
    END;
    IF p_wait THEN  -- behind the gate one at a time waits for slots, so no two for each other
        PERFORM pg_advisory_xact_lock(hashtextextended('quota:' || p_tenant, 0));
        UPDATE quota_counters u SET used = u.used + 1, room = u.room - 1
            WHERE u.tenant_id = p_tenant AND u.period = month AND u.slot = (
                SELECT c.slot FROM quota_counters c
                WHERE c.tenant_id = p_tenant AND c.period = month AND c.room > 0
                  AND c.monthly IS NOT DISTINCT FROM p_monthly AND c.queued IS NOT DISTINCT FROM p_queued
                  AND c.version = p_version
                ORDER BY (c.slot + pg_backend_pid()) % 8 LIMIT 1 FOR NO KEY UPDATE);
        IF FOUND THEN
            RETURN 'admitted';
        END IF;
    END IF;
    got := quota_take(p_tenant, p_run, p_at, p_monthly, p_queued, p_version, 1, p_wait);
    RETURN CASE WHEN got.taken = 1 THEN 'admitted' WHEN got.taken < 0 THEN 'line' ELSE got.reason END;
END
$$
"""

# For processes that do not know of versions. Limits and version are looked up together: what the caller read a moment
# ago may belong to an earlier one.
BEFORE = """
CREATE FUNCTION quota_take(
    p_tenant text, p_but text, p_at timestamptz, p_monthly bigint, p_queued bigint, p_wanted bigint, p_wait boolean,
    OUT taken bigint, OUT reason text
) LANGUAGE sql AS $$
    SELECT q.taken, q.reason
    FROM tenants t JOIN plans p ON p.name = t.plan,
        LATERAL quota_take(p_tenant, p_but, p_at, ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint,
                           ((p.limits || t.limits) ->> 'max_queued_runs')::bigint,
                           greatest(p.limits_version, t.limits_version), p_wanted, p_wait) q
    WHERE t.id = p_tenant
$$;
CREATE FUNCTION admit(
    p_tenant text, p_run text, p_at timestamptz, p_monthly bigint, p_queued bigint, p_rejects boolean, p_wait boolean
) RETURNS text LANGUAGE sql AS $$
    SELECT admit(p_tenant, p_run, p_at, ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint,
                 ((p.limits || t.limits) ->> 'max_queued_runs')::bigint,
                 greatest(p.limits_version, t.limits_version), p_rejects, p_wait)
    FROM tenants t JOIN plans p ON p.name = t.plan WHERE t.id = p_tenant
$$;
"""

ADMIT_TAKES = "text, text, timestamptz, bigint, bigint, {}boolean, boolean"
TAKE_TAKES = "text, text, timestamptz, bigint, bigint, {}bigint, boolean"


def upgrade() -> None:
    op.execute(ROLLUPS)
    op.execute(SEEDS)
    op.execute("ALTER TABLE quota_counters ADD COLUMN version BIGINT DEFAULT 0 NOT NULL")
    _drop("")
    for statements in (TAKE_NOW, ADMIT_NOW, BEFORE):
        op.execute(statements)


def downgrade() -> None:
    """Plans keep what they have."""
    _drop("")
    _drop("bigint, ")
    for statements in (TAKE, ADMIT):
        op.execute(statements)
    op.execute(
        """
        DROP FUNCTION settle_usage();
        DROP FUNCTION this_cluster();
        ALTER TABLE quota_counters DROP COLUMN version;
        ALTER TABLE usage_rollups
            DROP COLUMN cluster,
            DROP COLUMN from_id;
        """
    )


def _drop(version: str) -> None:
    """Both functions, those that take a `version` or those that take none."""
    op.execute(f"DROP FUNCTION admit({ADMIT_TAKES.format(version)})")
    op.execute(f"DROP FUNCTION quota_take({TAKE_TAKES.format(version)})")
