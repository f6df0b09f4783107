"""The bytes of one landed file, read once: what is judged is what was digested."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

CHANGING = (
    "the file changed while it was read and is looked at again until it rests; write to a name "
    "that starts with a dot, and rename"
)
"""Why such a file does not count."""


class ChangedError(Exception):
    """A file changed while it was read: what was read is no state of it.

    Attributes:
        size, mtime_ns: what it was when the reading began.
    """

    def __init__(self, path: Path | str, before: os.stat_result) -> None:
        super().__init__(f"{path} changed while it was read")
        self.size, self.mtime_ns = before.st_size, before.st_mtime_ns


@dataclass(frozen=True)
class RawFile:
    """A file as it was at one moment: its bytes, or why they were not read.

    Attributes:
        size, mtime_ns: of the very file that the bytes were read from.
        content: all of its bytes; None where `refused` says why there are none.
    """

    size: int
    mtime_ns: int
    content: bytes | None
    refused: str | None = None


def read_raw(path: Path | str, limit: int, boundary: str | None = None) -> RawFile:
    """Read a file into memory, if it is a regular one, small enough and within a folder.

    Args:
        path: of the file; symbolic links are followed.
        limit: bytes; a larger file is not opened.
        boundary: real path of the folder that it must lie in; None: anywhere.

    Raises:
        FileNotFoundError: it is gone.
        ChangedError: somebody wrote into it meanwhile.
    """
    name = str(path)  # best given as text: a Path takes as long to make as the system does
    state = os.lstat(name)
    if stat.S_ISLNK(state.st_mode):
        try:
            refused = _climbs_out(os.path.realpath(name), boundary)
            if refused is not None:
                return _refused(state, refused)
            state = os.stat(name)  # noqa: PTH116
        except OSError as error:
            return _refused(state, f"a symbolic link to nothing readable ({error.strerror})")
    refused = _unfit(state, limit)
    if refused is not None:
        return _refused(state, refused)
    try:
        # Without waiting: what was a file a moment ago may be a named pipe without a writer now.
        opened = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            before = os.fstat(opened)
            # Of what was opened, not of its name: a folder on the way may have become a link.
            refused = _climbs_out(_true_path(opened, name), boundary) or _unfit(before, limit)
            if refused is not None:
                return _refused(before, refused)
            content = _read(opened, before.st_size + 1)
            after = os.fstat(opened)
        finally:
            os.close(opened)
    except FileNotFoundError:
        raise
    except OSError as error:
        return _refused(state, f"the file cannot be read ({error.strerror or error})")
    # Not the time of its inode: a rename over the file leaves what is read here whole.
    if len(content) != before.st_size or _stamp(before) != _stamp(after):
        raise ChangedError(path, before)
    return RawFile(before.st_size, before.st_mtime_ns, content)


def _read(opened: int, most: int) -> bytes:
    found = os.read(opened, most)
    if not found or len(found) >= most - 1:  # all of it, or one byte too many
        return found
    parts = [found]
    while (left := most - sum(map(len, parts))) and (part := os.read(opened, left)):
        parts.append(part)
    return b"".join(parts)


def is_within(boundary: str, path: str) -> bool:
    """Whether a real path is a folder or lies in it."""
    return path == boundary or path.startswith(boundary + os.sep)


def printable(text: str) -> str:
    """Text of a producer that any log and database can take, on one line."""
    return text if text.isprintable() else ascii(text)


def _climbs_out(path: str, boundary: str | None) -> str | None:
    if boundary is None or is_within(boundary, path):
        return None
    return (
        f"a symbolic link leads to {printable(path)}, outside of the landing zone; a file inside "
        "of it is expected"
    )


def _unfit(state: os.stat_result, limit: int) -> str | None:
    if not stat.S_ISREG(state.st_mode):
        return "not a regular file, a Parquet file is expected"
    if state.st_size > limit:
        return f"the file has {state.st_size} bytes, at most {limit} are allowed (max_hour_bytes)"
    return None


def _true_path(opened: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{opened}")  # noqa: PTH115
    except OSError:  # not on Linux
        return os.path.realpath(name)


def _stamp(state: os.stat_result) -> tuple[int, int]:
    return state.st_size, state.st_mtime_ns


def _refused(state: os.stat_result, reason: str) -> RawFile:
    return RawFile(state.st_size, state.st_mtime_ns, None, reason)
