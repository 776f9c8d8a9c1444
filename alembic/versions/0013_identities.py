"""Expiry of API keys, and the earlier runs of a worker."""

import sqlalchemy as sa

from alembic import op
from coordinator.models.base import UtcDateTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("expires_at", UtcDateTime(), nullable=True))
    op.add_column("workers", sa.Column("replaced_boots", sa.JSON(), nullable=True))
    op.add_column("workers", sa.Column("doubled_at", UtcDateTime(), nullable=True))
    op.create_index(op.f("ix_workers_revoked_at"), "workers", ["revoked_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_workers_revoked_at"), table_name="workers")
    op.drop_column("workers", "doubled_at")
    op.drop_column("workers", "replaced_boots")
    op.drop_column("api_keys", "expires_at")
