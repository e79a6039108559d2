"""Organizations: an audit trail that is chained by the database, a record of every decryption, and leaving.

A row of the audit gets its number, its time and its hash from a trigger, whatever the statement said, under a lock of
its tenant: so the chain never forks, and nobody can write a row that is not in it. Neither role may change a row; a
second trigger refuses it to everybody else, except that the audit goes when its tenant does. The hash covers the text
of ``[number, time, actor, action, object, ip, data]``; `engine.audit` computes it again, independently.

Foreign keys inside a tenant follow when a workflow moves to another tenant, so that it takes its history along.
"""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0008"
down_revision = "0007"

CHAIN = """
CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('audit:' || NEW.tenant_id, 0));
    SELECT id, hash INTO last FROM audit WHERE tenant_id = NEW.tenant_id ORDER BY id DESC LIMIT 1;
    NEW.id := coalesce(last.id, 0) + 1;
    NEW.at := clock_timestamp();
    NEW.previous_hash := coalesce(last.hash, decode(repeat('00', 32), 'hex'));
    NEW.hash := sha256(NEW.previous_hash || convert_to(jsonb_build_array(
        NEW.id, to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        NEW.actor, NEW.action, NEW.object, NEW.ip, NEW.data)::text, 'UTF8'));
    RETURN NEW;
END
$$;
CREATE TRIGGER chain BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_chain();

CREATE FUNCTION audit_keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND NOT EXISTS (SELECT 1 FROM tenants WHERE id = OLD.tenant_id) THEN
        RETURN OLD;  -- the tenant goes, and its audit with it
    END IF;
    RAISE EXCEPTION 'the audit is append-only';
END
$$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_keep();
"""

FOLLOWING = (
    ("workflow_versions", "fk_workflow_versions_workflow", "workflow_id", "workflows", "id"),
    ("triggers", "fk_triggers_workflow", "workflow_id", "workflows", "id"),
    ("poll_items", "fk_poll_items_workflow", "workflow_id", "workflows", "id"),
    ("runs", "fk_runs_version", "workflow_id, version", "workflow_versions", "workflow_id, version"),
    ("steps", "fk_steps_run", "run_id", "runs", "id"),
    ("execution_logs", "fk_execution_logs_run", "run_id", "runs", "id"),
    ("logs", "fk_logs_workflow", "workflow_id", "workflows", "id"),
)
"""Table, foreign key, its columns beside tenant_id, the table and the columns that it refers to."""


def upgrade() -> None:
    refuse_if("SELECT 1 FROM audit", "audit rows exist that are in no chain; nothing of Fairlane wrote them")
    op.execute(
        """
        ALTER TABLE users ADD COLUMN token_version INTEGER DEFAULT 0 NOT NULL;
        ALTER TABLE tenants
            ADD COLUMN organizations BOOLEAN DEFAULT true NOT NULL,
            ADD COLUMN deleted_at timestamptz,
            ADD COLUMN erase_after timestamptz;
        CREATE INDEX ix_tenants_erase_after ON tenants (erase_after) WHERE erase_after IS NOT NULL;
        UPDATE tenants t SET organizations = false FROM users u WHERE t.id = 'tenant_' || u.id;

        ALTER TABLE invites ADD COLUMN accepted_by TEXT;
        CREATE UNIQUE INDEX uq_invites_pending ON invites (tenant_id, lower(email))
            WHERE accepted_at IS NULL AND revoked_at IS NULL;

        ALTER TABLE audit
            ALTER COLUMN id DROP IDENTITY,
            ALTER COLUMN previous_hash SET NOT NULL,
            ALTER COLUMN hash SET NOT NULL;
        CREATE INDEX ix_audit_tenant_id_object ON audit (tenant_id, object, id);

        CREATE TABLE decryptions (
            tenant_id TEXT NOT NULL,
            id BIGINT GENERATED ALWAYS AS IDENTITY,
            at timestamptz DEFAULT clock_timestamp() NOT NULL,
            credential_id TEXT NOT NULL,
            run_id TEXT NOT NULL,
            step_id TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            sealed_by BIGINT,
            CONSTRAINT pk_decryptions PRIMARY KEY (tenant_id, id),
            CONSTRAINT fk_decryptions_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
        );
        CREATE INDEX ix_decryptions_unsealed ON decryptions (tenant_id) WHERE sealed_by IS NULL;
        CREATE INDEX ix_decryptions_tenant_id_credential_id ON decryptions (tenant_id, credential_id, id);
        ALTER TABLE decryptions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON decryptions TO fairlane_tenant
            USING (tenant_id = nullif(current_setting('app.tenant_id', true), ''))
            WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), ''));
        CREATE POLICY system ON decryptions TO fairlane_system USING (true) WITH CHECK (true);
        GRANT SELECT, INSERT (tenant_id, credential_id, run_id, step_id, attempt) ON decryptions TO fairlane_tenant;
        GRANT SELECT, UPDATE (sealed_by) ON decryptions TO fairlane_system;
        """
    )
    op.execute(CHAIN)
    _refer(on_update="ON UPDATE CASCADE")


def downgrade() -> None:
    refuse_if("SELECT 1 FROM audit", "an audit exists; it would be lost")
    refuse_if("SELECT 1 FROM tenants WHERE erase_after IS NOT NULL", "organizations wait to be erased")
    _refer(on_update="")
    op.execute(
        """
        DROP TRIGGER chain ON audit;
        DROP TRIGGER keep ON audit;
        DROP FUNCTION audit_chain();
        DROP FUNCTION audit_keep();
        DROP TABLE decryptions;
        DROP INDEX ix_audit_tenant_id_object;
        ALTER TABLE audit
            ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY,
            ALTER COLUMN previous_hash DROP NOT NULL,
            ALTER COLUMN hash DROP NOT NULL;
        DROP INDEX uq_invites_pending;
        ALTER TABLE invites DROP COLUMN accepted_by;
        DROP INDEX ix_tenants_erase_after;
        ALTER TABLE tenants DROP COLUMN organizations, DROP COLUMN deleted_at, DROP COLUMN erase_after;
        ALTER TABLE users DROP COLUMN token_version;
        """
    )


def _refer(*, on_update: str) -> None:
    for table, name, columns, target, keys in FOLLOWING:
        op.execute(
            f"""
            ALTER TABLE {table}
                DROP CONSTRAINT {name},
                ADD CONSTRAINT {name} FOREIGN KEY (tenant_id, {columns}) REFERENCES {target} (tenant_id, {keys})
                    {on_update} ON DELETE CASCADE;
            """
        )
