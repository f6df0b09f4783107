"""Folders of the landing zone that no source reads: a misspelt name is nobody's missing hour."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from platform_assets.domain.errors import HomeError
from resources.landing.rawfile import printable
from resources.ledger.records import VerdictRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from platform_assets.domain.spec import PipelineSpec
    from resources.ledger import Ledger

MOST_NAMED = 100
"""Places that are kept and told of, at the most."""

_EVERY = "*"


def misplaced(root: Path, spec: PipelineSpec) -> list[str]:
    """What lies in the landing zone of a pipeline where nothing is looked for, and what is.

    Names that start with a dot are left out. Only names are read, of sources, keys and dates.

    Args:
        root: the landing folder of the home.
        spec: the pipeline.

    Raises:
        HomeError: a folder cannot be listed.
    """
    found: list[str] = []
    for path, expected in _places(root / spec.pipeline, spec):
        if len(found) == MOST_NAMED:
            found.append(f"more than {MOST_NAMED} places")
            break
        found.append(f"{printable(path)} ({expected})")
    return found


def _places(folder: Path, spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    sources, keys = list(spec.sources), list(spec.partitions.values)
    for source in _names(folder):
        if source not in sources:
            yield source, f"sources are {', '.join(sources)}"
            continue
        for key in _names(folder / source):
            if key not in keys:
                yield f"{source}/{key}", f"{spec.partitions.key} is one of {', '.join(keys)}"
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
        self._pipeline, self._ledger = spec.pipeline, ledger
        self._asset = spec.asset("landing")

    def known(self) -> list[str]:
        """The places that were found by the last round."""
        record = self._ledger.verdict(self._pipeline, self._asset, _EVERY)
        return list(record.report["places"]) if record else []

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
