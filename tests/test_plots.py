"""The images for the metadata: real PNGs, the same ones for the same input."""

import io
import sys
from datetime import date

import numpy as np
import pytest
from matplotlib.image import imread

from platform_assets.domain.heat_map import Cell, CellState, HeatMap, HeatRow
from resources import plots

DAY = date(2013, 2, 9)
HELD_DAY = Cell(
    partition=f"JFK|{DAY}", key="JFK", date=DAY, state=CellState.PARTIAL, source="weather",
    observed=18, expected=24, text="",
)  # fmt: skip
DRAWN = {
    "curve": lambda: plots.training_curve("train_log_loss", [0.6, 0.5, 0.45]),
    "calibration": lambda: plots.calibration(
        np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.6, 0.3])
    ),
    "importance": lambda: plots.importance({"dest": 5.0, "temp": 2.0, "carrier": 0.0}),
    "over time": lambda: plots.metric_over_time("log_loss", {DAY: 0.5}, {DAY: "v1"}),
    "completeness": lambda: plots.completeness(
        HeatMap(dates=(DAY,), rows=(HeatRow(key="JFK", cells=(HELD_DAY,)),))
    ),
}
EMPTY = {
    "curve": lambda: plots.training_curve("train_log_loss", []),
    "calibration": lambda: plots.calibration(np.array([]), np.array([])),
    "importance": lambda: plots.importance({}),
    "over time": lambda: plots.metric_over_time("log_loss", {}),
    "completeness": lambda: plots.completeness(HeatMap()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_a_png_and_the_same_one_again(name: str) -> None:
    png = DRAWN[name]()
    image = imread(io.BytesIO(png), format="png")
    assert image.shape[1] > 400
    assert image.std() > 0.01
    assert png == DRAWN[name]()
    assert png != EMPTY[name]()
    assert len(png) < 60_000


def test_pyplot_is_not_touched() -> None:
    sys.modules.pop("matplotlib.pyplot", None)
    for draw in (*DRAWN.values(), *EMPTY.values()):
        draw()
    assert "matplotlib.pyplot" not in sys.modules
