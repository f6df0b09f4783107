"""Hours that arrive or change after their day was used: what changed, and what is to be done.

What the catalog lets happen by itself is decided here; what is touched is a matter of the line.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.completeness import HOUR, CompletenessReport, describe_hours
from platform_assets.domain.digests import digest_of
from platform_assets.domain.partition import local_hours
from platform_assets.domain.source_spec import ContractSpec

_HOUR = "%Y-%m-%dT%HZ"

PREFIX = 12
"""Hexadecimal digits that are kept of an hour's digest: enough to tell that it is another."""


class HourChanges(BaseModel):
    """Which hours of a source are not what a partition was built from, as `2013-02-09T14Z`.

    Attributes:
        added: there now, and not then.
        corrected: there then and now, with another content.
        vanished: there then, not delivered now.
        refused: there then; what was delivered since was refused.
        named: whether it was recorded which hours the partition was built from.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    added: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    named: bool = True

    def describe(self, timezone: str) -> str:
        """`weather: corrected 07:00, added 09:00-10:00`, in local time."""
        if not self.named:
            return f"{self.source}: changed, by which hours was not recorded when it was built"
        parts = []
        for word in ("added", "corrected", "vanished", "refused"):
            hours: tuple[str, ...] = getattr(self, word)
            if hours:
                parts.append(f"{word} {describe_hours([_instant(h) for h in hours], timezone)}")
        return f"{self.source}: {', '.join(parts) or 'the same hours, other refused files'}"


class LateDecision(BaseModel):
    """What is to be done about a partition whose hours changed after it was built.

    Attributes:
        decision: `restate` it by itself, or `list` it for a person.
        reason: one line.
        held: why it cannot be rebuilt now; empty if it can.
    """

    model_config = ConfigDict(frozen=True)

    decision: Literal["restate", "list"]
    reason: str
    held: str = ""


def hour_name(hour: datetime) -> str:
    """`2013-02-09T14Z`."""
    return hour.astimezone(UTC).strftime(_HOUR)


def _instant(name: str) -> datetime:
    return datetime.strptime(name, _HOUR).replace(tzinfo=UTC)


def versions_of(report: CompletenessReport) -> dict[str, str]:
    """The data version of each source as it is now."""
    return {source.source: source.data_version() for source in report.sources}


def changed_sources(used: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """The sources that a partition was built from and that are not the same now.

    A source that the catalog got or lost since is a matter of another code version.
    """
    return tuple(
        name for name, version in sorted(now.items()) if used.get(name, version) != version
    )


def version_of(sources: Mapping[str, str], held: bool = False) -> str:
    """One version over those of the sources; a held partition is another finding than a clear one.

    So that a change that was listed because nothing could be done is decided anew when it can.
    """
    return digest_of({"sources": dict(sources), "held": held})


def compare_hours(
    source: str,
    used: Mapping[str, str] | None,
    now: Mapping[str, str],
    refused: Iterable[str],
) -> HourChanges:
    """Which hours of a source differ.

    Args:
        source: its name.
        used: digest by hour of what the partition was built from; None if it was not recorded.
        now: digest by hour of what is accepted now.
        refused: hours of which the file was refused.
    """
    if used is None:
        return HourChanges(source=source, named=False)
    gone = used.keys() - now.keys()
    bad = gone & set(refused)
    return HourChanges(
        source=source,
        added=tuple(sorted(now.keys() - used.keys())),
        corrected=tuple(sorted(h for h in used.keys() & now.keys() if used[h] != now[h])),
        vanished=tuple(sorted(gone - bad)),
        refused=tuple(sorted(bad)),
    )


def lateness_ends(contract: ContractSpec, day: date, timezone: str) -> datetime:
    """Until when a change of a local day counts as within the lateness, that instant included."""
    end = local_hours(day, timezone)[-1] + HOUR
    return end + timedelta(hours=contract.lateness_hours)


def decide(
    contracts: Mapping[str, ContractSpec],
    changed: Iterable[str],
    day: date,
    timezone: str,
    as_of: datetime,
    report: CompletenessReport,
) -> LateDecision:
    """Whether a changed partition is restated by itself.

    It is, if it can be rebuilt, and every changed source is within its lateness and its contract
    says so; else it waits for a person.

    Args:
        contracts: of the sources.
        changed: names of the sources that changed.
        day: local date of the partition.
        timezone: of the pipeline.
        as_of: when the change was found, on the pipeline's clock.
        report: what the partition is now.
    """
    if not report.is_clear:
        why = report.reason()
        return LateDecision(
            decision="list",
            reason=f"it is held now and cannot be rebuilt ({why}); what was built stays in use",
            held=why,
        )
    end = local_hours(day, timezone)[-1] + HOUR
    passed = (as_of - end) // HOUR
    beyond = [s for s in changed if as_of > lateness_ends(contracts[s], day, timezone)]
    if beyond:
        allowed = ", ".join(f"{contracts[s].lateness_hours} of {s}" for s in beyond)
        reason = f"found {passed} hours after the end of its day, the lateness is {allowed}"
        return LateDecision(decision="list", reason=reason)
    asked = [s for s in changed if contracts[s].within_lateness == "list"]
    if asked:
        reason = f"within the lateness, but the catalog lists changes of {', '.join(asked)}"
        return LateDecision(decision="list", reason=reason)
    reason = f"found {passed} hours after the end of its day, within the lateness"
    return LateDecision(decision="restate", reason=reason)
