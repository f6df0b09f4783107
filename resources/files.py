"""Files on the local disk or S3, through pyarrow's file systems."""

import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CHUNK = 1 << 20
DRAFT = ".draft-"


@dataclass(frozen=True, order=True)
class Listed:
    """A file as a listing shows it.

    Attributes:
        name: in the folder that was listed from, with `/` between its parts.
        size: bytes.
        modified: seconds since the epoch, by the clock of who keeps the file.
    """

    name: str
    size: int
    modified: float


class Files:
    """A folder, local or of a bucket; names in it have `/` between their parts.

    Errors of the file system are let through: OSError, of which FileNotFoundError says that there
    is no such file.

    Args:
        root: a path, or `s3://bucket/folder`; of S3 the variables are those of the lake
            (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/")
        self.local = "://" not in self.root
        self._system: FileSystem | None = None
        self._owner = 0
        self._guard = threading.Lock()

    def write(self, name: str, content: bytes) -> None:
        """Put a file in place, whole: a reader sees all of it, or what was there before."""
        if not self.local:
            self.put(name, content)
            return
        folder, _, last = name.rpartition("/")
        draft = f"{folder}/{DRAFT}{last}.{uuid.uuid4().hex}".lstrip("/")
        try:
            self.put(draft, content)
            Path(self._place(draft)).replace(self._place(name))
            _sync(Path(self._place(name)).parent)
        except BaseException:
            Path(self._place(draft)).unlink(missing_ok=True)
            raise

    def put(self, name: str, content: bytes) -> str:
        """Write a file; its SHA-256. Readers may see a part of it meanwhile."""
        with self._open(self._place(name)) as file:
            file.write(content)
        if self.local:
            _sync(Path(self._place(name)))
        return hashlib.sha256(content).hexdigest()

    def put_file(self, name: str, source: Path) -> tuple[str, int]:
        """Copy a local file; its SHA-256 and size. Readers may see a part of it meanwhile."""
        place, digest, size = self._place(name), hashlib.sha256(), 0
        with source.open("rb") as given, self._open(place) as taken:
            while chunk := given.read(CHUNK):
                digest.update(chunk)
                taken.write(chunk)
                size += len(chunk)
        if self.local:
            _sync(Path(place))
        return digest.hexdigest(), size

    def read(self, name: str) -> bytes:
        """A file's content."""
        if self.local:  # a folder in its place is an error of its own here, to pyarrow it is none
            return Path(self._place(name)).read_bytes()
        with self.system.open_input_file(self._place(name)) as file:
            return bytes(file.read())

    def fetch(self, name: str, target: Path) -> str:
        """Copy a file to a local one; its SHA-256."""
        digest = hashlib.sha256()
        with self.system.open_input_file(self._place(name)) as given, target.open("wb") as taken:
            while chunk := given.read(CHUNK):
                digest.update(chunk)
                taken.write(chunk)
        return digest.hexdigest()

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in a folder, sorted; none where there is no folder."""
        from pyarrow.fs import FileSelector

        found = self.system.get_file_info(FileSelector(self._place(folder), allow_not_found=True))
        return sorted(info.base_name for info in found)

    def walk(self) -> Iterator[Listed]:
        """Every file, also those of folders in it; none where there is no folder."""
        from pyarrow.fs import FileSelector, FileType

        place = self._place("")
        wanted = FileSelector(place, allow_not_found=True, recursive=True)
        for info in self.system.get_file_info(wanted):
            if info.type is FileType.File:
                yield Listed(info.path[len(place) + 1 :], info.size, info.mtime_ns / 1e9)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if self.local:
            return Path(self._place(name)).is_file()
        from pyarrow.fs import FileType

        return self.system.get_file_info(self._place(name)).type is FileType.File

    def delete(self, name: str) -> None:
        """Remove a file or folder, if it is there."""
        from pyarrow.fs import FileType

        place = self._place(name)
        kind = self.system.get_file_info(place).type
        try:
            if kind is FileType.Directory:
                self.system.delete_dir(place)
            elif kind is not FileType.NotFound:
                self.system.delete_file(place)
        except FileNotFoundError:
            return

    def path(self, name: str) -> Path:
        """Where a file lies on the local disk."""
        if not self.local:
            raise UsageError(f"{self.root} is not on the local disk")
        return Path(self._place(name))

    @property
    def system(self) -> "FileSystem":
        """The file system; each process opens its own, its threads do not survive a fork."""
        with self._guard:
            if self._system is None or self._owner != os.getpid():
                self._system, self._owner = self._opened(), os.getpid()
            return self._system

    def _opened(self) -> "FileSystem":
        from pyarrow import fs

        if self.local:
            return fs.LocalFileSystem()
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        scheme, _, host = endpoint.rpartition("://")
        options: dict[str, Any] = {"background_writes": False}
        if host:
            options |= {"endpoint_override": host, "scheme": scheme or "https"}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region:
            options["region"] = region
        return fs.S3FileSystem(**options)

    def _open(self, place: str) -> Any:
        if self.local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        return self.system.open_output_stream(place)

    def _place(self, name: str) -> str:
        whole = f"{self.root}/{name}" if name else self.root
        return whole if self.local else whole.partition("://")[2]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
