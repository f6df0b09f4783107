"""`signalbox drill preemption`: a training whose place is taken away again and again.

The same rows and the same rounds on either side; the attempts are processes of their own, and each
gets its signal after the same number of rounds. Starting again is Dagster's part and costs either
side the same kind of work; it is stated apart.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta

import dagster as dg

from platform_assets.domain.errors import RefusedError
from platform_assets.drills.harness import Scene
from platform_assets.drills.interrupting import Attempt, attempts
from platform_assets.drills.preemption_side import DAY, ROUNDS, WINDOW, drill_spec
from platform_assets.drills.report import DrillReport, Figure, Step
from platform_assets.drills.signalbox_side import SignalboxSide, failure_of
from platform_assets.line.days import load_snapshot
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.training import training_frame

NAME = "preemption"
TITLE = "A training whose place is taken away three times"
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
AFTER = 0.4
"""Of the rounds of the training an attempt has done, when its signal comes."""


def play(scene: Scene) -> DrillReport:
    """The drill with three interruptions."""
    return play_interrupted(scene, ROUNDS)


def play_interrupted(scene: Scene, rounds: int) -> DrillReport:
    """Play it: undisturbed and interrupted, plain Dagster and Signalbox beside each other."""
    spec = drill_spec(rounds)
    services = Services.open(spec, scene.home)
    first = DAY - timedelta(days=WINDOW - 1)
    with scene.part(f"landing {first} to {DAY}, and building the snapshot"):
        _prepare(scene, services)
    environment = scene.home.environment()
    command = [sys.executable, "-m", "platform_assets.drills.preemption_side"]

    def run(
        side: str, title: str, after: int, signals: Sequence[signal.Signals], *more: str
    ) -> list[Attempt]:
        whole = [*command, side, str(scene.home.root), str(rounds), *more]
        chosen = dict(enumerate(signals))
        with scene.part(title):
            return attempts(
                whole,
                environment,
                scene.home.root / "attempts" / title.replace(" ", "-"),
                after=after,
                signals=chosen.get,
            )

    calm = run("plain", "plain Dagster undisturbed", 0, ())
    after = round(AFTER * rounds)
    plain = run("plain", "plain Dagster interrupted", after, SIGNALS)
    mine = run("signalbox", "Signalbox interrupted", after, SIGNALS)
    asset = spec.asset("model")
    interrupted = services.ledger.current_version(asset, DAY.isoformat())
    own = run("signalbox", "Signalbox undisturbed", 0, (), "restate")
    again = services.ledger.current_version(asset, DAY.isoformat())
    if interrupted is None or again is None:
        raise RefusedError(f"drill {NAME} could not be played: no model was recorded")
    told = interrupted.detail.get("training", {})
    client = services.tracking.link().client
    experiment = client.get_experiment_by_name(spec.pipeline)
    first_run = interrupted.detail["mlflow_run_id"]
    runs = [r.info.run_id for r in client.search_runs([experiment.experiment_id])]
    others = [r for r in runs if r not in (first_run, again.detail["mlflow_run_id"])]
    slower, mine_slower = _total(plain) / calm[0].training, _total(mine) / own[0].training
    worked, mine_worked = _cpu(plain) / calm[0].cpu, _cpu(mine) / own[0].cpu
    return DrillReport(
        name=NAME,
        title=TITLE,
        question=f"A training of {rounds} rounds is interrupted after {after} rounds of each "
        f"attempt ({', '.join(s.name for s in SIGNALS)}), and started again. How much longer does "
        "it train than one that nobody interrupts, and is it the same model?",
        plain=(
            _step(plain, "each attempt begins at the first round"),
            Step(
                did="the rounds are counted",
                found=f"{sum(a.rounds for a in plain)} rounds were done for a model of {rounds}",
                ok=sum(a.rounds for a in plain) > 1.5 * rounds,
            ),
        ),
        signalbox=(
            _step(mine, "each attempt goes on from the last checkpoint"),
            Step(
                did="the model is compared with that of a training that nobody interrupted",
                found=f"{interrupted.data_version[:12]} and {again.data_version[:12]}: "
                + ("the same to the bit" if _same(interrupted, again) else "another model"),
                ok=_same(interrupted, again),
            ),
            Step(
                did="MLflow is read",
                found=f"one run, {told.get('interruptions')} interruptions, the last attempt went "
                f"on from round {told.get('resumed_from_step')}; {len(others)} other runs of it",
                ok=not others and told.get("interruptions") == len(mine) - 1,
            ),
        ),
        figures=(
            Figure(
                what="time of training against undisturbed",
                unit="x",
                ideal=1,
                plain=round(slower, 2),
                signalbox=round(mine_slower, 2),
            ),
            Figure(
                what="CPU of training against undisturbed",
                unit="x",
                ideal=1,
                plain=round(worked, 2),
                signalbox=round(mine_worked, 2),
            ),
            Figure(
                what="rounds that were done",
                ideal=rounds,
                plain=sum(a.rounds for a in plain),
                signalbox=sum(a.rounds for a in mine),
            ),
            Figure(
                what="starting again, a time (stated apart)",
                unit="s",
                plain=round(_restart(plain), 1),
                signalbox=round(_restart(mine), 1),
            ),
            Figure(
                what="interruptions until it was done",
                plain=len(plain) - 1,
                signalbox=len(mine) - 1,
            ),
        ),
        notes=(
            "Time of training is from an attempt's first round to its last one or to its signal, "
            "whichever is later; each side is compared with its own undisturbed training.",
            "On a machine that does other work the time is that work's as well; the CPU is not.",
            "The attempts are started by the drill, as Dagster's daemon starts a retry of a run "
            "that was interrupted; how long a queue keeps it is not in here.",
            "Of three signals a training that keeps what it has done may be done after two.",
            "The declaration allows 1 s of work to be lost; checkpoints cost at most 3.5 %.",
        ),
        verdict="",
    ).concluded(
        f"Interrupted {len(plain) - 1} times, plain Dagster trains {worked:.1f} times as much as "
        f"undisturbed (CPU); Signalbox, interrupted {len(mine) - 1} times, {mine_worked:.2f} "
        "times, and the model is the same to the bit."
    )


def _prepare(scene: Scene, services: Services) -> None:
    """Features, roll-ups and the snapshot; the same rows as a file for the plain side."""
    spec = services.spec
    first = DAY - timedelta(days=WINDOW - 1)
    land_flights(services, first, DAY, quiet=True)
    with dg.DagsterInstance.from_config(str(scene.home.dagster)) as instance:
        box = SignalboxSide(services, instance)
        ranges: Mapping[str, list[tuple[str, str | None]]] = {
            "features": [(f"{key}|{first}", f"{key}|{DAY}") for key in spec.partitions.values],
            "day": [(str(first), str(DAY))],
            "snapshot": [(str(DAY), None)],
        }
        for stage, spans in ranges.items():
            for begin, end in spans:
                done = box.materialize(stage, first=begin, last=end)
                if not done.success:
                    raise RefusedError(f"drill {NAME} could not be played: {failure_of(done)}")
    record = services.ledger.current_version(spec.asset("snapshot"), DAY.isoformat())
    assert record is not None
    snapshot = load_snapshot(services, DAY, record.data_version)
    table = services.dataset.read(snapshot.partitions)
    frame, target = training_frame(table, spec)
    rows = frame.assign(**{spec.dataset.target.name: target})
    rows.to_parquet(scene.home.root / "rows.parquet")


def _same(one: object, two: object) -> bool:
    return bool(getattr(one, "data_version", 1) == getattr(two, "data_version", 2))


def _total(found: Sequence[Attempt]) -> float:
    return sum(attempt.training for attempt in found)


def _cpu(found: Sequence[Attempt]) -> float:
    return sum(attempt.cpu for attempt in found)


def _restart(found: Sequence[Attempt]) -> float:
    later = [attempt.restart for attempt in found[1:]]
    return sum(later) / len(later) if later else 0.0


def _step(found: Sequence[Attempt], what: str) -> Step:
    parts = [
        f"{attempt.rounds} rounds in {attempt.training:.1f} s"
        + (f", then {attempt.by.name}" if attempt.by else "")
        for attempt in found
    ]
    return Step(
        did=f"the training is interrupted and started again; {what}",
        found="; ".join(parts),
        ok=len(found) > 1 and found[-1].by is None,
    )
