"""What runs need to wait without a worker, to have children, to share a limit, and to end by their deadline.

All columns are new and empty or have a constant default, so no table is rewritten; the indexes hold only the few runs
that have what they are about.
"""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE runs
            ADD COLUMN parent_run_id TEXT,
            ADD COLUMN depth SMALLINT DEFAULT 0 NOT NULL,
            ADD COLUMN concurrency_key TEXT,
            ADD COLUMN concurrency_limit SMALLINT,
            ADD COLUMN max_seconds INTEGER,
            ADD COLUMN deadline_at timestamptz;
        CREATE INDEX ix_runs_parent_run_id ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
        CREATE INDEX ix_runs_concurrency ON runs (workflow_id, concurrency_key, id)
            WHERE concurrency_key IS NOT NULL AND finished_at IS NULL;
        CREATE INDEX ix_runs_waits_for_runs ON runs (id) WHERE wait_reason IN ('workflow', 'concurrency');
        ALTER TABLE steps
            ADD COLUMN wait_reason TEXT,
            ADD COLUMN wake_at timestamptz,
            ADD COLUMN signal JSONB,
            ADD CONSTRAINT ck_steps_waiting CHECK (wait_reason IS NULL OR status = 'running');
        """
    )


def downgrade() -> None:
    refuse_if("SELECT 1 FROM runs WHERE status = 'waiting'", "runs wait; an older worker would not know what for")
    refuse_if("SELECT 1 FROM runs WHERE parent_run_id IS NOT NULL", "runs have children; they would be forgotten")
    op.execute(
        """
        ALTER TABLE steps
            DROP COLUMN wait_reason,
            DROP COLUMN wake_at,
            DROP COLUMN signal;
        DROP INDEX ix_runs_waits_for_runs;
        ALTER TABLE runs
            DROP COLUMN parent_run_id,
            DROP COLUMN depth,
            DROP COLUMN concurrency_key,
            DROP COLUMN concurrency_limit,
            DROP COLUMN max_seconds,
            DROP COLUMN deadline_at;
        """
    )
