"""Arrivals, verdicts, partition versions, scores, champions, clocks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

instant = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "arrivals",
        sa.Column("zone", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("hour", instant, nullable=False),
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("rejected", sa.Text),
        sa.Column("seen_at", instant, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
    )
    op.create_index("arrivals_by_hour", "arrivals", ["zone", "source", "key", "hour"])
    op.create_table(
        "verdicts",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("asset", sa.Text, primary_key=True),
        sa.Column("partition", sa.Text, primary_key=True),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("report", document, nullable=False),
        sa.Column("as_of", instant, nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
    )
    op.create_table(
        "partition_versions",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("partition", sa.Text, nullable=False),
        sa.Column("data_version", sa.Text, nullable=False),
        sa.Column("table_version", sa.BigInteger),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("detail", document, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("committed_at", instant, nullable=False),
    )
    op.create_index("partition_versions_newest", "partition_versions", ["asset", "partition", "id"])
    op.create_table(
        "scores",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("model_version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("model_date", sa.Date, nullable=False),
        sa.Column("judged_date", sa.Date, primary_key=True),
        sa.Column("rows_digest", sa.Text, primary_key=True),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("metrics", document, nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
    )
    op.create_table(
        "champions",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("model_date", sa.Date, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("decided_at", instant, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
    )
    op.create_index("champions_newest", "champions", ["pipeline", "id"])
    op.create_table(
        "clocks",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("as_of", instant, nullable=False),
    )
