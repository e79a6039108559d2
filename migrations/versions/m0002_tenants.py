"""Phase 1 of the promise to the users: organizations exist, and a user knows a home."""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE tenants (
            id TEXT NOT NULL,
            name TEXT NOT NULL,
            plan TEXT DEFAULT 'free' NOT NULL,
            status TEXT DEFAULT 'active' NOT NULL,
            created_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_tenants PRIMARY KEY (id),
            CONSTRAINT ck_tenants_status CHECK (status IN ('active', 'suspended', 'deleted'))
        );
        ALTER TABLE users ADD COLUMN tenant_id TEXT CONSTRAINT fk_users_tenant_id REFERENCES tenants (id);
        CREATE INDEX ix_users_tenant_id ON users (tenant_id);
        CREATE INDEX ix_users_lower_email ON users (lower(email));
        """
    )


def downgrade() -> None:
    refuse_if("SELECT 1 FROM tenants", "tenants exist; their names and plans would be lost")
    op.execute(
        """
        DROP INDEX ix_users_lower_email;
        ALTER TABLE users DROP COLUMN tenant_id;
        DROP TABLE tenants;
        """
    )
