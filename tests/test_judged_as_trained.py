"""A model is asked what it was trained to answer, whatever the catalog says by now."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.judging import judged_rows, predictions_on
from platform_assets.line.models import train_model
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources.ledger.records import VersionRecord
from tests.small import Line, Templates, copied, opened, small_spec

pytestmark = pytest.mark.heavy
DAY = "2013-01-04"
FEATURES = small_spec().dataset.features
SHORTER = tuple(name for name in FEATURES if name != "visib")


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


def predicted(line: Line, model: VersionRecord) -> np.ndarray:
    return predictions_on(line.services, model, judged_rows(line.services, date(2013, 1, 4)))[2]


def told(line: Line, spec: PipelineSpec, model: VersionRecord) -> np.ndarray:
    """What a model says under another catalog."""
    with opened(line.home, spec) as other:
        return predicted(other, model)


def of_catalog(line: Line, spec: PipelineSpec) -> VersionRecord:
    """A model that was trained under another catalog."""
    with opened(line.home, spec) as other:
        train_model(other.services, PartitionKey.parse(DAY), "then", lane="by hand")
        return other.versions("model")[DAY]


def test_features_in_another_order(line: Line) -> None:
    model = line.versions("model")[DAY]
    before = predicted(line, model)
    turned = list(FEATURES)
    one, two = turned.index("dep_minute"), turned.index("temp")
    turned[one], turned[two] = turned[two], turned[one]
    spec = small_spec(dataset={"features": turned})
    np.testing.assert_array_equal(told(line, spec, model), before)
    # Without its recipe it takes the temperature for the time of day, and nobody is told.
    bare = {key: value for key, value in model.detail.items() if key != "recipe"}
    assert np.abs(told(line, spec, replace(model, detail=bare)) - before).max() > 0.01


def test_a_feature_that_the_catalog_has_added(line: Line) -> None:
    spec = small_spec(dataset={"features": SHORTER})
    model = of_catalog(line, spec)
    np.testing.assert_array_equal(predicted(line, model), told(line, spec, model))


def test_a_feature_that_the_catalog_has_dropped(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = line.versions("model")[DAY], small_spec(dataset={"features": SHORTER})
    # The rows were built before, and have it.
    np.testing.assert_array_equal(told(line, spec, model), predicted(line, model))
    rows = judged_rows(line.services, date(2013, 1, 4))
    table = line.services.dataset.read(rows.partitions)
    assert table["visib"].null_count < table.num_rows
    at = table.column_names.index("visib")
    kept = [
        None if airport == "LGA" else value
        for airport, value in zip(
            table["airport"].to_pylist(), table["visib"].to_pylist(), strict=True
        )
    ]
    half = table.set_column(at, "visib", pa.array(kept, table["visib"].type))
    with opened(line.home, spec) as other:
        for built_since in (half, table.drop_columns(["visib"])):
            monkeypatch.setattr(other.services.dataset, "read", lambda *_, t=built_since: t)
            with pytest.raises(RefusedError, match=r"was trained on visib, which the rows"):
                predictions_on(other.services, model, rows)


class TurningTrainer(LightGBMTrainer):
    """Its flavor is changed after it has trained."""


def test_another_trainer_and_another_flavor(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = small_spec(
        model={
            "trainer": "platform_assets.trainers.sklearn_linear:LinearTrainer",
            "parameters": {},
        }
    )
    model = line.versions("model")[DAY]
    np.testing.assert_array_equal(told(line, linear, model), predicted(line, model))
    turning = small_spec(model={"trainer": f"{__name__}:TurningTrainer"})
    model = of_catalog(line, turning)
    assert len(predicted(line, model))
    monkeypatch.setattr(TurningTrainer, "flavor", "sklearn")
    with pytest.raises(RefusedError, match="stored as lightgbm and its trainer reads sklearn"):
        predicted(line, model)


def test_another_kind_is_not_compared(line: Line) -> None:
    model = line.versions("model")[DAY]
    now = line.spec.model.model_copy(update={"kind": "regression"})
    with (
        opened(line.home, line.spec.model_copy(update={"model": now})) as other,
        pytest.raises(RefusedError, match="was trained for a binary_classification"),
    ):
        predicted(other, model)
