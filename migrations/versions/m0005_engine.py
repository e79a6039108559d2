"""The engine's own tables: versions, triggers, runs, steps, the execution log, usage, invites, keys and audit."""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0005"
down_revision = "0004"

COLUMNS = """
ALTER TABLE credentials
    ALTER COLUMN encrypted_key DROP NOT NULL,
    ADD COLUMN ciphertext BYTEA,
    ADD COLUMN key_version INTEGER,
    ADD COLUMN fingerprint TEXT,
    ADD COLUMN broken_reason TEXT,
    ADD COLUMN updated_at timestamptz DEFAULT now() NOT NULL,
    ADD CONSTRAINT ck_credentials_has_secret
        CHECK (ciphertext IS NOT NULL AND key_version IS NOT NULL OR encrypted_key IS NOT NULL);
ALTER TABLE workflows
    ALTER COLUMN action_type DROP NOT NULL,
    ALTER COLUMN config_json DROP NOT NULL,
    ADD COLUMN inactive_reason TEXT,
    ADD COLUMN version INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN updated_at timestamptz DEFAULT now() NOT NULL,
    ADD COLUMN deleted_at timestamptz;
"""

TABLES = """
CREATE TABLE workflow_versions (
    tenant_id TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    definition JSONB NOT NULL,
    hash TEXT NOT NULL,
    created_by TEXT,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_workflow_versions PRIMARY KEY (tenant_id, workflow_id, version),
    CONSTRAINT fk_workflow_versions_workflow FOREIGN KEY(tenant_id, workflow_id)
        REFERENCES workflows (tenant_id, id) ON DELETE CASCADE
);
CREATE TABLE triggers (
    tenant_id TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    type TEXT NOT NULL,
    config JSONB NOT NULL,
    next_fire_at timestamptz,
    last_fired_at timestamptz,
    cursor JSONB,
    failures INTEGER DEFAULT 0 NOT NULL,
    paused_reason TEXT,
    CONSTRAINT pk_triggers PRIMARY KEY (tenant_id, workflow_id),
    CONSTRAINT fk_triggers_workflow FOREIGN KEY(tenant_id, workflow_id)
        REFERENCES workflows (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX ix_triggers_next_fire_at ON triggers (next_fire_at) WHERE next_fire_at IS NOT NULL;
CREATE TABLE poll_items (
    tenant_id TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    seen_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_poll_items PRIMARY KEY (tenant_id, workflow_id, item_id),
    CONSTRAINT fk_poll_items_workflow FOREIGN KEY(tenant_id, workflow_id)
        REFERENCES workflows (tenant_id, id) ON DELETE CASCADE
);
CREATE TABLE runs (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    trigger TEXT NOT NULL,
    input JSONB NOT NULL,
    output JSONB,
    error JSONB,
    attempt INTEGER DEFAULT 0 NOT NULL,
    checkpoint INTEGER DEFAULT 0 NOT NULL,
    priority SMALLINT DEFAULT 5 NOT NULL,
    idempotency_key TEXT,
    crashes SMALLINT DEFAULT 0 NOT NULL,
    replay_of TEXT,
    wait_reason TEXT,
    wake_at timestamptz,
    queued_at timestamptz DEFAULT now() NOT NULL,
    started_at timestamptz,
    heartbeat_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT pk_runs PRIMARY KEY (tenant_id, id),
    CONSTRAINT fk_runs_version FOREIGN KEY(tenant_id, workflow_id, version)
        REFERENCES workflow_versions (tenant_id, workflow_id, version) ON DELETE CASCADE,
    CONSTRAINT ck_runs_status
        CHECK (status IN ('held', 'queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT ck_runs_finished
        CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT ck_runs_running
        CHECK (status <> 'running' OR (started_at IS NOT NULL AND heartbeat_at IS NOT NULL AND attempt > 0)),
    CONSTRAINT ck_runs_wait_reason CHECK ((status IN ('held', 'waiting')) = (wait_reason IS NOT NULL))
);
CREATE INDEX ix_runs_workflow_id_id ON runs (workflow_id, id);
CREATE INDEX ix_runs_live ON runs (id) WHERE finished_at IS NULL AND wait_reason IS NULL;
CREATE INDEX ix_runs_wake_at ON runs (wake_at) WHERE wake_at IS NOT NULL;
CREATE UNIQUE INDEX uq_runs_tenant_id_idempotency_key ON runs (tenant_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE TABLE steps (
    tenant_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    step_id TEXT NOT NULL,
    item TEXT DEFAULT '' NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    output JSONB,
    error JSONB,
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT pk_steps PRIMARY KEY (tenant_id, run_id, step_id, item),
    CONSTRAINT fk_steps_run FOREIGN KEY(tenant_id, run_id) REFERENCES runs (tenant_id, id) ON DELETE CASCADE,
    CONSTRAINT ck_steps_status CHECK (status IN ('running', 'succeeded', 'failed', 'skipped')),
    CONSTRAINT ck_steps_finished CHECK ((status = 'running') = (finished_at IS NULL))
);
CREATE TABLE execution_logs (
    tenant_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    seq BIGINT GENERATED ALWAYS AS IDENTITY,
    step_id TEXT,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    data JSONB,
    at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_execution_logs PRIMARY KEY (tenant_id, run_id, seq),
    CONSTRAINT fk_execution_logs_run FOREIGN KEY(tenant_id, run_id)
        REFERENCES runs (tenant_id, id) ON DELETE CASCADE
);
CREATE TABLE usage (
    tenant_id TEXT NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at timestamptz DEFAULT now() NOT NULL,
    kind TEXT NOT NULL,
    run_id TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    action TEXT,
    quantity INTEGER DEFAULT 1 NOT NULL,
    seconds DOUBLE PRECISION DEFAULT 0 NOT NULL,
    CONSTRAINT pk_usage PRIMARY KEY (tenant_id, id),
    CONSTRAINT fk_usage_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE INDEX ix_usage_tenant_id_at ON usage (tenant_id, at);
CREATE TABLE invites (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    email TEXT NOT NULL,
    role TEXT NOT NULL,
    token_hash BYTEA NOT NULL,
    created_by TEXT,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz NOT NULL,
    accepted_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT pk_invites PRIMARY KEY (id),
    CONSTRAINT fk_invites_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE,
    CONSTRAINT ck_invites_role CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    CONSTRAINT uq_invites_token_hash UNIQUE (token_hash)
);
CREATE INDEX ix_invites_tenant_id_email ON invites (tenant_id, email);
CREATE TABLE api_keys (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    secret_hash BYTEA NOT NULL,
    scopes TEXT[] NOT NULL,
    created_by TEXT,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT fk_api_keys_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE,
    CONSTRAINT uq_api_keys_secret_hash UNIQUE (secret_hash)
);
CREATE INDEX ix_api_keys_tenant_id ON api_keys (tenant_id);
CREATE TABLE audit (
    tenant_id TEXT NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at timestamptz DEFAULT now() NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT,
    ip TEXT,
    data JSONB,
    previous_hash BYTEA,
    hash BYTEA,
    CONSTRAINT pk_audit PRIMARY KEY (tenant_id, id),
    CONSTRAINT fk_audit_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE TABLE data_keys (
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    master_key_id TEXT NOT NULL,
    wrapped BYTEA NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_data_keys PRIMARY KEY (tenant_id, version),
    CONSTRAINT fk_data_keys_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
"""

NEW_TABLES = (
    "execution_logs",
    "steps",
    "runs",
    "poll_items",
    "triggers",
    "workflow_versions",
    "usage",
    "invites",
    "api_keys",
    "audit",
    "data_keys",
)


def upgrade() -> None:
    op.execute(COLUMNS)
    op.execute(TABLES)


def downgrade() -> None:
    refuse_if("SELECT 1 FROM runs", "runs exist; the multi-user schema has no place for them")
    refuse_if("SELECT 1 FROM workflows WHERE config_json IS NULL", "workflows exist that have no legacy form")
    refuse_if("SELECT 1 FROM credentials WHERE encrypted_key IS NULL", "credentials exist that have no legacy form")
    op.execute(f"DROP TABLE {', '.join(NEW_TABLES)}")
    op.execute(
        """
        ALTER TABLE workflows
            ALTER COLUMN action_type SET NOT NULL,
            ALTER COLUMN config_json SET NOT NULL,
            DROP COLUMN inactive_reason,
            DROP COLUMN version,
            DROP COLUMN updated_at,
            DROP COLUMN deleted_at;
        ALTER TABLE credentials
            ALTER COLUMN encrypted_key SET NOT NULL,
            DROP COLUMN ciphertext,
            DROP COLUMN key_version,
            DROP COLUMN fingerprint,
            DROP COLUMN broken_reason,
            DROP COLUMN updated_at;
        """
    )
