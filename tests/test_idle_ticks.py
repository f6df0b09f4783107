"""A look with nothing new fetches as much of the ledger, however many old days are held for good.

Counted are statements and rows, on the real ledger; that nothing is overlooked is shown beside it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Result

from platform_assets.domain.completeness import Verdict
from platform_assets.factory.held import held_check
from platform_assets.line.alerting import update
from platform_assets.line.clearance import still_held
from platform_assets.line.features import record_completeness
from resources.ledger.records import VersionRecord
from tests.homes import copy_home
from tests.small import Line, opened, small_spec

LAST = date(2012, 12, 31)
AS_OF = datetime(2013, 1, 1, 17, tzinfo=UTC)
FEW, MANY = 60, 300
"""Days, of which nothing has landed, of two airports: more than one IN list holds."""


@contextmanager
def held_for(days: int, template: Path, folder: Path) -> Iterator[Line]:
    """A pipeline that is live since so many days, all of them held."""
    first = (LAST - timedelta(days=days - 1)).isoformat()
    spec = small_spec(partitions={"start": first}, schedule={"live_from": first})
    with opened(copy_home(template, folder / f"home-{days}"), spec) as line:
        line.services.ledger.advance_clock("flights", AS_OF)
        reports = line.services.zone.reports(date.fromisoformat(first), LAST, AS_OF)
        record_completeness(line.services, reports)
        # What is due looks for the newest model there is.
        line.services.ledger.record_version(
            VersionRecord(
                asset=spec.asset("model"),
                partition=(LAST - timedelta(days=9)).isoformat(),
                data_version="0" * 64,
                table_version=None,
                rows=1,
                detail={"model_version": 1},
                run_id="by-hand",
                committed_at=AS_OF,
            )
        )
        yield line


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """What was asked of databases, and how many rows came."""
    count = {"rows": 0, "statements": 0}
    real = Result.all

    def counted(self: Any) -> Any:
        rows = real(self)
        count["rows"] += len(rows)
        return rows

    def executed(*_: Any) -> None:
        count["statements"] += 1

    monkeypatch.setattr(Result, "all", counted)
    sa.event.listen(sa.engine.Engine, "after_cursor_execute", executed)
    yield count
    sa.event.remove(sa.engine.Engine, "after_cursor_execute", executed)


def names(line: Line) -> list[str]:
    return [key for day in line.spec.dates() if day <= LAST for key in line.spec.keys_of(day)]


def hold(line: Line, before: Mapping[str, str] | list[str]) -> tuple[dict[str, str], list[Any]]:
    """What a look of the readiness sensor makes of the days that it does not take."""
    held = still_held(line.services, before, {})
    checks = held_check(line.instance, line.services, held)
    for check in checks:
        line.instance.report_runless_asset_event(check)
    return held, checks


def test_an_idle_look_fetches_as_much_however_many_days_are_held(
    home_template: Path, tmp_path: Path, fetched: dict[str, int]
) -> None:
    found: dict[str, list[dict[str, int]]] = {"readiness": [], "alerts": []}
    for days in (FEW, MANY):
        with held_for(days, home_template, tmp_path) as line:
            held, checks = hold(line, names(line))
            assert len(held) == 2 * days
            assert len(checks) == 1
            assert len(update(line.services)) >= days
            update(line.services)  # what was raised has been told
            fetched.update(rows=0, statements=0)
            assert hold(line, held) == (held, [])
            found["readiness"].append(dict(fetched))
            fetched.update(rows=0, statements=0)
            assert update(line.services) == []
            found["alerts"].append(dict(fetched))
    few, many = found["readiness"]
    assert few == many
    few, many = found["alerts"]
    assert few["rows"] == many["rows"]
    # The names of those that may have been built since stand in lists of 500.
    assert many["statements"] - few["statements"] <= 1


def test_whatever_is_recorded_anew_is_seen_by_the_next_look(
    home_template: Path, tmp_path: Path
) -> None:
    """In other words alone, by an earlier clock, by another verdict, or gone."""
    with held_for(FEW, home_template, tmp_path) as line:
        services, asset = line.services, line.spec.asset("features")
        held, _ = hold(line, names(line))
        update(services)
        name, other, third = names(line)[4], names(line)[7], names(line)[8]

        # The same verdict with another report, by a clock that was set back.
        record = services.ledger.verdict("flights", asset, name)
        assert record is not None
        (source, *rest) = record.report["sources"]
        doubted = {**source, "suspicion": "somebody doubts it"}
        changed = {**record.report, "sources": [doubted, *rest]}
        engine = sa.create_engine(line.home.ledger_url)
        with engine.begin() as connection:
            table = sa.Table("verdicts", sa.MetaData(), autoload_with=connection)
            mine = (table.c.asset == asset) & (table.c.partition == name)
            connection.execute(
                table.update()
                .where(mine)
                .values(report=sa.type_coerce(changed, sa.JSON), recorded_at="2012-01-01T00:00:00Z")
            )
            gone = (table.c.asset == asset) & (table.c.partition == third)
            connection.execute(table.delete().where(gone))
        engine.dispose()
        now, checks = hold(line, held)
        assert now[third] == "the ledger has no verdict on it, it is looked at again"
        assert checks
        assert services.ledger.verdicts_but("flights", asset, [])[name].report == changed

        # Another verdict: it may leave.
        day = date.fromisoformat(other.split("|")[1])
        report = services.zone.report(other.split("|")[0], day, AS_OF)
        services.record_verdicts(
            asset,
            {other: (Verdict.WAIVED, report.model_dump(mode="json"))},
            AS_OF,
        )
        assert other not in hold(line, now)[0]
        retold = [a for a in services.alerts.opened("flights") if a.subject.endswith(str(day))]
        assert {c for alert in retold for c in alert.concerns} == {"JFK", "LGA"}
        update(services)
        retold = [a for a in services.alerts.opened("flights") if a.subject.endswith(str(day))]
        assert {c for alert in retold for c in alert.concerns} == {"JFK", "LGA"} - {
            other.split("|")[0]
        }
