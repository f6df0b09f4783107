"""The colours of the heat map, for pictures and pages alike."""

from collections.abc import Mapping

from platform_assets.domain.heat_map import Cell, CellState

COLOURS: Mapping[CellState, str] = {
    CellState.COMPLETE: "#2a9d6f",
    CellState.ACCEPTED: "#8ecae6",
    CellState.WAIVED: "#3a86c8",
    CellState.PARTIAL: "#f4a620",
    CellState.LATE: "#d1495b",
    CellState.SUSPICIOUS: "#8e5bb5",
    CellState.QUARANTINED: "#3d1f3a",
    CellState.REFUSED: "#7a4a1e",
    CellState.ABSENT: "#aab1bd",
    CellState.NOT_YET: "#eef0f3",
}
"""By state. Partial days are lighter the less of them is there."""

MARKS: Mapping[CellState, str] = {
    CellState.ACCEPTED: "A",
    CellState.WAIVED: "W",
    CellState.SUSPICIOUS: "S",
    CellState.QUARANTINED: "Q",
    CellState.REFUSED: "R",
}
"""What is written into a cell, since not everybody can tell the colours; else its hours."""

_DARK = frozenset(
    {CellState.COMPLETE, CellState.WAIVED, CellState.LATE, CellState.SUSPICIOUS}
    | {CellState.QUARANTINED, CellState.REFUSED}
)
_LIGHTEST = 0.25


def colour_of(cell: Cell) -> str:
    """The colour of a cell, `#rrggbb`; that of a partial day fades with its share."""
    colour = COLOURS[cell.state]
    if cell.state is not CellState.PARTIAL:
        return colour
    strength = _LIGHTEST + (1 - _LIGHTEST) * cell.share
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - strength * (255 - part)):02x}" for part in parts)


def ink_on(cell: Cell) -> str:
    """The colour of text on a cell."""
    return "#ffffff" if cell.state in _DARK else "#1d1d1f"


def mark_of(cell: Cell) -> str:
    """What is written into a cell: its hours, a letter, or nothing."""
    if cell.state in (CellState.COMPLETE, CellState.NOT_YET):
        return ""
    return MARKS.get(cell.state, str(cell.observed))
