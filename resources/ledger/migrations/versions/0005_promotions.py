"""Aliases that change by compare-and-swap: their state, their history, the verdicts, the holds.

The champions of before become the history's first lines; they had no verdict of a gate.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

instant = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "alias_states",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("counter", sa.BigInteger, nullable=False),
        sa.Column("changed_at", instant, nullable=False),
    )
    op.create_table(
        "promotions",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("model_date", sa.Date, nullable=False),
        sa.Column("previous", sa.BigInteger),
        sa.Column("counter", sa.BigInteger, nullable=False),
        sa.Column("evaluation_id", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("decided_at", instant, nullable=False),
    )
    op.create_index("promotions_in_order", "promotions", ["model", "alias", "counter"], unique=True)
    op.create_index("promotions_by_pipeline", "promotions", ["pipeline", "alias", "id"])
    op.create_table(
        "evaluations",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("candidate", sa.BigInteger, nullable=False),
        sa.Column("champion", sa.BigInteger),
        sa.Column("judged_date", sa.Date, nullable=False),
        sa.Column("rows_digest", sa.Text, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("report", document, nullable=False),
        sa.Column("recorded_at", instant, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
    )
    op.create_index(
        "evaluations_of_a_pair", "evaluations", ["model", "candidate", "champion", "id"]
    )
    op.create_table(
        "holds",
        sa.Column("id", sequence, primary_key=True, autoincrement=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("since", instant, nullable=False),
        sa.Column("until", instant),
        sa.Column("ended_at", instant),
    )
    op.create_index("holds_by_model", "holds", ["model", "version"])
    op.execute(
        "INSERT INTO promotions (pipeline, model, alias, action, version, model_date, previous, "
        'counter, reason, "by", run_id, decided_at) '
        "SELECT pipeline, model, 'champion', 'promote', version, model_date, "
        "LAG(version) OVER (PARTITION BY model ORDER BY id), "
        "ROW_NUMBER() OVER (PARTITION BY model ORDER BY id), reason, "
        "'signalbox', run_id, decided_at FROM champions ORDER BY id"
    )
    op.execute(
        "INSERT INTO alias_states (model, alias, version, counter, changed_at) "
        "SELECT model, alias, version, counter, decided_at FROM promotions AS p "
        "WHERE counter = (SELECT MAX(q.counter) FROM promotions AS q WHERE q.model = p.model)"
    )
    op.drop_table("champions")
