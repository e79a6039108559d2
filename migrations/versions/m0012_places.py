"""Two indexes for the limits that runs share: who has a place, and who waits for one.

With both in one index, each look at a limit walked over all that wait there, which may be very many.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute(
        """
        CREATE INDEX ix_runs_places ON runs (workflow_id, concurrency_key, id)
            WHERE concurrency_key IS NOT NULL AND finished_at IS NULL AND wait_reason IS DISTINCT FROM 'concurrency';
        CREATE INDEX ix_runs_line ON runs (workflow_id, concurrency_key, id) WHERE wait_reason = 'concurrency';
        DROP INDEX ix_runs_concurrency;
        """
    )


def downgrade() -> None:
    op.execute(
        """
        CREATE INDEX ix_runs_concurrency ON runs (workflow_id, concurrency_key, id)
            WHERE concurrency_key IS NOT NULL AND finished_at IS NULL;
        DROP INDEX ix_runs_places;
        DROP INDEX ix_runs_line;
        """
    )
