"""Roll-up and snapshot: which days are whole, and what a training reads."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

from platform_assets.domain.completeness import CLEAR
from platform_assets.domain.digests import canonical_json
from platform_assets.domain.errors import HeldError, HomeError, RefusedError, TransientError
from platform_assets.domain.heat_map import HeatMap, heat_map
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import (
    Day,
    DayState,
    PartitionVersion,
    Snapshot,
    WindowRefusal,
    roll_up,
    take_snapshot,
    window,
)
from platform_assets.domain.partition import PartitionKey, runs_of
from platform_assets.line.clearance import assess_range, described, lapsed, refresh, refused
from platform_assets.line.features import record_partitions
from platform_assets.line.services import Outcome, Services
from resources import plots
from resources.landing.atomic import write_whole
from resources.ledger.records import VersionRecord


def as_partition_version(record: VersionRecord) -> PartitionVersion:
    return PartitionVersion(
        partition=record.partition,
        data_version=record.data_version,
        table_version=record.table_version or 0,
        rows=record.rows,
        short=str(record.detail.get("short", "")),
        waivers=tuple(record.detail.get("waivers", ())),
    )


def built_and_lapsed(
    services: Services, records: Mapping[str, VersionRecord]
) -> tuple[dict[str, PartitionVersion], dict[str, str]]:
    """What was built and may be read, and what may not.

    It may not where its waiver is no longer in force, or what it lacks is no longer accepted.
    """
    built = {key: as_partition_version(record) for key, record in records.items()}
    gone = lapsed(services, {name for version in built.values() for name in version.waivers})
    held = {
        key: "; ".join(gone[name] for name in version.waivers if name in gone)
        for key, version in built.items()
        if gone.keys() & set(version.waivers)
    }
    held |= _unaccepted(services, (v for key, v in built.items() if key not in held))
    return {key: version for key, version in built.items() if key not in held}, held


def _unaccepted(services: Services, versions: Iterable[PartitionVersion]) -> dict[str, str]:
    """Of versions that are short of something those that the ledger has as held by now, and why."""
    short = {version.partition: version for version in versions if version.short}
    asset = services.spec.asset("features")
    known = services.ledger.verdict_words(services.spec.pipeline, asset, short)
    return {
        name: _no_longer(short[name], verdict)
        for name, verdict in known.items()
        if verdict not in CLEAR
    }


def _no_longer(version: PartitionVersion, verdict: str) -> str:
    return f"it was built short of {version.short}, which no longer counts: it is {verdict} by now"


def unaccepted_now(services: Services, versions: Iterable[PartitionVersion]) -> dict[str, str]:
    """Of versions that are short of something those that may not be read any more, and why.

    Also by rules and waivers that no look has met yet: the catalog may have just been edited.
    """
    short = {version.partition: version for version in versions if version.short}
    held = _unaccepted(services, short.values())
    for first, last in runs_of(sorted({PartitionKey.parse(name).date for name in short})):
        for partition, report in assess_range(services, first, last).items():
            name = str(partition)
            if name in short and not report.is_clear:
                held.setdefault(name, _no_longer(short[name], report.verdict))
    return held


def held_and_lapsed(held: Mapping[str, str], lapsed_waivers: Mapping[str, str]) -> dict[str, str]:
    """Why partitions are held, and of which of them a waiver or an acceptance has lapsed.

    One whose waiver has lapsed and that is clear all the same, for its hours came or another
    waiver covers it, is not held: it is to be built again.
    """
    return {**held, **{k: f"{held[k]}; {why}" for k, why in lapsed_waivers.items() if k in held}}


def days_of(services: Services, dates: Iterable[date]) -> dict[date, Day]:
    """The roll-up of each date: from the ledger where it was built, else from the landing zone."""
    spec, wanted = services.spec, sorted(dates)
    keys = {day: spec.keys_of(day) for day in wanted}
    every_key = [key for day in wanted for key in keys[day]]
    records = services.ledger.current_versions(spec.asset("features"), every_key)
    built, lapsed_waivers = built_and_lapsed(services, records)
    lapsed_waivers |= unaccepted_now(services, built.values())
    unknown = without_verdict(services, built)
    gone = {**unknown, **lapsed_waivers}
    built = {key: version for key, version in built.items() if key not in gone}
    held = _held(services, [day for day in wanted if set(keys[day]) - set(built)], built, unknown)
    held = held_and_lapsed(held, lapsed_waivers)
    return {day: roll_up(day, keys[day], built, held) for day in wanted}


def without_verdict(services: Services, built: Iterable[str]) -> dict[str, str]:
    """Of partitions that were built those that the ledger has no verdict on, which are held.

    A run that builds records the verdict first: where there is none, nobody knows any more whether
    these rows may be read.
    """
    names, asset = list(built), services.spec.asset("features")
    known = services.ledger.verdict_words(services.spec.pipeline, asset, names)
    why = f"no verdict on it is in the ledger; materialize {asset} for it"
    return {name: why for name in names if name not in known}


def _held(
    services: Services,
    dates: list[date],
    built: Mapping[str, PartitionVersion],
    unknown: Mapping[str, str],
) -> dict[str, str]:
    held = dict(unknown)
    for first, last in runs_of(dates):
        refresh(services, first, last)
        unbuilt = {
            partition: report
            for partition, report in assess_range(services, first, last).items()
            if str(partition) not in built
        }
        waiting = {p: report for p, report in unbuilt.items() if not report.is_clear}
        # What is unknown stays so until it is made again: a look must not let its rows pass.
        record_partitions(services, {p: r for p, r in waiting.items() if str(p) not in unknown})
        held |= {str(partition): report.reason() for partition, report in waiting.items()}
        held |= refused(services, unbuilt.values())
    return held


MAP_DAYS = 120
"""Dates on the heat map of a roll-up, at the most."""


def completeness_map(services: Services, last: date) -> HeatMap:
    """The completeness of the dates up to one, by the arrivals that the ledger knows.

    It looks at no folder: a picture must not take the news of a change from the sensors.
    """
    first = max(services.spec.partitions.start, last - timedelta(days=MAP_DAYS - 1))
    reports = {str(partition): r for partition, r in assess_range(services, first, last).items()}
    unfit = refused(services, reports.values())
    if unfit:
        # As everywhere: what was built since is what it is.
        records = services.ledger.current_versions(services.spec.asset("features"), unfit)
        built = built_and_lapsed(services, records)[0]
        unfit = {name: why for name, why in unfit.items() if name not in built}
    return heat_map(reports.values(), unfit)


def build_day(
    services: Services, partition: PartitionKey, run_id: str, *, with_map: bool = False
) -> Outcome:
    """Roll one date up over its keys; a held date is reported as such, and stays visible.

    Args:
        services: of the pipeline.
        partition: a date.
        run_id: recorded with the version.
        with_map: draw the completeness of the dates up to this one.

    Raises:
        HeldError: a key of the date is whole but was not built yet.
        LeaseTakenError: another run is at work on it for too long.
    """
    asset = services.spec.asset("day")
    with services.claim(asset, str(partition), run_id) as lease:
        return _build_day(services, partition, run_id, lease, with_map=with_map)


def _build_day(
    services: Services, partition: PartitionKey, run_id: str, lease: Lease, *, with_map: bool
) -> Outcome:
    asset, name = services.spec.asset("day"), str(partition)
    day = days_of(services, [partition.date])[partition.date]
    if day.state is DayState.UNBUILT:
        raise HeldError(asset, {name: day.reason()})
    version = day.data_version()
    before = services.ledger.current_version(asset, name)
    changed = services.record(
        lease=lease,
        asset=asset,
        partition=name,
        data_version=version,
        rows=sum(p.rows for p in day.partitions),
        run_id=run_id,
        detail=day.model_dump(mode="json"),
    )
    metadata = {
        "state": day.state.value,
        "rows": sum(p.rows for p in day.partitions),
        "partitions": {p.partition: p.data_version for p in day.partitions},
        "held": dict(day.reasons),
        "short": day.short or None,
        "waivers": described(services, day.waivers) or None,
        "already_done_by": before.run_id if before and not changed else None,
    }
    figures = {}
    if with_map:
        figures["completeness"] = plots.completeness(completeness_map(services, partition.date))
    return Outcome(asset, name, version, changed, metadata, figures)


def manifest_path(services: Services, day: date, version: str) -> Path:
    folder = services.home.lake / services.spec.pipeline / "snapshots" / day.isoformat()
    return folder / f"{version}.json"


def decide_snapshot(services: Services, day: date) -> Snapshot | WindowRefusal:
    """What the training of a date would read now, or why it may not."""
    return decide_snapshots(services, [day], {})[day]


def decide_snapshots(
    services: Services, dates: Sequence[date], known: Mapping[date, Day]
) -> dict[date, Snapshot | WindowRefusal]:
    """`decide_snapshot` of some dates; windows that overlap are read once.

    Args:
        services: of the pipeline.
        dates: to be trained for.
        known: roll-ups that were just made.
    """
    spec = services.spec
    inside = {
        d
        for day in dates
        for d in window(day, spec.model.window_days)
        if d >= spec.partitions.start
    }
    days = {**known, **days_of(services, inside - set(known))}
    return {
        day: take_snapshot(
            pipeline=spec.pipeline,
            dataset=spec.asset("features"),
            day=day,
            data_start=spec.partitions.start,
            window_days=spec.model.window_days,
            min_days=spec.model.min_days,
            days=days,
        )
        for day in dates
    }


def require_window(services: Services, partition: PartitionKey) -> Snapshot:
    """What the training of a date reads, as of now; that it may not is written down.

    Raises:
        HeldError: it may not.
    """
    asset, name = services.spec.asset("snapshot"), str(partition)
    taken = decide_snapshot(services, partition.date)
    if isinstance(taken, WindowRefusal):
        services.record_verdict(
            asset, name, "held", {"reason": taken.reason}, services.clock.as_of()
        )
        raise HeldError(asset, {name: taken.reason})
    return taken


def build_snapshot(services: Services, partition: PartitionKey, run_id: str) -> Outcome:
    """Write down which partition versions the training of a date reads.

    Raises:
        HeldError: the window is clipped, its own day is held, too few days are whole, or one of
            them has not been built yet.
        LeaseTakenError: another run is at work on it for too long.
    """
    asset = services.spec.asset("snapshot")
    with services.claim(asset, str(partition), run_id) as lease:
        return _build_snapshot(services, partition, run_id, lease)


def _build_snapshot(
    services: Services, partition: PartitionKey, run_id: str, lease: Lease
) -> Outcome:
    spec, name = services.spec, str(partition)
    asset = spec.asset("snapshot")
    taken = require_window(services, partition)
    version = taken.data_version()
    path = manifest_path(services, partition.date, version)
    _write(path, canonical_json(taken.model_dump(mode="json")))
    detail = {
        "days": len(taken.days),
        "held": dict(taken.held),
        "short": taken.short,
        "waivers": list(taken.waivers),
    }
    before = services.ledger.current_version(asset, name)
    changed = services.record(
        lease=lease,
        asset=asset,
        partition=name,
        data_version=version,
        rows=taken.rows,
        run_id=run_id,
        detail=detail,
        # The same rows, let go by somebody else: who trains on them must find that person.
        always=before is not None
        and any(before.detail.get(term) != detail[term] for term in ("short", "waivers")),
    )
    services.record_verdict(
        asset, name, "complete", {"held": dict(taken.held)}, services.clock.as_of()
    )
    metadata = {
        "rows": taken.rows,
        "days": len(taken.days),
        "window": f"{taken.window_start} to {taken.date}",
        "partitions": len(taken.partitions),
        "held": dict(taken.held),
        "short": taken.short or None,
        "waivers": described(services, taken.waivers) or None,
        "delta_versions": services.dataset.read_versions(taken.partitions),
        "manifest": str(path.relative_to(services.home.root)),
        "already_done_by": before.run_id if before and not changed else None,
    }
    return Outcome(asset, name, version, changed, metadata)


def load_snapshot(services: Services, day: date, version: str) -> Snapshot:
    """Read a manifest back and verify that it is the one that was recorded.

    Raises:
        RefusedError: it is gone or its content has another digest.
    """
    path = manifest_path(services, day, version)
    try:
        snapshot = Snapshot.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise RefusedError(
            f"the manifest of snapshot {day} ({path}) cannot be read: {error}; materialize "
            f"{services.spec.asset('snapshot')} for {day} again"
        ) from error
    if snapshot.data_version() != version:
        raise RefusedError(
            f"the manifest of snapshot {day} ({path}) has digest {snapshot.data_version()}, "
            f"recorded was {version}: it was changed by hand; materialize "
            f"{services.spec.asset('snapshot')} for {day} again"
        )
    return snapshot


def _write(path: Path, text: str) -> None:
    """Write a manifest whole. One of the same name reads the same rows, maybe from elsewhere.

    Raises:
        TransientError: the disk is full; nothing was left behind.
        HomeError: something is in the way, or may not be written.
    """
    try:
        write_whole(path, text.encode())
    except TransientError as error:
        raise TransientError(
            f"the manifest {path} could not be written ({_why(error)}), nothing was left of it; "
            "make room and materialize the snapshot again"
        ) from error
    except HomeError as error:
        raise HomeError(
            f"the manifest {path} could not be written ({_why(error)}); it needs folders that "
            "this user may write, move away what is in their place"
        ) from error


def _why(error: Exception) -> str:
    cause = error.__cause__
    return (isinstance(cause, OSError) and cause.strerror) or str(error)
