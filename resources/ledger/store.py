"""Reading and writing the ledger: the same SQL on SQLite and on Postgres."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from types import MappingProxyType

from platform_assets.domain.lease import Lease
from resources.ledger.base import (
    chunks,
    columns_of,
    fields_of,
    insert_into,
    upsert_statement,
)
from resources.ledger.engine import reading, writing
from resources.ledger.leases import require_held
from resources.ledger.promotions import Promotions
from resources.ledger.records import (
    ArrivalRecord,
    ScoreRecord,
    TransitionRecord,
    VerdictRecord,
    VersionRecord,
    utc,
)
from resources.ledger.restatements import attend_in
from resources.ledger.tables import tables


@cache
def open_ledger(url: str) -> "Ledger":
    """The ledger at a database URL; connects on first use, once a process.

    It may be used from several threads, and on both sides of a fork.
    """
    return Ledger(url)


class Ledger(Promotions):
    """What neither Dagster nor MLflow can hold: arrivals, verdicts, versions, scores, champions."""

    # --- arrivals -------------------------------------------------------------------------------

    def upsert_arrivals(self, rows: Sequence[ArrivalRecord]) -> None:
        """Record files that are new or changed; a path that is known already is replaced."""
        # Postgres refuses one statement that touches a row twice: of equal paths the last wins.
        latest = {(row.zone, row.source, row.path): row for row in rows}
        self._upsert(tables().arrivals, [fields_of(row) for row in latest.values()])

    def forget_arrivals(self, zone: str, source: str, paths: Sequence[str]) -> None:
        """Remove files that have vanished from the landing zone; unknown paths are ignored."""
        self.note_files(zone, source, [], paths)

    def note_files(
        self,
        zone: str,
        source: str,
        arrived: Sequence[ArrivalRecord],
        gone: Sequence[str],
        attend: Mapping[date, str] | None = None,
    ) -> None:
        """Record new, changed and vanished files, and attend dates, in one transaction.

        Whoever attended them in a second one, and died before it, would have used up the change.

        Args:
            zone: name of the pipeline.
            source: of the files.
            arrived: files that are new or changed; of equal paths the last counts.
            gone: paths of those that have vanished.
            attend: dates that are to be looked at because of it, with why.
        """
        t = tables().arrivals
        with writing(self.url) as connection:
            if arrived:
                statement = upsert_statement(t, connection.dialect.name)
                latest = {row.path: row for row in arrived}
                connection.execute(statement, [fields_of(row) for row in latest.values()])
            for chunk in chunks(gone):
                connection.execute(
                    t.delete().where(t.c.zone == zone, t.c.source == source, t.c.path.in_(chunk))
                )
            attend_in(connection, zone, attend or {})

    def arrivals(
        self,
        zone: str,
        source: str,
        key: str | None = None,
        first: datetime | None = None,
        last: datetime | None = None,
    ) -> list[ArrivalRecord]:
        """The known files of a source whose hour lies in [first, last], ordered by hour."""
        t = tables().arrivals
        query = t.select().where(t.c.zone == zone, t.c.source == source)
        if key is not None:
            query = query.where(t.c.key == key)
        if first is not None:
            query = query.where(t.c.hour >= utc(first))
        if last is not None:
            query = query.where(t.c.hour <= utc(last))
        query = query.order_by(t.c.hour, t.c.key, t.c.path)
        return [ArrivalRecord(*row) for row in self._rows(query)]

    def hour_rows(
        self, zone: str, source: str, key: str, first: datetime, last: datetime
    ) -> list[tuple[datetime, int, bool]]:
        """(hour, rows, whether it was accepted) of the known files: `arrivals`, of less weight."""
        import sqlalchemy as sa

        t = tables().arrivals
        query = sa.select(t.c.hour, t.c.rows, t.c.rejected.is_(None)).where(
            t.c.zone == zone,
            t.c.source == source,
            t.c.key == key,
            t.c.hour >= utc(first),
            t.c.hour <= utc(last),
        )
        return [(hour, rows, bool(accepted)) for hour, rows, accepted in self._rows(query)]

    # --- verdicts -------------------------------------------------------------------------------

    def record_verdict(self, report: VerdictRecord) -> None:
        """Keep the verdict on a partition in place of the one before."""
        self.record_verdicts([report])

    def record_verdicts(
        self,
        reports: Sequence[VerdictRecord],
        transitions: Sequence[TransitionRecord] = (),
        attend: Mapping[str, Mapping[date, str]] | None = None,
    ) -> None:
        """Keep verdicts in place of those before, and how they came to be, in one transaction.

        `attend`: the dates by pipeline that are to be looked at because of it, with why.
        """
        if not reports and not transitions:
            return
        # Postgres refuses one statement that touches a row twice: of equal keys the last wins.
        latest = {(r.pipeline, r.asset, r.partition): r for r in reports}
        with writing(self.url) as connection:
            if latest:
                statement = upsert_statement(tables().verdicts, connection.dialect.name)
                connection.execute(statement, [fields_of(report) for report in latest.values()])
            if transitions:
                rows = [fields_of(transition) for transition in transitions]
                connection.execute(tables().transitions.insert(), rows)
            for pipeline, dates in (attend or {}).items():
                attend_in(connection, pipeline, dates)

    def transitions(self, pipeline: str, asset: str, partition: str) -> list[TransitionRecord]:
        """What was ever said of a partition, oldest first."""
        t = tables().transitions
        mine = (t.c.pipeline == pipeline) & (t.c.asset == asset) & (t.c.partition == partition)
        return [
            TransitionRecord(**{k: v for k, v in row._mapping.items() if k != "id"})
            for row in self._rows(t.select().where(mine).order_by(t.c.id))
        ]

    def verdict(self, pipeline: str, asset: str, partition: str) -> VerdictRecord | None:
        """The latest verdict on a partition."""
        t = tables().verdicts
        query = t.select().where(
            t.c.pipeline == pipeline, t.c.asset == asset, t.c.partition == partition
        )
        return next((VerdictRecord(*row) for row in self._rows(query)), None)

    def verdicts(
        self, pipeline: str, asset: str, partitions: Iterable[str] | None = None
    ) -> dict[str, VerdictRecord]:
        """The latest verdicts on an asset, by partition; on all its partitions by default."""
        t = tables().verdicts
        query = t.select().where(t.c.pipeline == pipeline, t.c.asset == asset)
        query = query.order_by(t.c.partition)
        wanted = [None] if partitions is None else chunks(sorted(set(partitions)))
        found: dict[str, VerdictRecord] = {}
        for chunk in wanted:
            own = query if chunk is None else query.where(t.c.partition.in_(chunk))
            for record in (VerdictRecord(*row) for row in self._rows(own)):
                found[record.partition] = record
        return found

    def verdict_words(self, pipeline: str, asset: str, partitions: Iterable[str]) -> dict[str, str]:
        """The latest verdicts on some partitions, without their reports."""
        import sqlalchemy as sa

        t = tables().verdicts
        query = sa.select(t.c.partition, t.c.verdict)
        query = query.where(t.c.pipeline == pipeline, t.c.asset == asset)
        found: dict[str, str] = {}
        for chunk in chunks(sorted(set(partitions))):
            rows = self._rows(query.where(t.c.partition.in_(chunk)))
            found |= {row.partition: row.verdict for row in rows}
        return found

    def verdicts_being(
        self, pipeline: str, asset: str, verdict: str, partitions: Iterable[str]
    ) -> dict[str, VerdictRecord]:
        """Of some partitions those whose latest verdict is this one."""
        t = tables().verdicts
        query = t.select().where(
            t.c.pipeline == pipeline, t.c.asset == asset, t.c.verdict == verdict
        )
        found: dict[str, VerdictRecord] = {}
        for chunk in chunks(sorted(set(partitions))):
            for row in self._rows(query.where(t.c.partition.in_(chunk))):
                found[row.partition] = VerdictRecord(*row)
        return found

    def with_verdict(
        self, pipeline: str, asset: str, partitions: Iterable[str], verdict: str
    ) -> set[str]:
        """Of some partitions those whose latest verdict is this one."""
        import sqlalchemy as sa

        t = tables().verdicts
        query = sa.select(t.c.partition).where(
            t.c.pipeline == pipeline, t.c.asset == asset, t.c.verdict == verdict
        )
        return {
            row.partition
            for chunk in chunks(sorted(set(partitions)))
            for row in self._rows(query.where(t.c.partition.in_(chunk)))
        }

    def verdicts_but(
        self, pipeline: str, asset: str, verdicts: Collection[str]
    ) -> Mapping[str, VerdictRecord]:
        """The latest verdicts on an asset that are none of these, by partition.

        Their reports are fetched only where one of them was recorded anew.
        """
        t, others = tables().verdicts, sorted(verdicts)
        query = t.select().where(
            t.c.pipeline == pipeline, t.c.asset == asset, t.c.verdict.not_in(others)
        )
        return self._unless_same(
            ("verdicts_but", pipeline, asset, *others),
            [t.c.partition, t.c.verdict, t.c.recorded_at, t.c.as_of],
            query,
            lambda rows: MappingProxyType({row.partition: VerdictRecord(*row) for row in rows}),
        )

    # --- versions -------------------------------------------------------------------------------

    def record_version(self, record: VersionRecord, lease: Lease | None = None) -> None:
        """Append a version: it becomes the partition's current one.

        Args:
            record: the version.
            lease: under which it was written; checked by the transaction that appends.

        Raises:
            LeaseLostError: the lease was taken over meanwhile; nothing was appended.
        """
        with writing(self.url) as connection:
            if lease is not None:
                require_held(connection, lease)
            connection.execute(tables().partition_versions.insert(), fields_of(record))

    def current_version(self, asset: str, partition: str) -> VersionRecord | None:
        """The version that was recorded last."""
        return self.current_versions(asset, [partition]).get(partition)

    def current_versions(
        self, asset: str, partitions: Iterable[str] | None = None
    ) -> dict[str, VersionRecord]:
        """The current version of each partition that has one; of all of them by default."""
        import sqlalchemy as sa

        t = tables().partition_versions
        newest = sa.select(sa.func.max(t.c.id)).where(t.c.asset == asset).group_by(t.c.partition)
        wanted = [None] if partitions is None else chunks(sorted(set(partitions)))
        found: dict[str, VersionRecord] = {}
        with reading(self.url) as connection:
            for chunk in wanted:
                ids = newest if chunk is None else newest.where(t.c.partition.in_(chunk))
                query = columns_of(t).where(t.c.id.in_(ids)).order_by(t.c.partition)
                for row in connection.execute(query):
                    record = VersionRecord(*row)
                    found[record.partition] = record
        return found

    def history(self, asset: str, partition: str) -> list[VersionRecord]:
        """All versions of a partition, oldest first."""
        t = tables().partition_versions
        query = columns_of(t).where(t.c.asset == asset, t.c.partition == partition)
        return [VersionRecord(*row) for row in self._rows(query.order_by(t.c.id))]

    def versions(self, asset: str) -> list[VersionRecord]:
        """Every version of an asset that there was, of all its partitions, oldest first."""
        t = tables().partition_versions
        query = columns_of(t).where(t.c.asset == asset).order_by(t.c.id)
        return [VersionRecord(*row) for row in self._rows(query)]

    def newest_version(self, asset: str) -> VersionRecord | None:
        """The version of an asset that was recorded last, of whatever partition."""
        t = tables().partition_versions
        query = columns_of(t).where(t.c.asset == asset).order_by(t.c.id.desc()).limit(1)
        return next((VersionRecord(*row) for row in self._rows(query)), None)

    def histories(self, asset: str, partitions: Iterable[str]) -> list[VersionRecord]:
        """All versions of some partitions, oldest first."""
        t = tables().partition_versions
        query = t.select().where(t.c.asset == asset)
        rows = [
            row
            for chunk in chunks(sorted(set(partitions)))
            for row in self._rows(query.where(t.c.partition.in_(chunk)))
        ]
        return [VersionRecord(*row[1:]) for row in sorted(rows, key=lambda row: row.id)]

    # --- scores ---------------------------------------------------------------------------------

    def record_score(self, record: ScoreRecord) -> None:
        """Keep a model's score on the rows of a judged date, in place of the one before."""
        row = fields_of(record) | {"metrics": _finite(record.metrics)}
        self._upsert(tables().scores, [row])

    def score(
        self, pipeline: str, model_version: int, judged_date: date, rows_digest: str
    ) -> ScoreRecord | None:
        """A model's score on these very rows."""
        t = tables().scores
        query = t.select().where(
            t.c.pipeline == pipeline,
            t.c.model_version == model_version,
            t.c.judged_date == judged_date,
            t.c.rows_digest == rows_digest,
        )
        for row in self._rows(query):
            values = dict(row._mapping)
            values["metrics"] = {k: float(v) for k, v in row.metrics.items()}
            return ScoreRecord(**values)
        return None

    # --- clocks ---------------------------------------------------------------------------------

    def advance_clock(self, name: str, as_of: datetime) -> datetime:
        """Move a clock forward; it never moves back.

        Returns:
            the instant in force: as_of, or a later one that the clock had reached before.
        """
        t = tables().clocks
        with writing(self.url) as connection:
            insert = insert_into(t, connection.dialect.name).values(name=name, as_of=utc(as_of))
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=[t.c.name],
                    set_={"as_of": insert.excluded.as_of},
                    where=t.c.as_of < insert.excluded.as_of,
                )
            )
            query = t.select().where(t.c.name == name)
            reached: datetime = connection.execute(query).one().as_of
            return reached

    def clock(self, name: str) -> datetime | None:
        """The instant that a clock has reached."""
        t = tables().clocks
        return next((row.as_of for row in self._rows(t.select().where(t.c.name == name))), None)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity: such a number is kept as text, which float() reads."""
    return {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()}
