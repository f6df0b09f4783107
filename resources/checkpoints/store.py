"""Where the checkpoints of one training lie, and which of them are whole.

    <root>/<asset>/<partition>/<key>/attempt-<token>.json      one an attempt: its fence
                                    /<token>-<step>-<nonce>/   the files of a checkpoint
                                    /<token>-<step>-<nonce>.json   its manifest, written last

A checkpoint is there when its manifest is. Nothing is ever written over: each has a name of its
own, and of a newer attempt, which has a higher token of the partition's lease, all are newer. So
a writer that was taken for dead overwrites nothing of the one that came after it, and what it
removes is its own.
"""

import hashlib
import json
import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from platform_assets.domain.checkpoints import CheckpointKey
from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import RefusedError, TransientError, UsageError
from resources.checkpoints.port import Checkpoint, Parts, State
from resources.files import DRAFT, Files

FORMAT = 1
TRIES = 3
"""How often a file is read that is there and cannot be read, before the place counts as away."""

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{10})-(\d{12})-[0-9a-f]{8}")
_ATTEMPT = re.compile(r"attempt-(\d{10})\.json")
_PART = re.compile(r"(?!\.\.?(/|$))[\w.-]+(/(?!\.\.?(/|$))[\w.-]+)*")


class TornError(Exception):
    """A checkpoint that is not what its manifest says."""


class FencedError(RefusedError):
    """A newer attempt at the training has begun: this one was taken for dead."""

    def __init__(self, folder: str, token: int, newest: int) -> None:
        super().__init__(
            f"the attempt with token {token} may save no checkpoint in {folder}: one with token "
            f"{newest} has begun, this one was taken for dead. What the later one saved stands; "
            "nothing is to be done (of a ledger that was put back to an older state the tokens are "
            "lower: remove that folder then)"
        )


@dataclass(frozen=True, order=True)
class Name:
    """A checkpoint's name; the newest sorts last."""

    token: int
    step: int
    text: str


class CheckpointStore:
    """The checkpoints of one training, for one attempt at it.

    Args:
        root: a folder or `s3://bucket/folder`, of all checkpoints.
        key: whose they are.
        token: of the lease of the partition; higher with each attempt.
        keep: how many are kept.
    """

    def __init__(self, root: str | Path, key: CheckpointKey, *, token: int, keep: int = 2) -> None:
        self.key, self.token, self.keep = key, token, keep
        self._all = Files(root)
        self._partition = f"{key.asset.replace('/', '.')}/{quote(key.partition, safe='')}"
        self._files = Files(f"{self._all.root}/{self._partition}/{key.value[:32]}")

    @property
    def folder(self) -> str:
        return self._files.root

    # --- attempts ---------------------------------------------------------------------------

    def attempts(self) -> list[dict[str, Any]]:
        """What was written of the attempts before this one, the oldest first."""
        found = []
        for name in self._names():
            match = _ATTEMPT.fullmatch(name)
            if match and int(match[1]) < self.token:
                with suppress(ValueError, OSError):
                    document = json.loads(self._files.read(name))
                    if isinstance(document, dict) and document.get("key") == self.key.value:
                        found.append({**document, "token": int(match[1])})
        return found

    def note(self, document: Mapping[str, Any]) -> None:
        """Write down how far this attempt is; from the first time on, older ones write nothing."""
        text = json.dumps({**document, "key": self.key.value, "token": self.token})
        self._files.write(self._attempt, text.encode())

    def note_end(self, document: Mapping[str, Any]) -> None:
        """Write down how this attempt ended; not where another one has removed all by now."""
        if self._attempt in self._names():
            self.note(document)

    @property
    def _attempt(self) -> str:
        return f"attempt-{self.token:010}.json"

    def require(self) -> None:
        """Refuse to go on where a newer attempt has begun.

        Raises:
            FencedError: one has.
        """
        matches = (_ATTEMPT.fullmatch(name) for name in self._files.names())
        newest = max((int(match[1]) for match in matches if match), default=self.token)
        if newest > self.token:
            raise FencedError(self.folder, self.token, newest)

    # --- reading ------------------------------------------------------------------------------

    def load(self, tell: Callable[[str], None] = logger.warning) -> Checkpoint | None:
        """The newest one that is whole; a torn one is said, and removed.

        Torn is what is gone, or not what was written. What cannot be read for now is neither.

        Raises:
            TransientError: the place does not answer.
        """
        for name in reversed(self._listed()):
            try:
                return self._whole(name)
            except TornError as error:
                tell(f"checkpoint {self.folder}/{name.text} is torn ({error}) and passed over")
                self._remove(name)
        return None

    def manifest(self, name: Name) -> dict[str, Any]:
        """What a checkpoint is said to be.

        Raises:
            TornError: it is no manifest, or another training's.
        """
        try:
            found = json.loads(self._read(f"{name.text}.json"))
            said = found.pop("digest")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise TornError("its manifest is gone") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise TornError("its manifest cannot be read") from error
        if digest_of(found) != said:
            raise TornError("its manifest is not what was written")
        if found.get("format") != FORMAT or found.get("key") != self.key.value:
            raise TornError("it is of another training, or of another format")
        if (found.get("token"), found.get("step")) != (name.token, name.step):
            raise TornError("its manifest is another one's")
        return dict(found)

    def _whole(self, name: Name) -> Checkpoint:
        manifest = self.manifest(name)
        files: Mapping[str, Any] = manifest["files"]
        fetched = None if self._files.local else tempfile.TemporaryDirectory(prefix="signalbox-")
        folder = Path(fetched.name) if fetched else self._files.path(name.text)
        for part, said in files.items():
            try:
                if self._files.local:
                    found = self._again(partial(_digest, folder / part))
                else:
                    (folder / part).parent.mkdir(parents=True, exist_ok=True)
                    fetch = partial(self._files.fetch, f"{name.text}/{part}", folder / part)
                    found = self._again(fetch)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise TornError(f"{part} is gone") from error
            except OSError as error:
                raise self._away(error) from error
            if found != said["sha256"]:
                raise TornError(f"{part} is not what was written")
        about = {key: manifest.get(key) for key in ("saved_at", "trained_seconds", "cost_seconds")}
        return Checkpoint(name.step, Parts(folder, tuple(files), fetched), folder, about)

    def _listed(self) -> list[Name]:
        found = []
        for name in self._names():
            match = _NAME.fullmatch(name.removesuffix(".json"))
            if match and name.endswith(".json"):
                found.append(Name(int(match[1]), int(match[2]), match[0]))
        return sorted(found)

    def _names(self) -> list[str]:
        try:
            return list(self._again(self._files.names))
        except OSError as error:
            raise self._away(error) from error

    def _read(self, name: str) -> bytes:
        try:
            return bytes(self._again(lambda: self._files.read(name)))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except OSError as error:
            raise self._away(error) from error

    def _again(self, ask: Callable[[], Any]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                return ask()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise
            except OSError:
                if not left:
                    raise
        raise AssertionError

    def _away(self, error: OSError) -> TransientError:
        return TransientError(
            f"the checkpoints in {self.folder} cannot be read ({str(error).splitlines()[0]}); "
            "nothing was trained, for what they hold would be lost: try again when they can"
        )

    # --- writing ------------------------------------------------------------------------------

    def commit(
        self,
        step: int,
        state: State,
        *,
        about: Mapping[str, Any] | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> str:
        """Make a state a checkpoint; its name. When it returns it is durable.

        Args:
            step: how many steps were done.
            state: parts by name; names are like `model.bin` or `shards/0.bin`.
            about: what else the manifest says.
            guard: raises if this attempt may not write any more.

        Raises:
            FencedError: a newer attempt has begun; nothing is left of this one.
            OSError: it could not be written; nothing is left of it.
        """
        for part in state:
            if not _PART.fullmatch(part):
                raise UsageError(
                    f"the part {part!r} of a checkpoint is no name; letters, digits, '_', '-', "
                    "'.' and '/' between them are allowed: rename it"
                )
        name = Name(self.token, step, f"{self.token:010}-{step:012}-{secrets.token_hex(4)}")
        try:
            self.require()
            files = {part: self._part(f"{name.text}/{part}", state[part]) for part in state}
            guard()
            self.require()
            self._manifest(name, files, about or {})
        except BaseException:
            with suppress(OSError):
                self._remove(name)
            raise
        self._tidy(name)
        return name.text

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A local folder for an engine's own files, on the same disk where that is local."""
        place = self._files.path("") if self._files.local else None
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=DRAFT, dir=place) as folder:
            yield Path(folder)

    def discard(self) -> None:
        """Remove all checkpoints of the partition: its model is made."""
        self._all.delete(self._partition)

    def _part(self, name: str, content: bytes | Path) -> dict[str, Any]:
        if isinstance(content, Path):
            digest, size = self._files.put_file(name, content)
            return {"sha256": digest, "bytes": size}
        return {"sha256": self._files.put(name, content), "bytes": len(content)}

    def _manifest(self, name: Name, files: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        document = {
            **about,
            "format": FORMAT,
            "key": self.key.value,
            "of": [self.key.asset, self.key.partition, self.key.fingerprint],
            "token": name.token,
            "step": name.step,
            "files": dict(files),
        }
        whole = {**document, "digest": digest_of(document)}
        self._files.write(f"{name.text}.json", json.dumps(whole, indent=1).encode())

    def _tidy(self, newest: Name) -> None:
        """Remove what is too old, and what no manifest names; of newer attempts nothing."""
        try:
            mine = [name for name in self._listed() if name.token <= self.token]
            for name in mine[: -self.keep]:
                self._remove(name)
            kept = {name.text for name in mine[-self.keep :]}
            for found in self._files.names():
                match = _NAME.fullmatch(found)
                if match and int(match[1]) <= self.token and found not in kept | {newest.text}:
                    self._files.delete(found)
        except (OSError, TransientError) as error:
            logger.warning("old checkpoints in %s were not removed: %s", self.folder, error)

    def _remove(self, name: Name) -> None:
        # The manifest first: what is left of it is no checkpoint.
        self._files.delete(f"{name.text}.json")
        self._files.delete(name.text)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
