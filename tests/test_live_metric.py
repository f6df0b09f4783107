"""A champion that does badly on the days since is rolled back from, by the real sensor and job."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

import platform_assets.line.live_metric as live_metric
from platform_assets.domain.errors import PromotionConflictError, RefusedError, TransientError
from platform_assets.domain.partition import PartitionKey
from platform_assets.factory import serving as jobs
from platform_assets.line.alerting import update
from platform_assets.line.judging import evaluate_model
from platform_assets.line.launching import open_failures
from platform_assets.line.live_metric import LIVE_METRIC, watch_champion
from platform_assets.line.models import train_model
from platform_assets.line.projection import project
from platform_assets.line.services import Services
from resources.ledger.records import AlertRecord
from sensors import serving as sensing
from sensors.launched import REQUEST_TAG
from tests.promoting import MODEL, crowned
from tests.small import Line, Templates, copied, failure_of, small_spec
from tests.test_champion_waivers import rests, revoke, waiver
from tests.test_every_path import forget
from tests.test_projection import alerts, aliases, client, promote

BOUND = 0.8
GOOD, BAD, FIRST, SECOND = "2013-01-04", "2013-01-05", "2013-01-07", "2013-01-08"
pytestmark = pytest.mark.heavy


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """A good champion, and a truly bad one in force."""
    spec = small_spec(serving={"rollback": {"bound": BOUND, "days": 2}})
    with copied(Templates(shared_folder, home_template).models, tmp_path, spec) as found:
        opposite = small_spec(model={"trainer": "tests.bad_trainer:OppositeTrainer"})
        day = PartitionKey.parse(BAD)
        train_model(Services.open(opposite, found.home), day, "bad", lane="adhoc")
        promote(found, GOOD)
        promote(found, BAD)
        project(found.services)
        yield found


def judge(line: Line, *days: str) -> None:
    for day in days:
        evaluate_model(line.services, PartitionKey.parse(day), "run")


def champion(line: Line) -> str:
    found = line.services.ledger.champion("flights")
    assert found is not None
    return found.model_date.isoformat()


def requested(line: Line, cursor: str | None) -> tuple[list[str | None], str | None]:
    """Run keys that one tick asks for, and the cursor after it."""
    sensor = line.defs.resolve_sensor_def("flights_live_metric")
    with dg.build_sensor_context(
        instance=line.instance, cursor=cursor, repository_def=line.defs.get_repository_def()
    ) as context:
        data = sensor.evaluate_tick(context)
    return [request.run_key for request in data.run_requests or []], data.cursor or cursor


def execute(line: Line, run_key: str | None = None) -> dg.ExecuteInProcessResult:
    """A run as the sensor's request launches it, or as a person does."""
    job = line.defs.resolve_job_def("flights_live_metric")
    tags = {}
    if run_key is not None:
        request = "/".join(run_key.split("/")[:5])
        tags = {"dagster/run_key": run_key, REQUEST_TAG: request}
    return job.execute_in_process(instance=line.instance, raise_on_error=False, tags=tags)


def run(line: Line, run_key: str | None = None) -> None:
    done = execute(line, run_key)
    assert done.success, failure_of(done)


def test_a_bad_champion_goes_and_does_not_come_back(line: Line) -> None:
    ledger, clock = line.services.ledger, line.services.clock
    assert requested(line, None) == ([], None)
    judge(line, FIRST)
    keys, cursor = requested(line, None)
    assert len(keys) == 1
    run(line, keys[0])
    assert champion(line) == BAD  # one day is not two
    assert requested(line, cursor) == ([], keys[0])  # nothing new: no run
    cursor = keys[0]
    assert requested(line, cursor) == ([], cursor)
    judge(line, SECOND)
    keys, cursor = requested(line, cursor)
    assert len(keys) == 1
    assert champion(line) == BAD  # without the job it would go on
    bad, good = (int(line.versions("model")[d].detail["model_version"]) for d in (BAD, GOOD))

    run(line, keys[0])
    assert champion(line) == GOOD
    assert aliases(line)["champion"] == good
    served = line.services.slot.serves()
    assert served is not None
    assert served.digest == line.versions("model")[GOOD].data_version
    change = ledger.promotions(MODEL)[-1]
    assert (change.action, change.by, change.previous) == ("rollback", LIVE_METRIC, bad)
    assert f"version {bad} has log_loss past its bound 0.8" in change.reason
    assert f"version {good} did better each time" in change.reason
    update(line.services)
    assert alerts(line) == [("rolled_back", f"{MODEL} version {bad}")]
    # Held: not by the next hour's decision, nor by the same evidence on who came back.
    with pytest.raises(RefusedError, match=f"version {bad} is held"):
        crowned(ledger, bad, model_date=date.fromisoformat(BAD))
    assert requested(line, cursor) == ([], cursor)
    run(line)
    assert champion(line) == GOOD
    ledger.release_hold(ledger.holds(MODEL, clock.as_of())[0].id, clock.as_of())
    update(line.services)
    assert alerts(line) == []


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the sensor's clock so many minutes on."""

    def on(count: int) -> None:
        class Later(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return datetime.now(UTC) + timedelta(minutes=count)

        monkeypatch.setattr(sensing, "datetime", Later)

    return on


def test_a_run_that_failed_is_launched_again_until_the_champion_was_scored(
    line: Line, monkeypatch: pytest.MonkeyPatch, minutes: Callable[[int], None]
) -> None:
    judge(line, FIRST, SECOND)
    asked: list[str] = []

    def away(services: Services, run_id: str) -> None:
        asked.append(run_id)
        raise TransientError("the MLflow store did not answer, it must be reachable: try again")

    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0)
    keys, cursor = requested(line, None)
    (first,) = keys
    assert first is not None
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "watch_champion", away)
        assert not execute(line, first).success
        assert len(asked) == 3, "twice again within the run"
        assert requested(line, cursor) == ([], cursor), "not at once"
        minutes(2)
        keys, cursor = requested(line, cursor)
        assert keys == [f"{first}/2"], "Dagster launches a run key once"
        assert not execute(line, keys[0]).success
    assert champion(line) == BAD
    minutes(10)
    keys, cursor = requested(line, cursor)
    assert keys == [f"{first}/3"]
    run(line, keys[0])
    assert champion(line) == GOOD


def test_what_fails_each_time_is_given_up_until_there_is_another_date(
    line: Line, monkeypatch: pytest.MonkeyPatch, minutes: Callable[[int], None]
) -> None:
    judge(line, FIRST)

    def broken(services: Services, run_id: str) -> None:
        raise RefusedError("its files are not those that were recorded")

    keys, cursor = requested(line, None)
    (first,) = keys
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "watch_champion", broken)
        for attempt in range(1, 5):
            assert not execute(line, keys[0]).success
            minutes(60 * attempt)
            keys, cursor = requested(line, cursor)
    assert (keys, cursor) == ([], first)
    # A champion that nobody watches is no detail of a log.
    update(line.services)
    (told,) = line.services.alerts.all("flights", only_open=True)
    assert told.subject == f"{MODEL} champion"
    assert "its files are not those that were recorded" in told.text
    assert "`signalbox rollback flights --reason" in told.advice
    assert "flights/live_metric" not in str(open_failures(line.services)), "no asset has failed"
    judge(line, SECOND)
    keys, _ = requested(line, cursor)
    assert len(keys) == 1
    assert keys[0] != first
    update(line.services)
    assert line.services.alerts.all("flights", only_open=True) == [told], "it is not scored yet"
    run(line, keys[0])
    update(line.services)
    assert told.key not in {a.key for a in line.services.alerts.all("flights", only_open=True)}


def test_of_two_who_change_the_champion_at_once_one_does(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(line, FIRST, SECOND)
    real = live_metric.decide

    def slow(*arguments: object) -> object:
        if champion(line) == BAD:
            promote(line, FIRST)  # by a person, while the scores are being looked at
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(live_metric, "decide", slow)
    with pytest.raises(PromotionConflictError, match="promote by ann"):
        watch_champion(line.services, "run")
    assert champion(line) == FIRST
    assert not line.services.ledger.holds(MODEL, line.services.clock.as_of())


def test_nobody_comes_back_who_was_deleted(line: Line) -> None:
    judge(line, FIRST, SECOND)
    good = int(line.versions("model")[GOOD].detail["model_version"])
    client(line).delete_model_version(MODEL, str(good))
    verdict, change = watch_champion(line.services, "run")
    assert change is None
    assert verdict is not None
    assert verdict.past
    assert "no version that was champion before may come back" in verdict.reason
    assert champion(line) == BAD
    # A champion that nobody can take over from is no detail of a log.
    (told,) = past_bound(line)
    bad = int(line.versions("model")[BAD].detail["model_version"])
    assert told.subject == f"{MODEL} version {bad}"
    assert "the champion stays in use, it was not rolled back from" in told.text
    assert "past its bound 0.8" in told.text
    assert "no version that was champion before may come back" in told.text
    assert "`signalbox promote flights VERSION" in told.advice
    assert open_failures(line.services) == [], "no run has failed"
    watch_champion(line.services, "again")
    (same,) = past_bound(line)
    assert same.number == told.number, "said once"
    promote(line, FIRST)
    assert past_bound(line) == []
    healed = [a.subject for a in line.services.alerts.all("flights") if a.kind == "healed"]
    assert healed.count(told.subject) == 1


def past_bound(line: Line) -> list[AlertRecord]:
    """What is open after a look at all there is to alert of."""
    update(line.services)
    opened = line.services.alerts.all("flights", only_open=True)
    return [alert for alert in opened if alert.kind == "past_bound"]


def test_a_champion_that_is_past_its_bound_no_more_is_not_alerted(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody did better on those dates; on others it may do well again."""
    judge(line, FIRST, SECOND)
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.domain.live_metric.is_better", lambda *_: False)
        verdict, change = watch_champion(line.services, "run")
    assert verdict is not None
    assert (verdict.past, verdict.roll_back, change) == (True, False, None)
    (told,) = past_bound(line)
    assert "did no better on" in told.text
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.domain.live_metric.is_past", lambda *_: False)
        watch_champion(line.services, "again")
    assert champion(line) == BAD
    assert past_bound(line) == []


def test_nobody_comes_back_who_was_judged_under_a_revoked_waiver(line: Line) -> None:
    judge(line, GOOD, FIRST, SECOND)
    name = waiver(line).name
    rests(line, "evaluation", GOOD, name)
    revoke(line, name)
    verdict, change = watch_champion(line.services, "run")
    assert change is None
    assert verdict is not None
    assert verdict.past
    assert "no version that was champion before may come back" in verdict.reason
    assert champion(line) == BAD


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ("revoked", "waiver W-0001 was revoked by bob: it was not"),
        ("expired", "waiver W-0001 by ann until"),
        ("verdict", "JFK|2013-01-09: no verdict on it is in the ledger"),
    ],
)
def test_a_date_whose_rows_may_no_longer_be_read_proves_nothing(
    line: Line, lost: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(line, FIRST, SECOND)
    services = line.services
    (key,), _ = requested(line, None)
    if lost == "verdict":
        forget(line, "verdicts", "flights/features")
    else:
        name = waiver(line).name
        judged = line.versions("evaluation")[SECOND]
        first, *others = judged.detail["partitions"]
        partitions = [{**first, "waivers": [name]}, *others]
        services.ledger.record_version(
            replace(judged, detail={**judged.detail, "partitions": partitions})
        )
        if lost == "revoked":
            revoke(line, name)
        else:
            services.ledger.advance_clock("flights", services.clock.as_of() + timedelta(days=2))
    left = "2" if lost == "verdict" else "1"
    verdict, change = watch_champion(services, "run")
    assert (change, champion(line)) == (None, BAD)
    assert verdict is not None
    assert f"judged on {2 - int(left)} later date(s), 2 are needed; left out are" in verdict.reason
    assert f"{SECOND}: {why}" in verdict.reason
    again, _ = requested(line, None)
    assert again != [key], "it is looked at again with what is left"
    with monkeypatch.context() as patch:
        patch.setattr(live_metric, "lapsed", lambda *_, **__: {})
        patch.setattr(live_metric, "without_verdict", lambda *_, **__: {})
        _, change = watch_champion(services, "run")
    assert change is not None  # without the question
    assert champion(line) == GOOD


def test_a_pipeline_that_asks_for_none_has_no_such_job() -> None:
    from tests.small import definitions

    names = {job.name for job in definitions(small_spec()).resolve_all_job_defs()}
    assert "flights_waive" in names
    assert "flights_live_metric" not in names
