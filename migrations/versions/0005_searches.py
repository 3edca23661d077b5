"""Searches: what was measured of a network's variants, proposals and recipes of trials, picked candidates, pauses."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "library_piece",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("library", sa.String(), nullable=False),
        sa.Column("part", sa.String(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_library_piece_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("tenant_id", "library", "part", name=op.f("pk_library_piece")),
    )
    op.create_index(op.f("ix_library_piece_used_at"), "library_piece", ["used_at"], unique=False)
    op.create_index(
        op.f("ix_library_piece_tenant_id_model_digest"), "library_piece", ["tenant_id", "model_digest"], unique=False
    )

    with op.batch_alter_table("trial", schema=None) as batch_op:
        batch_op.add_column(sa.Column("proposal", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("recipe", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("model_id", sa.String(), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_trial_model_id_model"), "model", ["model_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_trial_model_id"), ["model_id"], unique=False)

    op.add_column("job", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("job", sa.Column("paused_s", sa.Float(), server_default="0", nullable=False))


def downgrade() -> None:

    op.drop_column("job", "paused_s")
    op.drop_column("job", "paused_at")
    with op.batch_alter_table("trial", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_trial_model_id"))
        batch_op.drop_constraint(batch_op.f("fk_trial_model_id_model"), type_="foreignkey")
        for name in ("model_id", "recipe", "proposal"):
            batch_op.drop_column(name)
    op.drop_table("library_piece")
