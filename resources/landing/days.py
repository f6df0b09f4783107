"""The recorded arrivals of one source and key, day by day, against its contract."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from platform_assets.domain.completeness import (
    Arrival,
    SourceReport,
    Verdict,
    assess_source,
    deadline_of,
    suspect_rows,
)
from platform_assets.domain.partition import PartitionKey, date_range, local_hours

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from platform_assets.domain.spec import PipelineSpec
    from resources.ledger import Ledger


class SourceDays:
    """Reads some local days in one query, and the weeks before them only if a rule asks."""

    def __init__(
        self,
        spec: PipelineSpec,
        ledger: Ledger,
        source: str,
        key: str,
        hours: Mapping[date, Sequence[datetime]],
    ) -> None:
        """
        Args:
            spec: the pipeline.
            ledger: where arrivals are recorded.
            source, key: of the spec.
            hours: the UTC hours of each local day.
        """
        self._spec, self._ledger = spec, ledger
        self._source, self._key = source, key
        self._contract = spec.sources[source].contract
        self._known_from = min(hours, default=spec.partitions.start)
        self._before: dict[date, int | None] = {}
        self._doubted: dict[date, bool] = {}
        self._hours = dict(hours)
        self._arrivals = self._read(hours)

    def assess(self, day: date, as_of: datetime, found: str = "") -> SourceReport:
        """One of the days, by the contract of the source; `found`: what was found in its rows."""
        comparable = self._is_complete(day) or self._contract.accept_lacking is not None
        trailing, doubted = self._trailing(day) if comparable else ((), 0)
        return assess_source(
            self._source,
            self._hours[day],
            self._arrivals[day],
            as_of,
            self._contract,
            deadline=deadline_of(self._contract, day, self._spec.partitions.timezone),
            trailing=trailing,
            doubted=doubted,
            found=found,
        )

    def _is_complete(self, day: date) -> bool:
        arrivals = self._arrivals[day]
        return len(arrivals) == len(self._hours[day]) and all(a.rejected is None for a in arrivals)

    def _trailing(self, day: date) -> tuple[tuple[int, ...], int]:
        """The same weekday in the weeks before: rows of the clear days, and how many were not."""
        rule, start = self._contract.weekday_rows, self._spec.partitions.start
        if rule is None:
            return (), 0
        wanted = [day - timedelta(days=7 * back) for back in range(1, rule.weeks + 1)]
        wanted = [before for before in wanted if before >= start]
        if wanted and min(wanted) < self._known_from:
            self._look_back(min(wanted))
        complete = [before for before in wanted if self._rows(before) is not None]
        clear = [before for before in complete if not self._is_doubted(before)]
        rows = (self._rows(before) for before in clear)
        return tuple(r for r in rows if r is not None), len(complete) - len(clear)

    def _is_doubted(self, day: date) -> bool:
        """Whether the rows of a complete day were suspicious themselves, and nobody waived that.

        Of a day before those that were asked for the ledger has the verdict.
        """
        if day not in self._doubted:
            suspicious = bool(
                suspect_rows(self._contract, self._rows(day) or 0, *self._trailing(day))
            )
            waived = suspicious and bool(self._recorded([day], Verdict.WAIVED))
            self._doubted[day] = suspicious and not waived
        return self._doubted[day]

    def _recorded(self, days: Sequence[date], verdict: Verdict) -> set[date]:
        names = {str(PartitionKey(day, self._key)): day for day in days}
        asset = self._spec.landed(self._source)
        found = self._ledger.with_verdict(self._spec.pipeline, asset, names, verdict)
        return {names[name] for name in found}

    def _rows(self, day: date) -> int | None:
        """Rows of a day that is complete; None if it is not."""
        if day in self._before:
            return self._before[day]
        if not self._is_complete(day):
            return None
        return sum(arrival.rows for arrival in self._arrivals[day])

    def _look_back(self, first: date) -> None:
        """Count the days from one on that lie before what is known, in one query."""
        zone = self._spec.partitions.timezone
        days = date_range(first, self._known_from - timedelta(days=1))
        hours = {day: local_hours(day, zone) for day in days}
        day_of = {hour: day for day, own in hours.items() for hour in own}
        accepted, refused = dict.fromkeys(days, 0), set[date]()
        rows = dict.fromkeys(days, 0)
        for hour, count, good in self._ledger.hour_rows(
            self._spec.pipeline, self._source, self._key, min(day_of), max(day_of)
        ):
            day = day_of[hour]
            accepted[day] += good
            rows[day] += count
            if not good:
                refused.add(day)
        for day in days:
            whole = accepted[day] == len(hours[day]) and day not in refused
            self._before[day] = rows[day] if whole else None
        suspicious = self._recorded(days, Verdict.SUSPICIOUS)
        self._doubted |= {day: day in suspicious for day in days}
        self._known_from = first

    def _read(self, hours: Mapping[date, Sequence[datetime]]) -> dict[date, list[Arrival]]:
        day_of = {hour: day for day, own in hours.items() for hour in own}
        grouped: dict[date, list[Arrival]] = {day: [] for day in hours}
        if not day_of:
            return grouped
        for record in self._ledger.arrivals(
            self._spec.pipeline, self._source, self._key, min(day_of), max(day_of)
        ):
            grouped[day_of[record.hour]].append(
                Arrival(
                    hour=record.hour,
                    rows=record.rows,
                    rejected=record.rejected,
                    digest=record.digest,
                )
            )
        return grouped
