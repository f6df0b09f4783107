"""Is a partition whole? Expected sub-windows against observed ones, with reasons.

A report, never a boolean: whoever is held must read what is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, ConfigDict

from platform_assets.domain.digests import combine

HOUR = timedelta(hours=1)


class Verdict(StrEnum):
    """What is known of the sub-windows of one source partition."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    ABSENT = "absent"


class Arrival(BaseModel):
    """One delivered hour of one source: accepted, or rejected with the reason."""

    model_config = ConfigDict(frozen=True)

    hour: AwareDatetime
    rows: int
    rejected: str | None = None
    digest: str = ""


class SourceReport(BaseModel):
    """Expected against observed hours of one source on one day."""

    model_config = ConfigDict(frozen=True)

    source: str
    verdict: Verdict
    expected: int
    observed: int
    rows: int
    missing: tuple[AwareDatetime, ...] = ()
    not_due: tuple[AwareDatetime, ...] = ()
    rejected: Mapping[str, str] = {}
    content: str = ""
    """Digest over the accepted hours' files; empty where there is none."""


class CompletenessReport(BaseModel):
    """The verdict on one partition (a key and a date) over all its sources."""

    model_config = ConfigDict(frozen=True)

    partition: str
    timezone: str
    as_of: AwareDatetime
    sources: tuple[SourceReport, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the sources; absent only when nothing arrived at all."""
        verdicts = {source.verdict for source in self.sources}
        if not verdicts:
            return Verdict.ABSENT
        return verdicts.pop() if len(verdicts) == 1 else Verdict.PARTIAL

    @property
    def is_whole(self) -> bool:
        return self.verdict is Verdict.COMPLETE

    def reason(self) -> str:
        """One line that names what is missing, hour by hour, in local time."""
        return "; ".join(_describe(source, self.timezone) for source in self.sources)


def _describe(report: SourceReport, timezone: str) -> str:
    text = f"{report.source} {report.observed} of {report.expected} hours"
    for word, hours in (("missing", report.missing), ("not due yet", report.not_due)):
        if hours:
            text += f", {word} {describe_hours(hours, timezone)}"
    for hour, why in report.rejected.items():
        text += f", rejected {hour}: {why}"
    return text


def describe_hours(hours: Sequence[datetime], timezone: str) -> str:
    """Hours as local clock times, runs folded: `03:00, 18:00-23:00`.

    An hour that the autumn clock change repeats is written with its UTC offset.
    """
    zone = ZoneInfo(timezone)
    local = [hour.astimezone(zone) for hour in sorted(hours)]

    def clock(moment: datetime) -> str:
        twice = moment.replace(fold=0).utcoffset() != moment.replace(fold=1).utcoffset()
        return moment.strftime("%H:%M%z" if twice else "%H:%M")

    parts: list[str] = []
    start = 0
    for i in range(1, len(local) + 1):
        if i == len(local) or local[i].astimezone(UTC) - local[i - 1].astimezone(UTC) != HOUR:
            run = local[start:i]
            parts.append(clock(run[0]) if len(run) == 1 else f"{clock(run[0])}-{clock(run[-1])}")
            start = i
    return ", ".join(parts)


def assess_source(
    source: str, expected: Sequence[datetime], arrivals: Iterable[Arrival], as_of: datetime
) -> SourceReport:
    """Compare the hours that a day must have with those that were delivered.

    Args:
        source: name of the source.
        expected: the UTC hours of the local day.
        arrivals: deliveries; those outside of the expected hours are ignored.
        as_of: an expected hour that has not ended by then is not due, the rest is missing.
    """
    by_hour = {arrival.hour: arrival for arrival in arrivals}
    accepted = [h for h in expected if h in by_hour and by_hour[h].rejected is None]
    absent = [h for h in expected if h not in by_hour]
    rejected = {
        h.astimezone(UTC).strftime("%Y-%m-%dT%HZ"): str(by_hour[h].rejected)
        for h in expected
        if h in by_hour and by_hour[h].rejected is not None
    }
    if expected and len(accepted) == len(expected):
        verdict = Verdict.COMPLETE
    else:
        verdict = Verdict.PARTIAL if accepted or rejected else Verdict.ABSENT
    return SourceReport(
        source=source,
        verdict=verdict,
        expected=len(expected),
        observed=len(accepted),
        rows=sum(by_hour[h].rows for h in accepted),
        missing=tuple(h for h in absent if h + HOUR <= as_of),
        not_due=tuple(h for h in absent if h + HOUR > as_of),
        rejected=rejected,
        content=combine((h.isoformat(), by_hour[h].digest) for h in accepted) if accepted else "",
    )
