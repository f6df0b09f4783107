"""Whether the code that a process has loaded is still what lies on the disk."""

import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

State = dict[str, tuple[int, int] | None]
"""Time of change in ns and size by path; None where there is no such file."""


def installed_places() -> tuple[str, ...]:
    """Folders whose modules change only by installing something."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({os.path.realpath(sysconfig.get_path(name)) for name in names})


def own_files() -> set[str]:
    """The files of the loaded modules that lie outside of what is installed."""
    places = tuple(place + os.sep for place in installed_places())
    found = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and not os.path.realpath(path).startswith(places):
            found.add(path)
    return found


def files_under(folders: Iterable[Path]) -> set[str]:
    """Every Python and YAML file below some folders."""
    return {
        str(path)
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml", ".yml")
    }


def read_state(folders: Iterable[Path]) -> State:
    """What there is: own files, declarations, and the folders that things are installed in."""
    return {
        path: _stat(path) for path in {*own_files(), *files_under(folders), *installed_places()}
    }


def changed_since(before: State, folders: Iterable[Path]) -> str | None:
    """A file that differs from the state, is new in the folders, or is gone; None if none is."""
    for path in files_under(folders) - before.keys():
        return path
    for path, known in before.items():
        if _stat(path) != known:
            return path
    return None


def _stat(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of them at each launch
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
