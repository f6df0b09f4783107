"""One side of the preemption drill, in a process of its own: `… plain|signalbox HOME [restate]`."""

import sys
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills.interrupting import TimedTrainer, tell_round
from platform_assets.drills.plain_dagster import QUIET
from platform_assets.drills.signalbox_side import SignalboxSide, failure_of
from platform_assets.factory.events import RESTATE_TAG
from platform_assets.factory.grid import asset_key, dagster_key
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home

DAY = date(2013, 2, 9)
WINDOW = 12
ROUNDS = 2500


def drill_spec(rounds: int = ROUNDS) -> PipelineSpec:
    """The pipeline of the catalog, with a shorter window and a longer training."""
    document = load_catalog()["flights"].model_dump(mode="json")
    document["model"] |= {
        "trainer": f"{TimedTrainer.__module__}:{TimedTrainer.__name__}",
        "parameters": {**document["model"]["parameters"], "num_boost_round": rounds},
        "window_days": WINDOW,
        "min_days": WINDOW,
        "checkpoints": {"most_lost_seconds": 1.0},
    }
    return PipelineSpec.model_validate(document)


def plain(home: Home, spec: PipelineSpec) -> int:
    """As one writes it: an asset that trains. Its rows lie beside, for nothing else differs."""
    import lightgbm as lgb
    import pandas as pd

    @dg.asset
    def model() -> dg.MaterializeResult[Any]:
        rows = pd.read_parquet(home.root / "rows.parquet")
        settings = dict(spec.model.parameters)
        rounds = int(settings.pop("num_boost_round"))
        for name in spec.dataset.categories:
            rows[name] = rows[name].astype("category")
        target = rows.pop(spec.dataset.target.name)
        more = {"objective": "binary", "seed": spec.model.seed, "verbosity": -1}
        booster = lgb.train(
            {**settings, **more, "metric": "binary_logloss", "deterministic": True},
            (data := lgb.Dataset(rows, label=target)),
            num_boost_round=rounds,
            valid_sets=[data],
            callbacks=[lambda _: tell_round()],
        )
        booster.save_model(home.root / "model.txt")
        return dg.MaterializeResult(metadata={"rounds": rounds})

    folder = home.root / "plain"
    folder.mkdir(exist_ok=True)
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        done = dg.materialize([model], instance=instance, raise_on_error=False, run_config=QUIET)
    return 0 if done.success else 1


def signalbox(home: Home, spec: PipelineSpec, *, restate: bool) -> int:
    """A run of the model, as a retry of it is."""
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        side = SignalboxSide(Services.open(spec, home), instance)
        done = side.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[asset_key(spec.asset("model"))],
            partition_key=dagster_key(spec, spec.require_partition(_key(), keyed=False)),
            tags={RESTATE_TAG: "true"} if restate else {},
            run_config=QUIET,
            raise_on_error=False,
        )
        if not done.success:
            print(failure_of(done))
    return 0 if done.success else 1


def _key() -> Any:
    from platform_assets.domain.partition import PartitionKey

    return PartitionKey(DAY)


def main(arguments: list[str]) -> int:
    """Play one attempt of one side."""
    side, root, rounds, *rest = arguments
    home, spec = Home.locate(Path(root)), drill_spec(int(rounds))
    if side == "plain":
        return plain(home, spec)
    return signalbox(home, spec, restate="restate" in rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
