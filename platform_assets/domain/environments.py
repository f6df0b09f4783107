"""The environment of a training as one value, and what is different in another one, in words.

Beside `domain/fingerprint.py`: there stands what decides whether a training is to be repeated.
Here is all that may change what a training makes without anybody having asked for it.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from platform_assets.domain.digests import digest_of
from platform_assets.domain.fingerprint import IMAGE_DIGEST

THREADS = "OMP_NUM_THREADS"
"""Where this is set, how many cores there are has no say in how many threads there are."""

_NONE, _UNSET = "none", "not set"
_SHORT = 12


class Distribution(BaseModel):
    """An installed Python distribution.

    Attributes:
        version: as its metadata say.
        files: digest over the paths and digests of its files, as they were installed; empty where
            the installer has left no list.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    files: str = ""


class EnvironmentFingerprint(BaseModel):
    """What a training ran in, as far as it may change what is made. Equal environment, equal value.

    Attributes:
        python: version and implementation of the interpreter.
        platform: system, processor and C library.
        image: `sha256:` and 64 hexadecimal digits; empty where no image is known.
        distributions: all that this process could import, by name.
        debian: version by package, as in `libc6:amd64`; empty where there is no dpkg.
        cpu: instruction sets that numeric libraries choose their code by.
        threads: variables that say how many threads compute, and in which way.
        cores: that this process may use; None where `OMP_NUM_THREADS` says how many threads.
        gpus: model of each.
        driver, cuda: versions; empty where there is none.
    """

    model_config = ConfigDict(frozen=True)

    python: str
    platform: str
    image: str = Field(default="", pattern=IMAGE_DIGEST)
    distributions: Mapping[str, Distribution] = {}
    debian: Mapping[str, str] = {}
    cpu: tuple[str, ...] = ()
    threads: Mapping[str, str] = {}
    cores: int | None = None
    gpus: tuple[str, ...] = ()
    driver: str = ""
    cuda: str = ""

    @cached_property
    def value(self) -> str:
        """SHA-256 over all fields, 64 hexadecimal digits."""
        return digest_of(self.document())

    def document(self) -> dict[str, Any]:
        """The fields as JSON holds them; `model_validate` takes them back."""
        return self.model_dump(mode="json")


class Machine(BaseModel):
    """Where a training ran: told, not compared.

    Attributes:
        node: name of the cluster's node, or of the machine.
        cpu: model of the processor.
        cores: that the process could use.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    cpu: str
    cores: int


def changes(then: EnvironmentFingerprint, now: EnvironmentFingerprint) -> tuple[str, ...]:
    """What is different in words, the weightiest first; none if and only if the values are equal.

    As in `opencv-python-headless 4.8.0 -> 4.8.1` or `libc6:amd64 2.36-9 -> 2.36-10 (Debian)`.
    """
    return (
        *_one("image", _digest(then.image), _digest(now.image)),
        *_one("Python", then.python, now.python),
        *_one("platform", then.platform, now.platform),
        *_distributions(then.distributions, now.distributions),
        *_packages(then.debian, now.debian),
        *_sets(then.cpu, now.cpu),
        *_named(then.threads, now.threads),
        *_cores(then, now),
        *_one("GPU", _listed(then.gpus), _listed(now.gpus)),
        *_one("GPU driver", then.driver or _NONE, now.driver or _NONE),
        *_one("CUDA", then.cuda or _NONE, now.cuda or _NONE),
    )


def in_short(words: Sequence[str], most: int = 5) -> str:
    """Differences as part of a sentence."""
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {more} more" if more > 0 else "")


def _one(name: str, then: str, now: str) -> tuple[str, ...]:
    return () if then == now else (f"{name} {then} -> {now}",)


def _digest(image: str) -> str:
    return image or _NONE


def _cores(then: EnvironmentFingerprint, now: EnvironmentFingerprint) -> tuple[str, ...]:
    if None in (then.cores, now.cores) and then.threads != now.threads:
        return ()  # where the variable is set on one side, that is what has changed
    said = [f"by {THREADS}" if one.cores is None else str(one.cores) for one in (then, now)]
    return _one("cores", said[0], said[1])


def _listed(gpus: Sequence[str]) -> str:
    counted = {gpu: gpus.count(gpu) for gpu in gpus}
    return ", ".join(f"{n} x {gpu}" for gpu, n in counted.items()) or _NONE


def _distributions(
    then: Mapping[str, Distribution], now: Mapping[str, Distribution]
) -> tuple[str, ...]:
    words = []
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if after is None:
            words.append(f"{name} {before.version if before else _NONE} removed")
        elif before is None:
            words.append(f"{name} {after.version} added")
        elif before.version != after.version:
            words.append(f"{name} {before.version} -> {after.version}")
        elif before.files != after.files:
            files = f"{before.files[:_SHORT] or _NONE} -> {after.files[:_SHORT] or _NONE}"
            words.append(f"{name} {after.version} has other files ({files})")
    return tuple(words)


def _packages(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    words = []
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before is None:
            words.append(f"{name} {after} added (Debian)")
        elif after is None:
            words.append(f"{name} {before} removed (Debian)")
        elif before != after:
            words.append(f"{name} {before} -> {after} (Debian)")
    return tuple(words)


def _sets(then: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    if tuple(then) == tuple(now):
        return ()
    gone, new = sorted({*then} - {*now}), sorted({*now} - {*then})
    parts = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(new)}"] * bool(new)
    return (f"CPU {' and '.join(parts) or 'lists its instruction sets otherwise'}",)


def _named(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{name} {then.get(name, _UNSET)} -> {now.get(name, _UNSET)}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    )
