"""Is a partition whole? Expected sub-windows against observed ones, with reasons.

A report, never a boolean: whoever is held must read what is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from platform_assets.domain.digests import combine, digest_of
from platform_assets.domain.source_spec import NULL_SAMPLE, ContractSpec, SourceSpec

HOUR = timedelta(hours=1)


class Verdict(StrEnum):
    """What is known of a day of a source; the first that applies, from the bottom up."""

    COMPLETE = "complete"
    """Every sub-window was delivered and accepted, and the rows are not far off."""
    ABSENT = "absent"
    """Nothing has arrived."""
    PARTIAL = "partial"
    """Some sub-windows are missing."""
    LATE = "late"
    """Sub-windows are missing, and the deadline is over."""
    SUSPICIOUS = "suspicious"
    """Everything is there, but the number of rows or the share of nulls is far off."""
    QUARANTINED = "quarantined"
    """A delivered file was refused, and none came in its place."""
    ACCEPTED = "accepted"
    """The deadline is over, and the catalog is content with what is there."""
    WAIVED = "waived"
    """A person has taken responsibility for what is missing."""


CLEAR = frozenset({Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.WAIVED})
"""The verdicts that let a partition leave; every other one, and none at all, holds it."""


REFUSED = "refused"
"""Recorded in place of a clear verdict: a run found the rows themselves unfit, with the reason."""


class Arrival(BaseModel):
    """One delivered hour of one source: accepted, or rejected with the reason."""

    model_config = ConfigDict(frozen=True)

    hour: AwareDatetime
    rows: int
    rejected: str | None = None
    digest: str = ""


class WaivedBy(BaseModel):
    """Who let a source leave that is short of something, why, and until when that counts."""

    model_config = ConfigDict(frozen=True)

    by: str
    reason: str
    until: AwareDatetime


class SourceReport(BaseModel):
    """Expected against observed hours of one source on one day.

    Attributes:
        expected: how many sub-windows the day has: 24, or 23 or 25 on two days a year.
        observed: how many were delivered and accepted.
        missing: hours that are due and were not delivered.
        not_due: hours that have not ended.
        rejected: why the file of an hour was refused, by hour (`2013-02-09T14Z`).
        suspicion: why the number of rows, or what is in them, is suspicious; empty if it is not.
        overdue: the deadline is over and the day is not whole.
        waiver: name of the waiver that covers the shortage; empty if none does.
        waived: by whom, why and until when; left out of the document where there is none, so that
            what was recorded before is what it was.
        content: digest over the accepted hours' files; empty where there is none.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    verdict: Verdict
    expected: int
    observed: int
    rows: int
    missing: tuple[AwareDatetime, ...] = ()
    not_due: tuple[AwareDatetime, ...] = ()
    rejected: Mapping[str, str] = {}
    suspicion: str = ""
    overdue: bool = False
    waiver: str = ""
    waived: WaivedBy | None = Field(default=None, exclude_if=lambda found: found is None)
    content: str = ""

    @property
    def is_clear(self) -> bool:
        return self.verdict in CLEAR

    @property
    def is_absent(self) -> bool:
        """Whether nothing at all has arrived, late or not."""
        return not self.observed and not self.rejected

    def data_version(self) -> str:
        """Digest over which hours are there and the bytes of their files."""
        kept = {"source", "expected", "observed", "rows", "rejected", "content"}
        return digest_of(self.model_dump(mode="json", include=kept))


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
        found = {source.verdict for source in self.sources}
        if found <= {Verdict.ABSENT}:
            return Verdict.ABSENT
        if Verdict.ABSENT in found:
            found = found - {Verdict.ABSENT} | {Verdict.PARTIAL}
        return min(found, key=WORST_FIRST.index)

    @property
    def is_whole(self) -> bool:
        """Every source is complete."""
        return bool(self.sources) and all(s.verdict is Verdict.COMPLETE for s in self.sources)

    @property
    def is_clear(self) -> bool:
        """Every source is complete, accepted or waived: the partition may leave."""
        return bool(self.sources) and all(source.is_clear for source in self.sources)

    @property
    def is_absent(self) -> bool:
        return all(source.is_absent for source in self.sources)

    def inputs(self) -> str:
        """Digest of what a run would be launched for: other files or other terms are another."""
        return digest_of([(s.source, s.data_version(), s.verdict, s.waiver) for s in self.sources])

    def shortage(self) -> str:
        """What a partition that leaves is short of; empty if it is whole."""
        short = [s for s in self.sources if s.is_clear and s.verdict is not Verdict.COMPLETE]
        return "; ".join(_describe(source, self.timezone) for source in short)

    def reason(self) -> str:
        """One line that names what is missing, hour by hour, in local time."""
        return self._reason

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> "CompletenessReport":
        """A copy, which says what it says itself."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("_reason", None)
        return copied

    @cached_property
    def _reason(self) -> str:
        # Kept: of a day that is held for good every look says it.
        return "; ".join(_describe(source, self.timezone) for source in self.sources)


WORST_FIRST = (
    Verdict.QUARANTINED,
    Verdict.LATE,
    Verdict.PARTIAL,
    Verdict.ABSENT,
    Verdict.SUSPICIOUS,
    Verdict.WAIVED,
    Verdict.ACCEPTED,
    Verdict.COMPLETE,
)


def _describe(report: SourceReport, timezone: str) -> str:
    text = f"{report.source} {report.observed} of {report.expected} hours"
    for word, hours in (("missing", report.missing), ("not due yet", report.not_due)):
        if hours:
            text += f", {word} {describe_hours(hours, timezone)}"
    for hour, why in report.rejected.items():
        text += f", rejected {hour}: {why}"
    if report.suspicion:
        text += f", {report.suspicion}"
    if report.overdue:
        text += ", past the deadline"
    if report.verdict is Verdict.ACCEPTED:
        text += ", accepted by the catalog's rule"
    if report.waiver:
        text += f", waived by {report.waiver}"
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


def deadline_of(contract: ContractSpec, day: date, timezone: str) -> datetime:
    """The instant, in UTC, at which a local day is due: the deadline's time of the next day."""
    local = datetime.combine(day + timedelta(days=1), contract.deadline, tzinfo=ZoneInfo(timezone))
    return local.astimezone(UTC)


def suspect_rows(
    contract: ContractSpec, rows: int, trailing: Sequence[int], doubted: int = 0
) -> str:
    """Why a day's number of rows is suspicious; empty if it is not.

    What is suspicious is no measure for later days: else a feed that is cut short would be usual
    after a few weeks. Where too few days are left to compare with because of that, the day is
    suspicious too, until somebody has waived one of them or the rows are as they were.

    Args:
        contract: of the source.
        rows: of the day.
        trailing: rows of the same weekday in the weeks before, of the clear days alone.
        doubted: how many of these days have every hour, but were suspicious themselves.
    """
    if rows < contract.min_rows:
        return f"{rows} rows, at least {contract.min_rows} are expected"
    rule = contract.weekday_rows
    if rule is None or len(trailing) + doubted < rule.at_least:
        return ""
    if len(trailing) < rule.at_least:
        return (
            f"{rows} rows cannot be compared: of the same weekday in the {rule.weeks} weeks before "
            f"{doubted} day(s) were suspicious themselves, and {len(trailing)} clear, at least "
            f"{rule.at_least} are needed (a waiver of such a day makes it one)"
        )
    usual = median(trailing)
    low, high = rule.low * usual, rule.high * usual
    if low <= rows <= high:
        return ""
    return (
        f"{rows} rows, {low:.0f} to {high:.0f} are expected: {rule.low} to {rule.high} times the "
        f"median {usual:.0f} of the same weekday in {len(trailing)} weeks before"
    )


def suspect_nulls(source: SourceSpec, nulls: Mapping[str, int], rows: int) -> str:
    """Why the shares of nulls in a day's rows are suspicious; empty if they are not.

    Args:
        source: its columns have the limits.
        nulls: rows without a value, by column.
        rows: of the day.
    """
    if rows < NULL_SAMPLE:
        return ""
    many = [
        f"{name} in {nulls[name]} (at most {limit:g} of them)"
        for name, limit in source.day_null_limits.items()
        if nulls[name] > limit * rows
    ]
    if not many:
        return ""
    return f"too many nulls in {rows} rows of the day (max_day_null_fraction): {', '.join(many)}"


def suspect_built(least: int, rows: int, excluded: Mapping[str, int]) -> str:
    """Why the rows that are left of a day are suspiciously few; empty if they are not.

    Args:
        least: `dataset.min_rows`.
        rows: that are left.
        excluded: rows that were left out, by rule.
    """
    if rows >= least:
        return ""
    out = ", ".join(f"{name} {count}" for name, count in excluded.items() if count) or "none"
    return (
        f"{rows} rows are left to build from (excluded: {out}), at least {least} are expected "
        "(dataset.min_rows)"
    )


def assess_source(
    source: str,
    expected: Sequence[datetime],
    arrivals: Iterable[Arrival],
    as_of: datetime,
    contract: ContractSpec | None = None,
    *,
    deadline: datetime | None = None,
    trailing: Sequence[int] = (),
    doubted: int = 0,
    found: str = "",
) -> SourceReport:
    """Compare the hours that a day must have with those that were delivered.

    Args:
        source: name of the source.
        expected: the UTC hours of the local day.
        arrivals: deliveries; those outside of the expected hours are ignored.
        as_of: an expected hour that has not ended by then is not due, the rest is missing.
        contract: what the day has to be; none: every hour, and no more.
        deadline: when the day is due; none: never.
        trailing: rows of the same weekday in the weeks before, of the clear days alone.
        doubted: how many of these days were suspicious themselves.
        found: why these very rows are suspicious, as found when they were read to build from them.
    """
    rules = contract or ContractSpec()
    # A file that came before its hour was over cannot hold all of it: the hour is not due, as if
    # there were none; what its producer delivers afterwards heals it.
    by_hour = {a.hour: a for a in arrivals if a.rejected is not None or a.hour + HOUR <= as_of}
    accepted = [h for h in expected if h in by_hour and by_hour[h].rejected is None]
    absent = [h for h in expected if h not in by_hour]
    rejected = {
        h.astimezone(UTC).strftime("%Y-%m-%dT%HZ"): str(by_hour[h].rejected)
        for h in expected
        if h in by_hour and by_hour[h].rejected is not None
    }
    every = bool(expected) and len(accepted) == len(expected)
    rows = sum(by_hour[h].rows for h in accepted)
    due = deadline is not None and as_of >= deadline
    lacking = len(expected) - len(accepted)
    may_be_accepted = (
        due
        and bool(accepted)
        and rules.accept_lacking is not None
        and 0 < lacking <= rules.accept_lacking
    )
    counted = ""
    if every or may_be_accepted:  # of a day that stays held anyway its hours say enough
        counted = suspect_rows(rules, rows, trailing, doubted)
    suspicion = ", ".join(why for why in (counted, found) if why)
    overdue = due and (not every or bool(suspicion))
    if every:
        verdict = Verdict.SUSPICIOUS if suspicion else Verdict.COMPLETE
    elif rejected:
        verdict = Verdict.QUARANTINED
    elif may_be_accepted and not suspicion:
        verdict = Verdict.ACCEPTED
    elif overdue:
        verdict = Verdict.LATE
    else:
        verdict = Verdict.PARTIAL if accepted else Verdict.ABSENT
    return SourceReport(
        source=source,
        verdict=verdict,
        expected=len(expected),
        observed=len(accepted),
        rows=rows,
        missing=tuple(h for h in absent if h + HOUR <= as_of),
        not_due=tuple(h for h in absent if h + HOUR > as_of),
        rejected=rejected,
        suspicion=suspicion,
        overdue=overdue,
        content=content_of((h, by_hour[h].digest) for h in accepted),
    )


def content_of(accepted: Iterable[tuple[datetime, str]]) -> str:
    """`SourceReport.content` of some accepted hours and the digests of their files."""
    found = [(hour.astimezone(UTC).isoformat(), digest) for hour, digest in accepted]
    return combine(found) if found else ""
