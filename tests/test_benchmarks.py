"""Benchmarks that say what their figures are worth: what does not count, what missed its goal."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.backfill_cost import problems_of
from benchmarks.daily_lane import ARMS, PARTS, TIMES, Turns, p95, summed_up

ROOT = Path(__file__).resolve().parents[1]
WELL: dict[str, Any] = {
    "status": "COMPLETED_SUCCESS", "failed": {}, "not_ok": [], "first_run_seconds": 2.0,
}  # fmt: skip
BUILT = {"flights/features JFK|2013-01-01": "a", "flights/model 2013-01-28": "b"}


def found(
    changed: dict[str, Any], versions: dict[str, str] | None = None, ratio: float = 1.4
) -> list[str]:
    return problems_of(
        {"bare": {}, "loop": {}, "batched": WELL | changed},
        {"bare": None, "loop": BUILT, "batched": BUILT if versions is None else versions},
        {"batched_to_loop": ratio, "batched_to_bare": 9.0},
    )


def test_a_backfill_that_built_what_the_loop_built_counts() -> None:
    assert found({}) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"status": "COMPLETED_FAILED"}, "ended as COMPLETED_FAILED"),
        ({"failed": {"flights/model": 3}}, "partitions failed"),
        ({"not_ok": ["x"]}, "1 runs did not succeed"),
        ({"first_run_seconds": 5.1}, "first run after 5.1 s, goal 5 s"),
    ],
)
def test_one_with_failures_is_not_taken_for_a_cheap_one(changed: dict[str, Any], said: str) -> None:
    (problem,) = found(changed)
    assert said in problem


@pytest.mark.parametrize(
    "versions", [{}, BUILT | {"flights/model 2013-01-28": "c"}, BUILT | {"more": "d"}]
)
def test_one_that_built_something_else_does_not_count(versions: dict[str, str]) -> None:
    (problem,) = found({}, versions)
    assert "versions are not the loop's" in problem


def test_a_ratio_above_its_goal_is_missed() -> None:
    assert found({}, ratio=1.51) == ["batched: 1.51 times the loop, goal 1.5"]


def test_the_daily_lane_is_judged_by_the_median_of_either_time() -> None:
    turns = Turns()
    turns.queued = {"paused": [90, 85], "rebuilt": [5, 3], "minutes": [80, 70]}
    for arm in ARMS:
        for name in (*TIMES, *PARTS):
            turns.seconds[arm][name] = [10.0, 10.0, 30.0]
    said = summed_up(turns)
    waiting = {"paused": 85, "rebuilt": 3, "minutes": 70}
    assert (said["missed"], said["runs_waiting"]) == ([], waiting)
    assert said["arms"]["idle"][TIMES[0]]["p95"] == 30.0
    turns.seconds["minutes"][TIMES[1]] = [10.0, 11.2, 12.0]
    turns.seconds["rebuilt"][PARTS[0]] = [10.0, 11.2, 12.0]
    assert summed_up(turns)["missed"] == [f"minutes_{TIMES[1]}"]


def test_the_95th_of_a_hundred_is_that_of_twenty_the_19th() -> None:
    assert p95([float(n) for n in range(1, 101)]) == 95.0
    assert p95([float(n) for n in range(20, 0, -1)]) == 19.0


def test_make_bench_goes_on_after_one_that_fails_and_says_which(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *.commits|*.cities) exit 1;; esac\n')
    python.chmod(0o755)
    stamp = tmp_path / "ready"
    stamp.touch()
    done = subprocess.run(
        ["make", "--silent", "bench", f"BIN={tmp_path}", f"STAMP={stamp}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "failed, or missed a goal: cities commits" in done.stderr
    begun = [line.removeprefix("== ") for line in done.stdout.splitlines()]
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(begun) == files - {"kill_points"}
