"""Workers' signing keys, the key of each update, and the notes used in a round's aggregation."""

import hashlib
from base64 import urlsafe_b64decode

import sqlalchemy as sa

from alembic import op
from coordinator.models.base import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_WORKERS = sa.table("workers", sa.column("id"), sa.column("public_key"), sa.column("created_at", UtcDateTime()))


def upgrade() -> None:
    keys = op.create_table(
        "worker_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("retired_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_worker_keys_worker_id_workers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_keys")),
    )
    op.create_index(op.f("ix_worker_keys_worker_id"), "worker_keys", ["worker_id"], unique=False)
    op.add_column("jobs", sa.Column("key_id", sa.String(), nullable=True))
    op.add_column("rounds", sa.Column("notes", sa.JSON(), nullable=True))
    rows = op.get_bind().execute(sa.select(_WORKERS)).all()
    op.bulk_insert(
        keys,
        [
            {"id": _key_id(key), "worker_id": worker, "public_key": key, "created_at": created, "retired_at": None}
            for worker, key, created in rows
        ],
    )


def downgrade() -> None:
    op.drop_column("rounds", "notes")
    op.drop_column("jobs", "key_id")
    op.drop_table("worker_keys")


def _key_id(public_key: str) -> str:
    # As `federated.signed_statement.key_id` is today: a migration keeps to what it did.
    raw = urlsafe_b64decode(public_key + "=" * (-len(public_key) % 4))
    return "ed25519:" + hashlib.sha256(raw).hexdigest()[:32]
