"""Waivers, quarantine, restatements, alerts, and what the sweep of the landing zone has seen."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

instant = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "waivers",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("partition", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("given_at", instant, nullable=False),
        sa.Column("until", instant, nullable=False),
        sa.Column("covers", document, nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
        sa.Column("revoked_at", instant),
        sa.Column("revoked_by", sa.Text),
        sa.Column("revoke_reason", sa.Text),
    )
    op.create_index("waivers_by_partition", "waivers", ["pipeline", "partition"])
    op.create_table(
        "quarantine",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("hour", instant, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("kept", sa.Text, nullable=False),
        sa.Column("found_at", instant, nullable=False),
        sa.Column("ended_at", instant),
        sa.Column("ended_by", sa.Text),
    )
    op.create_index("quarantine_by_path", "quarantine", ["pipeline", "path"])
    op.create_table(
        "restatements",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("partition", sa.Text, nullable=False),
        sa.Column("used_version", sa.Text, nullable=False),
        sa.Column("now_version", sa.Text, nullable=False),
        sa.Column("changes", document, nullable=False),
        sa.Column("touches", document, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("found_at", instant, nullable=False),
        sa.Column("approved_at", instant),
        sa.Column("approved_by", sa.Text),
        sa.Column("ended_at", instant),
        sa.Column("outcome", sa.Text),
    )
    op.create_index("restatements_by_partition", "restatements", ["pipeline", "partition"])
    op.create_index("restatements_by_state", "restatements", ["pipeline", "state"])
    op.create_table(
        "alerts",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("advice", sa.Text, nullable=False),
        sa.Column("raised_at", instant, nullable=False),
        sa.Column("closed_at", instant),
        sa.Column("delivered_at", instant),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("next_attempt_at", instant, nullable=False),
        sa.Column("last_error", sa.Text),
    )
    # One open alert a key: a second one of the same is the same.
    op.create_index(
        "alerts_open",
        "alerts",
        ["key"],
        unique=True,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index("alerts_waiting", "alerts", ["delivered_at", "next_attempt_at"])
    op.create_table(
        "folders",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("looked_at", instant, nullable=False),
    )
    op.create_table(
        "attention",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("date", sa.Date, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", instant, nullable=False),
    )
