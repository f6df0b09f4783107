"""A file appears whole or not at all."""

import errno
import os
import secrets
import stat
from pathlib import Path

from platform_assets.domain.errors import HomeError, SignalboxError, TransientError

_MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO}


def write_whole(path: Path, content: bytes) -> bool:
    """Put a file in place in one step; True if anything was written.

    Readers see the old file or the new one, never a part: the bytes go to a dot-file beside it,
    which is then renamed. A file that holds these bytes already is left alone.

    Raises:
        TransientError: the disk is full; nothing was left behind.
        HomeError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        old = _state(path)
        if old is not None and _holds(path, old, content):
            return False
        try:
            try:
                handle = temporary.open("xb")
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = temporary.open("xb")
            with handle:
                handle.write(content)
            if old is not None and temporary.stat().st_mtime_ns <= old.st_mtime_ns:
                # The kernel stamps in steps of milliseconds, and readers tell files by their
                # stamps: another content needs a later one.
                os.utime(temporary, ns=(old.st_mtime_ns + 1, old.st_mtime_ns + 1))
            temporary.replace(path)
        except BaseException:
            _discard(temporary)
            raise
    except OSError as error:
        raise _explain(path, error) from error
    return True


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _holds(path: Path, state: os.stat_result, content: bytes) -> bool:
    # A symbolic link is replaced, whatever it leads to.
    return (
        stat.S_ISREG(state.st_mode)
        and state.st_size == len(content)
        and path.read_bytes() == content
    )


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the error that led here says more


def _explain(path: Path, error: OSError) -> SignalboxError:
    if error.errno in _MAY_PASS:
        return TransientError(
            f"{path} could not be written ({error.strerror}), nothing was left of it; make room "
            "and deliver it again"
        )
    return HomeError(
        f"{path} could not be written ({error.strerror}); the landing zone must be made of "
        "folders that this user may write, and of files"
    )
