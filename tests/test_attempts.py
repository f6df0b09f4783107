"""A run that failed is launched again, so often and no oftener, and then a person hears of it."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.attempts import (
    AFTER_SUCCESS,
    MOST_ATTEMPTS,
    WAITS,
    PastRun,
    next_step,
)
from platform_assets.domain.partition import local_hours
from platform_assets.domain.readiness import Plan
from platform_assets.line.alerting import update
from platform_assets.line.crowning import decide_champion
from sensors.launched import REQUEST_TAG, RUN_KEY_TAG, LaunchedRuns
from tests.small import Templates, copied, small_spec
from tests.test_sensor import Box, hour_file

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = "2013-01-10"
JFK = f"JFK|{DAY}"


def past(*states: str, ended: datetime = NOW, first: int = 1) -> list[PastRun]:
    """Runs of successive attempts, given oldest first, as they are handed over: newest first."""
    runs = [
        PastRun(run_id=f"run-{n}", state=state, attempt=n, ended_at=ended)
        for n, state in enumerate(states, start=first)
    ]
    return runs[::-1]


# --- the decision -----------------------------------------------------------------------------


def test_what_was_never_launched_is_the_first_attempt() -> None:
    assert (next_step([], NOW).step, next_step([], NOW).number) == ("request", 1)


@pytest.mark.parametrize("failed", range(1, MOST_ATTEMPTS))
def test_a_failed_attempt_is_followed_by_another_after_a_while(failed: int) -> None:
    runs = past(*["FAILURE"] * failed)
    wait = WAITS[failed - 1]
    early = next_step(runs, NOW + wait - timedelta(microseconds=1))
    assert (early.step, early.attempts) == ("wait", failed)
    assert f"attempt {failed} of {MOST_ATTEMPTS} failed" in early.reason
    later = next_step(runs, NOW + wait)
    assert (later.step, later.number) == ("request", failed + 1)


def test_after_the_last_attempt_nothing_is_launched_any_more() -> None:
    found = next_step(past(*["FAILURE"] * MOST_ATTEMPTS), NOW + timedelta(days=400))
    assert (found.step, found.attempts) == ("give up", MOST_ATTEMPTS)
    assert found.failed is not None
    assert found.failed.run_id == f"run-{MOST_ATTEMPTS}"


def test_what_dagster_launches_again_itself_is_one_attempt() -> None:
    """A killed run is relaunched by Dagster under the same run key: that is still the first."""
    killed = [PastRun(run_id=f"r{n}", state="FAILURE", ended_at=NOW) for n in range(3)]
    assert next_step(killed, NOW + WAITS[0]).number == 2


def test_a_canceled_run_is_a_persons_word() -> None:
    for runs in (past("CANCELED"), past("FAILURE", "CANCELED")):
        found = next_step(runs, NOW + timedelta(days=400))
        assert found.step == "left"
        assert "canceled" in found.reason
    # The person has executed it again, and it failed: that is a failure as any other.
    assert next_step(past("CANCELED", "FAILURE"), NOW + timedelta(days=1)).step == "request"


def test_a_run_that_has_just_ended_well_is_not_asked_for_again() -> None:
    """The look may have read the ledger before the run ended."""
    runs = past("SUCCESS")
    assert next_step(runs, NOW + timedelta(seconds=5)).step == "under way"
    again = next_step(runs, NOW + AFTER_SUCCESS)
    assert (again.step, again.number) == ("request", 2)


@given(
    st.lists(
        st.sampled_from(["QUEUED", "STARTED", "CANCELING", "SUCCESS", "FAILURE", "CANCELED"]),
        max_size=12,
    ),
    st.timedeltas(timedelta(0), timedelta(days=3)),
)
def test_an_attempt_is_new_and_never_beside_one_that_is_under_way(
    states: list[str], passed: timedelta
) -> None:
    runs = past(*states)
    found = next_step(runs, NOW + passed)
    if found.step == "request":
        assert found.number not in {run.attempt for run in runs}
        assert all(run.state in ("SUCCESS", "FAILURE", "CANCELED") for run in runs[:1])
    failures = 0
    for run in runs:
        if run.state == "SUCCESS":
            break
        failures += 1
    if failures >= MOST_ATTEMPTS:
        assert found.step != "request"
    assert found.reason
    assert (found.failed is not None) == (bool(runs) and runs[0].state in ("FAILURE", "CANCELED"))


# --- the sensor -------------------------------------------------------------------------------


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "platform_assets.domain.attempts.WAITS", (timedelta(0),) * (MOST_ATTEMPTS - 1)
    )


@pytest.fixture
def box(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Box]:
    spec = small_spec(schedule={"live_from": DAY})
    templates = Templates(shared_folder, home_template)
    with copied(templates.features, tmp_path, spec) as line:
        yield Box(line)


def refused_while_an_hour_was_away(box: Box) -> str:
    """Run what a tick asked for while a file is away; returns the run's id. The file comes back."""
    line = box.line
    line.land(DAY)
    tick = box.tick(launch=False)
    request = (tick.data.run_requests or [])[0]
    path = hour_file(line, "weather", "JFK", local_hours(date.fromisoformat(DAY), "UTC")[12])
    good = path.read_bytes()
    path.unlink()
    ran = line.run(
        job=request.job_name, partition=JFK, tags={**request.tags, RUN_KEY_TAG: request.run_key}
    )
    assert not ran.success
    path.write_bytes(good)
    return ran.run_id


def test_a_run_that_was_refused_is_launched_again_for_the_same_hours(
    box: Box, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_while_an_hour_was_away(box)
    with monkeypatch.context() as patch:
        # Without: the same run key for good, and Dagster launches none of which it has a run.
        patch.setattr(
            "platform_assets.line.live.launchable",
            lambda services, plan, *rest: Plan(requests=plan.requests, held=plan.held),
        )
        for _ in range(2):
            tick = box.tick()
            assert ("features", JFK) in tick.requested
            assert ("features", JFK) not in tick.launched
    tick = box.tick()
    assert tick.launched == [("features", JFK)]
    assert [key for key in tick.run_keys if str(key).endswith("/2")]
    assert JFK in box.line.versions("features")
    assert box.tick().launched == [("day", DAY), ("train", DAY)]


def test_it_waits_before_it_does(box: Box) -> None:
    run_id = refused_while_an_hour_was_away(box)
    tick = box.tick()
    assert ("features", JFK) not in tick.requested
    assert f"features: run {run_id} ended as FAILURE" in tick.said or tick.requested
    (failure,) = box.line.services.failures.all("flights")
    assert (failure.step, failure.attempts, failure.run_id) == ("wait", 1, run_id)
    assert "weather 23 of 24 hours" in failure.cause
    assert [a.kind for a in update(box.line.services)] == []


def boom(*_: Any, **__: Any) -> None:
    raise RuntimeError("the tracking server is down")


@pytest.mark.heavy
def test_a_training_that_keeps_failing_is_alerted_with_its_run_and_heals(
    box: Box, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = box.line
    line.land(DAY)
    box.tick()
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.factory.assets.train_model", boom)
        for attempt in range(1, MOST_ATTEMPTS + 1):
            tick = box.tick(must=False)
            assert ("train", DAY) in tick.launched
            assert all(r.kind != "failed" for r in update(line.services)), attempt
        tick = box.tick(must=False)
    assert tick.requested == []
    (alert,) = [r for r in update(line.services) if r.kind == "failed"]
    last = line.instance.get_runs(dg.RunsFilter(job_name="flights_train"), limit=1)[0]
    assert alert.subject == f"flights/model {DAY}"
    assert last.run_id in alert.text
    assert last.run_id in alert.advice
    assert "the tracking server is down" in alert.text
    assert f"{MOST_ATTEMPTS} attempts failed" in alert.text
    assert update(line.services) == []  # said once
    # Nothing more is launched, but a person may.
    assert box.tick().requested == []
    line.must("snapshot", "model", partition=DAY)
    (healed,) = [r for r in update(line.services) if r.kind == "healed"]
    assert healed.subject == alert.subject
    box.tick()
    assert line.services.failures.all("flights") == []


def test_a_canceled_run_is_left_alone_and_alerted_at_once(box: Box, no_wait: None) -> None:
    line = box.line
    line.land(DAY)
    request = (box.tick(launch=False).data.run_requests or [])[0]
    run = line.instance.create_run_for_job(
        line.defs.resolve_job_def(str(request.job_name)),
        tags={**request.tags, RUN_KEY_TAG: str(request.run_key)},
    )
    line.instance.report_run_canceled(run)
    tick = box.tick(launch=False)
    assert tick.requested == [("features", f"LGA|{DAY}")]
    (alert,) = [r for r in update(line.services) if r.kind == "failed"]
    assert alert.subject == f"flights/features {JFK}"
    assert "canceled" in alert.text
    assert run.run_id in alert.text


@pytest.mark.heavy
def test_a_judgement_without_its_champion_is_made_up_for(
    box: Box, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation is written, the decision fails: the ledger alone would say all is done."""
    line = box.line
    line.land(DAY, "2013-01-11")
    box.tick()
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.factory.assets.decide_champion", boom)
        for _ in range(6):
            box.tick(must=False)
            if line.versions("evaluation"):
                break
        assert DAY in line.versions("evaluation")
        assert line.services.ledger.champion("flights") is None
        for _ in range(MOST_ATTEMPTS):
            box.tick(must=False)
        (alert,) = [r for r in update(line.services) if r.kind == "failed"]
        assert alert.subject == f"flights/evaluation {DAY}"
        assert "the tracking server is down" in alert.text
    decide_champion(line.services, "a-person")


def test_dagster_keeps_the_tags_of_a_request_when_a_run_is_executed_again() -> None:
    """Of its tags it drops these alone; ours and the run key are not among them."""
    from dagster._core.storage.tags import TAGS_TO_MAYBE_OMIT_ON_RETRY

    assert not {REQUEST_TAG, RUN_KEY_TAG} & set(TAGS_TO_MAYBE_OMIT_ON_RETRY)


def test_attempts_are_found_by_the_first_ones_run_key(box: Box) -> None:
    job = box.line.defs.resolve_job_def("flights_day")
    for key in ("base", "base/2"):
        box.line.instance.create_run_for_job(job, tags={REQUEST_TAG: "base", RUN_KEY_TAG: key})
    box.line.instance.create_run_for_job(job, tags={REQUEST_TAG: "other", RUN_KEY_TAG: "other"})
    found = LaunchedRuns(box.line.instance).of("base")
    assert [(run.attempt, run.state) for run in found] == [(2, "NOT_STARTED"), (1, "NOT_STARTED")]
