"""Requested runs that failed, and how verdicts came to be what they are."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

instant = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "failures",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("partition", sa.Text, primary_key=True),
        sa.Column("run_key", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("ended_at", instant, nullable=False),
    )
    op.create_table(
        "transitions",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("partition", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("as_of", instant, nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
    )
    op.create_index("transitions_by_partition", "transitions", ["pipeline", "asset", "partition"])
    op.add_column("alerts", sa.Column("told_at", instant))
    # Those of before were told when they were raised.
    op.execute("UPDATE alerts SET told_at = raised_at")
