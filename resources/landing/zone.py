"""Hourly files under one folder, seen through the ledger's record of their arrival."""

from __future__ import annotations

import errno
import logging
import os
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING

from platform_assets.domain.completeness import CompletenessReport
from platform_assets.domain.errors import HomeError, UsageError
from platform_assets.domain.partition import PartitionKey, date_range, local_hours
from resources.landing.atomic import write_whole
from resources.landing.days import SourceDays
from resources.landing.findings import Findings
from resources.landing.hourfile import HourFormat, Inspection
from resources.landing.intake import Intake, Look, no_collection, was_fresh
from resources.landing.layout import hour_of, hour_path
from resources.landing.misplaced import MisplacedPlaces
from resources.landing.rawfile import CHANGING, ChangedError, is_within, printable
from resources.landing.reading import read_hours
from resources.landing.schema import arrow_schema
from resources.ledger.records import ArrivalRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import pyarrow as pa

    from platform_assets.domain.source_spec import SourceSpec
    from platform_assets.domain.spec import PipelineSpec
    from resources.landing.setaside import SetAside
    from resources.ledger import Ledger

    Concerned = Callable[[Collection[datetime]], Mapping[date, str]]
    """The dates that have to be looked at because of some hours, with why."""

_log = logging.getLogger(__name__)

# Folder days that are compared and recorded at a time: bounds memory, and keeps what a killed
# refresh has got done.
_CHUNK_DAYS = 31


class LandingZone:
    """The landed files of one pipeline.

    `refresh` looks at the disk and records in the ledger; `report` and `reports` read the ledger
    alone; `read` gives rows, and refuses any file that is not the one that was recorded.
    """

    def __init__(
        self, root: Path, spec: PipelineSpec, ledger: Ledger, set_aside: SetAside | None = None
    ) -> None:
        """
        Args:
            root: the landing folder of the home; the pipeline has a folder of its own in it.
            spec: the pipeline.
            ledger: where arrivals are recorded.
            set_aside: where refused files are copied and recorded; None: they are refused alone.
        """
        self.set_aside = set_aside
        self.root = root
        self.spec = spec
        self.ledger = ledger
        self.findings = Findings(spec, ledger)
        self.misplaced = MisplacedPlaces(spec, ledger)
        self._folder = root / spec.pipeline
        self._formats = {name: HourFormat(source) for name, source in spec.sources.items()}
        self._warned: set[str] = set()

    # --- delivering -------------------------------------------------------------------------

    def deliver(self, source: str, key: str, hour: datetime, table: pa.Table) -> Path:
        """Land the rows of one hour, atomically; a file of the same content is left untouched.

        What the table holds is judged when the file is seen, as that of any other producer.

        Args:
            source: a source of the spec.
            key: a partition key value of the spec.
            hour: start of the hour, timezone-aware.
            table: its rows; none for an hour in which nothing happened.

        Raises:
            UsageError: unknown source or key, or no whole hour.
            TransientError: the disk is full.
            HomeError: the folder cannot be written.
        """
        self._require(source, key)
        path = self._folder / hour_path(source, key, hour)
        write_whole(path, self._formats[source].encode(table))
        return path

    def _require(self, source: str, key: str) -> SourceSpec:
        spec = self.spec
        if source not in spec.sources:
            raise UsageError(
                f"pipeline {spec.pipeline} has no source {source!r}; allowed are "
                f"{', '.join(sorted(spec.sources))}"
            )
        if key not in spec.partitions.values:
            raise UsageError(
                f"pipeline {spec.pipeline} has no {spec.partitions.key} {key!r}; allowed are "
                f"{', '.join(spec.partitions.values)}"
            )
        return spec.sources[source]

    # --- observing --------------------------------------------------------------------------

    def refresh(
        self,
        first: date,
        last: date,
        keys: Sequence[str] | None = None,
        now: datetime | None = None,
        concerned: Concerned | None = None,
    ) -> int:
        """Bring the ledger up to what lies on the disk for some local days.

        Looks at the UTC day folders that these days touch. Only files whose size or time of
        change the ledger does not know are opened, and those that were rejected by other rules: a
        corrected spec may accept them. What is refused is set aside.

        Args:
            first, last: local dates, both included.
            keys: partition key values, default all.
            now: when the arrivals are said to be seen, default the machine's time.
            concerned: which dates somebody has to look at because of hours that changed.

        Returns:
            The number of files that arrived, changed or vanished.

        Raises:
            UsageError: unknown key.
        """
        if last < first:
            return 0
        chosen = tuple(keys) if keys is not None else self.spec.partitions.values
        for key in chosen:
            self._require(next(iter(self.spec.sources)), key)
        seen_at = now if now is not None else datetime.now(UTC)
        timezone = self.spec.partitions.timezone
        days = date_range(
            local_hours(first, timezone)[0].date(), local_hours(last, timezone)[-1].date()
        )
        boundary = os.path.realpath(self.root)
        changed = 0
        for source in self.spec.sources:
            for start in range(0, len(days), _CHUNK_DAYS):
                chunk = days[start : start + _CHUNK_DAYS]
                changed += self._refresh_chunk(source, chosen, chunk, boundary, seen_at, concerned)
        return changed

    def _refresh_chunk(
        self,
        source: str,
        keys: Sequence[str],
        days: Sequence[date],
        boundary: str,
        seen_at: datetime,
        concerned: Concerned | None,
    ) -> int:
        begin = datetime.combine(days[0], time(0), UTC)
        end = datetime.combine(days[-1], time(23), UTC)
        rules = self._formats[source]
        intake = Intake(rules.values, rules.rules, self.set_aside, self.spec.pipeline, seen_at)
        hour_of_path: dict[str, datetime] = {}
        with no_collection():
            for key in keys:
                records = self.ledger.arrivals(self.spec.pipeline, source, key, begin, end)
                known = {record.path: record for record in records}
                hour_of_path |= {record.path: record.hour for record in records}
                for day in days:
                    for look in self._scan(source, key, day, known, boundary, seen_at, intake):
                        intake.add(look)
                # The scans took what they found out of `known`. The rest has vanished, unless it
                # was being replaced: a listing may miss a name that is renamed over meanwhile.
                intake.gone.extend(path for path in known if self._is_gone(path))
            intake.judge()
        intake.settle(
            path
            for path, record in intake.open.items()
            if record.source == source
            and record.key in keys
            and begin <= record.hour <= end
            and self._is_gone(path)
        )
        seen = [*intake.arrived, *intake.again]
        if seen or intake.gone:
            hours = {r.hour for r in intake.arrived} | {hour_of_path[path] for path in intake.gone}
            attend = concerned(hours) if concerned is not None else None
            self.ledger.note_files(self.spec.pipeline, source, seen, intake.gone, attend)
        return len(intake.arrived) + len(intake.gone)

    def _is_gone(self, path: str) -> bool:
        return not os.path.lexists(self.root / path)

    def _scan(
        self,
        source: str,
        key: str,
        day: date,
        known: dict[str, ArrivalRecord],
        boundary: str,
        seen_at: datetime,
        intake: Intake,
    ) -> Iterator[Look]:
        """The new and changed files of one day folder; takes the files that exist from `known`."""
        relative = f"{self.spec.pipeline}/{source}/{key}/{day.isoformat()}"
        folder = self.root / relative
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if error.errno == errno.ELOOP:
                self._warn(relative, "its links lead in a circle; make it a folder")
                return
            raise HomeError(
                f"{folder} cannot be listed ({error.strerror}); the folders of the landing zone "
                "must be readable by this user"
            ) from error
        outside = bool(entries) and not is_within(boundary, os.path.realpath(folder))
        for entry in entries:
            path = f"{relative}/{entry.name}"
            record = known.get(path)
            linked = outside or entry.is_symlink()
            try:
                if record is not None and not linked and self._is_settled(record, intake):
                    state = entry.stat()
                    if (state.st_size, state.st_mtime_ns) == (record.size, record.mtime_ns):
                        del known[path]
                        if record.rejected is None:
                            intake.unchanged(path)
                        continue
                hour = record.hour if record is not None else hour_of(entry.name, day)
                if hour is None:
                    self._warn(
                        path,
                        "a file of the landing zone is named by its hour in UTC, such as "
                        "2013-01-01/2013-01-01T10Z.parquet; rename it, or let its name start with "
                        "a dot",
                    )
                    continue
                look, judged_by = self._inspect(source, entry.path, hour, boundary, record)
            except FileNotFoundError:
                continue
            known.pop(path, None)
            fresh = ArrivalRecord(
                zone=self.spec.pipeline,
                source=source,
                key=key,
                hour=hour,
                path=path,
                size=look.size,
                mtime_ns=look.mtime_ns,
                rows=0 if look.rejected else look.rows,
                rejected=look.rejected,
                seen_at=seen_at,
                digest=judged_by if look.rejected else look.digest,
            )
            yield Look(record, fresh, look.content, look.table)

    def _inspect(
        self, source: str, path: str, hour: datetime, boundary: str, before: ArrivalRecord | None
    ) -> tuple[Inspection, str]:
        """Judge a file; with the version of the rules that it was judged by, if it was by any."""
        rules = self._formats[source]
        try:
            return rules.inspect(path, hour, boundary), rules.rules
        except ChangedError as error:
            # Told once: while it goes on changing it stays what it was first seen as.
            at = before if before is not None and before.rejected == CHANGING else error
            return Inspection(at.size, at.mtime_ns, 0, CHANGING), ""

    def note_misplaced(self, as_of: datetime) -> list[str]:
        """Look for folders that no source reads, and keep what is found; returns what is new."""
        new = self.misplaced.look(self.root, as_of)
        for place in new:
            _log.warning("%s/%s is not looked at", self.spec.pipeline, place)
        return new

    def _is_settled(self, record: ArrivalRecord, intake: Intake) -> bool:
        """Whether a file need not be opened as long as it is the same by size and time."""
        if record.rejected is None:
            return True
        by_these_rules = record.digest == self._formats[record.source].rules
        return by_these_rules and not was_fresh(record) and intake.is_kept(record)

    def _warn(self, path: str, why: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("%s is ignored: %s", printable(path), why)

    # --- judging ----------------------------------------------------------------------------

    def report(self, key: str, day: date, as_of: datetime) -> CompletenessReport:
        """Expected against observed hours of every source, by the arrivals in the ledger.

        Raises:
            UsageError: unknown key.
        """
        self._require(next(iter(self.spec.sources)), key)
        return self.reports(day, day, as_of, [key])[PartitionKey(day, key)]

    def reports(
        self, first: date, last: date, as_of: datetime, keys: Sequence[str] | None = None
    ) -> dict[PartitionKey, CompletenessReport]:
        """`report` of every key and local date, with one query for a source and key."""
        zone = self.spec.partitions.timezone
        hours = {day: local_hours(day, zone) for day in date_range(first, last)}
        found: dict[PartitionKey, CompletenessReport] = {}
        for key in keys if keys is not None else self.spec.partitions.values:
            seen = [
                SourceDays(self.spec, self.ledger, source, key, hours)
                for source in self.spec.sources
            ]
            judged = self.findings.read([PartitionKey(day, key) for day in hours])
            for day in hours:
                partition = PartitionKey(day, key)
                sources = tuple(days.assess(day, as_of) for days in seen)
                why = judged[partition].of(sources) if partition in judged else {}
                found[partition] = CompletenessReport(
                    partition=str(partition),
                    timezone=zone,
                    as_of=as_of,
                    sources=tuple(
                        days.assess(day, as_of, why[s.source]) if s.source in why else s
                        for days, s in zip(seen, sources, strict=True)
                    ),
                )
        return dict(sorted(found.items()))

    # --- reading ----------------------------------------------------------------------------

    def accepted(self, source: str, key: str, day: date) -> list[ArrivalRecord]:
        """The accepted hours of a local day by the arrivals in the ledger, ordered by hour."""
        hours = local_hours(day, self.spec.partitions.timezone)
        found = self.ledger.arrivals(self.spec.pipeline, source, key, hours[0], hours[-1])
        return [record for record in found if record.rejected is None]

    def read(
        self, source: str, key: str, day: date, records: Sequence[ArrivalRecord] | None = None
    ) -> pa.Table:
        """All accepted hours of a local day as one table.

        Args:
            source, key: of the spec.
            day: a local date.
            records: what `accepted` found; default: what it finds now.

        Returns:
            The declared columns of the source in their order: string, int64, float64, bool,
            timestamp[us, UTC]; rows ordered by hour, within an hour as delivered.

        Raises:
            UsageError: unknown source or key.
            RefusedError: a file changed or vanished since its arrival was recorded, or breaks a
                rule that it did not have to keep then.
        """
        import pyarrow as pa

        schema = arrow_schema(self._require(source, key))
        boundary = os.path.realpath(self.root)
        if records is None:
            records = self.accepted(source, key, day)
        tables = read_hours(self.root, self._formats[source], records, boundary, self.ledger)
        return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
