"""Limits of a tenant's own, and tenants whose keys open nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NUMBERS = {
    "quota_bytes": sa.BigInteger(),
    "quota_jobs": sa.Integer(),
    "quota_cpu_s": sa.Float(),
    "rate_per_s": sa.Float(),
    "rate_burst": sa.Integer(),
}


def upgrade() -> None:

    for name, kind in _NUMBERS.items():
        op.add_column("tenant", sa.Column(name, kind, nullable=True))
    op.add_column("tenant", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:

    op.drop_column("tenant", "suspended_at")
    for name in reversed(_NUMBERS):
        op.drop_column("tenant", name)
