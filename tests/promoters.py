"""Promoters in processes of their own: they look, judge, promote, set the alias and deploy; some
die."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from platform_assets.domain.clock import FixedClock
from platform_assets.domain.errors import PromotionConflictError
from platform_assets.domain.reconcile import ALIASES
from platform_assets.line import projection
from resources import serving
from resources.ledger import Ledger, open_ledger
from resources.ledger import promotions as swap
from resources.ledger.records import VersionRecord
from resources.serving import FolderSlot, locked
from resources.tracking import model_digest
from resources.tracking.registry import RegistryView
from tests.promoting import MODEL, NOON, promoted, verdict

fork = multiprocessing.get_context("fork")

STEPS: dict[str, tuple[Any, str]] = {
    "in the transaction": (swap, "_require_free"),
    "before the alias": (projection, "differences"),
    "after the alias": (projection, "_deploy"),
    "in the deployment": (serving, "_point"),
    "after the deployment": (projection, "_note"),
}
"""Where a promoter may be killed, and the step that it does not take any more.

Nothing is decided; the ledger has it; the aliases have it too; the files lie in the slot beside
those that are served; they are served, and it is not written down.
"""

POINTS = tuple(STEPS)
MODEL_DATE = "2013-01-04"
"""What `promoted` says that a version was trained for."""


class AliasFile:
    """What MLflow does with aliases: the last writer wins, nothing is compared; and its files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _file(self, alias: str) -> Path:
        return self.path if alias == "champion" else self.path.with_name(f"alias-{alias}")

    def set_alias(self, model: str, alias: str, version: int) -> None:
        beginning = self.path.with_suffix(f".{os.getpid()}")
        beginning.write_text(str(version))
        beginning.replace(self._file(alias))

    def read(self, alias: str = "champion") -> int | None:
        path = self._file(alias)
        return int(path.read_text()) if path.exists() else None

    def look(self, *_: object) -> RegistryView:
        found = {alias: self.read(alias) for alias in ALIASES}
        there = {alias: version for alias, version in found.items() if version is not None}
        return RegistryView(there, frozenset(range(1, 1000)))

    @contextmanager
    def verified(self, model: str, version: int, *, digest: str) -> Iterator[Path]:
        yield model_folder(self.path.parent, version)


def model_folder(folder: Path, version: int) -> Path:
    return folder / "models" / str(version)


def train(ledger: Ledger, folder: Path, version: int) -> None:
    """Write a model as small as can be, and record its digest."""
    files = model_folder(folder, version)
    files.mkdir(parents=True)
    (files / "MLmodel").write_text("flavors: {python_function: {loader_module: nowhere}}\n")
    (files / "model.lgb").write_text(f"the trees of version {version}\n")
    detail = {"model_version": version}
    ledger.record_version(
        VersionRecord(
            "flights/model", MODEL_DATE, model_digest(files), None, 1, detail, "run", NOON
        )
    )


def services(url: str, folder: Path) -> Any:
    """As much of a pipeline's services as a projection needs."""
    return SimpleNamespace(
        spec=SimpleNamespace(
            pipeline="flights",
            model=SimpleNamespace(name=MODEL),
            serving=SimpleNamespace(on_drift="mend", endpoint=None),
            asset=lambda stage: f"flights/{stage}",
        ),
        ledger=open_ledger(url),
        tracking=AliasFile(folder / "alias"),
        clock=FixedClock(NOON),
        home=SimpleNamespace(mlflow_uri=""),
        slot=FolderSlot(folder / "slot"),
    )


def follow(mine: Any) -> int | None:
    """Project once, in the end if others go on promoting; the alias as it stands then."""
    with patch.object(projection, "look", mine.tracking.look):
        projection.projected(mine)
    found: int | None = mine.tracking.read()
    return found


@dataclass(frozen=True)
class Ended:
    """How a promoter ended.

    Attributes:
        attempts: by what it expected, whether it won: ("4", True).
    """

    version: int
    killed: bool
    attempts: tuple[tuple[int, bool], ...]

    @property
    def wins(self) -> list[int]:
        """The counters that it had expected when it won."""
        return [counter for counter, won in self.attempts if won]


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _promoter(url: str, folder: Path, version: int, point: str | None, barrier: Any) -> None:
    """Promote one version, judged against whoever is champion, until it is done."""
    ledger, attempts = open_ledger(url), []
    mine = services(url, folder)
    train(ledger, folder, version)
    if point is not None:
        module, step = STEPS[point]
        setattr(module, step, _die)
    barrier.wait(120)
    with ExitStack() as stack:
        if point in POINTS[1:]:
            # Who is killed there has to come there: nobody else projects what it has promoted.
            stack.enter_context(locked(mine.slot.root, "projection", seconds=200))
            projection._alone = lambda _: nullcontext()  # type: ignore[assignment]
        while True:
            state = ledger.alias_state(MODEL)
            found = verdict(ledger, version, state.version if state else None)
            try:
                promoted(ledger, version, state, evaluation_id=found.id, by=f"promoter {version}")
            except PromotionConflictError:
                attempts.append((state.counter if state else 0, False))
                continue
            attempts.append((state.counter if state else 0, True))
            break
        follow(mine)
        for _ in range(100 if point else 0):  # what it looked at changed too often: not done yet
            follow(mine)
    (folder / f"{version}.json").write_text(json.dumps(attempts))


def race(
    url: str, folder: Path, count: int, point_of: Callable[[int], str | None] = lambda _: None
) -> list[Ended]:
    """So many promoters at once; the number of each says where it is to be killed."""
    barrier = fork.Barrier(count)
    versions = [100 + number for number in range(count)]
    children = [
        fork.Process(target=_promoter, args=(url, folder, version, point_of(n), barrier))
        for n, version in enumerate(versions)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    ended = []
    for number, (version, child) in enumerate(zip(versions, children, strict=True)):
        killed = child.exitcode == -signal.SIGKILL
        assert killed == (point_of(number) is not None), (version, child.exitcode)
        assert killed or child.exitcode == 0, (version, child.exitcode)
        report = folder / f"{version}.json"
        attempts: Sequence[Any] = json.loads(report.read_text()) if report.exists() else ()
        ended.append(Ended(version, killed, tuple((c, w) for c, w in attempts)))
    return ended
