"""Phase 2: every user gets a personal organization, as old as the user, and owns it."""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE memberships (
            tenant_id TEXT NOT NULL,
            user_id TEXT NOT NULL,
            role TEXT NOT NULL,
            joined_at timestamptz DEFAULT now() NOT NULL,
            CONSTRAINT pk_memberships PRIMARY KEY (tenant_id, user_id),
            CONSTRAINT fk_memberships_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE,
            CONSTRAINT fk_memberships_user_id FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
            CONSTRAINT ck_memberships_role CHECK (role IN ('owner', 'admin', 'member', 'viewer'))
        );
        CREATE INDEX ix_memberships_user_id ON memberships (user_id);

        INSERT INTO tenants (id, name, created_at)
        SELECT 'tenant_' || id, email || '''s Organization', created_at FROM users;

        UPDATE users SET tenant_id = 'tenant_' || id;

        INSERT INTO memberships (tenant_id, user_id, role, joined_at)
        SELECT 'tenant_' || id, id, 'owner', created_at FROM users;
        """
    )


def downgrade() -> None:
    refuse_if(
        "SELECT 1 FROM tenants t WHERE NOT EXISTS (SELECT 1 FROM users u WHERE t.id = 'tenant_' || u.id)",
        "organizations that are not personal exist; going back would lose them",
    )
    op.execute(
        """
        DROP TABLE memberships;
        UPDATE users SET tenant_id = NULL;
        DELETE FROM tenants;
        """
    )
