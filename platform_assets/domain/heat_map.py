"""Completeness as a map: keys by dates, each with its worst source. Data; drawn elsewhere."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.completeness import (
    CLEAR,
    REFUSED,
    WORST_FIRST,
    CompletenessReport,
    SourceReport,
    Verdict,
)
from platform_assets.domain.partition import PartitionKey


class CellState(StrEnum):
    """The verdict on a partition, that of a run too, and one more: nothing of it is due."""

    COMPLETE = "complete"
    ACCEPTED = "accepted"
    WAIVED = "waived"
    PARTIAL = "partial"
    LATE = "late"
    SUSPICIOUS = "suspicious"
    QUARANTINED = "quarantined"
    REFUSED = REFUSED
    ABSENT = "absent"
    NOT_YET = "not yet"


class Cell(BaseModel):
    """One partition.

    Attributes:
        state: the verdict on the partition, or that nothing of it is due.
        source: the worst one; of several that are equally bad the one with the fewest hours.
        observed: hours of the worst source that were delivered and accepted.
        expected: hours that the day has.
        text: `JFK 2013-10-25: weather 20 of 24 hours, missing 20:00-23:00`.
    """

    model_config = ConfigDict(frozen=True)

    partition: str
    key: str
    date: dt.date
    state: CellState
    source: str
    observed: int
    expected: int
    text: str

    @property
    def share(self) -> float:
        """Observed hours of the expected ones, 0 to 1."""
        return self.observed / self.expected if self.expected else 0.0

    @property
    def is_clear(self) -> bool:
        """Whether the partition may leave."""
        return self.state in {verdict.value for verdict in CLEAR}


class HeatRow(BaseModel):
    """One key: its cells by date, in order."""

    model_config = ConfigDict(frozen=True)

    key: str
    cells: tuple[Cell, ...]


class HeatMap(BaseModel):
    """Keys by dates.

    Attributes:
        dates: every date from the first to the last.
        rows: a key each, in the order of the reports; a key may lack a date.
    """

    model_config = ConfigDict(frozen=True)

    dates: tuple[dt.date, ...] = ()
    rows: tuple[HeatRow, ...] = ()

    def counts(self) -> Mapping[CellState, int]:
        """Partitions by state, of the states that there are, best first."""
        found = Counter(cell.state for row in self.rows for cell in row.cells)
        return {state: found[state] for state in CellState if found[state]}


def heat_map(
    reports: Iterable[CompletenessReport], refused: Mapping[str, str] | None = None
) -> HeatMap:
    """Put reports on a map, one cell each.

    Args:
        reports: of the partitions.
        refused: why runs have refused the rows of partitions whose hours are clear.

    Raises:
        ValueError: two of them are about the same partition.
    """
    rows: dict[str, dict[dt.date, Cell]] = {}
    for report in reports:
        cell = cell_of(report, (refused or {}).get(report.partition, ""))
        row = rows.setdefault(cell.key, {})
        if cell.date in row:
            raise ValueError(f"there are two reports on {report.partition}; one is needed")
        row[cell.date] = cell
    days = [day for row in rows.values() for day in row]
    if not days:
        return HeatMap()
    first, last = min(days), max(days)
    return HeatMap(
        dates=tuple(first + dt.timedelta(days=n) for n in range((last - first).days + 1)),
        rows=tuple(
            HeatRow(key=key, cells=tuple(cell for _, cell in sorted(row.items())))
            for key, row in rows.items()
        ),
    )


def cell_of(report: CompletenessReport, refused: str = "") -> Cell:
    """The cell of one partition.

    Args:
        report: what is known of its hours.
        refused: why a run has refused its rows; counts only where the hours are clear.

    Raises:
        ValueError: the report has no source, so that there is nothing to show.
    """
    if not report.sources:
        raise ValueError(f"the report on {report.partition} has no source; at least one is needed")
    partition = PartitionKey.parse(report.partition)
    worst = min(report.sources, key=_badness)
    short = [s for s in report.sources if s.verdict is not Verdict.COMPLETE]
    name = f"{partition.key or ''} {partition.date}".strip()
    if _is_not_yet(report):
        state, why = CellState.NOT_YET, "nothing is due yet"
    elif refused and report.is_clear:
        state, why = CellState.REFUSED, refused
    elif short:
        state = CellState(report.verdict.value)
        why = report.model_copy(update={"sources": tuple(short)}).reason()
    else:
        state, why = CellState.COMPLETE, f"complete, {worst.observed} of {worst.expected} hours"
    return Cell(
        partition=report.partition,
        key=partition.key or "",
        date=partition.date,
        state=state,
        source=worst.source,
        observed=worst.observed,
        expected=worst.expected,
        text=f"{name}: {why}",
    )


def _badness(report: SourceReport) -> tuple[int, float, str]:
    # A source of which nothing came, beside one that came, makes the partition partial.
    verdict = Verdict.PARTIAL if report.verdict is Verdict.ABSENT else report.verdict
    share = report.observed / report.expected if report.expected else 0.0
    return WORST_FIRST.index(verdict), share, report.source


def _is_not_yet(report: CompletenessReport) -> bool:
    return report.is_absent and not any(s.missing or s.overdue for s in report.sources)
