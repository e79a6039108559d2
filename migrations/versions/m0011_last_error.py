"""Why the last poll of a trigger failed, while it is still tried again; what pauses it is in `paused_reason`.

The column is new and empty, so no table is rewritten.
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("ALTER TABLE triggers ADD COLUMN last_error TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE triggers DROP COLUMN last_error")
