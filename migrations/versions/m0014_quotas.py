"""One ledger for everything that is used, its roll-ups, and the counters that admit runs.

A row of kind ``execution`` now stands for one admitted run, made in the transaction that admits it; what an attempt
took of a worker is a row of its own. Earlier rows of executions stay; the seconds in them are repeated in rows of the
new kind, and runs that are under way count as admitted.

``usage.xid`` is the transaction that wrote a row. Numbers of rows become visible out of order; that no transaction
below a given one is still under way can be asked, so a roll-up takes whole transactions and misses none.
"""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0014"
down_revision = "0013"

OWN_ROWS = "tenant_id = nullif(current_setting('app.tenant_id', true), '')"
KINDS = "'execution', 'action_call', 'worker_seconds', 'held', 'rejected'"

LEDGER = f"""
ALTER TABLE usage
    ADD COLUMN outcome TEXT,
    ADD COLUMN bytes_in BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN bytes_out BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN xid BIGINT DEFAULT (pg_current_xact_id())::text::bigint NOT NULL,
    ALTER COLUMN run_id DROP NOT NULL,
    ADD CONSTRAINT ck_usage_kind CHECK (kind IN ({KINDS})),
    ADD CONSTRAINT ck_usage_run CHECK (run_id IS NOT NULL OR kind = 'rejected');
ALTER TABLE usage NO FORCE ROW LEVEL SECURITY;
ALTER TABLE runs NO FORCE ROW LEVEL SECURITY;
INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id, quantity, seconds)
    SELECT tenant_id, at, 'worker_seconds', run_id, workflow_id, 1, seconds
    FROM usage WHERE kind = 'execution' AND seconds > 0;
INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id)
    SELECT tenant_id, queued_at, 'execution', id, workflow_id
    FROM runs WHERE finished_at IS NULL AND status <> 'held';
ALTER TABLE usage FORCE ROW LEVEL SECURITY;
ALTER TABLE runs FORCE ROW LEVEL SECURITY;
CREATE INDEX ix_usage_xid ON usage (xid);
"""

ROLLUPS = "\n".join(
    f"""
CREATE TABLE usage_{name} (
    tenant_id TEXT NOT NULL,
    {column} {kind} NOT NULL,
    kind TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    action TEXT DEFAULT '' NOT NULL,
    quantity BIGINT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    CONSTRAINT pk_usage_{name} PRIMARY KEY (tenant_id, {column}, kind, workflow_id, action),
    CONSTRAINT fk_usage_{name}_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
"""
    for name, column, kind in (("hourly", "hour", "timestamptz"), ("monthly", "period", "DATE"))
)

COUNTERS = """
CREATE TABLE usage_rollups (
    name TEXT NOT NULL,
    xid BIGINT NOT NULL,
    CONSTRAINT pk_usage_rollups PRIMARY KEY (name)
);
INSERT INTO usage_rollups (name, xid) VALUES ('usage', 0);
CREATE TABLE quota_counters (
    tenant_id TEXT NOT NULL,
    period DATE NOT NULL,
    slot SMALLINT NOT NULL,
    used BIGINT NOT NULL,
    room BIGINT NOT NULL,
    monthly BIGINT,
    queued BIGINT,
    CONSTRAINT pk_quota_counters PRIMARY KEY (tenant_id, period, slot),
    CONSTRAINT fk_quota_counters_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
) WITH (fillfactor = 50);
CREATE INDEX ix_runs_backlog ON runs (tenant_id) WHERE finished_at IS NULL AND wait_reason IS NULL AND priority >= 0;
CREATE INDEX ix_runs_held ON runs (tenant_id, id) WHERE wait_reason = 'quota';
"""

# Several slots, so that starts of one tenant at once lock different rows; each may give out `room` without a look.
# With none left, whoever comes locks all slots, counts, and divides what is free among them. So `used` summed up never
# passes the limit, and nobody is refused while a slot has room. A transaction that may start several runs never waits
# here (p_wait false), as two of them could wait for each other: -1 says that others were busy.
# Without scans of whole tables: a connection keeps the plans that it made while the tables were empty.
TAKE = """
CREATE FUNCTION quota_take(
    p_tenant text, p_but text, p_at timestamptz, p_monthly bigint, p_queued bigint, p_wanted bigint, p_wait boolean,
    OUT taken bigint, OUT reason text
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    slots CONSTANT int := 8;
    month CONSTANT date := date_trunc('month', p_at AT TIME ZONE 'UTC')::date;
    gate CONSTANT bigint := hashtextextended('quota:' || p_tenant, 0);
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
    SELECT sum(c.used), bool_and(c.monthly IS NOT DISTINCT FROM p_monthly) INTO total, known
        FROM quota_counters c WHERE c.tenant_id = p_tenant AND c.period = month;
    IF NOT known THEN  -- it is new, or the limit is: what was admitted without one was not counted here
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
        monthly = p_monthly, queued = p_queued
    WHERE c.tenant_id = p_tenant AND c.period = month;
END
$$
"""

ADMIT = """
CREATE FUNCTION admit(
    p_tenant text, p_run text, p_at timestamptz, p_monthly bigint, p_queued bigint, p_rejects boolean, p_wait boolean
) RETURNS text LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    month CONSTANT date := date_trunc('month', p_at AT TIME ZONE 'UTC')::date;
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
        RETURN 'admitted';
    END IF;
    BEGIN  -- in a block of its own: a row that turns out to be used up stays locked, until the block is undone
        UPDATE quota_counters u SET used = u.used + 1, room = u.room - 1
            WHERE u.tenant_id = p_tenant AND u.period = month AND u.slot = (
                SELECT c.slot FROM quota_counters c
                WHERE c.tenant_id = p_tenant AND c.period = month AND c.room > 0
                  AND c.monthly IS NOT DISTINCT FROM p_monthly AND c.queued IS NOT DISTINCT FROM p_queued
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
                ORDER BY (c.slot + pg_backend_pid()) % 8 LIMIT 1 FOR NO KEY UPDATE);
        IF FOUND THEN
            RETURN 'admitted';
        END IF;
    END IF;
    got := quota_take(p_tenant, p_run, p_at, p_monthly, p_queued, 1, p_wait);
    RETURN CASE WHEN got.taken = 1 THEN 'admitted' WHEN got.taken < 0 THEN 'line' ELSE got.reason END;
END
$$
"""

ACCESS = "\n".join(
    f"""
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON {table} TO fairlane_tenant USING ({visible}) WITH CHECK ({check});
CREATE POLICY system ON {table} TO fairlane_system USING (true) WITH CHECK (true);
GRANT {grants} ON {table} TO fairlane_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO fairlane_system;
"""
    for table, visible, check, grants in (
        ("usage_hourly", OWN_ROWS, OWN_ROWS, "SELECT"),
        ("usage_monthly", OWN_ROWS, OWN_ROWS, "SELECT"),
        ("usage_rollups", "true", "false", "SELECT"),
        ("quota_counters", OWN_ROWS, OWN_ROWS, "SELECT, INSERT, UPDATE"),
    )
)


def upgrade() -> None:
    for statements in (LEDGER, ROLLUPS, COUNTERS, TAKE, ADMIT, ACCESS):
        op.execute(statements)


# Before, a run was counted when it succeeded or failed: its row said 1, that of an attempt that put it aside 0, each
# with its seconds. So what has not ended is not counted yet; and what attempts took goes back into rows of that kind,
# but for the seconds that `upgrade` repeated.
LEDGER_BEFORE = """
ALTER TABLE usage NO FORCE ROW LEVEL SECURITY;
DELETE FROM usage u USING runs r
    WHERE u.kind = 'execution' AND u.quantity = 1 AND u.seconds = 0
      AND r.tenant_id = u.tenant_id AND r.id = u.run_id AND r.finished_at IS NULL;
DELETE FROM usage u USING usage e
    WHERE u.kind = 'worker_seconds' AND e.kind = 'execution'
      AND e.tenant_id = u.tenant_id AND e.run_id = u.run_id AND e.at = u.at AND e.seconds = u.seconds;
UPDATE usage SET kind = 'execution', quantity = 0 WHERE kind = 'worker_seconds';
DELETE FROM usage WHERE kind NOT IN ('execution', 'action_call');
ALTER TABLE usage FORCE ROW LEVEL SECURITY;
"""


def downgrade() -> None:
    """Refuses while runs are held over a quota: the program before would never let them go."""
    op.execute("ALTER TABLE runs NO FORCE ROW LEVEL SECURITY")
    refuse_if(
        "SELECT 1 FROM runs WHERE wait_reason = 'quota'",
        "runs are held over a quota, and nothing would let them go; raise the limits until they have started, or cancel"
        " them, and stop what starts more",
    )
    op.execute(LEDGER_BEFORE)
    op.execute(
        """
        ALTER TABLE runs FORCE ROW LEVEL SECURITY;
        DROP FUNCTION admit(text, text, timestamptz, bigint, bigint, boolean, boolean);
        DROP FUNCTION quota_take(text, text, timestamptz, bigint, bigint, bigint, boolean);
        DROP INDEX ix_runs_backlog;
        DROP INDEX ix_runs_held;
        DROP TABLE quota_counters;
        DROP TABLE usage_rollups;
        DROP TABLE usage_monthly;
        DROP TABLE usage_hourly;
        DROP INDEX ix_usage_xid;
        ALTER TABLE usage
            DROP CONSTRAINT ck_usage_kind,
            DROP CONSTRAINT ck_usage_run,
            ALTER COLUMN run_id SET NOT NULL,
            DROP COLUMN outcome,
            DROP COLUMN bytes_in,
            DROP COLUMN bytes_out,
            DROP COLUMN xid;
        """
    )
