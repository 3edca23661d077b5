"""Aliases: several for a network, and their moves."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "alias",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_alias_model_id_model")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_alias_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_alias")),
    )
    op.create_index(op.f("ix_alias_model_id"), "alias", ["model_id"], unique=False)
    op.create_table(
        "alias_move",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=True),
        sa.Column("is_rollback", sa.Boolean(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=True),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_alias_move_model_id_model")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_alias_move_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_move")),
    )
    op.create_index(op.f("ix_alias_move_model_id"), "alias_move", ["model_id"], unique=False)
    op.create_index(op.f("ix_alias_move_tenant_id_alias_id"), "alias_move", ["tenant_id", "alias", "id"], unique=False)
    # What held before is the first move that is remembered; ids of models sort by time, and so do those of moves.
    op.execute(
        "INSERT INTO alias (tenant_id, name, model_id, moved_at)"
        " SELECT tenant_id, alias, id, updated_at FROM model WHERE alias IS NOT NULL"
    )
    op.execute(
        "INSERT INTO alias_move (id, tenant_id, alias, model_id, is_rollback, created_at)"
        " SELECT 'alm' || substr(id, 4), tenant_id, alias, id, false, updated_at FROM model WHERE alias IS NOT NULL"
    )


def downgrade() -> None:

    op.drop_table("alias_move")
    op.drop_table("alias")
