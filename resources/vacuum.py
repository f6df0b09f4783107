"""Which files of a Delta table nobody needs any more, by its log.

Delta's own vacuum knows a table's newest version and how old a file is. It does not know which
older versions a registered model is repeated from; here these are named, and what they hold stays.
"""

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey
from resources.delta import open_table

Pins = Mapping[int, AbstractSet[PartitionKey]]
"""By table version: the partitions that have to stay readable at it."""


@dataclass(frozen=True)
class Sorted:
    """The files of a table that its newest version does not hold, by what is to become of them.

    Attributes:
        pinned: a named version holds them.
        recent: they were replaced after the cutoff.
        expired: neither; all of them are there.
    """

    pinned: tuple[Path, ...]
    recent: tuple[Path, ...]
    expired: tuple[Path, ...]


def sort_files(path: str, key_column: str, pins: Pins, cutoff_ms: int) -> Sorted:
    """Find the files that no named version, nor the newest one, nor a recent one holds.

    Args:
        path: a local folder.
        key_column: by which the table is partitioned, beside `date`.
        pins: what has to stay readable.
        cutoff_ms: what was replaced after this instant stays, in milliseconds since the epoch.

    Raises:
        RefusedError: the table is remote, or its log is not whole, so that nobody can tell.
    """
    if "://" in path:
        raise RefusedError(
            f"{path} is remote, whose files are not looked at; allowed are tables on a local disk"
        )
    root, table = Path(path), open_table(path)
    if table is None:
        return Sorted((), (), ())
    live: dict[PartitionKey, set[str]] = {}
    owner: dict[str, PartitionKey] = {}
    kept: set[str] = set()
    gone: dict[str, int] = {}
    newest = table.version()
    if max(pins, default=0) > newest:
        raise RefusedError(
            f"{path} is at version {newest}, but version {max(pins)} of it is recorded: it is "
            "another table, or was put back; restore it before anything is removed"
        )
    for version, actions in read_log(root, newest):
        for action in actions:
            if "remove" in action:
                name = unquote(action["remove"]["path"])
                gone[name] = int(action["remove"].get("deletionTimestamp") or 0)
                live[owner[name]].discard(name)
            elif "add" in action:
                name = unquote(action["add"]["path"])
                gone.pop(name, None)
                key = _key_of(action["add"]["partitionValues"], key_column)
                live.setdefault(key, set()).add(name)
                owner[name] = key
        for key in pins.get(version, ()):
            kept |= live.get(key, set())
    found: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    for name, when in sorted(gone.items()):
        if (root / name).exists():
            group = 0 if name in kept else 1 if when >= cutoff_ms else 2
            found[group].append(root / name)
    return Sorted(*map(tuple, found))


def read_log(root: Path, newest: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The actions of each version, oldest first.

    Raises:
        RefusedError: an entry is gone.
    """
    for number in range(newest + 1):
        entry = root / "_delta_log" / f"{number:020}.json"
        try:
            lines = entry.read_text().splitlines()
        except OSError as error:
            raise RefusedError(
                f"{entry} of the table's log cannot be read ({error.strerror}), so nobody can tell "
                "which files older versions need; nothing was removed, restore the log"
            ) from error
        yield number, [json.loads(line) for line in lines]


def _key_of(values: Mapping[str, str], key_column: str) -> PartitionKey:
    return PartitionKey.parse(f"{values[key_column]}|{values['date']}")
