"""Leases with fencing tokens, and the backfills that can be slowed down and paused."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

instant = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("resource", sa.Text, primary_key=True),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("started", sa.Text, nullable=False),
        sa.Column("renewals", sa.BigInteger, nullable=False),
        sa.Column("taken_at", instant, nullable=False),
        sa.Column("renewed_at", instant, nullable=False),
        sa.Column("released_at", instant),
    )
    op.create_index("leases_by_release", "leases", ["released_at"])
    op.create_table(
        "backfills",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("max_runs", sa.BigInteger),
        sa.Column("selection", document, nullable=False),
        sa.Column("launched_by", sa.Text, nullable=False),
        sa.Column("launched_at", instant, nullable=False),
        sa.Column("changed_at", instant, nullable=False),
        sa.Column("changed_by", sa.Text, nullable=False),
    )
    op.create_index("backfills_by_pipeline", "backfills", ["pipeline", "launched_at"])
