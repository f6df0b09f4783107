"""The heat map: what each cell says, that it never flatters, and where it is drawn."""

import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from platform_assets.domain.completeness import (
    HOUR,
    Arrival,
    CompletenessReport,
    SourceReport,
    Verdict,
    assess_source,
)
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.heat_map import Cell, CellState, HeatMap, cell_of, heat_map
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.line.days import MAP_DAYS, completeness_map
from platform_assets.line.overview import overview
from resources import plots
from resources.heat_colours import COLOURS, colour_of, ink_on, mark_of
from resources.landing import LandingZone
from tests.small import HELD, Line, Templates, copied

ZONE = "America/New_York"
DAY = date(2013, 10, 25)


def source(
    name: str, day: date, hours: Sequence[int], as_of: datetime, rejected: Sequence[int] = ()
) -> SourceReport:
    """A source of which some hours of the day have come, by their position."""
    every = local_hours(day, ZONE)
    arrivals = [
        Arrival(hour=hour, rows=7, rejected="it is torn" if n in rejected else None)
        for n, hour in enumerate(every)
        if n in {*hours, *rejected}
    ]
    return assess_source(name, every, arrivals, as_of)


def report(
    weather: Sequence[int], flights: Sequence[int] = range(25), day: date = DAY, until: int = 25
) -> CompletenessReport:
    """JFK's day as it is after so many hours of it."""
    as_of = local_hours(day, ZONE)[0] + until * HOUR
    return CompletenessReport(
        partition=f"JFK|{day}",
        timezone=ZONE,
        as_of=as_of,
        sources=(source("flights", day, flights, as_of), source("weather", day, weather, as_of)),
    )


def test_a_cell_says_what_is_missing_in_words() -> None:
    cell = cell_of(report(weather=range(20)))
    assert cell.text == "JFK 2013-10-25: weather 20 of 24 hours, missing 20:00-23:00"
    assert (cell.state, cell.source, cell.observed, cell.expected) == ("partial", "weather", 20, 24)
    whole = cell_of(report(weather=range(25)))
    assert whole.text == "JFK 2013-10-25: complete, 24 of 24 hours"
    assert mark_of(whole) == ""
    assert mark_of(cell) == "20"


def test_the_worst_source_is_shown_and_all_that_are_short_are_named() -> None:
    found = cell_of(report(weather=range(23), flights=range(3)))
    assert (found.source, found.observed) == ("flights", 3)
    assert "flights 3 of 24 hours" in found.text
    assert "weather 23 of 24 hours" in found.text
    nothing_of_one = cell_of(report(weather=(), flights=range(24)))
    assert (nothing_of_one.state, nothing_of_one.observed) == (CellState.PARTIAL, 0)


def test_a_day_of_25_hours_and_one_of_23() -> None:
    autumn, spring = date(2013, 11, 3), date(2013, 3, 10)
    assert cell_of(report(range(24), day=autumn)).text == (
        "JFK 2013-11-03: weather 24 of 25 hours, missing 23:00"
    )
    assert cell_of(report(range(25), day=autumn)).state is CellState.COMPLETE
    assert cell_of(report(range(23), day=spring)).state is CellState.COMPLETE


def test_not_yet_is_a_day_of_which_nothing_is_due() -> None:
    none: Sequence[int] = ()
    assert cell_of(report(none, none, until=0)).state is CellState.NOT_YET
    assert cell_of(report(none, none, until=1)).state is CellState.ABSENT
    assert cell_of(report(range(5), range(5), until=5)).state is CellState.PARTIAL


def test_every_state_is_reached_and_has_a_colour() -> None:
    base = report(weather=range(20))
    short = base.sources[1]
    reached = set()
    for verdict in Verdict:
        changed = short.model_copy(update={"verdict": verdict})
        cell = cell_of(base.model_copy(update={"sources": (base.sources[0], changed)}))
        reached.add(cell.state)
    reached |= {cell_of(report(range(25)), "its rows are unfit").state}
    assert reached | {CellState.ABSENT, CellState.NOT_YET} == set(CellState) == set(COLOURS)
    assert len(set(COLOURS.values())) == len(CellState)


def test_rows_that_a_run_refused_are_not_green() -> None:
    """Its hours are all there; the verdict on the partition is the run's."""
    whole = report(weather=range(25))
    (row,) = heat_map([whole], {whole.partition: "refused by run 1: a delay of a year"}).rows
    (cell,) = row.cells
    assert (cell.state, cell.is_clear, mark_of(cell)) == (CellState.REFUSED, False, "R")
    assert cell.text == "JFK 2013-10-25: refused by run 1: a delay of a year"
    assert colour_of(cell) != colour_of(cell_of(whole))
    short = report(weather=range(20))
    assert cell_of(short, "of before") == cell_of(short)


def test_two_reports_on_a_partition_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two reports on JFK\|2013-10-25"):
        heat_map([report(range(3)), report(range(3))])
    with pytest.raises(ValueError, match="has no source"):
        cell_of(report(range(3)).model_copy(update={"sources": ()}))


@st.composite
def reports(draw: st.DrawFn) -> CompletenessReport:
    day = date(2013, 3, 8) + timedelta(days=draw(st.integers(0, 4)))
    key = draw(st.sampled_from(["EWR", "JFK"]))
    as_of = local_hours(day, ZONE)[0] + draw(st.integers(0, 40)) * HOUR
    hours = st.sets(st.integers(0, 24))
    sources = tuple(
        source(name, day, sorted(draw(hours)), as_of, sorted(draw(st.sets(st.integers(0, 3)))))
        for name in ("flights", "weather")
    )
    return CompletenessReport(
        partition=str(PartitionKey(day, key)), timezone=ZONE, as_of=as_of, sources=sources
    )


@given(st.lists(reports(), max_size=8, unique_by=lambda r: r.partition))
def test_the_map_holds_each_partition_once_and_never_flatters(
    found: list[CompletenessReport],
) -> None:
    drawn = heat_map(found)
    cells = {cell.partition: cell for row in drawn.rows for cell in row.cells}
    assert set(cells) == {r.partition for r in found}
    assert sum(drawn.counts().values()) == len(found)
    for one in found:
        cell = cells[one.partition]
        assert cell.is_clear == one.is_clear
        assert 0 <= cell.share <= 1
        assert cell.state is CellState.NOT_YET or cell.state.value == one.verdict.value
        assert colour_of(cell).startswith("#")
        assert len(colour_of(cell)) == len(ink_on(cell)) == 7
        assert cell.date in drawn.dates
    assert list(drawn.dates) == sorted(drawn.dates)
    for row in drawn.rows:
        assert [cell.date for cell in row.cells] == sorted(cell.date for cell in row.cells)


def test_partial_days_are_darker_the_more_of_them_is_there() -> None:
    def brightness(hours: int) -> int:
        colour = colour_of(cell_of(report(range(hours))))
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    found = [brightness(hours) for hours in (0, 6, 12, 18, 23)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 5


# --- drawn ------------------------------------------------------------------------------------


def many(days: int, hours: int = 24) -> HeatMap:
    first = date(2013, 1, 1)
    return heat_map(report(range(hours), day=first + timedelta(days=n)) for n in range(days))


def test_the_picture_is_a_small_png_that_tells_states_apart() -> None:
    whole, short = plots.completeness(many(120)), plots.completeness(many(120, 20))
    assert whole == plots.completeness(many(120))
    assert whole != short
    assert imread(io.BytesIO(whole), format="png").shape[1] > 400
    assert max(len(whole), len(short)) < 60_000
    assert len(plots.completeness(HeatMap())) > 500


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).features, tmp_path) as found:
        yield found


def test_a_run_draws_one_map_on_its_newest_date(line: Line) -> None:
    def drawn() -> dict[str | None, bool]:
        events = line.materializations("day")
        return {event.partition: "completeness" in event.metadata for event in events}

    before = len(line.materializations("day"))
    line.must("day", span=("2013-01-03", "2013-01-06"))
    assert len(line.materializations("day")) == before + 4
    assert drawn() == {
        **{f"2013-01-0{n}": n == 9 for n in range(2, 10)},
        **{f"2013-01-0{n}": n == 6 for n in range(3, 7)},
    }
    line.must("day", partition="2013-01-04")
    assert drawn()["2013-01-04"]


def test_the_map_of_a_roll_up_ends_on_its_date_and_is_bounded(line: Line) -> None:
    found = completeness_map(line.services, date(2013, 1, 8))
    assert (found.dates[0], found.dates[-1]) == (date(2013, 1, 2), date(2013, 1, 8))
    cells: dict[str, Cell] = {c.partition: c for row in found.rows for c in row.cells}
    assert cells[HELD].text.startswith("LGA 2013-01-06: weather 23 of 24 hours, missing 06:00")
    assert [c.partition for c in cells.values() if not c.is_clear] == [HELD]
    line.spec = line.spec.model_copy(
        update={"partitions": line.spec.partitions.model_copy(update={"end": date(2014, 12, 31)})}
    )
    del line.services
    assert len(completeness_map(line.services, date(2013, 12, 31)).dates) == MAP_DAYS


def test_a_partition_whose_rows_were_refused_is_not_complete_on_either_map(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the picture and of the page, until a run has built it."""
    partition = "JFK|2013-01-10"
    line.land("2013-01-10")

    def maps() -> list[tuple[Mapping[CellState, int], Cell]]:
        page = overview(line.services)  # this one looks at the folder
        picture = completeness_map(line.services, date(2013, 1, 10))
        on_page = page["months"]["2013-01"]["JFK"][9]
        (drawn,) = (c for row in picture.rows for c in row.cells if c.partition == partition)
        return [(picture.counts(), drawn), (page["counts"], on_page)]

    complete = [counts[CellState.COMPLETE] for counts, _ in maps()]

    def unfit(*_: object) -> None:
        raise RefusedError("a delay of a year")

    with monkeypatch.context() as patch:
        patch.setattr(LandingZone, "read", unfit)
        assert not line.run("features", partition=partition).success
    for (counts, cell), before in zip(maps(), complete, strict=True):
        assert counts[CellState.COMPLETE] == before - 1
        assert counts[CellState.REFUSED] == 1
        assert (cell.state, colour_of(cell)) == (CellState.REFUSED, COLOURS[CellState.REFUSED])
        assert "a delay of a year" in cell.text
    (block,) = (b for b in overview(line.services)["blocks"] if b["heading"] == "Held partitions")
    (row,) = (row for row in block["rows"] if row[0] == partition)
    assert row[1] == "refused"
    assert "a delay of a year" in row[3]

    line.must("features", partition=partition)
    assert [counts[CellState.COMPLETE] for counts, _ in maps()] == complete
