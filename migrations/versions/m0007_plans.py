"""Plans and their limits, overrides of a tenant, and the version that orders what a lane is told.

The tenant role may rename its organization and nothing more of it: neither plan, nor limits, nor status.
"""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0007"
down_revision = "0006"

SEEDED = """
INSERT INTO plans (name, limits, limits_version) VALUES
    ('free', '{"weight": 1, "max_workflows": 100, "max_executions_per_month": 10000, "max_concurrent_runs": 20,
               "max_runs_per_minute": null, "max_queued_runs": 10000, "max_members": 25, "max_credentials": 100,
               "max_run_seconds": 900, "min_poll_interval": null, "log_retention_days": 7}', nextval('limits_version')),
    ('team', '{"weight": 2, "max_workflows": 1000, "max_executions_per_month": 250000, "max_concurrent_runs": 50,
               "max_runs_per_minute": null, "max_queued_runs": 100000, "max_members": 250, "max_credentials": 1000,
               "max_run_seconds": 3600, "min_poll_interval": null, "log_retention_days": 30}',
     nextval('limits_version')),
    ('enterprise', '{"weight": 4, "max_workflows": null, "max_executions_per_month": null,
               "max_concurrent_runs": 200, "max_runs_per_minute": null, "max_queued_runs": null,
               "max_members": null, "max_credentials": null,
               "max_run_seconds": 14400, "min_poll_interval": null, "log_retention_days": 365}',
     nextval('limits_version'))
"""

# One second's worth of runs may start at once; 0 means no cap, no rate.
LANE = """
CREATE FUNCTION lane_config(limits jsonb, version bigint) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_build_object(
        'weight', coalesce((limits ->> 'weight')::float8, 1),
        'cap', coalesce((limits ->> 'max_concurrent_runs')::int, 0),
        'rate', coalesce((limits ->> 'max_runs_per_minute')::float8 / 60, 0),
        'burst', greatest(1, ceil(coalesce((limits ->> 'max_runs_per_minute')::float8, 0) / 60))::int,
        'paused', coalesce((limits ->> 'paused')::boolean, false)::int,
        'version', version)
$$
"""


def upgrade() -> None:
    op.execute(
        f"""
        CREATE SEQUENCE limits_version;
        CREATE TABLE plans (
            name TEXT NOT NULL,
            limits JSONB NOT NULL,
            limits_version BIGINT NOT NULL,
            CONSTRAINT pk_plans PRIMARY KEY (name)
        );
        {SEEDED};
        INSERT INTO plans (name, limits, limits_version)
            SELECT DISTINCT ON (t.plan) t.plan, free.limits, nextval('limits_version')
            FROM tenants t, plans free
            WHERE free.name = 'free' AND t.plan NOT IN (SELECT name FROM plans);
        ALTER TABLE tenants
            ADD COLUMN limits JSONB DEFAULT '{{}}'::jsonb NOT NULL,
            ADD COLUMN limits_version BIGINT DEFAULT 0 NOT NULL,
            ADD CONSTRAINT fk_tenants_plan FOREIGN KEY (plan) REFERENCES plans (name);
        CREATE INDEX ix_tenants_plan_id ON tenants (plan, id);
        {LANE};

        ALTER TABLE plans ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON plans TO fairlane_tenant USING (true) WITH CHECK (false);
        CREATE POLICY system ON plans TO fairlane_system USING (true) WITH CHECK (true);
        GRANT SELECT ON plans TO fairlane_tenant;
        GRANT SELECT, INSERT, UPDATE, DELETE ON plans TO fairlane_system;
        GRANT USAGE ON SEQUENCE limits_version TO fairlane_system;
        REVOKE UPDATE ON tenants FROM fairlane_tenant;
        GRANT UPDATE (name) ON tenants TO fairlane_tenant;
        """
    )


def downgrade() -> None:
    refuse_if("SELECT 1 FROM tenants WHERE limits <> '{}'", "tenants have limits of their own; they would be lost")
    refuse_if(
        "SELECT 1 FROM plans WHERE name NOT IN ('free', 'team', 'enterprise') OR limits_version > 3",
        "plans were changed or added; their limits would be lost",
    )
    op.execute(
        """
        REVOKE UPDATE (name) ON tenants FROM fairlane_tenant;
        GRANT UPDATE ON tenants TO fairlane_tenant;
        ALTER TABLE tenants
            DROP CONSTRAINT fk_tenants_plan,
            DROP COLUMN limits,
            DROP COLUMN limits_version;
        DROP INDEX ix_tenants_plan_id;
        DROP TABLE plans;
        DROP FUNCTION lane_config(jsonb, bigint);
        DROP SEQUENCE limits_version;
        """
    )
