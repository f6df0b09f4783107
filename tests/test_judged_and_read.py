"""The hours that are read are the hours that were judged, whoever looks in between."""

from collections.abc import Callable
from pathlib import Path

import pytest

from platform_assets.domain.errors import HeldError, TransientError
from platform_assets.domain.partition import local_hours
from platform_assets.line import features
from platform_assets.line.features import accepted_hours, build_features, require_clear
from platform_assets.line.services import Services
from resources.home import Home
from resources.landing.layout import hour_path
from tests.landing_zone import LATER
from tests.small import small_spec
from tests.test_quarantine import flights
from tests.test_rows_of_a_day import DAY, KEY, NEW_YORK, land

ASSET = "flights/features"
HOUR = local_hours(DAY, NEW_YORK)[12]


@pytest.fixture
def services(home: Home) -> Services:
    found = Services.open(small_spec(), home)
    found.ledger.advance_clock("flights", LATER)
    land(found)
    return found


def vanish(path: Path) -> None:
    path.unlink()


def be_damaged(path: Path) -> None:
    path.write_bytes(b"no parquet")


def looked_at_meanwhile(
    services: Services, patch: pytest.MonkeyPatch, happen: Callable[[Path], None]
) -> None:
    """Once a partition has been judged, something happens to an hour, and somebody looks."""
    path = services.zone.root / "flights" / hour_path("flights", "JFK", HOUR)
    assert path.exists()

    def judge(*given: object) -> object:
        report = require_clear(*given)  # type: ignore[arg-type]
        happen(path)
        assert services.zone.refresh(DAY, DAY) == 1
        return report

    patch.setattr(features, "require_clear", judge)


@pytest.mark.parametrize("happen", [vanish, be_damaged])
def test_an_hour_that_is_gone_after_the_verdict_is_judged_anew(
    services: Services, monkeypatch: pytest.MonkeyPatch, happen: Callable[[Path], None]
) -> None:
    with monkeypatch.context() as patch:
        looked_at_meanwhile(services, patch, happen)
        with pytest.raises(TransientError) as refused:
            build_features(services, KEY, "run")
    said = str(refused.value)
    assert "flights (judged with 24 hours, 23 now)" in said
    assert "materialize flights/features for it again" in said
    assert services.ledger.current_version(ASSET, str(KEY)) is None
    assert services.dataset.versions() == {}
    with pytest.raises(HeldError, match="23 of 24 hours"):
        build_features(services, KEY, "the next try")


def test_an_hour_that_is_another_after_the_verdict_is_judged_anew(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def correct(_: Path) -> None:
        services.zone.deliver("flights", "JFK", HOUR, flights(HOUR, rows=4))

    with monkeypatch.context() as patch:
        looked_at_meanwhile(services, patch, correct)
        with pytest.raises(TransientError, match="have changed since they were judged"):
            build_features(services, KEY, "run")
    assert build_features(services, KEY, "the next try").metadata["rows"] == 23 * 5 + 4


def test_without_the_comparison_a_day_of_23_hours_leaves_as_complete(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at_meanwhile(services, monkeypatch, vanish)
    monkeypatch.setattr(features, "_judged_hours", lambda s, key, _: accepted_hours(s, key))
    built = build_features(services, KEY, "run")
    assert (built.metadata["verdict"], built.metadata["rows"]) == ("complete", 23 * 5)


def test_what_is_recorded_of_the_hours_is_what_was_read(services: Services) -> None:
    build_features(services, KEY, "run")
    record = services.ledger.current_version(ASSET, str(KEY))
    assert record is not None
    assert record.rows == 24 * 5
    hours = record.detail["hours_digest"]
    assert {source: len(found) for source, found in hours.items()} == record.detail["hours"]
