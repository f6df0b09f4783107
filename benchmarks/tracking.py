"""What tracking adds to a training: CPU against LightGBM alone, on the same rows.

Three arms train the flights' model of the catalog on the same made-up rows:

    bare      `lightgbm.train` and nothing else
    trainer   the catalog's trainer, which also measures the metric of each round
    tracked   the same with all that a run of the line writes down: environment and fingerprint,
              parameters, dataset, each round, the registered model with its digest, plots

Each training is a process of its own, forked from one that has imported everything, as a run of
the line is. Counted is the CPU (user and system) of it and of all that it starts. Turns alternate;
the ratio is of the least of each arm. Exits 1 where `tracked` at the largest size costs more than
the goal allows. `--server` tracks on an `mlflow server` (whose CPU is not counted: it is another
machine's).

    python -m benchmarks.tracking [--turns 5] [--rows 2000 20000 200000] [--server] [--json]
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from platform_assets.domain.spec import PipelineSpec
from platform_assets.instance.preload import preload
from platform_assets.line.fingerprints import detail_of, fingerprint_of, tags_of
from platform_assets.line.models import EXAMPLE_ROWS, _figures
from resources.catalog import load_catalog
from resources.tracking import DAGSTER_RUN_TAG, Tracking
from resources.training import load_trainer

ROWS = (2_000, 20_000, 200_000)
GOAL = 1.2
SNAPSHOT = "ab" * 32


def rows_of(spec: PipelineSpec, count: int) -> tuple[Any, Any]:
    """Features as the dataset has them, and a target that depends on them."""
    import numpy as np
    import pandas as pd

    random = np.random.RandomState(7)
    columns: dict[str, Any] = {}
    for name in spec.dataset.features:
        if name in spec.dataset.categories:
            names = [f"{name}{n:02d}" for n in range(20)]
            columns[name] = pd.Categorical(random.choice(names, count), categories=names)
        else:
            columns[name] = random.normal(size=count)
    frame = pd.DataFrame(columns)
    numbers = frame.select_dtypes("number").to_numpy()
    score = numbers[:, 0] - numbers[:, 1] * numbers[:, 2] + random.normal(size=count)
    return frame, pd.Series((score > 0).astype("float64"))


def bare(spec: PipelineSpec, frame: Any, target: Any) -> None:
    import lightgbm

    parameters = dict(spec.model.parameters)
    rounds = int(parameters.pop("num_boost_round"))
    fixed = {"objective": "binary", "seed": spec.model.seed, "verbosity": -1}
    fixed |= {"deterministic": True, "force_row_wise": True}
    lightgbm.train({**parameters, **fixed}, lightgbm.Dataset(frame, target), rounds)


def by_trainer(spec: PipelineSpec, frame: Any, target: Any) -> None:
    fit(spec, frame, target, lambda _, __: None)


def fit(
    spec: PipelineSpec,
    frame: Any,
    target: Any,
    on_round: Callable[[int, Mapping[str, float]], None],
) -> object:
    return load_trainer(spec.model.trainer).fit(
        frame,
        target,
        kind=spec.model.kind,
        parameters=spec.model.parameters,
        seed=spec.model.seed,
        on_round=on_round,
    )


def tracked(spec: PipelineSpec, frame: Any, target: Any, tracking: Tracking) -> None:
    """What `platform_assets.line.models` does between the frame and the ledger."""
    trainer = load_trainer(spec.model.trainer)
    fingerprint, environment = fingerprint_of(spec, trainer, SNAPSHOT)
    tags = {DAGSTER_RUN_TAG: "benchmark", **tags_of(fingerprint, environment)}
    with tracking.run(spec.pipeline, "benchmark", tags) as run:
        run.log_parameters({**spec.model.parameters, "rows": len(frame)})
        run.log_document("environment.json", detail_of(fingerprint, environment))
        run.log_snapshot("flights/model", SNAPSHOT, source="flights/snapshots", rows=len(frame))
        rounds: list[dict[str, float]] = []

        def on_round(step: int, metrics: Mapping[str, float]) -> None:
            rounds.append(dict(metrics))
            run.log_round(step, metrics)

        model = fit(spec, frame, target, on_round)
        example = frame.head(EXAMPLE_ROWS)
        run.log_model(
            model,
            trainer.flavor,
            name=spec.model.name,
            input_example=example,
            predictions=trainer.predict(model, example),
            requirements=trainer.requirements,
        )
        for title, png in _figures(rounds, dict(trainer.importance(model))).items():
            run.log_figure(title, png)


def cpu_of(work: Callable[[], None]) -> float:
    """CPU seconds of a forked process that does the work, and of what it starts."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - shown, and told by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError("a training of the benchmark failed")
    return usage.ru_utime + usage.ru_stime


def measure(
    spec: PipelineSpec, sizes: list[int], turns: int, tracking: Tracking
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for count in sizes:
        frame, target = rows_of(spec, count)
        arms: dict[str, Callable[[], None]] = {
            "bare": lambda f=frame, t=target: bare(spec, f, t),  # type: ignore[misc]
            "trainer": lambda f=frame, t=target: by_trainer(spec, f, t),  # type: ignore[misc]
            "tracked": lambda f=frame, t=target: tracked(spec, f, t, tracking),  # type: ignore[misc]
        }
        spent: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(turns):
            for name, work in arms.items():
                spent[name].append(cpu_of(work))
        least = {name: min(values) for name, values in spent.items()}
        median = {name: statistics.median(values) for name, values in spent.items()}
        found[str(count)] = {
            **{f"{name}_s": round(value, 3) for name, value in least.items()},
            "added_s": round(least["tracked"] - least["bare"], 3),
            "ratio": round(least["tracked"] / least["bare"], 3),
            "ratio_of_medians": round(median["tracked"] / median["bare"], 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="signalbox-tracking-"))
    stop: Callable[[], None] = lambda: None  # noqa: E731
    try:
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        # Made in a process of its own: a store that was used does not survive a fork.
        cpu_of(lambda: Tracking(uri, folder / "artifacts").prepare())
        tracking = Tracking(uri, folder / "artifacts", spool=folder / "spool")
        if arguments.server:
            from tests.mlflow_server import MlflowServer

            server = MlflowServer(folder / "server", folder / "mlflow.db")
            server.start()
            stop = server.kill
            tracking = Tracking(server.url, None, spool=folder / "spool")
        preload()
        spec = load_catalog()["flights"]
        found = measure(spec, sorted(arguments.rows), arguments.turns, tracking)
    finally:
        stop()
        shutil.rmtree(folder, ignore_errors=True)
    largest = found[str(max(arguments.rows))]
    if arguments.json:
        print(json.dumps({"rows": found, "goal": GOAL}))
    else:
        print(f"{'rows':>8} {'bare s':>8} {'trainer s':>10} {'tracked s':>10} {'added s':>8} ratio")
        for count, row in found.items():
            print(
                f"{count:>8} {row['bare_s']:>8} {row['trainer_s']:>10} {row['tracked_s']:>10} "
                f"{row['added_s']:>8} {row['ratio']:.2f} (medians {row['ratio_of_medians']:.2f})"
            )
        print(f"goal at {max(arguments.rows)} rows: at most {GOAL}")
    sys.exit(1 if largest["ratio"] > GOAL else 0)


if __name__ == "__main__":
    main()
