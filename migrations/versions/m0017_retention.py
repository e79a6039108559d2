"""Runs are kept as long as the plan says, payloads have a limit, and organizations hear of a month nearly used up.

The index is in the order in which runs are deleted. Runs that an import made are no part of it: they stay.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"

OWN_ROWS = "tenant_id = nullif(current_setting('app.tenant_id', true), '')"

ENDED = """
CREATE INDEX ix_runs_ended ON runs (tenant_id, finished_at) WHERE finished_at IS NOT NULL AND trigger <> 'legacy';
"""

PAYLOADS = """
ALTER TABLE plans NO FORCE ROW LEVEL SECURITY;
UPDATE plans SET limits = '{"max_payload_bytes": null}' || limits;
ALTER TABLE plans FORCE ROW LEVEL SECURITY;
"""

NOTICES = """
CREATE TABLE quota_notices (
    tenant_id TEXT NOT NULL,
    period DATE NOT NULL,
    percent SMALLINT NOT NULL,
    used BIGINT NOT NULL,
    monthly BIGINT NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_quota_notices PRIMARY KEY (tenant_id, period, percent),
    CONSTRAINT fk_quota_notices_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE TABLE notice_deliveries (
    tenant_id TEXT NOT NULL,
    period DATE NOT NULL,
    percent SMALLINT NOT NULL,
    channel TEXT NOT NULL,
    target TEXT NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    due_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    sent_at TIMESTAMPTZ,
    error TEXT,
    CONSTRAINT pk_notice_deliveries PRIMARY KEY (tenant_id, period, percent, channel, target),
    CONSTRAINT fk_notice_deliveries_notice FOREIGN KEY (tenant_id, period, percent)
        REFERENCES quota_notices (tenant_id, period, percent) ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT ck_notice_deliveries_channel CHECK (channel IN ('webhook', 'mail')),
    CONSTRAINT ck_notice_deliveries_state CHECK (state IN ('pending', 'sent', 'given_up')),
    CONSTRAINT ck_notice_deliveries_sent CHECK ((state = 'sent') = (sent_at IS NOT NULL))
);
CREATE INDEX ix_notice_deliveries_due_at ON notice_deliveries (due_at) WHERE state = 'pending';
CREATE TABLE notice_targets (
    tenant_id TEXT NOT NULL,
    url TEXT NOT NULL,
    salt TEXT NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_notice_targets PRIMARY KEY (tenant_id),
    CONSTRAINT fk_notice_targets_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
"""

ACCESS = "\n".join(
    f"""
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON {table} TO fairlane_tenant USING ({OWN_ROWS}) WITH CHECK ({OWN_ROWS});
CREATE POLICY system ON {table} TO fairlane_system USING (true) WITH CHECK (true);
GRANT {grants} ON {table} TO fairlane_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO fairlane_system;
"""
    for table, grants in (
        ("quota_notices", "SELECT, INSERT"),
        ("notice_deliveries", "SELECT, INSERT"),
        ("notice_targets", "SELECT, INSERT, UPDATE, DELETE"),
    )
)


def upgrade() -> None:
    for statements in (ENDED, PAYLOADS, NOTICES, ACCESS):
        op.execute(statements)


def downgrade() -> None:
    op.execute(
        """
        DROP TABLE notice_targets;
        DROP TABLE notice_deliveries;
        DROP TABLE quota_notices;
        DROP INDEX ix_runs_ended;
        ALTER TABLE plans NO FORCE ROW LEVEL SECURITY;
        UPDATE plans SET limits = limits - 'max_payload_bytes';
        ALTER TABLE plans FORCE ROW LEVEL SECURITY;
        """
    )
