"""The ledger's tables, as SQLAlchemy sees them; the migrations are what creates them.

Columns stand in the order of the records' fields, so that a row becomes a record by position.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

SCHEMA = "0007"
"""The newest migration: what this version reads and writes."""


@dataclass(frozen=True)
class Tables:
    metadata: "MetaData"
    arrivals: "Table"
    verdicts: "Table"
    partition_versions: "Table"
    scores: "Table"
    clocks: "Table"
    waivers: "Table"
    quarantine: "Table"
    restatements: "Table"
    alerts: "Table"
    folders: "Table"
    attention: "Table"
    leases: "Table"
    backfills: "Table"
    failures: "Table"
    transitions: "Table"
    alias_states: "Table"
    promotions: "Table"
    evaluations: "Table"
    holds: "Table"
    environments: "Table"
    canaries: "Table"


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

    def instant(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
        return sa.Column(name, Instant, nullable=nullable)

    def maybe(name: str) -> sa.Column[str]:
        return sa.Column(name, sa.Text)

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
        # What is not clear, out of ten years of which nearly all is: without a look at the reports.
        sa.Index(
            "verdicts_by_verdict",
            *("pipeline", "asset", "verdict", "partition", "recorded_at", "as_of"),
        ),
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
    clocks = sa.Table("clocks", metadata, text("name", primary_key=True), instant("as_of"))
    waivers = sa.Table(
        "waivers",
        metadata,
        identity(),
        text("pipeline"),
        text("partition"),
        text("reason"),
        text("by"),
        instant("given_at"),
        instant("until"),
        sa.Column("covers", document, nullable=False),
        instant("recorded_at"),
        instant("revoked_at", nullable=True),
        maybe("revoked_by"),
        maybe("revoke_reason"),
        sa.Index("waivers_by_partition", "pipeline", "partition"),
    )
    quarantine = sa.Table(
        "quarantine",
        metadata,
        identity(),
        text("pipeline"),
        text("source"),
        text("key"),
        instant("hour"),
        text("path"),
        number("size"),
        text("digest"),
        text("reason"),
        text("kept"),
        instant("found_at"),
        instant("ended_at", nullable=True),
        maybe("ended_by"),
        sa.Index("quarantine_by_path", "pipeline", "path"),
    )
    restatements = sa.Table(
        "restatements",
        metadata,
        identity(),
        text("pipeline"),
        text("partition"),
        text("used_version"),
        text("now_version"),
        sa.Column("changes", document, nullable=False),
        sa.Column("touches", document, nullable=False),
        text("decision"),
        text("reason"),
        text("state"),
        instant("found_at"),
        instant("approved_at", nullable=True),
        maybe("approved_by"),
        instant("ended_at", nullable=True),
        maybe("outcome"),
        sa.Index("restatements_by_partition", "pipeline", "partition"),
        sa.Index("restatements_by_state", "pipeline", "state"),
    )
    alerts = sa.Table(
        "alerts",
        metadata,
        identity(),
        text("pipeline"),
        text("kind"),
        text("subject"),
        text("key"),
        text("text"),
        text("advice"),
        instant("raised_at"),
        instant("closed_at", nullable=True),
        instant("delivered_at", nullable=True),
        number("attempts"),
        instant("next_attempt_at"),
        maybe("last_error"),
        instant("told_at", nullable=True),
        sa.Index(
            "alerts_open",
            "key",
            unique=True,
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        ),
        sa.Index("alerts_waiting", "delivered_at", "next_attempt_at"),
    )
    folders = sa.Table(
        "folders",
        metadata,
        text("pipeline", primary_key=True),
        text("path", primary_key=True),
        number("mtime_ns"),
        instant("looked_at"),
    )
    attention = sa.Table(
        "attention",
        metadata,
        text("pipeline", primary_key=True),
        sa.Column("date", sa.Date, primary_key=True),
        text("reason"),
        instant("since"),
    )
    leases = sa.Table(
        "leases",
        metadata,
        text("resource", primary_key=True),
        number("token"),
        text("run_id"),
        text("machine"),
        number("pid"),
        text("started"),
        number("renewals"),
        instant("taken_at"),
        instant("renewed_at"),
        instant("released_at", nullable=True),
        sa.Index("leases_by_release", "released_at"),
    )
    backfills = sa.Table(
        "backfills",
        metadata,
        text("id", primary_key=True),
        text("pipeline"),
        text("state"),
        number("max_runs", nullable=True),
        sa.Column("selection", document, nullable=False),
        text("launched_by"),
        instant("launched_at"),
        instant("changed_at"),
        text("changed_by"),
        sa.Index("backfills_by_pipeline", "pipeline", "launched_at"),
    )
    failures = sa.Table(
        "failures",
        metadata,
        text("pipeline", primary_key=True),
        text("job", primary_key=True),
        text("partition", primary_key=True),
        text("run_key"),
        text("run_id"),
        text("state"),
        number("attempts"),
        text("step"),
        text("cause"),
        text("reason"),
        instant("ended_at"),
    )
    transitions = sa.Table(
        "transitions",
        metadata,
        identity(),
        text("pipeline"),
        text("asset"),
        text("partition"),
        text("verdict"),
        text("reason"),
        maybe("run_id"),
        instant("as_of"),
        instant("recorded_at"),
        sa.Index("transitions_by_partition", "pipeline", "asset", "partition"),
    )
    alias_states = sa.Table(
        "alias_states",
        metadata,
        text("model", primary_key=True),
        text("alias", primary_key=True),
        number("version"),
        number("counter"),
        instant("changed_at"),
    )
    promotions = sa.Table(
        "promotions",
        metadata,
        identity(),
        text("pipeline"),
        text("model"),
        text("alias"),
        text("action"),
        number("version"),
        sa.Column("model_date", sa.Date, nullable=False),
        number("previous", nullable=True),
        number("counter"),
        number("evaluation_id", nullable=True),
        text("reason"),
        text("by"),
        text("run_id"),
        instant("decided_at"),
        # The history is a line: of two writers that would both be the next one fails.
        sa.Index("promotions_in_order", "model", "alias", "counter", unique=True),
        sa.Index("promotions_by_pipeline", "pipeline", "alias", "id"),
    )
    evaluations = sa.Table(
        "evaluations",
        metadata,
        identity(),
        text("pipeline"),
        text("model"),
        number("candidate"),
        number("champion", nullable=True),
        sa.Column("judged_date", sa.Date, nullable=False),
        text("rows_digest"),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("report", document, nullable=False),
        instant("recorded_at"),
        text("run_id"),
        sa.Index("evaluations_of_a_pair", "model", "candidate", "champion", "id"),
    )
    holds = sa.Table(
        "holds",
        metadata,
        identity(),
        text("model"),
        number("version"),
        text("reason"),
        text("by"),
        instant("since"),
        instant("until", nullable=True),
        instant("ended_at", nullable=True),
        sa.Index("holds_by_model", "model", "version"),
    )
    environments = sa.Table(
        "environments",
        metadata,
        text("value", primary_key=True),
        sa.Column("document", document, nullable=False),
        instant("first_seen_at"),
    )
    canaries = sa.Table(
        "canaries",
        metadata,
        identity(),
        text("pipeline"),
        text("model"),
        number("champion"),
        text("digest"),
        text("then"),
        text("now"),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("report", document, nullable=False),
        text("by"),
        text("run_id"),
        instant("recorded_at"),
        sa.Index("canaries_of_a_pair", "model", "champion", "then", "now", "id"),
    )
    return Tables(
        metadata,
        arrivals,
        verdicts,
        partition_versions,
        scores,
        clocks,
        waivers,
        quarantine,
        restatements,
        alerts,
        folders,
        attention,
        leases,
        backfills,
        failures,
        transitions,
        alias_states,
        promotions,
        evaluations,
        holds,
        environments,
        canaries,
    )
