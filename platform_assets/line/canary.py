"""The canary: the champion's own snapshot, trained again in this environment, and compared.

What was recorded then stands against what comes out here: the metrics of the judgement, and what
the fresh model said of some of its own rows. The champion itself is not asked again: whatever has
changed between rows and prediction would change what it says too.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.canary import CanaryReport, Measure, measures
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.reproduction import Recipe, differences
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.environments import (
    PROBE,
    VALUE,
    environment_here,
    passage_of,
    probed,
    value_of,
)
from platform_assets.line.environments import (
    differences as environment_differences,
)
from platform_assets.line.gating import require_registered
from platform_assets.line.recipes import recipe_of, recorded_recipe, told_again
from platform_assets.line.registered import judgements
from platform_assets.line.reproduce import Rebuilt, read_exactly, recorded_snapshot, train_again
from platform_assets.line.services import Services
from platform_assets.line.waive import said
from resources.ledger.environments import CanaryRecord
from resources.ledger.records import VersionRecord
from resources.scoring import score
from resources.training import training_frame

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BY_HAND = "by hand"


def run_canary(services: Services, *, by: str, run_id: str = BY_HAND) -> CanaryRecord:
    """Train the champion's snapshot again here, compare, and record what came of it.

    Nothing is registered, and nobody is promoted. The record is good for exactly this champion,
    from the environment that it was trained in to that of this process.

    Raises:
        UsageError: nobody answers for it.
        RefusedError: there is no champion; or its rows, its judgement or its recipe are not there
            as they were recorded.
    """
    who, spec = said("name of who runs it", by, "a canary"), services.spec
    state = services.ledger.alias_state(spec.model.name)
    if state is None:
        raise RefusedError(
            f"{spec.model.name} has no champion yet, there is nothing that a canary could be "
            "compared with"
        )
    champion = require_registered(services, state.version)
    here = environment_here(services)
    report = _report(services, champion, here.value)
    record = CanaryRecord(
        pipeline=spec.pipeline,
        model=spec.model.name,
        champion=state.version,
        digest=champion.data_version,
        then=value_of(champion),
        now=here.value,
        passed=report.same(spec.environment.tolerance),
        report=json.loads(report.model_dump_json()),
        by=who,
        run_id=run_id,
        recorded_at=datetime.now(UTC),
    )
    return services.environments.record_canary(record)


def _report(services: Services, champion: VersionRecord, here: str) -> CanaryReport:
    version = champion.detail["model_version"]
    recipe = recorded_recipe(champion)
    if recipe is None:
        raise RefusedError(
            f"version {version} of {services.spec.model.name} was trained before recipes were "
            "recorded, nobody can tell how to train it again; promote one that was trained since, "
            "with environment.on_change: warn in the catalog"
        )
    snapshot = recorded_snapshot(services, champion)
    table = read_exactly(services, champion, snapshot.partitions)
    spec = told_again(services.spec, recipe)
    services.tell(f"version {version} is trained again on its own {table.num_rows} rows")
    again = train_again(spec, table)
    found: list[Measure] = []
    problem, apart = "", None
    own = _own_rows(spec, champion, again, table)
    if own is not None:
        compared, apart = own
        found += compared
    judged = _judged_rows(services, champion, again, spec)
    if judged is None:
        problem = f"version {version} was never judged"
    elif own is None and judged[1] in ("", here):
        problem = (
            f"version {version} was trained before it was recorded what a fresh model says, and "
            "judged in nobody knows which environment"
        )
    else:
        found += judged[0]
    return CanaryReport(
        identical=again.digest == champion.data_version,
        measures=tuple(found),
        predictions=apart,
        changes=environment_differences(services, value_of(champion), here),
        diverged=_diverged(recipe, recipe_of(spec)),
        problem=problem,
    )


def _diverged(then: Recipe, now: Recipe) -> tuple[str, ...]:
    return tuple(
        f"code: {difference}" for difference in differences({"code": then.code}, {"code": now.code})
    )


def _own_rows(
    spec: PipelineSpec, champion: VersionRecord, again: Rebuilt, table: "pa.Table"
) -> tuple[tuple[Measure, ...], float] | None:
    """On some of the rows that it was trained on, against what the champion said when it was
    fresh; None where that was not recorded."""
    import numpy as np

    recorded = champion.detail.get(PROBE)
    rows = table.take(probed(table.num_rows))
    if recorded is None or len(recorded) != rows.num_rows or not recorded:
        return None
    then = np.asarray(recorded, dtype=np.float64)
    # As it was asked then: of rows of the whole frame, whose categories are those of all rows.
    frame, _ = training_frame(table, spec)
    now = again.trainer.predict(again.model, frame.iloc[probed(table.num_rows)])
    on = f"{rows.num_rows} rows that it was trained on"
    apart = float(np.abs(now - then).max())
    return measures(on, _scores(spec, rows, then), _scores(spec, rows, now)), apart


def _judged_rows(
    services: Services, champion: VersionRecord, again: Rebuilt, spec: PipelineSpec
) -> tuple[tuple[Measure, ...], str] | None:
    """On the rows that the champion was judged on, against its recorded scores; and the value of
    the environment that it was judged in. None where it was not judged."""
    latest = next(reversed(judgements(services, champion)), None)
    if latest is None:
        return None
    partitions = tuple(PartitionVersion(**p) for p in latest.detail["partitions"])
    rows = read_exactly(services, champion, partitions)
    target = services.spec.dataset.target
    asked = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"target": target})})
    frame, _ = training_frame(rows, asked)
    now = again.trainer.predict(again.model, frame)
    days = sorted({p.partition.rpartition("|")[2] for p in partitions})
    on = f"{rows.num_rows} rows of {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")
    then: Mapping[str, Any] = latest.detail["metrics"]
    recorded = {name: float(value) for name, value in then.items()}
    return measures(on, recorded, _scores(services.spec, rows, now)), str(
        latest.detail.get(VALUE, "")
    )


def _scores(spec: PipelineSpec, rows: "pa.Table", predictions: "np.ndarray") -> dict[str, float]:
    return {name: float(value) for name, value in score(spec, rows, predictions).items()}


def due_canary(services: Services) -> str | None:
    """The name of the canary that is wanting; None if none is.

    One is where the newest model is held since nobody has tried its environment. One that came out
    against it is not tried again by itself.
    """
    state = services.ledger.alias_state(services.spec.model.name)
    newest = services.ledger.newest_version(services.spec.asset("model"))
    if services.spec.environment.on_change != "hold" or state is None or newest is None:
        return None
    found = passage_of(services, newest, state.version)
    if found.verdict.free or found.verdict.canary is not None or not found.now:
        return None
    pair = f"{found.then[:12] or 'unknown'}-{found.now[:12]}"
    return f"{services.spec.pipeline}/canary/{state.version}/{state.counter}/{pair}"


def opened(services: Services, record: CanaryRecord) -> str:
    """What a canary changes, for a person: who may be promoted by it."""
    if record.then == record.now:
        return f"champion {record.champion} was trained in this environment: nothing is held by it"
    if services.spec.environment.on_change == "warn":
        return "the catalog only warns of another environment: nothing is held by it"
    state = "are free to be promoted, by the gate" if record.passed else "stay held"
    return f"models that are trained in this environment ({record.now[:12]}) {state}"
