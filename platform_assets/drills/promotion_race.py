"""`signalbox drill promotion-race`: many promoters, each with a candidate better than the champion.

Each compares its candidate with the champion that it sees, and promotes it if it is better. On
plain aliases nothing tells a promoter that the champion which it compared with is gone.

Either side has a serving slot, swapped by one rename. On the plain side each promoter deploys what
it has just made champion; on the other the slot follows the ledger.
"""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import PromotionConflictError, RefusedError
from platform_assets.domain.serving import Served
from platform_assets.drills.harness import Scene
from platform_assets.drills.report import DrillReport, Figure, Step
from platform_assets.line.crowning import CHAMPION_ALIAS
from platform_assets.line.projection import project, projected
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.ledger.promotions import AliasState, EvaluationRecord
from resources.serving import FolderSlot
from resources.tracking.models import model_digest

NAME = "promotion-race"
TITLE = "16 promoters at once, each with a candidate better than the champion"
PROMOTERS = 16
WAIT_SECONDS = 120.0
SEED = 5
DAY = date(2013, 1, 1)
"""That all versions are said to be trained for."""


@dataclass(frozen=True)
class Tale:
    """What one promoter says afterwards.

    Attributes:
        version: its candidate.
        won: whether it believes that it made it champion.
        over: the version that it believes to have replaced.
        conflicts: how often it was told that another one was faster.
    """

    version: int
    won: bool
    over: int | None
    conflicts: int = 0


def play(scene: Scene) -> DrillReport:
    """The drill with sixteen promoters."""
    return play_race(scene, PROMOTERS)


def play_race(scene: Scene, promoters: int) -> DrillReport:
    """Play it: the same candidates with MLflow's aliases alone, and by the ledger."""
    services = Services.open(load_catalog()["flights"], scene.home)
    plain_model, model = "plain", services.spec.model.name
    with scene.part(f"registering {promoters + 2} versions for either side"):
        losses = _losses(promoters)
        for name in (plain_model, model):
            _register(services, name, losses)
        digests = _record(services, model, losses)
        services.tracking.set_alias(plain_model, CHAMPION_ALIAS, 1)
        _deploy(services, plain_model, 1)
        _promote(services, 1, None, losses)
        project(services)
    racing = range(2, promoters + 2)
    with scene.part(f"{promoters} promoters at once, MLflow's aliases alone"):
        plain = _race(scene, _plain, racing, losses, plain_model)
    found = services.tracking.alias(plain_model, CHAMPION_ALIAS)
    plain_serves = _plain_slot(services, plain_model).serves()
    with scene.part(f"{promoters} promoters at once, Signalbox"):
        mine = _race(scene, _by_ledger, racing, losses, model)
    state = services.ledger.alias_state(model)
    alias, serves = services.tracking.alias(model, CHAMPION_ALIAS), services.slot.serves()
    assert state is not None
    assert found is not None
    assert serves is not None
    assert plain_serves is not None
    best = min(racing, key=lambda version: losses[version])
    history = services.ledger.promotions(model)
    chain = [change.previous for change in history] == [None, *(c.version for c in history[:-1])]
    with scene.part("one more is killed between ledger and alias"):
        last = promoters + 2
        _killed(scene, last, losses, model)
        left_behind, still = services.tracking.alias(model, CHAMPION_ALIAS), services.slot.serves()
        project(services)
        followed, then = services.tracking.alias(model, CHAMPION_ALIAS), services.slot.serves()
        now = services.ledger.alias_state(model)
    said, told = [t for t in plain if t.won], [t for t in mine if t.won]
    twice = len(told) - len({tale.over for tale in told})
    report = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"{promoters} promoters look at champion 1 at the same time; the candidate of "
        "each is better than it. How many believe that they replaced it, is the champion the best "
        "of them in the end, and do alias, ledger and what is served agree?",
        plain=(
            Step(
                did="each sees champion 1, compares, sets the alias, and deploys its files",
                found=f"{len(said)} of {promoters} were told that they had succeeded, all of them "
                "over champion 1",
                ok=len(said) == promoters and {tale.over for tale in said} == {1},
            ),
            Step(
                did="the alias is read",
                found=f"champion is version {found} with a loss of {losses[found]:.3f}; the best "
                f"is version {best} with {losses[best]:.3f}. {promoters - 1} that believe they won "
                "are not champion, and nothing says by whom they were replaced",
            ),
            Step(
                did="what is served is read",
                found=f"the alias is version {found}, served is version {plain_serves.version}; "
                + (
                    "they agree this time, by chance"
                    if plain_serves.version == found
                    else "nothing will bring them together"
                ),
            ),
        ),
        signalbox=(
            Step(
                did="each sees champion 1, compares, and promotes by compare-and-swap",
                found=f"{sum(tale.over == 1 for tale in told)} of {promoters} replaced champion "
                f"1; the others were told who won ({sum(t.conflicts for t in mine)} conflicts), "
                f"compared again, and {len(told) - 1} of them replaced a later champion",
                ok=sum(tale.over == 1 for tale in told) == 1 and not twice,
            ),
            Step(
                did="history, ledger, alias and what is served are read",
                found=f"{len(history)} changes in one line, champion is version {state.version} "
                f"with a loss of {losses[state.version]:.3f}, the best is {best}; the alias is "
                f"{alias}, served is {serves}, recorded was {digests[state.version][:12]}",
                ok=chain
                and state.version == best == alias
                and serves == Served(version=best, digest=digests[best]),
            ),
            Step(
                did="a promoter is killed with SIGKILL between ledger and alias",
                found=f"the ledger has version {last}, the alias {left_behind}, served is "
                f"{still and still.version}; the next look set them to {followed} and "
                f"{then and then.version}",
                ok=bool(now and now.version == last == followed and left_behind == best)
                and still == serves
                and then == Served(version=last, digest=digests[last]),
            ),
        ),
        figures=(
            Figure(
                what="promoters that believe they replaced champion 1",
                ideal=1,
                plain=sum(tale.over == 1 for tale in said),
                signalbox=sum(tale.over == 1 for tale in told),
            ),
            Figure(
                what="promoters that believe they won and whom no history knows",
                ideal=0,
                plain=len(said) - 1,
                signalbox=len({t.version for t in told} - {c.version for c in history}),
            ),
            Figure(
                what="versions that alias, ledger and what is served name in the end",
                ideal=1,
                plain=len({found, plain_serves.version}),
                signalbox=len({state.version, alias, serves.version}),
            ),
            Figure(
                what="loss of the champion in the end",
                ideal=losses[best],
                plain=losses[found],
                signalbox=losses[state.version],
            ),
        ),
        notes=(
            "The losses are given, nothing is trained: what is played is the race alone. Which "
            "version the plain alias and the plain slot hold in the end is chance; it may be the "
            "best, and the same.",
            "Either slot is a folder with a link that is swapped by one rename.",
            "On both sides all promoters have seen champion 1 before the first one promotes.",
            "MLflow keeps no history of an alias: who was champion in between is not known.",
        ),
        verdict="",
    )
    return report.concluded(
        f"With aliases alone {len(said)} promoters believe that they replaced champion 1; by the "
        f"ledger one did, each other champion was replaced by one as well, and the best of "
        f"{promoters} is champion in ledger and alias, and is what is served."
    )


def _losses(promoters: int) -> Mapping[int, float]:
    """A loss for each version: of 1 the largest, of the last the smallest, else in no order."""
    values = [round(0.5 - 0.005 * n, 4) for n in range(1, promoters + 1)]
    random.Random(SEED).shuffle(values)  # noqa: S311 - to play with
    return {1: 0.5, **dict(enumerate(values, start=2)), promoters + 2: 0.3}


def _register(services: Services, model: str, losses: Mapping[int, float]) -> None:
    """Versions in MLflow, each with files of its own."""
    from resources.tracking.client import open_client

    client = open_client(services.tracking.uri)
    client.create_registered_model(model)
    for version in sorted(losses):
        files = _files(services, model, version)
        files.mkdir(parents=True)
        (files / "MLmodel").write_text("flavors: {}\n")
        (files / "model.txt").write_text(f"a loss of {losses[version]:.4f}\n")
        client.create_model_version(model, str(files))


def _files(services: Services, model: str, version: int) -> Path:
    return services.home.mlflow_artifacts / NAME / model / str(version)


def _record(services: Services, model: str, versions: Iterable[int]) -> Mapping[int, str]:
    """The versions in the ledger, as trainings leave them; their digests."""
    asset = services.spec.asset("model")
    digests = {version: model_digest(_files(services, model, version)) for version in versions}
    with services.claim(asset, DAY.isoformat(), NAME) as lease:
        for version, digest in sorted(digests.items()):
            services.record(
                lease=lease,
                asset=asset,
                partition=DAY.isoformat(),
                data_version=digest,
                rows=0,
                run_id=NAME,
                detail={"model_version": version},
                always=True,
            )
    return digests


def _plain_slot(services: Services, model: str) -> FolderSlot:
    return FolderSlot(services.home.root / "serving" / model)


def _deploy(services: Services, model: str, version: int) -> None:
    """As one writes it, with a slot that is never half a version: deploy what one promoted."""
    files = _files(services, model, version)
    _plain_slot(services, model).deploy(model, version, model_digest(files), files)


def _plain(
    services: Services, model: str, version: int, losses: Mapping[int, float], seen: Any
) -> Tale:
    """As one writes it: look, compare, set."""
    champion = services.tracking.alias(model, CHAMPION_ALIAS)
    seen.wait(WAIT_SECONDS)
    if champion is not None and losses[version] >= losses[champion]:
        return Tale(version, False, champion)
    services.tracking.set_alias(model, CHAMPION_ALIAS, version)
    _deploy(services, model, version)
    return Tale(version, True, champion)


def _by_ledger(
    services: Services, model: str, version: int, losses: Mapping[int, float], seen: Any
) -> Tale:
    """Look, compare, swap; who is told that another one won compares with that one."""
    state = services.ledger.alias_state(model)
    seen.wait(WAIT_SECONDS)
    conflicts = 0
    while state is not None and losses[version] < losses[state.version]:
        try:
            _promote(services, version, state, losses)
        except PromotionConflictError:
            conflicts += 1
            state = services.ledger.alias_state(model)
            continue
        projected(services)  # of many at once; who comes last sees to it that all follow
        return Tale(version, True, state.version, conflicts)
    return Tale(version, False, state.version if state else None, conflicts)


def _promote(
    services: Services, version: int, state: AliasState | None, losses: Mapping[int, float]
) -> None:
    spec, now = services.spec, datetime.now(UTC)
    against = state.version if state else None
    better = against is None or losses[version] < losses[against]
    verdict = services.ledger.record_evaluation(
        EvaluationRecord(
            pipeline=spec.pipeline,
            model=spec.model.name,
            candidate=version,
            champion=against,
            judged_date=DAY,
            rows_digest="",
            passed=better,
            report={"reason": f"a loss of {losses[version]:.3f}"},
            recorded_at=now,
            run_id=f"promoter {version}",
        )
    )
    services.ledger.promote(
        spec.pipeline,
        spec.model.name,
        version,
        model_date=DAY,
        expected=state,
        evaluation_id=verdict.id,
        reason=f"a loss of {losses[version]:.3f}",
        by=f"promoter {version}",
        run_id=f"promoter {version}",
        at=now,
    )


Promoter = Callable[[Services, str, int, Mapping[int, float], Any], Tale]


def _race(
    scene: Scene, promoter: Promoter, racing: range, losses: Mapping[int, float], model: str
) -> list[Tale]:
    """All of them at once, each in a process of its own."""
    import mlflow  # noqa: F401 - once, not in each of them

    fork = multiprocessing.get_context("fork")
    seen, results = fork.Barrier(len(racing)), fork.Queue()
    children = [
        fork.Process(target=_work, args=(scene, promoter, model, v, losses, seen, results))
        for v in racing
    ]
    try:
        for child in children:
            child.start()
        found = [results.get(timeout=WAIT_SECONDS) for _ in children]
    finally:
        for child in children:
            child.join(10)
            if child.is_alive():
                child.kill()
    lost = [tale for tale in found if isinstance(tale, str)]
    if lost:
        raise RefusedError(f"drill {NAME} could not be played: {lost[0]}")
    return sorted(found, key=lambda tale: int(tale.version))


def _work(
    scene: Scene,
    promoter: Promoter,
    model: str,
    version: int,
    losses: Mapping[int, float],
    seen: Any,
    results: Any,
) -> None:
    try:
        services = Services.open(load_catalog()["flights"], scene.home)
        results.put(promoter(services, model, version, losses, seen))
    except BaseException as error:  # noqa: BLE001 - told to whoever waits
        results.put(f"{type(error).__name__}: {error}")
    results.close()
    results.join_thread()
    os._exit(0)


def _killed(scene: Scene, version: int, losses: Mapping[int, float], model: str) -> None:
    """A promoter that dies as soon as the ledger has its promotion."""
    fork = multiprocessing.get_context("fork")

    def die() -> None:
        services = Services.open(load_catalog()["flights"], scene.home)
        _promote(services, version, services.ledger.alias_state(model), losses)
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork.Process(target=die)
    child.start()
    child.join(WAIT_SECONDS)
