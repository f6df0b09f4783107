"""The sweep: late and changed files of any day, found at a cost that does not know the history.

A tick reads the time of change of a bounded number of day folders and goes on from there at the
next tick. Only folders that changed are listed, and a few that did not, in turn: a file that is
written in place does not touch the time of its folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from platform_assets.domain.attention import next_position, portion, with_weekdays
from platform_assets.domain.errors import HomeError
from platform_assets.domain.partition import date_range, local_date, local_hours, runs_of
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.ledger.records import ArrivalRecord, FolderRecord

MOST_LISTED = 96
"""Folders that one sweep lists because they are new to it or changed; the rest waits in place."""

MOST_LISTED_UNCHANGED = 24
"""Folders that one sweep lists although nothing tells of a change, those listed longest ago."""

GRANULARITY = timedelta(seconds=2)
"""Two changes closer than this may leave the same time of change (FAT: 2 s)."""

ABSENT = 0
"""Stands for the time of change of a folder that is not there."""

_BEGUN = -1
"""Stands for the time of change of a folder that is being listed for the first time."""

_NS = 1_000_000_000

Cause = Literal["new", "changed", "again", "turn"]


@dataclass(frozen=True)
class Swept:
    """What one portion of the rotation found.

    Attributes:
        changed: local dates whose files differ from what the ledger knew at the last sweep.
        position: where the next portion starts.
        looked: folders whose time of change was read.
        listed: folders of these that were listed.
    """

    changed: tuple[date, ...]
    position: int
    looked: int
    listed: int = 0


@dataclass(frozen=True)
class Folder:
    """The files of one source and key whose hours lie on one date in UTC."""

    source: str
    key: str
    day: date

    @property
    def path(self) -> str:
        return f"{self.source}/{self.key}/{self.day}"


@dataclass(frozen=True)
class _Rotation:
    """All day folders up to now, date by date, so that new ones stand at the end."""

    spec: PipelineSpec
    first: date
    last: date

    @classmethod
    def of(cls, services: Services) -> "_Rotation":
        grid = services.spec.partitions
        now = services.clock.as_of() - timedelta(microseconds=1)
        last = min(local_date(now, grid.timezone), grid.end)
        begin = local_hours(grid.start, grid.timezone)[0].date()
        return cls(services.spec, begin, local_hours(last, grid.timezone)[-1].date())

    def __len__(self) -> int:
        return max(0, (self.last - self.first).days + 1) * len(self._columns)

    @property
    def _columns(self) -> list[tuple[str, str]]:
        spec = self.spec
        return [(source, key) for key in spec.partitions.values for source in spec.sources]

    def at(self, places: range) -> list[Folder]:
        columns = self._columns
        return [
            Folder(*columns[n % len(columns)], self.first + timedelta(days=n // len(columns)))
            for n in places
        ]


def sweep(services: Services, position: int, most: int = 400) -> Swept:
    """Look at the next folders, bring the ledger up to what changed, and have these dates attended.

    A folder that changed counts also where somebody else has told the ledger of its files since
    the last sweep. The first time, a folder counts only if its files are not what the ledger knows.
    A new round begins by looking for folders that no source reads.

    Args:
        services: of the pipeline.
        position: where the last sweep said that this one starts, 0 at first.
        most: how many folders may be looked at.

    Raises:
        HomeError: a folder cannot be looked at.
    """
    if position == 0:  # once a round
        services.zone.note_misplaced(services.clock.as_of())
    rotation = _Rotation.of(services)
    places = portion(position, most, len(rotation))
    folders = rotation.at(places)
    pipeline, watch = services.spec.pipeline, services.watch
    known = watch.folders(pipeline, [folder.path for folder in folders])
    moment = datetime.now(UTC)
    stamps = {folder: _changed_at(services, folder) for folder in folders}
    due: dict[Folder, Cause] = {}
    for folder in folders:
        cause = _cause(known.get(folder.path), stamps[folder])
        if cause is not None and len(due) == MOST_LISTED:
            folders = folders[: folders.index(folder)]
            break
        if cause is not None:
            due[folder] = cause
    if len(due) < MOST_LISTED:
        due |= _in_turn([f for f in folders if f not in due and stamps[f] != ABSENT], known)
    # Written down before the ledger learns of the files: were this process to end in between, the
    # folder would otherwise be new and nothing in it different.
    begun = [folder for folder, cause in due.items() if cause == "new"]
    watch.saw([FolderRecord(pipeline, folder.path, _BEGUN, moment) for folder in begun])
    found = _list(services, due, known, moment)
    _attend(services, found)
    watch.saw([FolderRecord(pipeline, folder.path, stamps[folder], moment) for folder in due])
    done = places.start + len(folders)
    return Swept(tuple(sorted(found)), next_position(done, len(rotation)), len(folders), len(due))


def _changed_at(services: Services, folder: Folder) -> int:
    path = services.home.landing / services.spec.pipeline / folder.path
    try:
        return path.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:
        raise HomeError(
            f"{path} cannot be looked at ({error.strerror}); the folders of the landing zone must "
            "be readable by this user"
        ) from error


def _cause(record: FolderRecord | None, stamp: int) -> Cause | None:
    """Why a folder has to be listed now; None if nothing tells of a change."""
    if record is None:
        return "new"
    if record.mtime_ns != stamp:
        return "changed"
    looked = round(record.looked_at.timestamp() * _NS)
    if stamp != ABSENT and looked - stamp < GRANULARITY.total_seconds() * _NS:
        return "again"
    return None


def _in_turn(folders: Iterable[Folder], known: Mapping[str, FolderRecord]) -> dict[Folder, Cause]:
    # Those of one key and of neighbouring dates together: they are listed in one go.
    oldest = sorted(folders, key=lambda f: (known[f.path].looked_at, f.key, f.day, f.source))
    return dict.fromkeys(oldest[:MOST_LISTED_UNCHANGED], "turn")


def _list(
    services: Services,
    due: Mapping[Folder, Cause],
    known: Mapping[str, FolderRecord],
    moment: datetime,
) -> dict[date, str]:
    """Refresh some folders; returns the local dates that changed, each with a reason."""
    found: dict[date, str] = {}
    for key in services.spec.partitions.values:
        own = {folder: cause for folder, cause in due.items() if folder.key == key}
        for first, last in runs_of(sorted({folder.day for folder in own})):
            group = {f: cause for f, cause in own.items() if first <= f.day <= last}
            found = _refresh(services, key, (first, last), group, known, moment) | found
    return found


def _refresh(
    services: Services,
    key: str,
    span: tuple[date, date],
    group: Mapping[Folder, Cause],
    known: Mapping[str, FolderRecord],
    moment: datetime,
) -> dict[date, str]:
    """Bring the ledger up to the disk for one key and a run of folder dates."""
    first, last = span
    timezone = services.spec.partitions.timezone
    # The local day of a date touches the folder of that date, and a neighbour's.
    count = services.zone.refresh(first, last, [key], now=moment)
    found: dict[date, str] = {}
    told: set[Folder] = set()
    fresh = 0
    if count or any(cause != "new" for cause in group.values()):
        for record in _arrivals(services, key, first, last):
            folder = Folder(record.source, key, record.hour.date())
            before = known.get(folder.path) if folder in group else None
            now = record.seen_at == moment
            fresh += now
            if now or (before is not None and record.seen_at > before.looked_at):
                found.setdefault(local_date(record.hour, timezone), _because(folder))
                told.add(folder)
    gone = count > fresh
    for folder, cause in group.items():
        # Files that vanished have left no record that says which they were.
        if (cause == "changed" and folder not in told) or gone:
            for day in _touched(folder, timezone):
                found.setdefault(day, _because(folder))
    return found


def _arrivals(services: Services, key: str, first: date, last: date) -> list[ArrivalRecord]:
    timezone, pipeline = services.spec.partitions.timezone, services.spec.pipeline
    begin = min(first, local_hours(first, timezone)[0].date())
    end = max(last, local_hours(last, timezone)[-1].date())
    return [
        record
        for source in services.spec.sources
        for record in services.ledger.arrivals(
            pipeline,
            source,
            key,
            datetime.combine(begin, time(0), UTC),
            datetime.combine(end, time(23), UTC),
        )
    ]


def _touched(folder: Folder, timezone: str) -> Sequence[date]:
    """The local dates that have an hour in a folder: two, but where the timezone is UTC."""
    begin = datetime.combine(folder.day, time(0), UTC)
    return date_range(
        local_date(begin, timezone), local_date(begin + timedelta(hours=23), timezone)
    )


def _because(folder: Folder) -> str:
    return f"files changed in {folder.path}"


def _attend(services: Services, found: Mapping[date, str]) -> None:
    dates = with_weekdays(services.spec, found)
    for why in sorted(set(dates.values())):
        services.attend([day for day, reason in dates.items() if reason == why], why)
