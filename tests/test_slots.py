"""Slots of a lane: whoever works holds one, also what executes past every queue."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner
from dagster._core.execution.execution_result import ExecutionResult
from dagster_dg_cli.cli.launch import launch_command

from platform_assets.domain.errors import TransientError
from platform_assets.domain.lanes import Lane, LaneFullError, Lanes
from platform_assets.domain.lease import Lease
from platform_assets.instance.claiming import RETRIES
from resources import processes
from resources.lanes import load_lanes
from resources.ledger import upgrade
from resources.ledger.leases import Leases
from resources.slots import holders, slot
from tests.small import Line, Templates, copied, definitions, failure_of, small_spec

LANES = load_lanes()
DONE = "JFK|2013-01-03"


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade(found)
    return found


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).empty, tmp_path) as line:
        line.land("2013-01-03", airports=["JFK"])
        yield line


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for no slot, and not between its attempts either."""
    monkeypatch.setattr("resources.slots.WAIT_SECONDS", 0.0)
    monkeypatch.setattr("platform_assets.instance.claiming.RETRY_SECONDS", 0.0)


def fill(url: str, lane: Lane, stack: ExitStack, lanes: Lanes = LANES) -> None:
    """Take every slot of a lane."""
    for n in range(lanes.limit(lane)):
        stack.enter_context(slot(url, lanes, lane, f"run-{n}", limit=0))


# --- the slots --------------------------------------------------------------------------------


def test_a_lane_has_as_many_slots_as_declared(url: str) -> None:
    with ExitStack() as stack:
        fill(url, Lane.ADHOC, stack)
        assert [h.run_id for h in holders(url)[Lane.ADHOC]] == ["run-0", "run-1"]
        with pytest.raises(LaneFullError) as refused, slot(url, LANES, Lane.ADHOC, "x", limit=0):
            pytest.fail("it has a third slot")
        said = str(refused.value)
        assert f"lane adhoc has 2 slot(s), held by run run-0 (process {os.getpid()})" in said
        with slot(url, LANES, Lane.LATE, "y", limit=0), slot(url, LANES, Lane.DAILY, "z", limit=0):
            assert len(holders(url)[Lane.DAILY]) == 1
    assert holders(url) == {lane: [] for lane in Lane}


def test_whoever_waits_gets_the_slot_that_comes_free(url: str) -> None:
    told: list[str] = []
    entered, waits = threading.Event(), threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        waits.set()

    def work() -> None:
        with slot(url, LANES, Lane.LATE, "second", limit=60, tell=tell):
            entered.set()

    with slot(url, LANES, Lane.LATE, "first", limit=0):
        second = threading.Thread(target=work)
        second.start()
        assert waits.wait(30)
        assert not entered.is_set()
    second.join(30)
    assert entered.is_set()
    assert told == [
        f"waiting for one of 1 slot(s) of lane late, held by run first (process {os.getpid()})"
    ]


KILLED = """
import os, signal, sys
from platform_assets.domain.lanes import Lane
from resources.lanes import load_lanes
from resources.slots import slot
with slot(sys.argv[1], load_lanes(), Lane.LATE, "killed", limit=0):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_slot_of_a_killed_process_is_free_at_once(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [h.run_id for h in holders(url)[Lane.LATE]] == ["killed"]
    with slot(url, LANES, Lane.LATE, "next", limit=0):
        assert [h.run_id for h in holders(url)[Lane.LATE]] == ["next"]


# --- the execution of a run -------------------------------------------------------------------


def dg_launch(*arguments: str) -> int:
    """`dg launch`, which executes in its own process, past every queue."""
    pointed = ["--module-name", "tests.small", "--attribute", "repository"]
    return CliRunner().invoke(launch_command, [*arguments, *pointed]).exit_code


def features(line: Line) -> int:
    return dg_launch("--assets", "flights/features", "--partition", line.dagster_key(DONE))


def newest(line: Line) -> dg.DagsterRun:
    (run,) = line.instance.get_runs(limit=1)
    return run


@pytest.mark.usefixtures("impatient")
def test_dg_launch_is_refused_while_its_lane_is_full(line: Line) -> None:
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        assert features(line) != 0
        assert newest(line).status is dg.DagsterRunStatus.FAILURE
        entries = line.instance.all_logs(
            newest(line).run_id, of_type=dg.DagsterEventType.STEP_FAILURE
        )
        assert "held by run run-0" in str(entries[0].dagster_event)
        assert line.versions("features") == {}
    assert features(line) == 0
    assert list(line.versions("features")) == [DONE]
    assert holders(line.home.ledger_url) == {lane: [] for lane in Lane}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("stage", "partition", "words"),
    [
        ("features", "LGA|2013-01-04", "flights 0 of 24 hours, missing 00:00-23:00"),
        ("snapshot", "2013-01-04", "(2013-01-03); backfill flights/features for them first"),
        ("model", "2013-01-04", "materialize flights/snapshot for 2013-01-04 first"),
        ("evaluation", "2013-01-04", "materialize flights/model for 2013-01-04 first"),
    ],
)
def test_what_is_held_is_refused_at_once_and_waits_for_no_slot(
    line: Line, monkeypatch: pytest.MonkeyPatch, stage: str, partition: str, words: str
) -> None:
    """With its lane full it names the hours that it lacks, not those who hold the slots."""
    line.land("2013-01-05", airports=["JFK"])
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        claimed: list[str] = []
        claim = Leases.claim

        def spy(self: Leases, resource: str, *how: object) -> object:
            claimed.append(resource)
            return claim(self, resource, *how)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(Leases, "claim", spy)
            said = failure_of(line.run(stage, partition=partition))
        assert words in said
        assert "slot(s)" not in said
        assert claimed == []
        assert not line.check(stage).passed
        # Of several, one that is clear is enough to wait for.
        several = line.run("features", span=("JFK|2013-01-02", "JFK|2013-01-03"))
        assert "lane adhoc has 2 slot(s)" in failure_of(several)


@pytest.mark.usefixtures("impatient")
def test_a_judgement_without_its_days_is_refused_at_once(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    """The model is there; the day that it is judged on is held."""
    with (
        copied(Templates(shared_folder, home_template).models, tmp_path) as line,
        ExitStack() as stack,
    ):
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        said = failure_of(line.run("evaluation", partition="2013-01-05"))
        assert "its model is judged on 2013-01-06" in said
        assert "slot(s)" not in said
        assert "slot(s)" in failure_of(line.run("evaluation", partition="2013-01-04"))


def retries(result: ExecutionResult) -> list[str]:
    """Why a run's steps were tried again, each with all that is behind it."""
    said = []
    for event in result.all_events:
        if event.is_step_up_for_retry:
            error = event.step_retry_data.error
            words = []
            while error is not None:
                words.append(error.message)
                error = error.cause
            said.append(" ".join(words))
    return said


@pytest.mark.usefixtures("impatient")
def test_a_passing_fault_of_the_ledger_at_the_claim_is_tried_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [TransientError("the ledger was locked by another process")]
    claim = Leases.claim

    def fails_once(self: Leases, resource: str, *how: object) -> object:
        if faults and resource.startswith("lane/"):
            raise faults.pop()
        return claim(self, resource, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(Leases, "claim", fails_once)
    ran = line.run("features", partition=DONE)
    assert ran.success, failure_of(ran)
    (why,) = retries(ran)
    assert "the ledger was locked" in why
    assert list(line.versions("features")) == [DONE]


@pytest.mark.usefixtures("impatient")
def test_a_lane_that_was_full_for_too_long_is_asked_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Leases.held
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)

        def end(self: Leases, prefix: str = "") -> object:
            found = real(self, prefix)
            stack.close()  # whoever was at work ends a moment too late
            return found

        monkeypatch.setattr(Leases, "held", end)
        ran = line.run("features", partition=DONE)
    assert ran.success, failure_of(ran)
    (why,) = retries(ran)
    assert "lane adhoc has 2 slot(s), held by run run-0" in why
    assert list(line.versions("features")) == [DONE]


@pytest.mark.usefixtures("impatient")
def test_a_lane_that_stays_full_is_asked_as_often_as_the_work_is_tried(line: Line) -> None:
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        ran = line.run("features", partition=DONE)
    assert len(retries(ran)) == RETRIES
    assert "lane adhoc has 2 slot(s), held by run run-0" in failure_of(ran)
    assert line.versions("features") == {}


@pytest.mark.usefixtures("impatient")
def test_a_limit_that_is_lowered_counts_at_the_next_claim(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The queue goes by the older limit until it starts again, the execution by the new one."""
    tags = {"dagster/backfill": "abc"}
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.BACKFILL, stack)
        file = tmp_path / "lanes.yaml"
        document = LANES.model_dump(mode="json")
        document["lanes"]["backfill"]["limit"] = 1
        file.write_text(yaml.safe_dump(document))
        monkeypatch.setenv("SIGNALBOX_LANES", str(file))
        ran = line.run("features", partition=DONE, tags=tags)
        assert len(retries(ran)) == RETRIES, "those at work may end meanwhile"
    line.must("features", partition=DONE, tags=tags)


def test_dg_launch_waits_for_its_lane_and_then_works(line: Line) -> None:
    """It waits while others work, and does nothing before it has a slot."""
    url = line.home.ledger_url
    leases = Leases(url)
    with ExitStack() as stack:
        fill(url, Lane.ADHOC, stack)
        seen: list[int] = []
        real = Leases.held

        def give_back(self: Leases, prefix: str = "") -> object:
            found = real(self, prefix)
            if len(seen) == 0:
                seen.append(len(line.versions("features")))
                stack.close()  # whoever was at work has ended
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Leases, "held", give_back)
            assert features(line) == 0
    assert seen == [0]
    assert list(line.versions("features")) == [DONE]
    assert leases.held("lane/") == []


@pytest.mark.usefixtures("impatient")
def test_without_the_claim_it_would_slip_past(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Leases.claim

    def generous(self: Leases, resource: str, *how: object) -> object:
        name = resource + os.urandom(4).hex() if resource.startswith("lane/") else resource
        return claim(self, name, *how)  # type: ignore[arg-type]

    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        monkeypatch.setattr(Leases, "claim", generous)
        assert features(line) == 0


def test_a_run_that_no_queue_has_seen_is_given_its_lane(line: Line) -> None:
    assert features(line) == 0
    assert newest(line).remote_job_origin is None, "by this a queue is told from it"
    tags = newest(line).tags
    assert tags["signalbox/lane"] == "adhoc"
    assert tags["signalbox/pipeline"] == "flights"


@pytest.mark.usefixtures("impatient")
def test_a_run_works_in_the_lane_that_it_came_in(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []
    claim = Leases.claim

    def spy(self: Leases, resource: str, *how: object) -> object:
        claimed.append(resource)
        return claim(self, resource, *how)  # type: ignore[arg-type]

    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        fill(line.home.ledger_url, Lane.BACKFILL, stack)
        monkeypatch.setattr(Leases, "claim", spy)
        daily = {"dagster/sensor_name": "flights_readiness"}
        line.must("features", partition=DONE, tags=daily)
        assert claimed[0] == "lane/daily/0"
        refused = line.run("features", partition=DONE, tags={"dagster/backfill": "abc", **daily})
        assert not refused.success
        assert "lane backfill has 2 slot(s)" in failure_of(refused)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stage", ["day", "champion", "landed_flights"])
def test_each_stage_claims_its_slot(line: Line, stage: str) -> None:
    partition = "2013-01-03" if stage == "day" else None
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        assert "lane adhoc has 2 slot(s)" in failure_of(line.run(stage, partition=partition))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("job", ["flights_maintain", "flights_live_metric"])
def test_a_job_that_works_on_the_table_or_on_models_claims_its_slot(line: Line, job: str) -> None:
    found = definitions(small_spec(serving={"rollback": {"bound": 0.8, "days": 2}}))
    with ExitStack() as stack:
        fill(line.home.ledger_url, Lane.ADHOC, stack)
        result = found.resolve_job_def(job).execute_in_process(
            instance=line.instance, raise_on_error=False
        )
        assert "lane adhoc has 2 slot(s)" in failure_of(result)


def test_a_declaration_that_cannot_be_read_stops_the_run(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "lanes.yaml"
    file.write_text("slots: many\n")
    monkeypatch.setenv("SIGNALBOX_LANES", str(file))
    ran = line.run("features", partition=DONE)
    assert "is refused" in failure_of(ran)
    assert retries(ran) == [], "it would be refused again"
    assert line.versions("features") == {}


def test_the_slot_of_a_process_that_lives_is_not_taken_over(url: str) -> None:
    me = processes.holder("me")
    assert isinstance(Leases(url).claim("lane/late/0", me), Lease)
    with pytest.raises(LaneFullError), slot(url, LANES, Lane.LATE, "other", limit=0):
        pytest.fail("it was taken over")
