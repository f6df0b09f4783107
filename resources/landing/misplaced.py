"""Folders of the landing zone that no source reads: a misspelt name is nobody's missing hour."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from platform_assets.domain.errors import HomeError
from resources.landing.rawfile import printable
from resources.ledger.records import FolderRecord, VerdictRecord
from resources.ledger.restatements import Watch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from platform_assets.domain.spec import PipelineSpec
    from resources.ledger import Ledger

MOST_NAMED = 100
"""Places that are kept and told of, at the most."""

GRANULARITY = timedelta(seconds=2)
"""Two changes of a folder closer than this may leave the same time of change (FAT: 2 s)."""

_EVERY = "*"
_ABSENT = 0


def misplaced(
    root: Path, spec: PipelineSpec, unchanged: Collection[str] = (), before: Collection[str] = ()
) -> list[str]:
    """What lies in the landing zone of a pipeline where nothing is looked for, and what is.

    Names that start with a dot are left out. Only names are read, of sources, keys and dates.

    Args:
        root: the landing folder of the home.
        spec: the pipeline.
        unchanged: folders of a source and key (`flights/JFK`) whose dates need not be listed.
        before: what was found when they were listed.

    Raises:
        HomeError: a folder cannot be listed.
    """
    found: list[str] = []
    for path, expected in _places(root / spec.pipeline, spec, unchanged):
        if path in unchanged:
            found += [place for place in before if place.startswith(f"{path}/")]
        else:
            found.append(f"{printable(path)} ({expected})")
        if len(found) > MOST_NAMED:
            return [*found[:MOST_NAMED], f"more than {MOST_NAMED} places"]
    return found


def _places(
    folder: Path, spec: PipelineSpec, unchanged: Collection[str]
) -> Iterator[tuple[str, str]]:
    sources, keys = list(spec.sources), list(spec.partitions.values)
    for source in _names(folder):
        if source not in sources:
            yield source, f"sources are {', '.join(sources)}"
            continue
        for key in _names(folder / source):
            if key not in keys:
                yield f"{source}/{key}", f"{spec.partitions.key} is one of {', '.join(keys)}"
                continue
            if f"{source}/{key}" in unchanged:
                yield f"{source}/{key}", ""
                continue
            for day in _names(folder / source / key):
                if not _is_date(day):
                    yield f"{source}/{key}/{day}", "dates in UTC are written as in 2013-02-09"


def _names(folder: Path) -> list[str]:
    try:
        # Names alone: of the dates of ten years no path is made.
        return sorted(name for name in os.listdir(folder) if name[0] != ".")  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise HomeError(
            f"{folder} cannot be listed ({error.strerror}); the folders of the landing zone must "
            "be readable by this user"
        ) from error


def _is_date(name: str) -> bool:
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


class MisplacedPlaces:
    """What was found last, kept in the ledger as a verdict on the landing zone."""

    def __init__(self, spec: PipelineSpec, ledger: Ledger) -> None:
        self._spec, self._pipeline, self._ledger = spec, spec.pipeline, ledger
        self._asset = spec.asset("landing")
        self._watch = Watch(ledger.url)

    def known(self) -> list[str]:
        """The places that were found by the last round."""
        record = self._ledger.verdict(self._pipeline, self._asset, _EVERY)
        return list(record.report["places"]) if record else []

    def look(self, root: Path, as_of: datetime) -> list[str]:
        """Look again, and keep what is found; returns the places that are new.

        The dates of a source and key are listed only where their folder has changed since: what a
        look costs must not grow with the dates that are known to be right.

        Raises:
            HomeError: a folder cannot be looked at.
        """
        before, now = self.known(), datetime.now(UTC)
        stamps = self._stamps(root)
        known = self._watch.folders(self._pipeline, list(stamps))
        told = len(before) <= MOST_NAMED  # else what was found is not all there was
        same = {path for path, at in stamps.items() if told and _stands(known.get(path), at)}
        new = self.record(misplaced(root, self._spec, same, before), as_of)
        # Only now: who dies in between lists them again.
        self._watch.saw(
            [
                FolderRecord(self._pipeline, path, at, now)
                for path, at in stamps.items()
                if path not in same
            ]
        )
        return new

    def _stamps(self, root: Path) -> dict[str, int]:
        """When the folders of sources and keys have changed, nanoseconds since the epoch."""
        found = {}
        for source in self._spec.sources:
            for key in self._spec.partitions.values:
                path = root / self._pipeline / source / key
                try:
                    found[f"{source}/{key}"] = path.stat().st_mtime_ns
                except (FileNotFoundError, NotADirectoryError):
                    # Told apart from one that is moved away and back, as it was.
                    found[f"{source}/{key}"] = _ABSENT
                except OSError as error:
                    raise HomeError(
                        f"{path} cannot be looked at ({error.strerror}); the folders of the "
                        "landing zone must be readable by this user"
                    ) from error
        return found

    def record(self, places: list[str], as_of: datetime) -> list[str]:
        """Keep what was found now; returns the places that are new."""
        before = self.known()
        if places != before:
            self._ledger.record_verdict(
                VerdictRecord(
                    pipeline=self._pipeline,
                    asset=self._asset,
                    partition=_EVERY,
                    verdict="misplaced" if places else "in order",
                    report={"places": places},
                    as_of=as_of,
                    recorded_at=datetime.now(UTC),
                )
            )
        return [place for place in places if place not in before]


def _stands(record: FolderRecord | None, stamp: int) -> bool:
    """Whether a folder is what it was when it was listed, beyond the grain of its clock."""
    if record is None or record.mtime_ns != stamp or stamp == _ABSENT:
        return False
    return round(record.looked_at.timestamp() * 1e9) - stamp >= GRANULARITY.total_seconds() * 1e9
