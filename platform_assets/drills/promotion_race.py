"""`signalbox drill promotion-race`: many promoters, each with a candidate better than the champion.

Each compares its candidate with the champion that it sees, and promotes it if it is better. On
plain aliases nothing tells a promoter that the champion which it compared with is gone.
"""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from platform_assets.domain.errors import PromotionConflictError, RefusedError
from platform_assets.drills.harness import Scene
from platform_assets.drills.report import DrillReport, Figure, Step
from platform_assets.line.crowning import CHAMPION_ALIAS
from platform_assets.line.projection import project, projected
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.ledger.promotions import AliasState, EvaluationRecord

NAME = "promotion-race"
TITLE = "16 promoters at once, each with a candidate better than the champion"
PROMOTERS = 16
WAIT_SECONDS = 120.0
SEED = 5


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
            _register(services, name, len(losses))
        services.tracking.set_alias(plain_model, CHAMPION_ALIAS, 1)
        _promote(services, 1, None, losses)
        project(services)
    racing = range(2, promoters + 2)
    with scene.part(f"{promoters} promoters at once, MLflow's aliases alone"):
        plain = _race(scene, _plain, racing, losses, plain_model)
    found = services.tracking.alias(plain_model, CHAMPION_ALIAS)
    with scene.part(f"{promoters} promoters at once, Signalbox"):
        mine = _race(scene, _by_ledger, racing, losses, model)
    state = services.ledger.alias_state(model)
    alias = services.tracking.alias(model, CHAMPION_ALIAS)
    assert state is not None
    assert found is not None
    best = min(racing, key=lambda version: losses[version])
    history = services.ledger.promotions(model)
    chain = [change.previous for change in history] == [None, *(c.version for c in history[:-1])]
    with scene.part("one more is killed between ledger and alias"):
        last = promoters + 2
        _killed(scene, last, losses, model)
        left_behind = services.tracking.alias(model, CHAMPION_ALIAS)
        project(services)
        followed = services.tracking.alias(model, CHAMPION_ALIAS)
        now = services.ledger.alias_state(model)
    said, told = [t for t in plain if t.won], [t for t in mine if t.won]
    twice = len(told) - len({tale.over for tale in told})
    report = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"{promoters} promoters look at champion 1 at the same time; the candidate of "
        "each is better than it. How many believe that they replaced it, and is the champion "
        "the best of them in the end?",
        plain=(
            Step(
                did="each sees champion 1, compares, and sets the alias",
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
                did="history, ledger and alias are read",
                found=f"{len(history)} changes in one line, champion is version {state.version} "
                f"with a loss of {losses[state.version]:.3f}, the best; the alias is {alias}",
                ok=chain and state.version == best and alias == best,
            ),
            Step(
                did="a promoter is killed with SIGKILL between ledger and alias",
                found=f"the ledger has version {last}, the alias {left_behind}; the next look set "
                f"it to {followed}",
                ok=bool(now and now.version == last == followed and left_behind == best),
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
                what="loss of the champion in the end",
                ideal=losses[best],
                plain=losses[found],
                signalbox=losses[state.version],
            ),
        ),
        notes=(
            "The losses are given, nothing is trained: what is played is the race alone. Which "
            "version the alias holds in the end is chance; it may be the best.",
            "On both sides all promoters have seen champion 1 before the first one promotes.",
            "MLflow keeps no history of an alias: who was champion in between is not known.",
        ),
        verdict="",
    )
    return report.concluded(
        f"With aliases alone {len(said)} promoters believe that they replaced champion 1; by the "
        f"ledger one did, each other champion was replaced by one as well, and the best of "
        f"{promoters} is champion in ledger and alias."
    )


def _losses(promoters: int) -> Mapping[int, float]:
    """A loss for each version: of 1 the largest, of the last the smallest, else in no order."""
    values = [round(0.5 - 0.005 * n, 4) for n in range(1, promoters + 1)]
    random.Random(SEED).shuffle(values)  # noqa: S311 - to play with
    return {1: 0.5, **dict(enumerate(values, start=2)), promoters + 2: 0.3}


def _register(services: Services, model: str, count: int) -> None:
    from resources.tracking.client import open_client

    client = open_client(services.tracking.uri)
    client.create_registered_model(model)
    for _ in range(count):
        client.create_model_version(model, str(services.home.mlflow_artifacts))


def _plain(
    services: Services, model: str, version: int, losses: Mapping[int, float], seen: Any
) -> Tale:
    """As one writes it: look, compare, set."""
    champion = services.tracking.alias(model, CHAMPION_ALIAS)
    seen.wait(WAIT_SECONDS)
    if champion is not None and losses[version] >= losses[champion]:
        return Tale(version, False, champion)
    services.tracking.set_alias(model, CHAMPION_ALIAS, version)
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
            judged_date=date(2013, 1, 1),
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
        model_date=date(2013, 1, 1),
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
