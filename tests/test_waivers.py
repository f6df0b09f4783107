"""Waivers: who may let what leave, how long that counts, and what carries the name of it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import platform_assets.line.days
import platform_assets.line.models
from platform_assets.domain.clock import FixedClock
from platform_assets.domain.completeness import (
    Arrival,
    CompletenessReport,
    SourceReport,
    Verdict,
    assess_source,
)
from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import HeldError, RefusedError, UsageError
from platform_assets.domain.manifest import Day, DayState, PartitionVersion
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.source_spec import ContractSpec
from platform_assets.domain.waiver import Shortage, Waiver, apply_waivers, coverage
from platform_assets.line.clearance import assess
from platform_assets.line.days import build_day, build_snapshot, days_of
from platform_assets.line.explain import explain
from platform_assets.line.features import build_features
from platform_assets.line.history import plan_history
from platform_assets.line.judging import evaluate_model
from platform_assets.line.live import look
from platform_assets.line.models import train_model
from platform_assets.line.services import Services
from platform_assets.line.status import status
from platform_assets.line.waive import (
    give_waiver,
    list_waivers,
    next_step,
    revoke_waiver,
    until_of,
    uses_of,
)
from resources.home import Home
from resources.landing.layout import hour_path
from tests.small import HELD, Line, Templates, copied, failure_of, opened, small_spec
from tests.test_cli import Shell, write_catalog

pytestmark = pytest.mark.heavy

ZONE = "America/New_York"
KEY = PartitionKey.parse(HELD)
SIXTH = KEY.date
UNTIL = datetime(2013, 1, 12, 5, tzinfo=UTC)
DAYS = st.sampled_from([date(2013, 3, 10), date(2013, 7, 1), date(2013, 11, 3)])


# --- what a waiver covers ---------------------------------------------------------------------


def source_report(
    source: str,
    day: date,
    lacking: Sequence[datetime] = (),
    as_of: datetime | None = None,
    rejected: Sequence[datetime] = (),
    digest: str = "",
    contract: ContractSpec | None = None,
) -> SourceReport:
    hours = local_hours(day, ZONE)
    arrivals = [
        Arrival(hour=h, rows=1, rejected="torn" if h in rejected else None, digest=digest)
        for h in hours
        if h not in lacking
    ]
    return assess_source(source, hours, arrivals, as_of or hours[-1] + timedelta(hours=1), contract)


def report_of(*sources: SourceReport, as_of: datetime) -> CompletenessReport:
    return CompletenessReport(
        partition="JFK|2013-07-01", timezone=ZONE, as_of=as_of, sources=sources
    )


def waiver_of(report: CompletenessReport, name: str = "W-0001", **changes: Any) -> Waiver:
    fields = {
        "name": name,
        "pipeline": "flights",
        "partition": report.partition,
        "reason": "the station was down",
        "by": "ann",
        "given_at": report.as_of,
        "until": report.as_of + timedelta(days=9),
        "covers": coverage(report),
    }
    return Waiver(**{**fields, **changes})


@st.composite
def shortages(draw: st.DrawFn) -> tuple[date, list[set[datetime]], list[set[datetime]]]:
    """A day, and of two sources the hours that are missing and those that were refused."""
    day = draw(DAYS)
    hours = st.sets(st.sampled_from(local_hours(day, ZONE)), max_size=6)
    return day, [draw(hours), draw(hours)], [draw(hours), draw(hours)]


def both(
    day: date, lacking: list[set[datetime]], rejected: list[set[datetime]], as_of: datetime
) -> CompletenessReport:
    return report_of(
        *(
            source_report(name, day, sorted(lacking[i]), as_of, sorted(rejected[i]))
            for i, name in enumerate(("flights", "weather"))
        ),
        as_of=as_of,
    )


@given(shortages(), st.data())
def test_a_waiver_covers_what_it_names_and_not_one_hour_more(
    found: tuple[date, list[set[datetime]], list[set[datetime]]], data: st.DataObject
) -> None:
    day, lacking, rejected = found
    hours = local_hours(day, ZONE)
    over = hours[-1] + timedelta(hours=1)
    report = both(day, lacking, rejected, over)
    waiver = waiver_of(report)
    waived = apply_waivers(report, [waiver], over)
    assert waived.is_clear
    assert waived.is_whole == report.is_whole
    for before, after in zip(report.sources, waived.sources, strict=True):
        assert (after.verdict is Verdict.WAIVED) is not before.is_clear
        assert after.waiver == ("" if before.is_clear else waiver.name)
        assert after.data_version() == before.data_version()

    # Less may be lacking by now, more may not: of the 25 hours of a day each is one of its own.
    healed = both(day, [set(), lacking[1]], rejected, over)
    assert apply_waivers(healed, [waiver], over).is_clear
    more = data.draw(st.sampled_from(hours))
    worse = both(day, [lacking[0] | {more}, lacking[1]], rejected, over)
    still = apply_waivers(worse, [waiver], over)
    assert still.is_clear is (more in lacking[0] | rejected[0])


@given(shortages(), st.integers(min_value=0, max_value=25))
def test_hours_that_are_not_due_are_never_waived(
    found: tuple[date, list[set[datetime]], list[set[datetime]]], hour: int
) -> None:
    day, lacking, rejected = found
    hours = local_hours(day, ZONE)
    as_of = hours[0] + timedelta(hours=hour)
    report = both(day, lacking, rejected, as_of)
    waived = apply_waivers(report, [waiver_of(report)], as_of)
    for source in waived.sources:
        assert source.verdict is not Verdict.WAIVED or not source.not_due
    assert waived.is_clear is not any(s.not_due for s in waived.sources)


@given(shortages(), st.integers(min_value=-3, max_value=3))
def test_a_waiver_counts_until_and_not_at_its_end(
    found: tuple[date, list[set[datetime]], list[set[datetime]]], seconds: int
) -> None:
    day, lacking, rejected = found
    over = local_hours(day, ZONE)[-1] + timedelta(hours=1)
    report = both(day, lacking, rejected, over)
    until = over + timedelta(days=1)
    now = until + timedelta(seconds=seconds)
    waiver = waiver_of(report, until=until)
    assert apply_waivers(report, [waiver], now).is_clear is (seconds < 0 or report.is_clear)
    revoked = waiver.model_copy(update={"revoked_at": over})
    assert apply_waivers(report, [revoked], over) == report
    other = waiver.model_copy(update={"partition": "LGA|2013-07-01"})
    assert apply_waivers(report, [other], over) == report


def test_of_two_waivers_the_newest_that_covers_all_counts() -> None:
    hours = local_hours(date(2013, 7, 1), ZONE)
    over = hours[-1] + timedelta(hours=1)
    few = report_of(source_report("weather", date(2013, 7, 1), hours[3:4]), as_of=over)
    many = report_of(source_report("weather", date(2013, 7, 1), hours[3:6]), as_of=over)
    narrow = waiver_of(few, "W-0002", given_at=over + timedelta(minutes=1))
    wide = waiver_of(many, "W-0001")

    def used(report: CompletenessReport, *waivers: Waiver) -> str:
        return apply_waivers(report, waivers, over + timedelta(hours=1)).sources[0].waiver

    assert used(few, wide, narrow) == used(few, narrow, wide) == "W-0002"
    assert used(many, wide, narrow) == "W-0001"
    # What each covers a part of, nobody has answered for as a whole.
    rest = report_of(source_report("weather", date(2013, 7, 1), hours[4:6]), as_of=over)
    assert used(many, narrow, waiver_of(rest, "W-0003")) == ""
    later = waiver_of(few, "W-0010", given_at=narrow.given_at)
    assert used(few, later, narrow) == "W-0010"


def test_the_report_says_who_waived_why_and_until_when() -> None:
    hours = local_hours(date(2013, 7, 1), ZONE)
    over = hours[-1] + timedelta(hours=1)
    held = report_of(
        source_report("flights", date(2013, 7, 1), ()),
        source_report("weather", date(2013, 7, 1), hours[3:4]),
        as_of=over,
    )
    waiver = waiver_of(held)
    found = apply_waivers(held, [waiver], over)
    document = found.model_dump(mode="json")
    assert document["sources"][1]["waived"] == {
        "by": "ann",
        "reason": "the station was down",
        "until": waiver.until.isoformat().replace("+00:00", "Z"),
    }
    assert CompletenessReport.model_validate(document) == found
    # What no waiver covers is written as it was before: no verdict is recorded anew for this.
    assert "waived" not in document["sources"][0]
    assert all("waived" not in source for source in held.model_dump(mode="json")["sources"])


def test_a_suspicious_number_is_waived_for_these_files_alone() -> None:
    """Else one waiver for a day that is a little thin would let an empty one leave."""
    day, contract = date(2013, 7, 1), ContractSpec(min_rows=50)
    over = local_hours(day, ZONE)[-1] + timedelta(hours=1)

    def found(digest: str) -> CompletenessReport:
        source = source_report("flights", day, digest=digest, contract=contract)
        assert source.verdict is Verdict.SUSPICIOUS
        return report_of(source, as_of=over)

    waiver = waiver_of(found("a"))
    assert apply_waivers(found("a"), [waiver], over).is_clear
    assert not apply_waivers(found("b"), [waiver], over).is_clear
    # Nor does a waiver of hours cover a number.
    hours = local_hours(day, ZONE)
    other = waiver_of(report_of(source_report("flights", day, hours[:1]), as_of=over))
    assert not apply_waivers(found("a"), [other], over).is_clear


def test_a_report_of_no_source_is_not_clear() -> None:
    """Nothing known is nothing proven: a partition without a verdict is held."""
    nothing = report_of(as_of=UNTIL)
    assert not nothing.is_clear
    assert not nothing.is_whole
    waiver = waiver_of(nothing)
    assert not apply_waivers(nothing, [waiver], UNTIL).is_clear


# --- giving one -------------------------------------------------------------------------------


@pytest.fixture
def built(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """All days until 2013-01-09 but LGA's 6th, whose weather lacks 06:00."""
    with copied(Templates(shared_folder, home_template).features, tmp_path) as found:
        # Building them drew attention to their days; here it is the waiver that does.
        found.services.watch.settle("flights", found.spec.dates())
        yield found


@pytest.fixture
def line(home: Home) -> Iterator[Line]:
    with opened(home) as found:
        yield found


def waive(services: Services, partition: str = HELD, **changes: Any) -> Waiver:
    fields: dict[str, Any] = {"reason": "the station was down", "by": "ann", "until": UNTIL}
    return give_waiver(services, partition, **{**fields, **changes})


def test_a_waiver_covers_exactly_what_is_lacking_and_the_date_is_taken_up(built: Line) -> None:
    services = built.services
    waiver = waive(services, reason="  the station\nwas down ")
    assert waiver.name == "W-0001"
    assert waiver.covers == {"weather": Shortage(hours=("2013-01-06T11Z",))}
    assert waiver.reason == "the station was down"
    assert waiver.given_at == services.clock.as_of()
    assert services.waivers.of("flights") == [waiver]
    assert services.watch.attended("flights") == {SIXTH: "waiver W-0001"}
    verdict = services.ledger.verdict("flights", "flights/features", HELD)
    assert verdict is not None
    assert verdict.verdict == "waived"
    report = assess(services, KEY)
    assert report.shortage() == "weather 23 of 24 hours, missing 06:00, past the deadline, " + (
        "waived by W-0001"
    )
    assert next_step(services, waiver).startswith("2013-01-06 lies before the live dates")
    live = replace(services, spec=small_spec(schedule={"live_from": "2013-01-06"}))
    assert "the readiness sensor requests flights/features by itself" in next_step(live, waiver)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"partition": "SFO|2013-01-06"}, UsageError, "airport SFO; allowed are JFK, LGA"),
        ({"partition": "2013-01-06"}, UsageError, "airport is missing"),
        ({"partition": "LGA|2014-01-06"}, UsageError, "2013-01-02 to 2013-01-20"),
        ({"partition": "JFK|2013-01-06"}, RefusedError, "may leave already .complete.: there is"),
        ({"partition": "LGA|2013-01-10"}, RefusedError, "the day is not over"),
        ({"reason": " \n"}, UsageError, "needs a reason, none was given"),
        ({"reason": "x" * 501}, UsageError, "1 to 500 printable"),
        ({"reason": "down\x00"}, UsageError, "printable"),
        ({"by": ""}, UsageError, "needs a name of who gives it"),
        ({"until": datetime(2013, 1, 10, 5, tzinfo=UTC)}, UsageError, "allowed is a later time"),
        ({"until": datetime(2014, 1, 12, 5, tzinfo=UTC)}, UsageError, "at the most 366 days"),
        ({"covers": {}}, RefusedError, "lacks something else than what was seen"),
    ],
)
def test_what_is_not_waived(
    built: Line, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        waive(built.services, **changes)
    assert built.services.waivers.of("flights") == []
    assert built.services.watch.attended("flights") == {}


def test_a_partition_under_a_waiver_gets_no_second_one(built: Line) -> None:
    waive(built.services)
    with pytest.raises(RefusedError, match=r"waived.: under W-0001; revoke that first"):
        waive(built.services)


def test_a_day_without_a_single_hour_of_its_rows_is_not_waived(line: Line) -> None:
    """There would be nothing to train on; weather alone makes no row."""
    line.land("2013-01-04")
    for path in (line.home.landing / "flights" / "flights" / "JFK").rglob("2013-01-0*.parquet"):
        path.unlink()
    with pytest.raises(RefusedError, match="no accepted hour of flights"):
        waive(line.services, "JFK|2013-01-04")
    # The other source may be lacking altogether.
    for path in (line.home.landing / "flights" / "weather" / "LGA").rglob("2013-01-0*.parquet"):
        path.unlink()
    waiver = waive(line.services, "LGA|2013-01-04")
    assert len(waiver.covers["weather"].hours) == 24
    outcome = build_features(line.services, PartitionKey.parse("LGA|2013-01-04"), "by hand")
    assert outcome.metadata["rows_without_joined_row"] == outcome.metadata["rows"] > 0


def test_what_the_catalog_accepts_needs_no_waiver(line: Line) -> None:
    contract = {"at_deadline": "accept", "accept_lacking": 4}
    spec = line.spec.model_dump()
    spec["sources"]["weather"]["contract"] |= contract
    accepting = replace(line.services, spec=small_spec(sources=spec["sources"]))
    line.land("2013-01-06", "2013-01-07")
    assert assess(accepting, KEY).verdict is Verdict.ACCEPTED
    with pytest.raises(RefusedError, match=r"may leave already .accepted.: there is nothing"):
        waive(accepting)
    outcome = build_features(accepting, KEY, "by hand")
    assert "accepted by the catalog's rule" in outcome.metadata["short"]
    assert outcome.metadata["waivers"] is None


def test_until_is_the_start_of_a_local_day(flights: Any) -> None:
    assert until_of(flights, "2013-11-30") == datetime(2013, 11, 30, 5, tzinfo=UTC)
    assert until_of(flights, "2013-07-30") == datetime(2013, 7, 30, 4, tzinfo=UTC)
    # At midnight of 2013-11-03 the clock has not been changed yet.
    assert until_of(flights, "2013-11-03") == datetime(2013, 11, 3, 4, tzinfo=UTC)
    for text in ("2013-02-30", "tomorrow", "", "20131130", "9999-12-31T00"):
        with pytest.raises(UsageError, match="write it as in 2013-11-30"):
            until_of(flights, text)


def test_giving_one_does_not_use_up_what_dagster_was_not_told(line: Line) -> None:
    """The landing zone changed; a run tells of it once, whatever was looked at in between."""
    line.land("2013-01-06", airports=["LGA"])
    waive(line.services)
    told: list[Any] = []
    build_features(line.services, KEY, "by hand", told.append)
    assert {change.asset for change in told} == {"flights/landed_flights", "flights/landed_weather"}
    (verdict,) = line.services.ledger.verdicts("flights", "flights/landed_weather").values()
    assert verdict.verdict == "waived"


# --- what carries it --------------------------------------------------------------------------


def mlflow_tags(line: Line, run_id: str) -> dict[str, str]:
    from mlflow import MlflowClient

    tags: dict[str, str] = MlflowClient(line.home.mlflow_uri).get_run(run_id).data.tags
    return tags


def test_whatever_rests_on_a_waiver_says_so(built: Line) -> None:
    """From the features to the judgement, in the ledger, in Dagster, in MLflow, and in words."""
    services, name = built.services, SIXTH.isoformat()
    waiver = waive(services)
    text = waiver.describe()
    assert text == "W-0001 by ann until 2013-01-12 05:00Z: the station was down"
    ran = built.must("features", partition=HELD)
    assert "weather 23 of 24 hours" in str(built.materializations("features")[-1].metadata["short"])
    check = built.check("features")
    assert check.passed
    assert check.description == "1 of 1 partition(s) were clear, 1 of them by acceptance or waiver"
    assert ran.success
    built.must("day", partition=name)
    built.must("snapshot", "model", partition=name)
    # 2013-01-05 is judged on the 6th.
    built.must("snapshot", "model", partition="2013-01-05")
    built.must("evaluation", partition="2013-01-05")

    for stage in ("features", "day", "snapshot", "model", "evaluation"):
        partition = {"features": HELD, "evaluation": "2013-01-05"}.get(stage, name)
        dagster_key = built.dagster_key(partition)
        event = [e for e in built.materializations(stage) if e.partition == dagster_key][-1]
        shown: Any = event.metadata["waivers"].value
        assert shown == {"W-0001": text}, stage
        assert event.metadata["short"].value, stage
        (record,) = built.history(stage, partition)[-1:]
        if stage != "day":
            assert record.detail["waivers"] == ["W-0001"], stage
        document = explain(services, stage, partition)
        assert document["waivers"] == {"W-0001": text}, stage
        assert document["short"], stage
        assert document["state"] == "done"
    assert explain(services, "landed_weather", HELD)["waivers"] == {"W-0001": text}
    assert explain(services, "landed_flights", HELD)["waivers"] == {}

    model = built.versions("model")[name]
    tags = mlflow_tags(built, model.detail["mlflow_run_id"])
    assert tags["signalbox.waivers"] == "W-0001"
    assert tags["signalbox.waiver.W-0001"] == text
    assert tags["signalbox.short_partitions"] == HELD
    clean = built.versions("model")["2013-01-05"]
    assert mlflow_tags(built, clean.detail["mlflow_run_id"])["signalbox.waivers"] == "none"

    found = status(services)["assets"]
    assert found["flights/landed_weather"]["waived"] == 1
    assert found["flights/landed_weather"]["held"] == 0
    assert found["flights/features"]["waived"] == 1
    assert found["flights/landed_flights"]["waived"] == 0

    (listed,) = list_waivers(services)
    assert listed["features"] == [HELD]
    assert [(m["date"], m["version"]) for m in listed["models"]] == [
        (name, model.detail["model_version"])
    ]
    assert listed["judged"] == ["2013-01-05"]
    assert listed["state"] == "active"


# --- when it no longer counts -----------------------------------------------------------------


def test_a_waiver_that_expires_after_the_features_keeps_them_from_the_snapshot(
    built: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, name = built.services, SIXTH.isoformat()
    waive(services)
    build_features(services, KEY, "by hand")
    assert days_of(services, [SIXTH])[SIXTH].state == "whole"
    services.ledger.advance_clock("flights", UNTIL - timedelta(seconds=1))
    assert days_of(services, [SIXTH])[SIXTH].state == "whole"
    services.ledger.advance_clock("flights", UNTIL)
    day = days_of(services, [SIXTH])[SIXTH]
    assert day.state == "held"
    assert "missing 06:00" in day.reason()
    assert "waiver W-0001 by ann until 2013-01-12 05:00Z" in day.reason()
    assert "has expired; give a new one" in day.reason()
    ran = built.run("snapshot", "model", partition=name)
    assert not ran.success
    assert "has expired" in failure_of(ran)
    assert built.versions("snapshot") == built.versions("model") == {}
    document = explain(services, "features", HELD)
    assert document["state"] == "held"
    assert "has expired" in document["reason"]
    counted = status(services)["assets"]["flights/features"]
    assert (counted["waived"], counted["held"] + counted["missing"]) == (0, 5)
    # Rows that were built are all that a snapshot would ask for, but for these.
    for guard in ("lapsed", "_unaccepted", "unaccepted_now"):
        monkeypatch.setattr(platform_assets.line.days, guard, lambda *_: {})
    assert build_snapshot(services, PartitionKey(SIXTH), "by hand").metadata["days"] == 3


def test_a_waiver_that_is_revoked_after_the_snapshot_keeps_it_from_the_training(
    built: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, name = built.services, SIXTH.isoformat()
    waive(services)
    build_features(services, KEY, "by hand")
    built.must("snapshot", partition=name)
    revoke_waiver(services, "W-0001", "bob", "it was not down at all")
    ran = built.run("model", partition=name)
    assert not ran.success
    said = "waiver W-0001 was revoked by bob: it was not down at all; materialize flights/snapshot"
    assert said in failure_of(ran)
    assert built.versions("model") == {}
    assert said in explain(services, "model", name)["reason"]
    # Without the guards the old manifest is trained on.
    for guard in ("lapsed", "unaccepted_now"):
        monkeypatch.setattr(platform_assets.line.models, guard, lambda *_: {})
    assert train_model(services, PartitionKey(SIXTH), "by hand", lane="adhoc").changed


def test_a_waiver_that_is_revoked_after_the_training_names_the_models(built: Line) -> None:
    services, name = built.services, SIXTH.isoformat()
    waive(services)
    build_features(services, KEY, "by hand")
    build_snapshot(services, PartitionKey(SIXTH), "by hand")
    train_model(services, PartitionKey(SIXTH), "by hand", lane="adhoc")
    revoked = revoke_waiver(services, "W-0001", "bob", "it was not down at all")
    assert revoked.state(services.clock.as_of()) == "revoked"
    assert services.watch.attended("flights")[SIXTH] == "waiver W-0001"
    verdict = services.ledger.verdict("flights", "flights/features", HELD)
    assert verdict is not None
    assert verdict.verdict == "late"
    (listed,) = list_waivers(services)
    assert [model["date"] for model in listed["models"]] == [name]
    assert listed["revoked_by"] == "bob"
    assert list_waivers(services, every=False) == []
    # The model stands, and what it was made of can still be told; nothing new is made of it.
    document_of_model = explain(services, "model", name)
    assert document_of_model["waivers"]["W-0001"].endswith(
        "(revoked by bob: it was not down at all)"
    )
    assert document_of_model["versions"][0]["waivers"] == ["W-0001"]
    assert built.versions("model")[name].detail["waivers"] == ["W-0001"]
    with pytest.raises(HeldError, match="was revoked by bob"):
        build_snapshot(services, PartitionKey(SIXTH), "by hand")
    # The next window leaves the day out.
    taken = build_snapshot(services, PartitionKey(date(2013, 1, 7)), "by hand")
    assert list(taken.metadata["held"]) == [name]
    with pytest.raises(UsageError, match="revoked already, by bob"):
        revoke_waiver(services, "W-0001", "bob", "again")


def test_revoking_what_is_not_there(built: Line) -> None:
    services = built.services
    for name in ("W-0007", "nonsense", "W-" + "9" * 40, ""):
        with pytest.raises(UsageError, match="has no waiver"):
            revoke_waiver(services, name, "bob", "why not")
    waive(services)
    with pytest.raises(UsageError, match="needs a reason"):
        revoke_waiver(services, "W-0001", "bob", "")
    services.ledger.advance_clock("flights", UNTIL)
    with pytest.raises(RefusedError, match="has expired: there is nothing left to revoke"):
        revoke_waiver(services, "W-0001", "bob", "too late")


def hour_file(line: Line, source: str, key: str, hour: datetime) -> Path:
    return line.home.landing / "flights" / hour_path(source, key, hour)


def heal(line: Line) -> None:
    """Deliver the hour that LGA's weather of 2013-01-06 lacks: a copy of the one before."""
    hours = local_hours(SIXTH, ZONE)
    own = line.services.zone.read("weather", "LGA", SIXTH).slice(5, 1)
    at = own.schema.get_field_index("time_hour")
    shifted = own.set_column(at, own.schema.field("time_hour"), [[hours[6]]])
    line.services.zone.deliver("weather", "LGA", hours[6], shifted)


def test_rows_of_a_lapsed_waiver_are_built_again_once_the_hour_has_come(built: Line) -> None:
    """The day is whole now: nobody is asked for another waiver, and no window leaves it out."""
    services = replace(built.services, spec=small_spec(schedule={"live_from": "2013-01-06"}))
    waive(services)
    build_features(services, KEY, "by hand")
    heal(built)
    revoke_waiver(services, "W-0001", "bob", "the hour has come")
    day = days_of(services, [SIXTH])[SIXTH]
    assert day.state == "unbuilt"
    assert "waiver" not in day.reason()
    with pytest.raises(HeldError, match=r"not built .2013-01-06."):
        build_snapshot(services, PartitionKey(date(2013, 1, 7)), "by hand")
    assert plan_history(services, SIXTH, SIXTH).build["features"] == (HELD,)
    tick = look(services)
    first = tick.plan.requests[0]
    assert (first.job, first.partition) == ("features", HELD)
    assert HELD not in tick.plan.held
    build_features(services, KEY, "by hand")
    assert built.versions("features")[HELD].detail["waivers"] == []
    assert days_of(services, [SIXTH])[SIXTH].state == "whole"


def test_the_same_rows_under_another_waiver(built: Line) -> None:
    """Features, roll-up, snapshot and model name who answers for them now."""
    services, name = built.services, SIXTH.isoformat()
    waive(services)
    build_features(services, KEY, "by hand")
    build_day(services, PartitionKey(SIXTH), "by hand")
    build_snapshot(services, PartitionKey(SIXTH), "by hand")
    revoke_waiver(services, "W-0001", "ann", "carl knows better")
    second = waive(services, by="carl", reason="checked with the station")
    assert second.name == "W-0002"
    # What was built under the first is to be built again, with nothing to commit.
    assert days_of(services, [SIXTH])[SIXTH].state == "unbuilt"
    version = services.dataset.versions()
    outcome = build_features(services, KEY, "by hand")
    assert not outcome.changed
    assert services.dataset.versions() == version
    first, last = built.history("features", HELD)
    assert first.data_version == last.data_version
    assert [first.detail["waivers"], last.detail["waivers"]] == [["W-0001"], ["W-0002"]]
    assert name in plan_history(services, SIXTH, SIXTH).build["day"]
    build_day(services, PartitionKey(SIXTH), "by hand")
    assert built.history("day", name)[-1].detail["partitions"][1]["waivers"] == ["W-0002"]
    with pytest.raises(HeldError, match="materialize flights/snapshot"):
        train_model(services, PartitionKey(SIXTH), "by hand", lane="adhoc")
    build_snapshot(services, PartitionKey(SIXTH), "by hand")
    train_model(services, PartitionKey(SIXTH), "by hand", lane="adhoc")
    assert built.versions("model")[name].detail["waivers"] == ["W-0002"]
    uses = uses_of(services)
    assert "W-0001" not in uses
    assert uses["W-0002"]["features"] == [HELD]
    # Building it once more adds nothing.
    build_features(services, KEY, "by hand")
    assert len(built.history("features", HELD)) == 2


def test_what_goes_missing_later_is_not_covered(built: Line) -> None:
    services = built.services
    waive(services)
    hour = local_hours(SIXTH, ZONE)[9]
    path = hour_file(built, "weather", "LGA", hour)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(HeldError, match="missing 06:00, 09:00"):
        build_features(services, KEY, "by hand")
    # Nor is a file that was refused since.
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(HeldError, match="rejected 2013-01-06T14Z"):
        build_features(services, KEY, "by hand")
    path.write_bytes(content)
    assert build_features(services, KEY, "by hand").metadata["verdict"] == "waived"


def test_a_refused_file_may_be_waived_and_comes_in_when_it_is_good(built: Line) -> None:
    services, partition = built.services, "JFK|2013-01-07"
    key = PartitionKey.parse(partition)
    path = hour_file(built, "weather", "JFK", local_hours(key.date, ZONE)[9])
    content = path.read_bytes()
    path.write_bytes(b"PAR1 torn")
    assert assess(services, key).verdict is Verdict.QUARANTINED
    waiver = waive(services, partition)
    assert waiver.covers == {"weather": Shortage(hours=("2013-01-07T14Z",))}
    outcome = build_features(services, key, "by hand")
    assert outcome.metadata["verdict"] == "waived"
    assert outcome.metadata["rows_without_joined_row"] > 0
    path.write_bytes(content)
    outcome = build_features(services, key, "by hand")
    assert outcome.metadata["verdict"] == "complete"
    assert outcome.metadata["waivers"] is None
    assert outcome.metadata["rows_without_joined_row"] == 0
    assert [v.detail["waivers"] for v in built.history("features", partition)] == [
        [],
        ["W-0001"],
        [],
    ]


def test_corrected_hours_of_a_waived_day_are_a_version_of_their_own(built: Line) -> None:
    services = built.services
    waive(services)
    build_features(services, KEY, "by hand")
    hour = local_hours(SIXTH, ZONE)[15]
    rows = services.zone.read("flights", "LGA", SIXTH)
    own = rows.filter([moment == hour for moment in rows["time_hour"].to_pylist()])
    services.zone.deliver("flights", "LGA", hour, own.slice(1))
    assert build_features(services, KEY, "by hand").changed
    first, last = built.history("features", HELD)
    assert last.rows == first.rows - 1
    assert last.detail["waivers"] == ["W-0001"]


def test_the_clock_decides_not_the_machine(built: Line) -> None:
    """The waiver's times are on the pipeline's clock: 2013 is not over because it is now."""
    waiver = waive(built.services)
    later = replace(built.services, fixed_clock=FixedClock(UNTIL))
    assert assess(built.services, KEY).is_clear
    assert not assess(later, KEY).is_clear
    assert waiver.until < datetime.now(UTC)


# --- the live days ----------------------------------------------------------------------------


def test_a_live_day_that_is_waived_leaves_by_itself(built: Line) -> None:
    spec = small_spec(schedule={"live_from": "2013-01-06"})
    services = replace(built.services, spec=spec)
    before = look(services).plan
    assert HELD in before.held
    assert not [r for r in before.requests if r.job == "features"]
    waive(services)
    (request,) = [r for r in look(services).plan.requests if r.job == "features"]
    assert request.partition == HELD
    assert "waived by W-0001" in request.reason
    # Another waiver is another run, though the data is the same.
    revoke_waiver(services, "W-0001", "ann", "wrong reason")
    assert not [r for r in look(services).plan.requests if r.job == "features"]
    waive(services)
    (again,) = [r for r in look(services).plan.requests if r.job == "features"]
    assert again.run_key != request.run_key
    build_features(services, KEY, "by hand")
    plan = look(services).plan
    assert HELD not in plan.held
    assert ("train", "2013-01-06") in [(r.job, r.partition) for r in plan.requests]
    # It lapses before it was trained on: held again, and the tick says why.
    services.ledger.advance_clock("flights", UNTIL)
    plan = look(services).plan
    assert "has expired; give a new one" in plan.held[HELD]
    assert ("train", "2013-01-06") not in [(r.job, r.partition) for r in plan.requests]


def test_a_judgement_rests_on_it_too(built: Line) -> None:
    """A model that is clean itself, judged on a day that is not; and not after the waiver."""
    services = built.services
    build_snapshot(services, PartitionKey(date(2013, 1, 5)), "by hand")
    train_model(services, PartitionKey(date(2013, 1, 5)), "by hand", lane="adhoc")
    waive(services)
    build_features(services, KEY, "by hand")
    outcome = evaluate_model(services, PartitionKey(date(2013, 1, 5)), "by hand")
    assert list(outcome.metadata["waivers"]) == ["W-0001"]
    revoke_waiver(services, "W-0001", "bob", "no")
    with pytest.raises(HeldError, match="was revoked by bob"):
        evaluate_model(services, PartitionKey(date(2013, 1, 5)), "by hand")


# --- the launchpad ----------------------------------------------------------------------------


def launch(line: Line, **config: str) -> Any:
    fields = {
        "partition": HELD,
        "reason": "the station was down",
        "by": "ann",
        "until": "2013-01-12",
    }
    return line.defs.resolve_job_def("flights_waive").execute_in_process(
        instance=line.instance,
        run_config={"ops": {"flights__waive": {"config": {**fields, **config}}}},
        raise_on_error=False,
    )


def observed(line: Line) -> list[dg.AssetObservation]:
    records = line.instance.fetch_observations(line.key("features"), limit=9).records
    return [r.asset_observation for r in records if r.asset_observation is not None]


def test_the_job_gives_a_waiver_and_shows_it_on_the_partition(built: Line) -> None:
    ran = launch(built)
    assert ran.success, failure_of(ran)
    (waiver,) = built.services.waivers.of("flights")
    assert waiver.until == UNTIL
    (event,) = observed(built)
    assert event.partition == built.dagster_key(HELD)
    assert event.metadata["waiver"].value == "W-0001"
    assert event.metadata["by"].value == "ann"
    assert event.metadata["covers"].value["weather"]["hours"] == ["2013-01-06T11Z"]
    assert "belongs to backfills" in str(event.metadata["next"].value)
    built.must("features", partition=HELD)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"partition": "JFK|2013-01-06"}, "may leave already"),
        ({"partition": "SFO|2013-01-06"}, "airport SFO; allowed are JFK, LGA"),
        ({"until": "soon"}, "write it as in 2013-11-30"),
        ({"by": " "}, "needs a name of who gives it"),
    ],
)
def test_the_job_refuses_in_one_sentence(built: Line, config: dict[str, str], said: str) -> None:
    ran = launch(built, **config)
    assert not ran.success
    assert said in failure_of(ran)
    assert built.services.waivers.of("flights") == []
    assert observed(built) == []


def test_an_observation_does_not_pass_for_rows(built: Line) -> None:
    """Dagster must not take a waiver for a materialization of what it lets go."""
    launch(built)
    keys = built.instance.get_materialized_partitions(built.key("features"))
    assert built.dagster_key(HELD) not in keys


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture
def small(built: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """The built line, and a catalog that holds it."""
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(write_catalog(tmp_path / "catalog", small_spec())))
    return built


@pytest.fixture
def signalbox(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


GIVEN = ("--reason", "the station was down", "--by", "ann", "--until", "2013-01-12")


def test_the_commands(small: Line, signalbox: Shell) -> None:
    assert signalbox("waivers", "--json").document == {"waivers": []}
    said = signalbox("waive", HELD, *GIVEN, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document["name"] == "W-0001"
    assert said.document["covers"]["weather"]["hours"] == ["2013-01-06T11Z"]
    assert said.document["until"] == "2013-01-12T05:00:00Z"
    assert "belongs to backfills" in said.document["next"]
    # It is to be seen on the partition in the UI, though no run gave it.
    (event,) = observed(small)
    assert (event.partition, event.metadata["waiver"].value) == (small.dagster_key(HELD), "W-0001")

    small.must("features", partition=HELD)
    (listed,) = signalbox("waivers", "--json").document["waivers"]
    assert (listed["state"], listed["features"], listed["models"]) == ("active", [HELD], [])
    said = signalbox("explain", "features", HELD)
    assert "under waiver W-0001 by ann until 2013-01-12 05:00Z: the station was down" in said.out
    said = signalbox("status", "features")
    assert "waived" in said.out
    said = signalbox("waivers")
    for word in ("W-0001", "active", "ann", "the station was down"):
        assert word in said.out

    said = signalbox("revoke-waiver", "W-0001", "--by", "bob", "--reason", "not true")
    assert said.code == 0
    assert said.out.startswith(f"W-0001 is revoked: what it covered holds {HELD} again\n")
    assert "trained on what it let go: no model" in said.out
    assert signalbox("waivers", "--json").document == {"waivers": []}
    (listed,) = signalbox("waivers", "--all", "--json").document["waivers"]
    assert (listed["state"], listed["revoked_by"]) == ("revoked", "bob")
    assert [e.description for e in observed(small)] == [
        "Waiver W-0001 was revoked.",
        "Waiver W-0001 was given.",
    ]
    said = signalbox("waive", HELD, *GIVEN)
    assert said.out.startswith(f"{HELD} is waived: W-0002 by ann until 2013-01-12 05:00Z")
    assert "weather: 2013-01-06T11Z" in said.out


def test_commands_that_are_refused(small: Line, signalbox: Shell) -> None:
    signalbox("waive", "JFK|2013-01-06", *GIVEN).refused(1, "may leave already", "build it")
    signalbox("waive", "SFO|2013-01-06", *GIVEN).refused(2, "allowed are JFK, LGA")
    late = [*GIVEN[:-1], "2013-01-09"]
    signalbox("waive", HELD, *late, "--json").refused(2, "allowed is a later time, at the most 366")
    signalbox("waive", HELD, *GIVEN[:-1], "soon").refused(2, "write it as in 2013-11-30")
    signalbox("waive", HELD, "--by", "ann", "--until", "2013-01-12").refused(2, "--reason")
    signalbox("revoke-waiver", "W-0001", "--by", "b", "--reason", "c").refused(2, "no waiver")
    signalbox("waivers", "--pipeline", "trains").refused(2, "'trains' is no pipeline")
    assert small.services.waivers.of("flights") == []
    assert observed(small) == []


def test_a_home_whose_dagster_cannot_be_told_keeps_the_waiver(
    small: Line, signalbox: Shell
) -> None:
    """The ledger decides; what Dagster shows of it is a courtesy, and its failure is said."""
    (small.home.dagster / "dagster.yaml").write_text("telemetry: [")
    said = signalbox("waive", HELD, *GIVEN, "--json")
    assert said.code == 0
    assert said.document["name"] == "W-0001"
    assert "waiver W-0001 counts, but Dagster could not be told of it" in said.err
    assert assess(small.services, KEY).is_clear


# --- the ledger's store, and digests ----------------------------------------------------------


def test_a_waiver_belongs_to_its_pipeline(built: Line) -> None:
    waive(built.services)
    store = built.services.waivers
    for pipeline, name in (("trains", "W-0001"), ("flights", "W-0002")):
        with pytest.raises(UsageError, match=f"pipeline {pipeline} has no waiver '{name}'"):
            store.revoke(pipeline, name, "bob", "not mine", UNTIL)
    assert store.of("trains") == []
    assert store.of("flights", ["JFK|2013-01-06"]) == []
    assert [w.name for w in store.of("flights", [HELD, "JFK|2013-01-06"])] == ["W-0001"]


def test_of_many_who_revoke_at_once_one_does(built: Line) -> None:
    waive(built.services)
    store = built.services.waivers

    def revoke(who: str) -> bool:
        try:
            store.revoke("flights", "W-0001", who, "each his own", UNTIL)
        except UsageError:
            return False
        return True

    names = [f"person {n}" for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        won = [name for name, done in zip(names, pool.map(revoke, names), strict=True) if done]
    assert len(won) == 1
    (waiver,) = store.of("flights")
    assert waiver.revoked_by == won[0]


def test_a_roll_up_under_another_waiver_is_another_version() -> None:
    """So that it is made anew; and without one it is the version that it always was."""

    def rolled(*waivers: str) -> str:
        version = PartitionVersion(
            partition=HELD, data_version="d", table_version=3, rows=9, waivers=waivers
        )
        return Day(date=SIXTH, state=DayState.WHOLE, partitions=(version,)).data_version()

    assert len({rolled(), rolled("W-0001"), rolled("W-0002"), rolled("W-0001", "W-0002")}) == 4
    plain = {"state": "whole", "partitions": [(HELD, "d")], "lacking": []}
    assert rolled() == digest_of(plain)
