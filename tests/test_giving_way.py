"""Runs that stand back do nothing while one in a hurry is at work, for a while and holding nothing.

What that is worth is measured: `python -m benchmarks.daily_lane`.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.test_utils import create_run_for_test

from platform_assets.domain.checkpoints import TrainingInterruptedError
from platform_assets.domain.errors import HomeError
from platform_assets.domain.giving_way import (
    ANNOUNCED_SECONDS,
    MOST_HOLDING_SECONDS,
    MOST_SECONDS,
    RECOVERS,
    YOUNG_SECONDS,
    why_step_aside,
)
from platform_assets.domain.lanes import LANE_TAG, PRIORITY_TAG, Lane
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.ticks import REQUESTED, Progress, can_wait
from platform_assets.instance.daemon import PromptQueueDaemon
from platform_assets.instance.scheduling import step_aside
from platform_assets.line.features import build_features
from platform_assets.line.models import train_model
from platform_assets.line.stopwatch import _since_start
from resources import giving_way
from resources.giving_way import FILE, FREE, GIVES_WAY, HOLDING, LEFT, Patience, Way
from resources.home import Home
from resources.lanes import load_lanes
from resources.slots import slot
from tests.small import Templates, copied
from tests.test_forked_runs import Yard, until
from tests.test_own_daemon import BY_LANE, ORIGIN

LIVES = (
    "import sys, time; from pathlib import Path; from resources.giving_way import Way;"
    "Way(Path(sys.argv[1])).enter(); print('in', flush=True); time.sleep(600)"
)
A_WHILE = 0.5
"""Seconds after which what was free to go on would have: it has nothing else to do."""

LONG_AGO = time.time() - 10 * YOUNG_SECONDS


@contextmanager
def in_a_hurry(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.wait()


def begin(way: Way, tell: Callable[[str], None] = lambda _: None) -> threading.Thread:
    thread = threading.Thread(target=way.step_aside, args=(Patience(), tell), daemon=True)
    thread.start()
    return thread


def waits(way: Way) -> bool:
    """Whether who steps aside is still at it after a while."""
    thread = begin(way)
    thread.join(A_WHILE)
    return thread.is_alive()


@pytest.mark.parametrize(
    ("at_work", "age", "patience", "expected"),
    [
        (False, 600, 1, None),
        (False, ANNOUNCED_SECONDS, 1, None),
        (False, 0, 1, "submitted"),
        (False, 0, 0, None),
        (False, -5, 1, None),  # the clock was set back: nobody is known to come
        (True, 0, 1, "at work"),
        (True, YOUNG_SECONDS - 1, 1, "at work"),
        (True, YOUNG_SECONDS, 1, None),  # it works for long
        (True, 0, 0, None),
        (True, -5, 1, "at work"),
        (True, -YOUNG_SECONDS, 1, None),  # nor is it waited for by such a clock
    ],
)
def test_when_it_is_stepped_aside(
    at_work: bool, age: float, patience: float, expected: str | None
) -> None:
    found = why_step_aside(at_work=at_work, age=age, patience=patience)
    assert found is None if expected is None else expected in str(found)


A_FIFTH = RECOVERS / (1 + RECOVERS)


@pytest.mark.parametrize("which", ["free", "holding", "in turn"])
def test_a_stream_of_runs_in_a_hurry_takes_a_fifth_of_the_time(tmp_path: Path, which: str) -> None:
    """One is submitted every second, for an hour; who holds a lease has the less patience."""
    now = 0.0
    free = Patience(MOST_SECONDS, lambda: now)
    holding = Patience(MOST_HOLDING_SECONDS, lambda: now, within=free)
    most = MOST_HOLDING_SECONDS if which == "holding" else MOST_SECONDS
    way, stood = Way(tmp_path), 0
    for second in range(3600):
        way.announce()
        for each in (free, holding):
            way.goes_on(each)
        either = {"free": free, "holding": holding}.get(which, (free, holding)[second // 10 % 2])
        stood += way.why_not(either) is not None
        now += 1
    assert most < stood <= most + A_FIFTH * 3600 + 2
    way.goes_on(holding)
    now += MOST_SECONDS / RECOVERS
    assert (free.left(), holding.left()) == (MOST_SECONDS, MOST_HOLDING_SECONDS), "all comes back"


@pytest.mark.parametrize("kept", [True, False])
def test_runs_that_follow_each_other_share_their_patience(tmp_path: Path, kept: bool) -> None:
    """Twenty of three seconds each, in processes of their own, beside such a stream."""
    now = 0.0

    def clock() -> float:
        return now

    way, work = Way(tmp_path), 20 * 3.0
    for _ in range(20):
        own = Patience(MOST_SECONDS, clock)
        way.announce()
        while way.why_not(own) is not None:
            way.announce()
            now += 0.1
        way.goes_on(own)
        now += 3
        if not kept:
            (tmp_path / LEFT).unlink()
    stood = now - work
    assert stood > MOST_SECONDS - 1
    assert (stood <= MOST_SECONDS + A_FIFTH * now + 2) == kept, "the failure that it is kept for"


@pytest.mark.parametrize(
    "found",
    [b"", b"rubbish", b"x" * 16, struct.pack("<dd", 0.0, 1e18), struct.pack("<dd", -1e9, 0), None],
    ids=repr,
)
def test_what_was_left_before_this_machine_was_started_does_not_count(
    tmp_path: Path, found: bytes | None
) -> None:
    if found is None:
        (tmp_path / LEFT).mkdir()
    else:
        (tmp_path / LEFT).write_bytes(found)
    way, patience = Way(tmp_path), Patience()
    way.announce()
    assert way.why_not(patience)
    assert patience.left() > MOST_SECONDS - 1
    way.goes_on(patience)
    assert patience.left() > MOST_SECONDS - 1


def test_what_cannot_be_dated_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may be another user's."""
    way = Way(tmp_path)
    way.announce()

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(giving_way.os, "utime", refused)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    for _ in range(10):
        way.announce()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # noqa: PTH208 - the list's own


def test_who_stands_back_waits_for_who_is_in_a_hurry_until_that_is_killed(tmp_path: Path) -> None:
    way, told = Way(tmp_path), list[str]()
    assert not way.at_work()
    assert way.step_aside(Patience(), told.append) < YOUNG_SECONDS
    with in_a_hurry(tmp_path) as first, in_a_hurry(tmp_path) as second:
        assert way.at_work()
        waiting = begin(way, told.append)
        first.send_signal(signal.SIGKILL)
        first.wait()
        waiting.join(ANNOUNCED_SECONDS + A_WHILE)
        assert waiting.is_alive(), "the second is still at work"
        second.send_signal(signal.SIGKILL)
        waiting.join(YOUNG_SECONDS / 2)
        assert not waiting.is_alive()
    assert not way.at_work()
    assert len(told) == 1
    assert "a run in a hurry is at work on this machine" in told[0]


def test_nobody_waits_for_those_who_look(tmp_path: Path) -> None:
    """Whoever looks takes no lock: else a process that is nice could hold up one in a hurry."""
    way, ended = Way(tmp_path), threading.Event()
    way.announce()
    seen: list[bool] = []

    def look() -> None:
        while not ended.is_set():
            seen.append(way.at_work())

    threads = [threading.Thread(target=look, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(seen) > 1000, "looks")
        assert not any(seen), "they are taken for one in a hurry by each other"
        with in_a_hurry(tmp_path):
            until(lambda: seen[-1], "it to be seen")
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_one_that_works_for_long_is_not_waited_for(tmp_path: Path) -> None:
    with in_a_hurry(tmp_path):
        assert waits(Way(tmp_path))
        os.utime(tmp_path / FILE, (LONG_AGO, LONG_AGO))
        assert Way(tmp_path).at_work()
        assert Way(tmp_path).step_aside(Patience()) < YOUNG_SECONDS / 2


def test_one_that_was_submitted_is_waited_for_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Way(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.domain.giving_way.ANNOUNCED_SECONDS", 60.0)
        way.announce()
        assert waits(way)
    until(lambda: not waits(way), "it to be given up")


@pytest.mark.parametrize("locking", ["refused", "unknown"])
@pytest.mark.parametrize("folder", ["there", "none"])
def test_where_files_are_not_locked_nobody_is_in_a_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locking: str, folder: str
) -> None:
    (tmp_path / "there").mkdir()
    for name in ("F_OFD_SETLK", "F_OFD_GETLK"):
        if locking == "refused":
            monkeypatch.setattr(giving_way.fcntl, name, -1)
        else:
            monkeypatch.delattr(giving_way.fcntl, name)
    way = Way(tmp_path / folder)
    way.announce()
    way.enter()
    assert not way.at_work()
    assert way.step_aside(Patience()) < YOUNG_SECONDS


def test_it_is_stepped_aside_before_a_partition_and_within_a_training(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside: list[Patience] = []

    def noted(_: Way, patience: Patience, *__: object) -> float:
        aside.append(patience)
        return 1000.0

    monkeypatch.setattr(Way, "step_aside", noted)
    with copied(Templates(shared_folder, home_template).models, tmp_path) as line:
        features, day = PartitionKey.parse("JFK|2013-01-04"), PartitionKey.parse("2013-01-04")
        again = replace(line.services, restate="again")
        build_features(again, features, "first")
        assert not aside, "not a run that stands back"
        monkeypatch.setenv(GIVES_WAY, "1")
        with slot(line.home.ledger_url, load_lanes(), Lane.BACKFILL, "backfill"):
            build_features(again, features, "backfill")
            assert aside == [FREE, FREE], "before and after, and nobody waits for its slot"
            with line.services.claim("flights/champion", None, "backfill"):
                build_features(again, features, "backfill")
            assert aside == [FREE, FREE, FREE, HOLDING, HOLDING, FREE]
            aside.clear()
            train_model(again, day, "backfill", lane="backfill")
            rounds = int(line.services.spec.model.parameters["num_boost_round"])
            assert aside == [FREE, *[HOLDING] * (rounds + 2), FREE]
        cost = line.history("model", "2013-01-04")[-1].detail["cost"]
        assert cost["seconds"] < 1000, "it did nothing meanwhile, and was not at work for longer"


@pytest.mark.parametrize("heard", [True, False])
def test_a_training_that_is_told_to_go_stands_aside_no_more(
    shared_folder: Path,
    home_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heard: bool,
) -> None:
    """Its checkpoint is to be written within what is left until it is killed."""
    stood: list[float] = []
    step_aside = Way.step_aside

    def noted(way: Way, patience: Patience, tell: Any, ended: Callable[[], bool]) -> float:
        aside = 0.0
        if len(stood) == 2:  # before its first partition, before and in the midst of its rounds
            os.kill(os.getpid(), signal.SIGTERM)
            shortly = Patience(MOST_HOLDING_SECONDS / 2)
            aside = step_aside(way, shortly, tell, ended if heard else lambda: False)
        stood.append(aside)
        return aside

    monkeypatch.setattr(Way, "step_aside", noted)
    monkeypatch.setenv(GIVES_WAY, "1")
    with (
        copied(Templates(shared_folder, home_template).models, tmp_path) as line,
        slot(line.home.ledger_url, load_lanes(), Lane.BACKFILL, "backfill"),
        in_a_hurry(line.home.root),
    ):
        Way(line.home.root).announce()
        again, day = replace(line.services, restate="again"), PartitionKey.parse("2013-01-04")
        with pytest.raises(TrainingInterruptedError):
            train_model(again, day, "backfill", lane="backfill")
    assert (stood[2] < MOST_HOLDING_SECONDS / 4) == heard


def test_a_process_steps_aside_only_if_its_run_stands_back(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(Way, "step_aside", lambda self, *_: calls.append(self._path))
    step_aside()
    assert not calls
    monkeypatch.setenv(GIVES_WAY, "1")
    step_aside()
    assert calls == [home.root / FILE]


class Queue(PromptQueueDaemon):
    """Its choice alone."""

    def chosen(self, instance: dg.DagsterInstance) -> list[str]:
        config = instance.get_concurrency_config()
        runs = self._get_runs_to_dequeue(instance, config, fixed_iteration_time=None)
        return [run.tags[LANE_TAG] for run in runs]


def queued(instance: dg.DagsterInstance, lane: Lane, status: str = "QUEUED") -> None:
    create_run_for_test(
        instance,
        status=dg.DagsterRunStatus(status),
        tags={LANE_TAG: lane.value, PRIORITY_TAG: str(load_lanes().priority(lane))},
        remote_job_origin=ORIGIN,
    )


def test_the_queue_starts_nothing_that_would_only_step_aside(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        for lane in Lane:
            queued(instance, lane)
        every, queue = set(Lane), Queue(interval_seconds=1)
        assert set(queue.chosen(instance)) == every
        with in_a_hurry(home.root):
            assert set(queue.chosen(instance)) == {Lane.DAILY, Lane.ADHOC}
            impatient = Queue(interval_seconds=1)
            impatient._patience = Patience(0.0)
            assert set(impatient.chosen(instance)) == every, "not for good"
            with monkeypatch.context() as patch:
                patch.setenv("SIGNALBOX_HOME", "")
                patch.setattr(Home, "locate", refuse)
                assert set(queue.chosen(instance)) == every, "the queue has to go on"
            os.utime(home.root / FILE, (LONG_AGO, LONG_AGO))
            assert set(queue.chosen(instance)) == every
    with dg.instance_for_test() as plain:
        queued(plain, Lane.BACKFILL)
        Way(home.root).announce()
        assert Queue(interval_seconds=1).chosen(plain) == [Lane.BACKFILL], "not one with lanes"


def test_what_a_process_stood_aside_for_is_no_part_of_its_start(tmp_path: Path) -> None:
    way = Way(tmp_path)
    before = _since_start()["start_seconds"]
    way.announce()
    stood = way.step_aside(Patience())
    assert stood > ANNOUNCED_SECONDS / 2
    assert _since_start()["start_seconds"] - before < stood / 2


def refuse(*_: Any) -> Home:
    raise HomeError("no home")


def test_what_the_queue_leaves_out_takes_no_slot(home: Home) -> None:
    """A late run stands before a click by its priority: the last free slot would be nobody's."""
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        for _ in range(load_lanes().slots - 1):
            queued(instance, Lane.DAILY, "STARTED")
        queued(instance, Lane.LATE)
        queued(instance, Lane.ADHOC)
        assert Queue(interval_seconds=1).chosen(instance) == [Lane.LATE]
        with in_a_hurry(home.root):
            assert Queue(interval_seconds=1).chosen(instance) == [Lane.ADHOC]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {"a": REQUESTED}, False),  # somebody has just launched it
        ({"a": REQUESTED}, {"a": REQUESTED}, True),
        ({"a": REQUESTED}, {"a": "CANCELING"}, False),
        ({"a": REQUESTED}, {"a": REQUESTED, "b": REQUESTED}, False),
        ({"a": REQUESTED, "b": REQUESTED}, {"a": REQUESTED}, True),
    ],
)
def test_which_evaluation_of_backfills_can_wait(
    before: dict[str, str], now: dict[str, str], expected: bool
) -> None:
    def looked(found: dict[str, str]) -> dict[str, Progress]:
        return {
            name: Progress(status=status, queued=0, unfinished=frozenset())
            for name, status in found.items()
        }

    assert can_wait(looked(before), looked(now)) == expected


@pytest.fixture
def yard(home: Home, tmp_path: Path) -> Iterator[Yard]:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        yield Yard(instance, tmp_path)
        (tmp_path / "enough").touch()


@pytest.mark.embedded
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_a_run_of_a_backfill_begins_once_todays_has_ended(yard: Yard, home: Home) -> None:
    backfills = {LANE_TAG: Lane.BACKFILL.value}
    first = yard.launch("waiting", backfills)
    yard.running(first)
    assert not Way(home.root).at_work(), "a backfill's is not in a hurry"
    today = yard.launch("waiting", {LANE_TAG: Lane.DAILY.value})
    yard.running(today)
    assert Way(home.root).at_work()
    second = yard.launch("waiting", backfills)
    until(lambda: "Run forked into" in yard.messages(second), "the second to be forked")
    time.sleep(A_WHILE)
    Way(home.root).announce()  # else nobody steps aside any more on a machine that is slow
    assert yard.now(second).status is dg.DagsterRunStatus.STARTING
    assert yard.now(first).status is dg.DagsterRunStatus.STARTED, "it is not stopped"
    assert yard.launcher.terminate(today.run_id)
    assert yard.ended(today) == "CANCELED"
    yard.running(second)
    assert "It stepped aside for" in yard.messages(second)
    third = yard.launch("waiting", backfills)
    yard.running(third)


@pytest.mark.embedded
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_a_run_that_steps_aside_can_be_terminated(yard: Yard, home: Home) -> None:
    yard.zygote()
    with in_a_hurry(home.root):
        run = yard.launch("waiting", {LANE_TAG: Lane.BACKFILL.value})
        until(lambda: "Run forked into" in yard.messages(run), "it to be forked")
        time.sleep(A_WHILE)
        assert yard.now(run).status is dg.DagsterRunStatus.STARTING
        assert yard.launcher.terminate(run.run_id)
        assert yard.ended(run) == "CANCELED"
        assert Way(home.root).why_not(Patience()), "it was not waited for"


def test_what_a_run_in_a_hurry_leaves_behind_is_not_in_a_hurry(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from resources.giving_way import Way;"
        "Way(Path(sys.argv[1])).enter(); os.fork() or time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    try:
        assert process.wait(60) == 0
        assert not Way(tmp_path).at_work()
        os.killpg(process.pid, 0)  # the child lives
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("tags", "enters"),
    [
        ({LANE_TAG: "daily"}, True),
        ({LANE_TAG: "late"}, False),
        ({}, True),
        (BY_LANE[Lane.BACKFILL], False),  # queued before there were lanes
    ],
)
def test_who_is_in_a_hurry(home: Home, tags: dict[str, str], enters: bool) -> None:
    assert entered(home, tags) == enters


def test_who_cannot_tell_is_not(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_LANES", str(home.root / "none.yaml"))
    assert not entered(home, {LANE_TAG: "daily"})


def entered(home: Home, tags: dict[str, str]) -> bool:
    code = (
        "import json, sys; from platform_assets.instance.scheduling import stand_back;"
        "stand_back(json.loads(sys.argv[1])); print('in', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(tags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return Way(home.root).at_work()


@pytest.mark.parametrize("lane", Lane)
def test_what_is_in_a_hurry_is_announced_as_it_is_submitted(home: Home, lane: Lane) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        run = create_run_for_test(
            instance,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={LANE_TAG: lane.value, "dagster/partition": "2013-01-05", **BY_LANE[lane]},
            remote_job_origin=ORIGIN,
        )
        instance.run_coordinator.submit_run(SubmitRunContext(run, None))  # type: ignore[union-attr, arg-type]
    assert (home.root / FILE).exists() == (lane in (Lane.DAILY, Lane.ADHOC))
