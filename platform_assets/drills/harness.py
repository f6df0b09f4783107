"""Plays a drill in a home of its own, which is removed however the drill ends."""

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from platform_assets.demo.server import terminates
from platform_assets.domain.errors import UsageError
from platform_assets.domain.source_spec import listed
from platform_assets.drills.report import DrillReport
from resources.home import Home

# A drill must not meet the stores or pipelines of whoever calls it.
_FOREIGN = (
    "SIGNALBOX_LEDGER_URL",
    "SIGNALBOX_MLFLOW_URI",
    "SIGNALBOX_CATALOG",
    "SIGNALBOX_DAGSTER_URL",
    "SIGNALBOX_LAKE_URL",
    "SIGNALBOX_CHECKPOINTS_URL",
)

_PREFIX = "signalbox-drill-"
_OWNER = "owner.lock"
"""Locked for as long as the drill runs; the lock ends with its process, however that ends."""


@dataclass
class Scene:
    """What a drill is played in.

    Attributes:
        home: made and empty; the environment points at it.
        days: of how many days a drill that measures takes its measurements.
        say: tells the person who waits what is going on.
        seconds: wall time by part, filled by `part`.
    """

    home: Home
    days: int
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Announce a part, and take its wall time down."""
        self.say(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 1)


@dataclass(frozen=True)
class Drill:
    """A drill as it is registered; `play` must end what it starts."""

    name: str
    title: str
    play: Callable[[Scene], DrillReport]


def find_drill(drills: Mapping[str, Drill], name: str) -> Drill:
    """A drill by its name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in drills:
        raise UsageError(f"{name!r} is no drill; allowed are {listed(drills)}")
    return drills[name]


def run_drill(
    drill: Drill, *, days: int, keep: bool = False, say: Callable[[str], None] = lambda _: None
) -> DrillReport:
    """Play a drill in a temporary home.

    Args:
        drill: which.
        days: of a drill that measures.
        keep: leave the home, and say where it is, however the drill ends.
        say: is told what is going on.

    Raises:
        SignalboxError: the drill could not be played.
    """
    with terminates(), _quiet(), temporary_home(keep=keep, say=say) as home:
        from platform_assets.factory.instance import make_home

        scene = Scene(home, days, say)
        with scene.part("making a home"):
            make_home(home)
        report = drill.play(scene)
        return report.model_copy(
            update={"seconds": dict(scene.seconds), "home": str(home.root) if keep else None}
        )


@contextmanager
def temporary_home(*, keep: bool, say: Callable[[str], None]) -> Iterator[Home]:
    """A folder for a home; the environment points at it and at nothing else meanwhile."""
    remove_stale(Path(tempfile.gettempdir()), say)
    root = Path(tempfile.mkdtemp(prefix=_PREFIX))
    owner = root / _OWNER
    beginning = root / f".{_OWNER}"
    held = beginning.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    beginning.rename(owner)  # only now, with its lock, does anybody else know of it
    before = dict(os.environ)
    try:
        for name in _FOREIGN:
            os.environ.pop(name, None)
        home = Home.locate(root / "home")
        os.environ.update(home.environment())
        yield home
    finally:
        for name in (*_FOREIGN, *Home.locate(root / "home").environment()):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
        if keep:
            owner.unlink(missing_ok=True)  # or the next drill would take it away
            say(f"the drill's home is kept: {root / 'home'}")
        else:
            shutil.rmtree(root, ignore_errors=True)
            held.close()
            if root.exists():
                say(f"{root} could not be removed; remove it by hand")


def remove_stale(folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Remove the homes of drills that were killed: nobody holds the lock of their owner any more.

    Homes that were kept have no owner and stay, as do those of other users.
    """
    for root in sorted(folder.glob(f"{_PREFIX}*")):
        try:
            with (root / _OWNER).open("r+") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root, ignore_errors=True)
        except OSError:  # it is kept, in use, or somebody else's
            continue
        say(f"the home of a drill that was killed is removed: {root}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dagster's log of each tick off the terminal; warnings and errors stay."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
