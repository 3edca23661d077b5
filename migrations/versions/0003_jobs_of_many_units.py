"""Jobs of many units: what a unit waits for, trials, several outputs; a dataset to judge on, and what datasets declare."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_unit = sa.table(
    "unit",
    sa.column("id", sa.String),
    sa.column("kind", sa.String),
    sa.column("status", sa.String),
    sa.column("parent_id", sa.String),
    sa.column("payload", sa.JSON),
    sa.column("position", sa.Integer),
    sa.column("waits_for", sa.String),
    sa.column("result", sa.JSON(none_as_null=True)),
)
_dataset = sa.table("dataset", sa.column("id", sa.String), sa.column("metric", sa.String), sa.column("declaration", sa.JSON))
_AT_ONCE = 100


def upgrade() -> None:

    op.create_table(
        "job_output",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_output_job_id_job")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_job_output_model_id_model")),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("pk_job_output")),
        sa.UniqueConstraint("model_id", name=op.f("uq_job_output_model_id")),
    )
    op.execute(
        "INSERT INTO job_output (job_id, position, name, model_id)"
        " SELECT id, 0, 'model', output_model_id FROM job WHERE output_model_id IS NOT NULL"
    )

    op.create_table(
        "trial",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("point", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("unit_id", sa.String(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("artifact_digest", sa.String(), nullable=True),
        sa.Column("inspection", sa.JSON(), nullable=True),
        sa.Column("report_digest", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_trial_job_id_job")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_trial_tenant_id_tenant")),
        sa.ForeignKeyConstraint(["unit_id"], ["unit.id"], name=op.f("fk_trial_unit_id_unit")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "artifact_digest"],
            ["artifact.tenant_id", "artifact.digest"],
            name=op.f("fk_trial_tenant_id_artifact_digest_artifact"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "report_digest"],
            ["artifact.tenant_id", "artifact.digest"],
            name=op.f("fk_trial_tenant_id_report_digest_artifact"),
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_trial")),
    )
    op.create_index(op.f("ix_trial_tenant_id_artifact_digest"), "trial", ["tenant_id", "artifact_digest"], unique=False)
    op.create_index(op.f("ix_trial_tenant_id_report_digest"), "trial", ["tenant_id", "report_digest"], unique=False)
    op.create_index(op.f("ix_trial_unit_id"), "trial", ["unit_id"], unique=True)

    for name, kind in (
        ("position", sa.Integer()),
        ("waits_for", sa.String()),
        ("continuation", sa.JSON()),
        ("result", sa.JSON()),
        ("target_class", sa.String()),
    ):
        op.add_column("unit", sa.Column(name, kind, nullable=True))
    _say_what_units_wait_for()
    _move_parts()

    op.add_column("worker", sa.Column("target_classes", sa.JSON(), server_default="[]", nullable=False))

    op.add_column("dataset", sa.Column("declaration", sa.JSON(), server_default="{}", nullable=False))
    _declare_metrics()

    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("judge_id", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("max_units_in_flight", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("max_runtime_s", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("max_cpu_s", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("deadline", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_job_judge_id_dataset"), "dataset", ["judge_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_job_judge_id"), ["judge_id"], unique=False)


def _say_what_units_wait_for() -> None:
    # Only a profile's parts have had a unit that waits for them; every other one waits for the job that makes its network.
    found = sa.case((_unit.c.kind == "merge", "children"), else_="job")
    op.execute(_unit.update().where(_unit.c.status == "waiting").values(waits_for=found))


def _move_parts() -> None:
    """Give a profile's parts their kind and place, and move what they have left out of what they were asked for."""
    connection = op.get_bind()
    op.execute(_unit.update().where(_unit.c.parent_id.is_not(None)).values(kind="part"))
    ids = connection.scalars(sa.select(_unit.c.id).where(_unit.c.kind == "part")).all()
    for start in range(0, len(ids), _AT_ONCE):
        some = sa.select(_unit.c.id, _unit.c.payload).where(_unit.c.id.in_(ids[start : start + _AT_ONCE]))
        for unit_id, payload in connection.execute(some).all():
            if isinstance(payload, dict) and "targets" in payload:
                moved = {"payload": {"targets": payload["targets"]}, "position": min(payload["targets"])}
                if "report" in payload:
                    moved["result"] = {"report": payload["report"]}
                connection.execute(_unit.update().where(_unit.c.id == unit_id).values(moved))


def _declare_metrics() -> None:
    connection = op.get_bind()
    metrics = connection.scalars(sa.select(_dataset.c.metric).where(_dataset.c.metric.is_not(None)).distinct()).all()
    for metric in metrics:
        declared = _dataset.update().where(_dataset.c.metric == metric)
        connection.execute(declared.values(declaration={"metric": metric}))


def _move_results_back() -> None:
    connection = op.get_bind()
    asked = sa.select(_unit.c.id, _unit.c.payload, _unit.c.result).where(_unit.c.parent_id.is_not(None))
    for unit_id, payload, result in connection.execute(asked).all():
        if isinstance(result, dict) and "report" in result:
            whole = {**payload, "report": result["report"]}
            connection.execute(_unit.update().where(_unit.c.id == unit_id).values(payload=whole))
    op.execute(_unit.update().where(_unit.c.kind == "part").values(kind="run"))
    # Nobody could go on with these.
    op.execute(_unit.delete().where(_unit.c.kind == "trial"))


def downgrade() -> None:

    op.drop_table("trial")
    _move_results_back()
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_judge_id"))
        batch_op.drop_constraint(batch_op.f("fk_job_judge_id_dataset"), type_="foreignkey")
        for name in ("judge_id", "max_units_in_flight", "max_runtime_s", "max_cpu_s", "deadline"):
            batch_op.drop_column(name)
    op.drop_column("dataset", "declaration")
    op.drop_column("worker", "target_classes")
    for name in ("target_class", "result", "continuation", "waits_for", "position"):
        op.drop_column("unit", name)
    op.drop_table("job_output")
