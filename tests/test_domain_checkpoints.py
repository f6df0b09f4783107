"""When a checkpoint is due, and what becomes of a run that was interrupted."""

import math

import pytest

from platform_assets.domain.checkpoints import (
    FIRST_SECONDS,
    PRIOR_SECONDS,
    CheckpointKey,
    CheckpointsSpec,
    interval,
    mean_time_between,
)
from platform_assets.domain.interruptions import MOST_KILLED, SAVED_TAG, Ended, again
from tests.small import small_spec

SPEC = CheckpointsSpec()


def test_the_first_one_is_taken_to_learn_what_it_costs() -> None:
    assert interval(None, 3600, SPEC).seconds == FIRST_SECONDS
    assert interval(None, 3600, CheckpointsSpec(most_lost_seconds=2)).seconds == 2


def test_youngs_interval_between_the_bounds() -> None:
    found = interval(0.5, 3600, SPEC)
    assert found.seconds == pytest.approx(math.sqrt(2 * 0.5 * 3600))
    assert "loses the least" in found.reason


def test_no_more_is_lost_than_was_said() -> None:
    found = interval(1.0, 1e7, SPEC)
    assert found.seconds == SPEC.most_lost_seconds
    assert "most_lost_seconds" in found.reason


@pytest.mark.parametrize("cost", [0.001, 0.1, 1.0, 30.0, 600.0])
@pytest.mark.parametrize("between", [1.0, 60.0, 3600.0, 1e6])
def test_the_cost_is_bounded_whatever_happens(cost: float, between: float) -> None:
    found = interval(cost, between, SPEC)
    assert cost / found.seconds <= SPEC.most_cost * (1 + 1e-9)


def test_where_both_bounds_cannot_hold_it_is_said() -> None:
    found = interval(60.0, 3600, SPEC)
    assert found.seconds == pytest.approx(60 / 0.035)
    assert "up to 1.71e+03 s may be lost, not 600" in found.reason


def test_young_loses_the_least_of_all_intervals() -> None:
    """The expected waste C/T + T/(2M), at the chosen interval and beside it."""
    cost, between = 2.0, 7200.0
    chosen = interval(cost, between, CheckpointsSpec(most_lost_seconds=1e6, most_cost=0.5)).seconds

    def waste(seconds: float) -> float:
        return cost / seconds + seconds / (2 * between)

    assert all(waste(chosen) <= waste(chosen * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_what_was_seen_weighs_against_what_is_assumed() -> None:
    assert mean_time_between(0, 0) == PRIOR_SECONDS
    assert mean_time_between(9, 0) == PRIOR_SECONDS / 10
    assert mean_time_between(0, 30 * PRIOR_SECONDS) > 30 * PRIOR_SECONDS
    assert mean_time_between(-1, -5) == PRIOR_SECONDS


def test_keys_differ_in_each_part() -> None:
    keys = {CheckpointKey(*parts).value for parts in ("abc", "xbc", "axc", "abx")}
    assert len(keys) == 4


def test_checkpoints_are_of_no_fingerprint() -> None:
    one, two = small_spec(), small_spec(model={"checkpoints": {"keep": 5}})
    assert two.model.checkpoints.keep == 5
    assert one.model.model_dump_json() == two.model.model_dump_json()
    assert one.model != two.model


# --- runs that were interrupted ---------------------------------------------------------------


def ended(name: str, reason: str, **tags: str) -> Ended:
    return Ended(name, tags, reason)


def test_an_error_of_the_code_is_not_ours() -> None:
    for reason in ("STEP_FAILURE", "RUN_EXCEPTION", "START_TIMEOUT"):
        assert again(ended("a", reason), [], 10) is None


def test_a_preempted_run_is_launched_again_from_its_own_budget() -> None:
    others = [ended(f"k{n}", "UNKNOWN") for n in range(20)]
    others += [ended(f"p{n}", "UNEXPECTED_TERMINATION") for n in range(2)]
    this = ended("this", "UNEXPECTED_TERMINATION")
    found = again(this, [*others, this], 3)
    assert found is not None
    assert (found.kind, found.launch, found.count) == ("preempted", True, 3)
    found = again(this, [*others, ended("p2", "UNEXPECTED_TERMINATION")], 3)
    assert found is not None
    assert not found.launch


def test_a_killed_run_is_launched_again_where_that_can_help() -> None:
    nothing = again(ended("this", "UNKNOWN"), [], 3)
    assert nothing is not None
    assert not nothing.launch
    this = Ended("this", {SAVED_TAG: "this"}, "UNKNOWN")
    for count in range(1, MOST_KILLED + 2):
        group = [ended(f"k{n}", "") for n in range(count - 1)]
        found = again(this, [*group, ended("p", "UNEXPECTED_TERMINATION")], 3)
        assert found is not None
        assert found.launch == (count <= MOST_KILLED)
    # A tag that was inherited says nothing of this run.
    inherited = again(Ended("this", {SAVED_TAG: "parent"}, "UNKNOWN"), [], 3)
    assert inherited is not None
    assert not inherited.launch
    # But what a run before it has saved is still there.
    parent = Ended("parent", {SAVED_TAG: "parent"}, "UNKNOWN")
    found = again(Ended("this", {SAVED_TAG: "parent"}, "UNKNOWN"), [parent], 3)
    assert found is not None
    assert found.launch
    asked = again(Ended("this", {"dagster/max_retries": "2"}, ""), [], 3)
    assert asked is not None
    assert asked.launch
