"""Archives that were unpacked, what could be pruned, who changed what, processor time, workers by what they can run, profiles."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_unit = sa.table("unit", sa.column("queue", sa.String), sa.column("job_id", sa.String))
_job = sa.table("job", sa.column("id", sa.String), sa.column("spec", sa.JSON))


def upgrade() -> None:

    op.create_table(
        "archive",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "digest"],
            ["artifact.tenant_id", "artifact.digest"],
            name=op.f("fk_archive_tenant_id_digest_artifact"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "sha256", name=op.f("pk_archive")),
    )
    op.create_index(op.f("ix_archive_tenant_id_digest"), "archive", ["tenant_id", "digest"], unique=False)

    op.create_table(
        "prunability",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("unit_id", sa.String(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "digest"],
            ["artifact.tenant_id", "artifact.digest"],
            name=op.f("fk_prunability_tenant_id_digest_artifact"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "digest", name=op.f("pk_prunability")),
    )

    op.create_table(
        "audit",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject_id", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_audit_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_tenant_id_id"), "audit", ["tenant_id", "id"], unique=False)
    op.create_index(op.f("ix_audit_tenant_id_subject_id_id"), "audit", ["tenant_id", "subject_id", "id"], unique=False)
    op.create_index(op.f("ix_audit_created_at"), "audit", ["created_at"], unique=False)

    op.create_table(
        "chore",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_chore")),
    )

    op.add_column("unit", sa.Column("cpu_s", sa.Float(), server_default="0", nullable=False))
    op.create_index(op.f("ix_unit_tenant_id_finished_at"), "unit", ["tenant_id", "finished_at"], unique=False)

    op.add_column("worker", sa.Column("state", sa.String(), server_default="live", nullable=False))
    op.add_column("worker", sa.Column("cores", sa.Integer(), server_default="0", nullable=False))
    op.add_column("worker", sa.Column("unavailable", sa.JSON(), server_default="[]", nullable=False))
    _route_by_provider()

    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.alter_column("output_model_id", existing_type=sa.String(), nullable=True)
        batch_op.add_column(sa.Column("baseline_id", sa.String(), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_job_baseline_id_model"), "model", ["baseline_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_job_baseline_id"), ["baseline_id"], unique=False)


def _route_by_provider() -> None:
    # Their messages stay behind in a queue that nobody reads any more: the reconciler sends them anew.
    provider = (
        sa.select(_job.c.spec["target"]["provider"].as_string()).where(_job.c.id == _unit.c.job_id).scalar_subquery()
    )
    name = sa.literal("run.") + sa.func.coalesce(provider, "cpu")
    op.execute(_unit.update().where(_unit.c.queue == "work").values(queue=name))


def downgrade() -> None:

    for statement in (
        "DELETE FROM unit WHERE parent_id IS NOT NULL AND job_id IN (SELECT id FROM job WHERE output_model_id IS NULL)",
        "DELETE FROM unit WHERE job_id IN (SELECT id FROM job WHERE output_model_id IS NULL)",
        "DELETE FROM job_label WHERE job_id IN (SELECT id FROM job WHERE output_model_id IS NULL)",
        "DELETE FROM job WHERE output_model_id IS NULL",
    ):
        op.execute(statement)
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_baseline_id"))
        batch_op.drop_constraint(batch_op.f("fk_job_baseline_id_model"), type_="foreignkey")
        batch_op.drop_column("baseline_id")
        batch_op.alter_column("output_model_id", existing_type=sa.String(), nullable=False)

    op.execute(_unit.update().where(_unit.c.queue.like("run.%")).values(queue="work"))
    for name in ("unavailable", "cores", "state"):
        op.drop_column("worker", name)
    op.drop_index(op.f("ix_unit_tenant_id_finished_at"), "unit")
    op.drop_column("unit", "cpu_s")
    op.drop_table("chore")
    op.drop_table("audit")
    op.drop_table("prunability")
    op.drop_table("archive")
