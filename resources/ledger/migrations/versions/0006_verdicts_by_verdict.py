"""What is not clear is found without walking through what is."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_index(
        "verdicts_by_verdict",
        "verdicts",
        ["pipeline", "asset", "verdict", "partition", "recorded_at", "as_of"],
    )
