"""How many bytes rows take of their tenant's quota."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = ("model", "dataset", "job", "trial")


def upgrade() -> None:

    for table in _TABLES:
        op.add_column(table, sa.Column("row_bytes", sa.BigInteger(), server_default="0", nullable=False))
        op.create_index(op.f(f"ix_{table}_tenant_id_row_bytes"), table, ["tenant_id", "row_bytes"], unique=False)


def downgrade() -> None:

    for table in reversed(_TABLES):
        op.drop_index(op.f(f"ix_{table}_tenant_id_row_bytes"), table_name=table)
        op.drop_column(table, "row_bytes")
