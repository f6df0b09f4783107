"""The ledger's tables, as SQLAlchemy sees them; the migrations are what creates them.

Columns stand in the order of the records' fields, so that a row becomes a record by position.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

SCHEMA = "0001"
"""The newest migration: what this version reads and writes."""


@dataclass(frozen=True)
class Tables:
    metadata: "MetaData"
    arrivals: "Table"
    verdicts: "Table"
    partition_versions: "Table"
    scores: "Table"
    champions: "Table"
    clocks: "Table"


@cache
def tables() -> Tables:
    """Build the tables on first use: importing this module must not load SQLAlchemy."""
    from datetime import UTC, datetime

    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql

    class Instant(sa.types.TypeDecorator[datetime]):
        """Aware in, UTC out. On SQLite ISO text of fixed width, which sorts as time does."""

        impl = sa.String
        cache_ok = True

        def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
            if dialect.name == "sqlite":
                return dialect.type_descriptor(sa.String(27))
            return dialect.type_descriptor(sa.DateTime(timezone=True))

        def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
            if value is None or dialect.name != "sqlite":
                return value
            moment = value.astimezone(UTC).replace(tzinfo=None)
            return f"{moment.isoformat(timespec='microseconds')}Z"

        def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
            if value is None:
                return None
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
            return moment.astimezone(UTC)

    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    metadata = sa.MetaData()

    def text(name: str, **more: Any) -> sa.Column[str]:
        return sa.Column(name, sa.Text, nullable=False, **more)

    def number(name: str, **more: Any) -> sa.Column[int]:
        return sa.Column(name, sa.BigInteger, **({"nullable": False} | more))

    def instant(name: str) -> sa.Column[datetime]:
        return sa.Column(name, Instant, nullable=False)

    def identity() -> sa.Column[int]:
        return sa.Column("id", sequence, primary_key=True, autoincrement=True)

    arrivals = sa.Table(
        "arrivals",
        metadata,
        text("zone", primary_key=True),
        text("source", primary_key=True),
        text("key"),
        instant("hour"),
        text("path", primary_key=True),
        number("size"),
        number("mtime_ns"),
        number("rows"),
        sa.Column("rejected", sa.Text),
        instant("seen_at"),
        text("digest"),
        sa.Index("arrivals_by_hour", "zone", "source", "key", "hour"),
    )
    verdicts = sa.Table(
        "verdicts",
        metadata,
        text("pipeline", primary_key=True),
        text("asset", primary_key=True),
        text("partition", primary_key=True),
        text("verdict"),
        sa.Column("report", document, nullable=False),
        instant("as_of"),
        instant("recorded_at"),
    )
    partition_versions = sa.Table(
        "partition_versions",
        metadata,
        identity(),
        text("asset"),
        text("partition"),
        text("data_version"),
        number("table_version", nullable=True),
        number("rows"),
        sa.Column("detail", document, nullable=False),
        text("run_id"),
        instant("committed_at"),
        sa.Index("partition_versions_newest", "asset", "partition", "id"),
    )
    scores = sa.Table(
        "scores",
        metadata,
        text("pipeline", primary_key=True),
        sa.Column("model_version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("model_date", sa.Date, nullable=False),
        sa.Column("judged_date", sa.Date, primary_key=True),
        text("rows_digest", primary_key=True),
        number("rows"),
        sa.Column("metrics", document, nullable=False),
        instant("recorded_at"),
    )
    champions = sa.Table(
        "champions",
        metadata,
        identity(),
        text("pipeline"),
        text("model"),
        number("version"),
        sa.Column("model_date", sa.Date, nullable=False),
        text("reason"),
        instant("decided_at"),
        text("run_id"),
        sa.Index("champions_newest", "pipeline", "id"),
    )
    clocks = sa.Table("clocks", metadata, text("name", primary_key=True), instant("as_of"))
    return Tables(metadata, arrivals, verdicts, partition_versions, scores, champions, clocks)
