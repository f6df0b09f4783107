"""A rule of the catalog that refused a day is relaxed: the day is built, whatever was tried."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from platform_assets.domain.attempts import MOST_ATTEMPTS
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line import live
from tests.small import Line, Templates, copied, small_spec
from tests.test_sensor import Box

DAY = "2013-01-10"
JFK, LGA = f"JFK|{DAY}", f"LGA|{DAY}"

pytestmark = pytest.mark.heavy


@pytest.fixture
def box(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Box]:
    """2013-01-10 has landed; no wait between two attempts."""
    monkeypatch.setattr(
        "platform_assets.domain.attempts.WAITS", (timedelta(0),) * (MOST_ATTEMPTS - 1)
    )
    templates = Templates(shared_folder, home_template)
    with copied(templates.features, tmp_path, demanding(10_000)) as line:
        line.land(DAY)
        yield Box(line)


def demanding(rows: int) -> PipelineSpec:
    return small_spec(schedule={"live_from": DAY}, dataset={"min_rows": rows})


def with_rule(box: Box, rows: int) -> Box:
    """The same home and cursor, after the catalog was edited and the code location reloaded."""
    return Box(Line(box.line.home, demanding(rows), box.line.instance), box.cursor)


def tuned_in_vain(box: Box) -> Box:
    """As often as a request is attempted the rule is relaxed, and never enough."""
    for n in range(MOST_ATTEMPTS):
        box = with_rule(box, 10_000 - n)
        tick = box.tick(must=False)
        assert [job for job, _ in tick.launched] == ["features", "features"]
        verdicts = box.line.services.ledger.verdicts("flights", "flights/features", [JFK, LGA])
        assert {record.verdict for record in verdicts.values()} == {"suspicious"}
    return box


def test_the_day_is_built(box: Box) -> None:
    box = with_rule(tuned_in_vain(box), 0)
    tick = box.tick()
    assert tick.launched == [("features", JFK), ("features", LGA)]
    # Another rule is another request, not another attempt of what was refused.
    assert not [key for key in tick.run_keys if "/" in str(key).rsplit(DAY, 1)[1][1:]]
    assert {JFK, LGA} <= set(box.line.versions("features"))


def test_where_the_run_key_holds_the_files_alone_it_never_is(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "stage_version", lambda spec, stage: "")
    box = with_rule(tuned_in_vain(box), 0)
    for _ in range(3):
        tick = box.tick()
        assert tick.requested == []
        assert f"{MOST_ATTEMPTS} attempts failed" in tick.said
    assert JFK not in box.line.versions("features")


def test_a_day_that_has_left_the_recent_ones_is_looked_at_again(box: Box) -> None:
    box.tick(must=False)
    box.line.land("2013-01-11", "2013-01-20")
    for _ in range(3):
        box.tick(launch=False)
        box.line.services.watch.settle("flights", [date(2013, 1, 10)])
    relaxed = with_rule(box, 0)
    assert ("features", JFK) in relaxed.tick(launch=False).requested
