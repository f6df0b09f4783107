"""The folder that step, supervisor and ranks of one training share on a machine."""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

JOB, EVENTS = "job.json", "events.jsonl"
_TIME = struct.Struct("<if")
"""A step's number and its seconds."""


@dataclass(frozen=True)
class Job:
    """What the ranks are told.

    Attributes:
        entry: `package.module:function`, called with a Rank in each of them.
        arguments: plain data for it.
        min, max, restarts, step_timeout_seconds, keep_alive_seconds: of ProcessesSpec.
        keep: how many checkpoints stay in the folder.
        rendezvous: address and port of it, for ranks on other nodes.
    """

    entry: str
    arguments: Mapping[str, Any]
    min: int = 1
    max: int = 1
    restarts: int = 3
    step_timeout_seconds: int = 600
    keep_alive_seconds: int = 15
    keep: int = 2
    rendezvous: str = ""


class Folder:
    """Names in the shared folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.result = root / "result"
        self.errors = root / "errors"
        self.ranks = root / "ranks"
        self.times = root / "times"
        self.replace = root / "replace"
        self.logs = root / "logs"
        # On a cluster: how the torchrun of each node ended; that the step is there, and has ended.
        self.out = root / "out"
        self.alive = root / "alive"
        self.over = root / "over"
        self.asked = root / "checkpoint-asked"
        self.stop = root / "stop-asked"

    def make(self, job: Job) -> None:
        for folder in (self.checkpoints, self.result, self.errors, self.ranks, self.times):
            folder.mkdir(parents=True, exist_ok=True)
        self.replace.mkdir(exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        self.out.mkdir(exist_ok=True)
        put(self.root / JOB, json.dumps(asdict(job)).encode())

    def job(self) -> Job:
        return Job(**json.loads((self.root / JOB).read_bytes()))

    def tell(self, kind: str, **body: Any) -> None:
        """Add an event; one write, so that those of several processes do not mix."""
        line = json.dumps({"kind": kind, **body}) + "\n"
        handle = os.open(self.root / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:09d}"

    def newest(self) -> tuple[int, Path] | None:
        """The newest checkpoint that all ranks have finished."""
        found = sorted(self.checkpoints.glob("step-*[0-9]"))
        return (int(found[-1].name.removeprefix("step-")), found[-1]) if found else None


class Events:
    """The events of a folder, each once."""

    def __init__(self, folder: Folder) -> None:
        self._path = folder.root / EVENTS
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content.rfind(b"\n") + 1
        self._read += whole
        for line in content[:whole].splitlines():
            yield json.loads(line)


class TimesWriter:
    """Step times of one rank: 8 bytes a step, written twice a second at the most."""

    def __init__(self, path: Path, every: float = 0.5) -> None:
        self._path = path
        self._every = every
        self._waiting = bytearray()
        self._written = 0.0

    def add(self, step: int, seconds: float, now: float) -> None:
        self._waiting += _TIME.pack(step, seconds)
        if now - self._written >= self._every:
            self.flush(now)

    def flush(self, now: float = 0.0) -> None:
        if self._waiting:
            with self._path.open("ab") as file:
                file.write(self._waiting)
            self._waiting.clear()
        self._written = now


def read_times(path: Path, most: int | None = None) -> list[tuple[int, float]]:
    """Step and seconds, as far as they are written; of the last `most` steps."""
    try:
        with path.open("rb") as file:
            if most is not None:
                size = file.seek(0, os.SEEK_END) // _TIME.size
                file.seek(max(0, size - most) * _TIME.size)
            content = file.read()
    except FileNotFoundError:
        return []
    return list(_TIME.iter_unpack(content[: len(content) // _TIME.size * _TIME.size]))


def put(path: Path, content: bytes) -> None:
    """Write a small file that is there whole, or not."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
