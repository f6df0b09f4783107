"""Containers on this machine, by podman or docker."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from platform_assets.domain.errors import HomeError

ENGINE = "SIGNALBOX_CONTAINER_ENGINE"
"""Variable: the program that runs containers; by default podman, else docker."""

ENGINES = ("podman", "docker")


@dataclass(frozen=True)
class Mount:
    """A folder of this machine that is seen at the same place in a container."""

    folder: Path
    writable: bool = False

    def __str__(self) -> str:
        return f"{self.folder}:{self.folder}:{'rw' if self.writable else 'ro'}"


@dataclass(frozen=True)
class Ended:
    """How a container's command ended, and what it printed."""

    code: int
    out: str
    err: str


def container_engine() -> str:
    """The program that runs containers here; empty where there is none.

    Raises:
        HomeError: SIGNALBOX_CONTAINER_ENGINE names a program that is not there.
    """
    chosen = os.environ.get(ENGINE, "").strip()
    if chosen and shutil.which(chosen) is None:
        raise HomeError(
            f"{ENGINE} is {chosen!r}, which is no program on the PATH; allowed is podman, docker "
            "or one that takes their arguments: install it, or unset the variable"
        )
    return chosen or next((name for name in ENGINES if shutil.which(name)), "")


def run_in(
    engine: str,
    image: str,
    command: Sequence[str],
    mounts: Sequence[Mount],
    variables: Mapping[str, str],
) -> Ended:
    """Run a command in a new container of an image by digest, as the user who asks.

    It sees the machine's network, since stores and databases are reached through it, and of the
    disk what is mounted.
    """
    arguments = [engine, "run", "--rm", "--network=host", f"--user={os.getuid()}:{os.getgid()}"]
    arguments += [f"--volume={mount}" for mount in mounts]
    # By name alone: a value (a password in a URL) would stand in the list of processes.
    arguments += [f"--env={name}" for name in variables]
    done = subprocess.run(
        [*arguments, image, *command],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
