"""The environments of trainings, each once, and the canaries that a change of one was tried by."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

instant = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "environments",
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("document", document, nullable=False),
        sa.Column("first_seen_at", instant, nullable=False),
    )
    op.create_table(
        "canaries",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("champion", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("then", sa.Text, nullable=False),
        sa.Column("now", sa.Text, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("report", document, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
    )
    op.create_index("canaries_of_a_pair", "canaries", ["model", "champion", "then", "now", "id"])
