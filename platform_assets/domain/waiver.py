"""Waivers: a person lets a partition leave that is short of something, and answers for it.

A waiver covers what it names and no more: what goes missing later is not covered by it.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from platform_assets.domain.completeness import CompletenessReport, SourceReport, Verdict, WaivedBy


class Shortage(BaseModel):
    """What one source of a partition is short of.

    Attributes:
        hours: not there or refused, as `2013-02-09T14Z`.
        rows: whether their number is suspicious.
        content: digest of the files of that suspicious number; other files are another matter.
    """

    model_config = ConfigDict(frozen=True)

    hours: tuple[str, ...] = ()
    rows: bool = False
    content: str = ""


class Waiver(BaseModel):
    """Who let which partition leave, why, since when and until when.

    Attributes:
        name: identifies it, such as `W-0007`.
        partition: of the dataset, `JFK|2013-10-25`.
        covers: what each source may be short of.
        given_at: on the pipeline's clock, as are the others.
        until: from then on it counts no more.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    pipeline: str
    partition: str
    reason: str
    by: str
    given_at: AwareDatetime
    until: AwareDatetime
    covers: Mapping[str, Shortage]
    revoked_at: AwareDatetime | None = None
    revoked_by: str | None = None
    revoke_reason: str | None = None

    def state(self, as_of: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "active" if as_of < self.until else "expired"

    def describe(self) -> str:
        """`W-0007 by ann until 2013-11-30 05:00Z: the station was down`."""
        until = self.until.astimezone(UTC)
        text = f"{self.name} by {self.by} until {until:%Y-%m-%d %H:%M}Z: {self.reason}"
        if self.revoked_at is None:
            return text
        return f"{text} (revoked by {self.revoked_by}: {self.revoke_reason})"


def shortage_of(report: SourceReport) -> Shortage:
    """What a source is short of now."""
    absent = (
        h.astimezone(UTC).strftime("%Y-%m-%dT%HZ") for h in (*report.missing, *report.not_due)
    )
    return Shortage(
        hours=tuple(sorted({*absent, *report.rejected})),
        rows=bool(report.suspicion),
        content=report.content if report.suspicion else "",
    )


def covers(waiver: Waiver, report: SourceReport) -> bool:
    """Whether a waiver names everything that a source is short of.

    Of a suspicious number of rows it names the very files: delivered again, they are looked at
    again, for the next number may be another one.
    """
    allowed, short = waiver.covers.get(report.source, Shortage()), shortage_of(report)
    rows_named = allowed.rows and allowed.content == short.content
    return set(short.hours) <= set(allowed.hours) and (rows_named or not short.rows)


def coverage(report: CompletenessReport) -> dict[str, Shortage]:
    """What a waiver of a partition as it is now has to cover, by source: the least that does."""
    return {s.source: shortage_of(s) for s in report.sources if not s.is_clear}


def apply_waivers(
    report: CompletenessReport, waivers: Iterable[Waiver], as_of: datetime
) -> CompletenessReport:
    """The report with each source that an active waiver covers as waived.

    The newest waiver that covers all of a source counts; hours that are not due are never waived
    away: a day that is not over yet is not short of them.
    """
    active = [w for w in waivers if w.partition == report.partition and w.state(as_of) == "active"]
    if not active or report.is_clear:
        return report
    sources = []
    for source in report.sources:
        fitting = [w for w in active if not source.not_due and covers(w, source)]
        if source.is_clear or not fitting:
            sources.append(source)
            continue
        newest = max(fitting, key=lambda w: (w.given_at, w.name))
        waived = WaivedBy(by=newest.by, reason=newest.reason, until=newest.until)
        update = {"verdict": Verdict.WAIVED, "waiver": newest.name, "waived": waived}
        sources.append(source.model_copy(update=update))
    return report.model_copy(update={"sources": tuple(sources)})
