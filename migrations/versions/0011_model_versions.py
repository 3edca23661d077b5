"""Versions of networks: a number for each name and content."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "model_version",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_model_version_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("tenant_id", "name", "version", name=op.f("pk_model_version")),
    )
    op.create_index(
        op.f("ix_model_version_tenant_id_name_digest"), "model_version", ["tenant_id", "name", "digest"], unique=True
    )
    # Ids sort by time: the first network of a name that has some bytes says which number they get.
    op.execute(
        "INSERT INTO model_version (tenant_id, name, version, digest, created_at)"
        " SELECT tenant_id, name, row_number() OVER (PARTITION BY tenant_id, name ORDER BY min(id)),"
        " artifact_digest, min(created_at) FROM model WHERE state = 'ready' AND artifact_digest IS NOT NULL"
        " GROUP BY tenant_id, name, artifact_digest"
    )


def downgrade() -> None:

    op.drop_table("model_version")
