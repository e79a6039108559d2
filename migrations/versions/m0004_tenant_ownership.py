"""Phase 3: workflows, credentials and logs belong to the personal organization of their user.

Foreign keys inside a tenant are composite from here on, so that no row can refer to another tenant's. A credential
gets a name: its service, numbered where a user has several of one service.
"""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE workflows ADD COLUMN tenant_id TEXT;
        UPDATE workflows w SET tenant_id = u.tenant_id FROM users u WHERE u.id = w.user_id;
        ALTER TABLE workflows
            ALTER COLUMN tenant_id SET NOT NULL,
            ALTER COLUMN user_id DROP NOT NULL,
            DROP CONSTRAINT fk_workflows_user_id,
            ADD CONSTRAINT fk_workflows_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL,
            ADD CONSTRAINT fk_workflows_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE,
            ADD CONSTRAINT uq_workflows_tenant_id_id UNIQUE (tenant_id, id);

        ALTER TABLE credentials ADD COLUMN tenant_id TEXT, ADD COLUMN name TEXT;
        UPDATE credentials c SET
            tenant_id = u.tenant_id,
            name = c.service_name || CASE WHEN n.number = 1 THEN '' ELSE ' ' || n.number END
        FROM users u, (
            SELECT id, row_number() OVER (PARTITION BY user_id, service_name ORDER BY created_at, id) AS number
            FROM credentials
        ) n
        WHERE u.id = c.user_id AND n.id = c.id;
        UPDATE credentials c SET name = c.name || ' ' || c.id
        FROM (SELECT id, row_number() OVER (PARTITION BY tenant_id, name ORDER BY id) AS number FROM credentials) n
        WHERE n.id = c.id AND n.number > 1;  -- a service may be called like the second credential of another
        ALTER TABLE credentials
            ALTER COLUMN tenant_id SET NOT NULL,
            ALTER COLUMN name SET NOT NULL,
            ALTER COLUMN user_id DROP NOT NULL,
            DROP CONSTRAINT fk_credentials_user_id,
            ADD CONSTRAINT fk_credentials_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL,
            ADD CONSTRAINT fk_credentials_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE,
            ADD CONSTRAINT uq_credentials_tenant_id_id UNIQUE (tenant_id, id),
            ADD CONSTRAINT uq_credentials_tenant_id_name UNIQUE (tenant_id, name);
        CREATE INDEX ix_credentials_tenant_id_service_name ON credentials (tenant_id, service_name);

        ALTER TABLE logs ADD COLUMN tenant_id TEXT;
        UPDATE logs l SET tenant_id = w.tenant_id FROM workflows w WHERE w.id = l.workflow_id;
        ALTER TABLE logs
            ALTER COLUMN tenant_id SET NOT NULL,
            DROP CONSTRAINT fk_logs_workflow_id,
            ADD CONSTRAINT fk_logs_workflow FOREIGN KEY (tenant_id, workflow_id)
                REFERENCES workflows (tenant_id, id) ON DELETE CASCADE;
        CREATE INDEX ix_logs_tenant_id_workflow_id ON logs (tenant_id, workflow_id);
        """
    )


def downgrade() -> None:
    for table in ("workflows", "credentials"):
        refuse_if(
            f"SELECT 1 FROM {table} WHERE user_id IS NULL OR tenant_id <> 'tenant_' || user_id",
            f"{table} of shared organizations exist; they would have no owner in the multi-user schema",
        )
    op.execute(
        """
        ALTER TABLE logs
            DROP CONSTRAINT fk_logs_workflow,
            ADD CONSTRAINT fk_logs_workflow_id FOREIGN KEY (workflow_id) REFERENCES workflows (id) ON DELETE CASCADE,
            DROP COLUMN tenant_id;
        ALTER TABLE credentials
            DROP COLUMN tenant_id,
            DROP COLUMN name,
            ALTER COLUMN user_id SET NOT NULL,
            DROP CONSTRAINT fk_credentials_user_id,
            ADD CONSTRAINT fk_credentials_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
        ALTER TABLE workflows
            DROP COLUMN tenant_id,
            ALTER COLUMN user_id SET NOT NULL,
            DROP CONSTRAINT fk_workflows_user_id,
            ADD CONSTRAINT fk_workflows_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE;
        """
    )
