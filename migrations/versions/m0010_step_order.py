"""A number that grows with every change of a step, so that whoever watches a run is told each once.

The column is new and empty, so no table is rewritten; steps that were stored before count as older than any cursor.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute(
        """
        CREATE SEQUENCE step_changes;
        GRANT USAGE ON SEQUENCE step_changes TO fairlane_tenant, fairlane_system;
        ALTER TABLE steps ADD COLUMN seq BIGINT;
        ALTER TABLE steps ALTER COLUMN seq SET DEFAULT nextval('step_changes');
        """
    )


def downgrade() -> None:
    op.execute(
        """
        ALTER TABLE steps DROP COLUMN seq;
        DROP SEQUENCE step_changes;
        """
    )
