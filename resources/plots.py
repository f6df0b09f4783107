"""Small PNG images for the metadata of assets and runs.

They are drawn without pyplot, whose state is shared by all threads of a process.
"""

import io
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from platform_assets.domain.heat_map import CellState, HeatMap
from resources.heat_colours import COLOURS, colour_of, mark_of

if TYPE_CHECKING:
    import numpy as np

_INK, _ACCENT, _QUIET = "#1d3557", "#c1121f", "#8d99ae"
_COMPRESSION = 2
"""Of zlib: flat areas shrink as well by little work."""

_MARKED_DAYS = 62
"""With more dates than these the cells are too small to write into."""


def training_curve(metric: str, values: Sequence[float]) -> bytes:
    """A metric by training round, as PNG."""
    figure, axes = _canvas(left=0.75)
    axes.plot(range(1, len(values) + 1), values, color=_INK)
    axes.set(xlabel="round", ylabel=metric)
    _title(axes, "Training")
    return _png(figure)


def step_times(seconds: Mapping[str, Sequence[tuple[int, float]]], points: int = 400) -> bytes:
    """Milliseconds of each rank's own work by step, as PNG; long trainings by means over parts."""
    figure, axes = _canvas(left=0.75)
    for name, found in seconds.items():
        part = len(found) // points + 1
        cut = [found[n : n + part] for n in range(0, len(found), part)]
        steps = [few[0][0] for few in cut]
        axes.plot(
            steps,
            [1000 * sum(s for _, s in few) / len(few) for few in cut],
            linewidth=1,
            label=name,
        )
    axes.set(xlabel="step", ylabel="ms", ylim=(0, None))
    if 0 < len(seconds) <= 12:
        axes.legend(fontsize=7, loc="upper right")
    _title(axes, "Step times, each rank's own work")
    return _png(figure)


def calibration(target: "np.ndarray", predictions: "np.ndarray", bins: int = 10) -> bytes:
    """Observed share of class 1 by predicted probability, over bins of equal size, as PNG."""
    import numpy as np

    figure, axes = _canvas()
    axes.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle="--")
    if len(predictions):
        parts = np.array_split(np.argsort(predictions, kind="stable"), min(bins, len(predictions)))
        axes.plot(
            [float(predictions[part].mean()) for part in parts],
            [float(target[part].mean()) for part in parts],
            color=_INK,
            marker="o",
        )
    axes.set(xlabel="predicted", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    _title(axes, "Calibration")
    return _png(figure)


def importance(gains: Mapping[str, float], top: int = 20) -> bytes:
    """The features that matter most, as PNG bars, the first on top."""
    ordered = sorted(gains.items(), key=lambda item: (item[1], item[0]))[-top:]
    longest = max((len(name) for name, _ in ordered), default=0)
    figure, axes = _canvas(height=1.0 + 0.22 * len(ordered), left=min(0.3 + 0.09 * longest, 3.4))
    axes.barh([name for name, _ in ordered], [gain for _, gain in ordered], color=_INK)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="importance")
    _title(axes, "Features")
    return _png(figure)


def metric_over_time(
    metric: str, points: Mapping[date, float], marked: Mapping[date, str] | None = None
) -> bytes:
    """A metric by date as PNG; dates that are `marked` (a new champion) carry their label."""
    figure, axes = _canvas()
    days = sorted(points)
    axes.plot(days, [points[day] for day in days], color=_INK, marker="o", markersize=3)
    for day, label in (marked or {}).items():
        if day in points:
            axes.plot([day], [points[day]], color=_ACCENT, marker="D")
            axes.annotate(
                label, (day, points[day]), textcoords="offset points", xytext=(4, 6), fontsize=7
            )
    # Left to itself, matplotlib writes the hours between few dates.
    shown = days[:: len(days) // 8 + 1]
    axes.set_xticks(shown, [day.isoformat() for day in shown])
    axes.set(ylabel=metric, title=f"{metric} over time")
    figure.autofmt_xdate()
    return _png(figure)


def completeness(found: HeatMap) -> bytes:
    """Keys by dates, coloured by state, as PNG; of at most some hundred dates.

    A cell that is not complete carries its hours, or a letter, where there is room.
    """
    from matplotlib.patches import Patch, Rectangle

    days = len(found.dates)
    figure, axes = _canvas(width=min(14.0, 4.4 + 0.1 * days), height=1.5 + 0.24 * len(found.rows))
    axes.grid(visible=False)
    column = {day: n for n, day in enumerate(found.dates)}
    for y, row in enumerate(found.rows):
        for cell in row.cells:
            x = column[cell.date]
            axes.add_patch(Rectangle((x, y), 0.92, 0.9, color=colour_of(cell), linewidth=0))
            if days <= _MARKED_DAYS and mark_of(cell):
                at = (x + 0.46, y + 0.47)
                axes.annotate(mark_of(cell), at, ha="center", va="center", fontsize=6)
    # Mondays, as far as there is room for their dates.
    mondays = [day for day in found.dates if day.weekday() == 0] or list(found.dates[:1])
    shown = mondays[:: len(mondays) // 8 + 1]
    axes.set(xlim=(0, max(1, days)), ylim=(max(1, len(found.rows)), 0), title="Completeness")
    axes.set_xticks([column[day] + 0.46 for day in shown], [day.isoformat() for day in shown])
    axes.set_yticks([y + 0.45 for y in range(len(found.rows))], [row.key for row in found.rows])
    axes.tick_params(labelsize=7, length=0)
    axes.spines[:].set_visible(False)
    states = [state for state in CellState if state in found.counts()]
    handles = [
        Patch(color=COLOURS[state], label=f"{state} {found.counts()[state]}") for state in states
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7)
    return _png(figure)


def allocation(curves: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Share of the GPUs that is allocated, by hours, a line a policy, as PNG."""
    figure, axes = _canvas(width=7.2)
    for n, (policy, points) in enumerate(curves.items()):
        hours = [seconds / 3600 for seconds, _ in points]
        shares = [100 * share for _, share in points]
        axes.step(hours, shares, where="post", label=policy, color=f"C{n}", linewidth=1)
    axes.set(xlabel="hours", ylabel="GPUs allocated, %", ylim=(0, 104))
    axes.legend(fontsize=7, loc="lower right")
    _title(axes, "GPUs allocated")
    return _png(figure)


def queue_times(waits: Mapping[str, Sequence[float]]) -> bytes:
    """Share of the placed jobs that had waited at most so many minutes, a line a policy, as PNG."""
    figure, axes = _canvas(width=7.2)
    for n, (policy, seconds) in enumerate(waits.items()):
        minutes = [0.0, *(one / 60 for one in sorted(seconds))]
        shares = [100 * k / max(1, len(seconds)) for k in range(len(minutes))]
        axes.step(minutes, shares, where="post", label=policy, color=f"C{n}", linewidth=1)
    axes.set(xlabel="minutes in the queue, at most", ylabel="placed jobs, %", ylim=(0, 104))
    axes.legend(fontsize=7, loc="lower right")
    _title(axes, "Time in the queue")
    return _png(figure)


def _title(axes: Any, text: str) -> None:
    """A title at its place: without one, matplotlib measures every label before it draws them."""
    axes.set_title(text, y=1.0)


def _canvas(height: float = 3.2, width: float = 5.6, left: float | None = None) -> tuple[Any, Any]:
    """An empty figure; with `left`, the inches that the labels there need, margins are not sought.

    Seeking them takes two thirds of the CPU that a figure costs, and each training draws two.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=96, layout=None if left else "constrained")
    axes = figure.subplots()
    if left:
        figure.subplots_adjust(
            left=left / width, right=0.96, bottom=0.52 / height, top=1 - 0.32 / height
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8ee", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    # Without the version of matplotlib, equal figures are equal bytes.
    FigureCanvasAgg(figure).print_png(
        buffer, metadata={"Software": None}, pil_kwargs={"compress_level": _COMPRESSION}
    )
    return buffer.getvalue()
