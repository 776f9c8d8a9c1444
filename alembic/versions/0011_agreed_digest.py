"""Digest of the definition to which an organization agreed."""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("invitations", sa.Column("agreed_digest", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("invitations", "agreed_digest")
