"""Which files of a Delta table nobody needs any more, by its log.

Delta's own vacuum knows a table's newest version and how old a file is. It does not know which
older versions a registered model is repeated from; here these are named, and what they hold stays.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey
from resources.delta import LOG, open_table
from resources.files import Files, Listed

Pins = Mapping[int, AbstractSet[PartitionKey]]
"""By table version: the partitions that have to stay readable at it."""

AT_ONCE = 16
"""Entries of a log on S3 that are asked for at a time: each is a request."""


@dataclass(frozen=True)
class Sorted:
    """The files of a table that its newest version does not hold, by what is to become of them.

    Attributes:
        pinned: a named version holds them.
        recent: they were replaced after the cutoff.
        expired: neither; all of them are there.
    """

    pinned: tuple[Listed, ...]
    recent: tuple[Listed, ...]
    expired: tuple[Listed, ...]


def sort_files(path: str, key_column: str, pins: Pins, cutoff_ms: int) -> Sorted:
    """Find the files that no named version, nor the newest one, nor a recent one holds.

    Args:
        path: a folder, or its URL.
        key_column: by which the table is partitioned, beside `date`.
        pins: what has to stay readable.
        cutoff_ms: what was replaced after this instant stays, in milliseconds since the epoch.

    Raises:
        RefusedError: the table's log is not whole, so that nobody can tell.
    """
    files, table = Files(path), open_table(path)
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
    for version, actions in read_log(files, newest):
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
    found: tuple[list[Listed], list[Listed], list[Listed]] = ([], [], [])
    for file in data_files(files):
        if file.name in gone:
            when = gone[file.name]
            found[0 if file.name in kept else 1 if when >= cutoff_ms else 2].append(file)
    return Sorted(*map(tuple, found))


def data_files(files: Files) -> list[Listed]:
    """The Parquet files of a table that are there, but for those of its log; by name."""
    own = (file for file in files.walk() if file.name.endswith(".parquet"))
    return sorted(file for file in own if LOG not in file.name.split("/"))


def read_log(files: Files, newest: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The actions of each version, oldest first.

    Raises:
        RefusedError: an entry is gone.
    """
    names = (f"{LOG}/{number:020}.json" for number in range(newest + 1))
    for number, content in enumerate(_contents(files, names)):
        yield number, [json.loads(line) for line in content.splitlines()]


def _contents(files: Files, names: Iterable[str]) -> Iterator[bytes]:
    """The files' contents in their order."""

    def content(name: str) -> bytes:
        try:
            return files.read(name)
        except OSError as error:
            raise RefusedError(
                f"{files.root}/{name} of the table's log cannot be read "
                f"({error.strerror or error}), so nobody can tell which files older versions "
                "need; nothing was removed, restore the log"
            ) from error

    if files.local:
        yield from map(content, names)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(content, names)


def _key_of(values: Mapping[str, str], key_column: str) -> PartitionKey:
    return PartitionKey.parse(f"{values[key_column]}|{values['date']}")
