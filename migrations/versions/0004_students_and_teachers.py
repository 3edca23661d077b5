"""Students and teachers: the networks that a compression starts from and learns from besides its model."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NAMES = ("student_id", "teacher_id")


def upgrade() -> None:

    with op.batch_alter_table("job", schema=None) as batch_op:
        for name in _NAMES:
            batch_op.add_column(sa.Column(name, sa.String(), nullable=True))
            batch_op.create_foreign_key(batch_op.f(f"fk_job_{name}_model"), "model", [name], ["id"])
            batch_op.create_index(batch_op.f(f"ix_job_{name}"), [name], unique=False)


def downgrade() -> None:

    with op.batch_alter_table("job", schema=None) as batch_op:
        for name in reversed(_NAMES):
            batch_op.drop_index(batch_op.f(f"ix_job_{name}"))
            batch_op.drop_constraint(batch_op.f(f"fk_job_{name}_model"), type_="foreignkey")
            batch_op.drop_column(name)
