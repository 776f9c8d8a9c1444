"""Federations, their clients, rounds and jobs."""

import sqlalchemy as sa

from alembic import op
from coordinator.models.base import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _federations()
    _clients()
    _events()
    _invitations()
    _rounds()
    _jobs()


def downgrade() -> None:
    op.drop_table("jobs")
    op.drop_table("rounds")
    op.drop_table("invitations")
    op.drop_table("events")
    op.drop_table("clients")
    op.drop_table("federations")


def _federations() -> None:
    op.create_table(
        "federations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("reason_detail", sa.String(), nullable=True),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("model_facts", sa.JSON(), nullable=True),
        sa.Column("state_digest", sa.String(), nullable=True),
        sa.Column("waiting_since", UtcDateTime(), nullable=True),
        sa.Column("next_ordinal", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_federations_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_federations")),
    )
    op.create_index(op.f("ix_federations_organization_id"), "federations", ["organization_id"], unique=False)
    op.create_index(op.f("ix_federations_state"), "federations", ["state"], unique=False)


def _clients() -> None:
    op.create_table(
        "clients",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("federation_id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("reason_detail", sa.String(), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("evaluates_only", sa.Boolean(), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=True),
        sa.Column("evaluation_examples", sa.Integer(), nullable=True),
        sa.Column("rounds_taken", sa.Integer(), nullable=False),
        sa.Column("note_digest", sa.String(), nullable=True),
        sa.Column("memory_round", sa.Integer(), nullable=True),
        sa.Column("memory_digest", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_clients_federation_id_federations"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_clients_organization_id_organizations")
        ),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_clients_worker_id_workers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
        sa.UniqueConstraint("federation_id", "ordinal", name=op.f("uq_clients_federation_id_ordinal")),
        sa.UniqueConstraint(
            "federation_id", "worker_id", "dataset", name=op.f("uq_clients_federation_id_worker_id_dataset")
        ),
    )
    op.create_index(op.f("ix_clients_organization_id"), "clients", ["organization_id"], unique=False)
    op.create_index(op.f("ix_clients_worker_id"), "clients", ["worker_id"], unique=False)


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("federation_id", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_events_federation_id_federations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
    )
    op.create_index("ix_events_federation_id_number", "events", ["federation_id", "number"], unique=False)


def _invitations() -> None:
    op.create_table(
        "invitations",
        sa.Column("federation_id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("answered_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_invitations_federation_id_federations"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_invitations_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("federation_id", "organization_id", name=op.f("pk_invitations")),
    )
    op.create_index(op.f("ix_invitations_organization_id"), "invitations", ["organization_id"], unique=False)


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("federation_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("reason_detail", sa.String(), nullable=True),
        sa.Column("everybody", sa.Boolean(), nullable=False),
        sa.Column("cohort", sa.JSON(), nullable=True),
        sa.Column("planned", sa.Boolean(), nullable=False),
        sa.Column("evaluation_planned", sa.Boolean(), nullable=False),
        sa.Column("registered", sa.Integer(), nullable=True),
        sa.Column("start_digest", sa.String(), nullable=True),
        sa.Column("state_digest", sa.String(), nullable=True),
        sa.Column("adapter", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("not_reproducible", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=True),
        sa.Column("finished", sa.String(), nullable=True),
        sa.Column("late_updates", sa.Integer(), nullable=False),
        sa.Column("deadline_at", UtcDateTime(), nullable=True),
        sa.Column("evaluation_deadline_at", UtcDateTime(), nullable=True),
        sa.Column("opened_at", UtcDateTime(), nullable=False),
        sa.Column("collecting_at", UtcDateTime(), nullable=True),
        sa.Column("aggregated_at", UtcDateTime(), nullable=True),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("claimed_until", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_rounds_federation_id_federations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint(
            "federation_id", "kind", "number", "attempt", name=op.f("uq_rounds_federation_id_kind_number_attempt")
        ),
        sa.UniqueConstraint("federation_id", "sequence", name=op.f("uq_rounds_federation_id_sequence")),
    )
    op.create_index(op.f("ix_rounds_state"), "rounds", ["state"], unique=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("federation_id", sa.String(), nullable=False),
        sa.Column("round_id", sa.String(), nullable=True),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("instruction_digest", sa.String(), nullable=True),
        sa.Column("memory_round", sa.Integer(), nullable=True),
        sa.Column("memory_digest", sa.String(), nullable=True),
        sa.Column("boot_id", sa.String(), nullable=True),
        sa.Column("lease_seconds", sa.Double(), nullable=False),
        sa.Column("lease_expires_at", UtcDateTime(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("submission", sa.JSON(), nullable=True),
        sa.Column("update_digest", sa.String(), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("offered_number", sa.BigInteger(), nullable=False),
        sa.Column("submitted_number", sa.BigInteger(), nullable=True),
        sa.Column("offered_at", UtcDateTime(), nullable=False),
        sa.Column("leased_at", UtcDateTime(), nullable=True),
        sa.Column("submitted_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_jobs_client_id_clients"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["federation_id"], ["federations.id"], name=op.f("fk_jobs_federation_id_federations"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name=op.f("fk_jobs_round_id_rounds"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_jobs_worker_id_workers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_client_id"), "jobs", ["client_id"], unique=False)
    op.create_index(op.f("ix_jobs_federation_id"), "jobs", ["federation_id"], unique=False)
    op.create_index(op.f("ix_jobs_offered_number"), "jobs", ["offered_number"], unique=False)
    op.create_index("ix_jobs_round_id_state", "jobs", ["round_id", "state"], unique=False)
    op.create_index("ix_jobs_state_lease_expires_at", "jobs", ["state", "lease_expires_at"], unique=False)
    op.create_index("ix_jobs_worker_id_state", "jobs", ["worker_id", "state"], unique=False)
