"""What this process runs in, as far as it decides what a training makes."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from platform_assets.domain.errors import HomeError, UsageError
from platform_assets.domain.fingerprint import Environment

IMAGE = "SIGNALBOX_IMAGE"
"""Variable: the image that this process runs in, by digest: `registry/train@sha256:<64 hex>`."""

GIT_COMMIT = "SIGNALBOX_GIT_COMMIT"
"""Variable: the commit of the code, where an image holds no repository."""

FRAME = ("numpy", "pandas", "pyarrow")
"""What makes a frame of a snapshot's rows, whatever the trainer requires."""

STORES = ("mlflow",)
"""What stores a model; not with all that it requires in its turn: a web server's version is no
part of a model."""

GIT_SECONDS = 10

_IMAGE = re.compile(r"(?:.*@)?(sha256:[0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def environment(requirements: Sequence[str], code: Path | None = None) -> Environment:
    """The environment of this process.

    Args:
        requirements: the trainer's, as in `Trainer.requirements`.
        code: a file of the code that runs; says in which repository to look for the commit.

    Raises:
        UsageError: a requirement is not installed.
        HomeError: SIGNALBOX_IMAGE or SIGNALBOX_GIT_COMMIT is no digest.
    """
    folder = code.parent if code and "site-packages" not in code.parts else Path.cwd()
    commit, dirty = _commit(folder)
    return Environment(
        python=platform.python_version(),
        platform=platform_name(),
        packages=installed(requirements),
        git_commit=commit,
        git_dirty=dirty,
        image_digest=image_digest(),
    )


def installed(requirements: Sequence[str]) -> dict[str, str]:
    """Installed version by distribution; looked up once in a process.

    Raises:
        UsageError: a requirement is not installed.
    """
    return dict(_installed((*requirements, *FRAME))) | _versions(STORES)


@cache
def platform_name() -> str:
    """System, processor and C library; not the kernel, which changes under a container."""
    libc = "".join(platform.libc_ver())
    return "-".join(part for part in (platform.system(), platform.machine(), libc) if part)


@cache
def _installed(requirements: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Name and version of distributions and of all that they require here, sorted."""
    found: dict[str, str] = {}
    waiting = [_parsed(text) for text in requirements]
    asked = {canonicalize_name(requirement.name) for requirement in waiting}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            if name not in asked:
                continue  # required by somebody, and not there: nothing of it can matter
            raise UsageError(
                f"the trainer requires {requirement.name!r}, which is not installed here; "
                "requirements are names of installed distributions: correct the trainer's "
                "requirements"
            ) from error
        found[name] = installed.version
        waiting += _needed(installed, requirement.extras)
    return tuple(sorted(found.items()))


def _needed(installed: metadata.Distribution, extras: Iterable[str]) -> list[Requirement]:
    parsed = [Requirement(text) for text in installed.requires or ()]
    wanted = ("", *extras)
    return [
        requirement
        for requirement in parsed
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in wanted)
    ]


def _parsed(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise UsageError(
            f"the trainer requires {text!r}, which is no requirement ({error}); allowed are names "
            "of installed distributions, with a version or without"
        ) from error


def _versions(names: Iterable[str]) -> dict[str, str]:
    return {canonicalize_name(name): metadata.version(name) for name in names}


def _commit(folder: Path) -> tuple[str, bool]:
    named = os.environ.get(GIT_COMMIT, "").strip().lower()
    if not named:
        return _repository(folder)
    if not _COMMIT.fullmatch(named):
        raise HomeError(
            f"{GIT_COMMIT} is {named!r}; allowed is a whole commit, 40 or 64 hexadecimal digits"
        )
    return named, False


@cache
def _repository(folder: Path) -> tuple[str, bool]:
    """The commit of the repository around a folder, and whether tracked files differ from it."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "", False  # no repository, no git, or one of another owner
    return commit, bool(changed)


def _git(folder: Path, *arguments: str) -> str:
    said = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS,
        stdin=subprocess.DEVNULL,
        # Looking must not take the lock of somebody who commits.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return said.stdout.strip()


def image_digest() -> str:
    """The digest of the image that this process runs in; empty where none is named.

    Raises:
        HomeError: SIGNALBOX_IMAGE names no digest.
    """
    named = os.environ.get(IMAGE, "").strip()
    if not named:
        return ""
    found = _IMAGE.fullmatch(named)
    if found is None:
        raise HomeError(
            f"{IMAGE} is {named!r}; allowed is an image by its digest, such as "
            "registry/train@sha256:<64 hexadecimal digits>: a tag can be moved to another image"
        )
    return found[1]
