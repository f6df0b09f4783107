"""Lanes as decisions: which lane a run gets, which limits follow, and what may not be declared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import HomeError, SpecError
from platform_assets.domain.lane_limits import (
    InProgress,
    Steering,
    beyond,
    concurrency_section,
    differences,
    with_steering,
    without_backfills,
)
from platform_assets.domain.lanes import (
    OTHERS,
    Assigned,
    Lane,
    Parent,
    assign_lane,
    lane_of,
    origin_of,
    parse_lanes,
    slots_of,
    starving,
    tags_of_lane,
)
from platform_assets.factory.instance import dagster_yaml
from resources.lanes import (
    GENERATED,
    generated_section,
    load_lanes,
    read_instance_file,
    renewed,
    with_lanes,
)

LANES = load_lanes()
ASKED = st.one_of(st.none(), st.sampled_from([*Lane]), st.text(max_size=5))
TAGS = st.dictionaries(
    st.sampled_from(
        [
            "dagster/backfill",
            "dagster/sensor_name",
            "dagster/schedule_name",
            "dagster/from_automation_condition",
            "dagster/priority",
            "dagster/partition",
            "dagster/asset_partition_range_start",
            "signalbox/lane",
            "signalbox/pipeline",
        ]
    ),
    st.sampled_from(["x", "flights_late_data", "JFK|2013-01-05", "daily", "late", "backfill", "7"]),
)


def document(**changes: Any) -> dict[str, Any]:
    """A declaration that is right, with some of it replaced."""
    right = LANES.model_dump(mode="json")
    for path, value in changes.items():
        place = right
        *parents, last = path.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return right


# --- the declaration --------------------------------------------------------------------------


def test_a_declaration_that_is_right_is_taken() -> None:
    assert parse_lanes(document(), "lanes.yaml") == LANES
    assert LANES.limit(Lane.DAILY) == LANES.slots
    assert slots_of(LANES, Lane.LATE) == ["lane/late/0"]
    assert len(slots_of(LANES, Lane.DAILY)) == LANES.slots
    assert LANES.nice(Lane.DAILY) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slots": 5}, "late 1 + adhoc 2 + backfill 2 could fill all 5 slots"),
        ({"lanes__backfill__limit": 5}, "could fill all 6 slots"),
        ({"lanes__late__priority": 10}, "they must go down: daily > late > adhoc > backfill"),
        ({"lanes__adhoc__limit": 0}, "lanes.adhoc.limit: found 0"),
        ({"lanes__daily__limit": 1}, "lanes.daily.limit"),
        ({"lanes__daily__nice": 1}, "lanes.daily.nice"),
        ({"lanes__backfill__nice": -1}, "lanes.backfill.nice: found -1"),
        ({"backfill__per_key": "many"}, "found 'many'"),
        ({"slot": 5}, "slot: found 5"),
    ],
)
def test_a_wrong_declaration_is_refused(changes: Mapping[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_lanes(document(**changes), "lanes.yaml")
    assert said in str(refused.value)
    assert str(refused.value).startswith("lanes.yaml is refused")


def test_what_is_no_mapping_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lanes.yaml"
    file.write_text("- 5\n")
    with pytest.raises(SpecError, match="found list, a mapping with slots, lanes and backfill"):
        load_lanes(file)
    with pytest.raises(SpecError, match="cannot be read"):
        load_lanes(tmp_path / "none.yaml")


def test_another_declaration_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(document(slots=9)))
    monkeypatch.setenv("SIGNALBOX_LANES", str(file))
    assert load_lanes().slots == 9


@settings(deadline=None)
@given(st.tuples(*[st.one_of(st.none(), st.integers(0, 9))] * 3), st.integers(-1, 20))
def test_the_others_starve_the_daily_lane_exactly_if_they_can_fill_the_slots(
    limits: tuple[int | None, ...], slots: int
) -> None:
    can = slots >= 0 and (None in limits or sum(n or 0 for n in limits) >= slots)
    assert (starving(dict(zip(OTHERS, limits, strict=True)), slots) is not None) == can


# --- which lane -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "lane"),
    [
        ({"dagster/sensor_name": "flights_readiness"}, Lane.DAILY),
        ({"dagster/sensor_name": "flights_late_data"}, Lane.LATE),
        ({"dagster/schedule_name": "every_midnight"}, Lane.DAILY),
        ({"dagster/from_automation_condition": "true"}, Lane.DAILY),
        ({"dagster/backfill": "abc"}, Lane.BACKFILL),
        # What an automation condition launches as a backfill may be a year.
        ({"dagster/backfill": "abc", "dagster/from_automation_condition": "true"}, Lane.BACKFILL),
        ({}, Lane.ADHOC),
    ],
)
def test_where_a_run_came_from_gives_it_its_lane(tags: dict[str, str], lane: Lane) -> None:
    assert lane_of(tags) is lane


@pytest.mark.parametrize(
    ("tags", "asked", "lane", "overridden"),
    [
        ({"dagster/backfill": "abc"}, "daily", Lane.BACKFILL, "daily"),
        ({"dagster/backfill": "abc"}, "late", Lane.BACKFILL, "late"),
        ({}, "daily", Lane.ADHOC, "daily"),
        ({}, "fast", Lane.ADHOC, "fast"),
        ({}, "backfill", Lane.BACKFILL, None),
        ({"dagster/sensor_name": "mine"}, "adhoc", Lane.ADHOC, None),
        ({"dagster/sensor_name": "flights_late_data"}, "daily", Lane.LATE, "daily"),
    ],
)
def test_a_tag_may_ask_for_a_lesser_lane_and_not_for_a_better_one(
    tags: dict[str, str], asked: str, lane: Lane, overridden: str | None
) -> None:
    found = assign_lane(origin_of(tags), asked)
    assert (found.lane, found.overridden) == (lane, overridden)
    if overridden:
        assert overridden in found.reason


def test_without_the_rule_a_backfill_would_take_the_daily_slots() -> None:
    """The accident: what a tag says is believed."""
    tags = {"dagster/backfill": "abc", "signalbox/lane": "daily"}
    believed = tags["signalbox/lane"]
    limited = {r["value"] for r in rules() if r["key"] == "signalbox/lane"}
    assert believed not in limited, "nothing limits it"
    assert lane_of(tags) in limited


@pytest.mark.parametrize("lane", list(Lane))
def test_a_retry_is_in_the_lane_of_what_it_retries(lane: Lane) -> None:
    assert lane_of({"dagster/parent_run_id": "0123"}, Parent(lane, retried=True)) is lane
    assert lane_of({"signalbox/lane": "daily"}, Parent(Lane.ADHOC, retried=True)) is Lane.ADHOC


@pytest.mark.parametrize(
    ("lane", "given"),
    [
        (Lane.DAILY, Lane.ADHOC),
        (Lane.LATE, Lane.ADHOC),
        (Lane.ADHOC, Lane.ADHOC),
        (Lane.BACKFILL, Lane.BACKFILL),
        (None, Lane.ADHOC),  # the parent is gone
    ],
)
def test_what_is_executed_once_more_by_hand_is_in_no_better_lane_than_a_click(
    lane: Lane | None, given: Lane
) -> None:
    """The UI copies the tags of what it executes again, those of the sensor too."""
    copied = {
        "dagster/sensor_name": "flights_readiness",
        "dagster/retry_number": "1",
        "dagster/auto_retry_run_id": "4567",
        "signalbox/lane": "daily",
    }
    assert lane_of({"dagster/parent_run_id": "0123", **copied}, Parent(lane)) is given


@pytest.mark.parametrize(
    ("parent", "said"),
    [
        (Parent(Lane.LATE, retried=True), "a retry of a run of lane late is in lane late"),
        (Parent(Lane.LATE), "a re-execution of a run of lane late is in lane adhoc"),
        (Parent(None), "a re-execution of a run that is gone is in lane adhoc"),
    ],
)
def test_a_parent_that_no_tag_names_is_no_gap_in_the_reason(parent: Parent, said: str) -> None:
    found = assign_lane(origin_of({}, parent), "daily")
    assert found.reason == f"{said}; it may not take a slot of daily"


def test_a_retry_in_a_backfill_stays_in_it() -> None:
    parent = Parent(Lane.DAILY, retried=True)
    assert lane_of({"dagster/backfill": "abc"}, parent) is Lane.BACKFILL


@settings(deadline=None)
@given(TAGS, ASKED)
def test_asking_for_the_lane_that_was_given_changes_nothing(
    tags: dict[str, str], asked: str | None
) -> None:
    first = assign_lane(origin_of(tags), asked)
    again = assign_lane(origin_of(tags), first.lane)
    assert again == Assigned(first.lane, again.reason)
    assert list(Lane).index(first.lane) >= list(Lane).index(origin_of(tags).lane)


@settings(deadline=None)
@given(TAGS)
def test_the_tags_of_a_run_that_has_its_lane_stay_as_they_are(tags: dict[str, str]) -> None:
    wanted = tags_of_lane(LANES, tags, ["flights/features"])
    after = {**tags, **wanted}
    assert tags_of_lane(LANES, after, ["flights/features"]) == {}
    assert int(after["dagster/priority"]) <= LANES.priority(Lane(after["signalbox/lane"]))


# --- its tags ---------------------------------------------------------------------------------


def test_a_run_of_a_backfill_counts_against_its_pipeline_and_airport() -> None:
    tags = {
        "dagster/backfill": "abc",
        "dagster/asset_partition_range_start": "JFK|2013-01-01",
        "dagster/asset_partition_range_end": "JFK|2013-01-09",
    }
    assert tags_of_lane(LANES, tags, ["flights/features"]) == {
        "signalbox/lane": "backfill",
        "signalbox/pipeline": "flights",
        "signalbox/lane_pipeline": "backfill/flights",
        "signalbox/lane_key": "backfill/flights/JFK",
        "dagster/priority": "-10",
    }


@pytest.mark.parametrize(
    ("tags", "key"),
    [
        ({"dagster/partition": "LGA|2013-01-01"}, "backfill/flights/LGA"),
        # Dagster puts the dimensions into the order of their names.
        ({"dagster/partition": "2013-01-01|zone"}, "backfill/flights/zone"),
        ({"dagster/partition": "2013-01-01"}, None),
        ({"dagster/partition": "what?"}, None),
        (
            {
                "dagster/asset_partition_range_start": "JFK|2013-01-01",
                "dagster/asset_partition_range_end": "LGA|2013-01-01",
            },
            "backfill/flights/several",
        ),
    ],
)
def test_the_airport_is_found_in_whatever_tag_names_the_partition(
    tags: dict[str, str], key: str | None
) -> None:
    found = tags_of_lane(LANES, {"dagster/backfill": "a", **tags}, ["flights/features"])
    assert found.get("signalbox/lane_key") == key


def test_runs_of_other_lanes_have_no_limit_a_pipeline() -> None:
    tags = {"dagster/sensor_name": "s", "dagster/partition": "JFK|2013-01-01"}
    assert tags_of_lane(LANES, tags, ["flights/features"]) == {
        "signalbox/lane": "daily",
        "signalbox/pipeline": "flights",
        "dagster/priority": "10",
    }


def test_of_several_pipelines_none_is_named() -> None:
    found = tags_of_lane(LANES, {"dagster/backfill": "a"}, ["flights/day", "grid_load/day"])
    assert "signalbox/pipeline" not in found
    assert found["signalbox/lane_pipeline"] == "backfill/several"


def test_a_priority_may_be_lower_than_the_lanes_but_not_higher() -> None:
    def priority(asked: str) -> str:
        tags = {"dagster/backfill": "a", "dagster/priority": asked}
        return {**tags, **tags_of_lane(LANES, tags, [])}["dagster/priority"]

    assert priority("100") == "-10"
    assert priority("-30") == "-30"
    assert priority("soon") == "-10"


def test_what_was_asked_for_and_not_given_stays_on_the_run() -> None:
    tags = {"dagster/backfill": "abc", "signalbox/lane": "daily"}
    found = tags_of_lane(LANES, tags, [])["signalbox/lane_overridden"]
    assert found.startswith("daily: a run of backfill abc is in lane backfill")


# --- the limits -------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = concurrency_section(LANES)["runs"]["tag_concurrency_limits"]
    return found


def test_dagster_yaml_is_what_the_declaration_says() -> None:
    """`signalbox lanes write` brings it up to date."""
    text = dagster_yaml().read_text()
    assert generated_section(LANES).rstrip() in text
    assert with_lanes(text, LANES) == text
    document = yaml.safe_load(text)
    assert document["concurrency"] == concurrency_section(LANES)
    assert document["run_coordinator"]["class"] == "LaneRunCoordinator"
    assert document["instance_class"]["class"] == "SignalboxInstance"


def test_the_declared_limits_differ_in_nothing() -> None:
    assert differences(LANES, LANES.slots, rules()) == []


def test_a_steered_backfill_is_no_difference() -> None:
    steered = with_steering(rules(), [Steering("abc", 0), Steering("def", 1)])
    assert steered[-2:] == [
        {"key": "dagster/backfill", "value": "abc", "limit": 0},
        {"key": "dagster/backfill", "value": "def", "limit": 1},
    ]
    assert differences(LANES, LANES.slots, steered) == []


def test_while_nobody_knows_which_are_paused_backfills_wait() -> None:
    found = without_backfills(rules())
    assert [r["limit"] for r in found if r.get("value") == "backfill"] == [0]
    assert len(found) == len(rules())
    assert differences(LANES, LANES.slots, found) == [
        "signalbox/lane=backfill has a limit of 0, declared is 2"
    ]


@pytest.mark.parametrize(
    ("slots", "change", "said"),
    [
        (3, {}, "late 1 + adhoc 2 + backfill 2 could fill all 3 slots"),
        (6, {"signalbox/lane=backfill": 9}, "could fill all 6 slots"),
        (6, {"signalbox/lane=adhoc": None}, "adhoc has no limit and could fill all 6 slots"),
        (6, {"each signalbox/lane_key": 7}, "each signalbox/lane_key has a limit of 7, declared"),
        (6, {"each dagster/backfill": None}, "each dagster/backfill has no limit, declared is 2"),
        (-1, {}, "max_concurrent_runs is -1"),
        (None, {}, "there is no queue"),
    ],
)
def test_limits_in_force_that_are_not_the_declared_ones_are_named(
    slots: int | None, change: Mapping[str, int | None], said: str
) -> None:
    live = []
    for rule in rules():
        value = rule["value"]
        name = f"{rule['key']}={value}" if isinstance(value, str) else f"each {rule['key']}"
        limit = change.get(name, rule["limit"])
        if limit is not None:
            live.append({**rule, "limit": limit})
    assert any(said in found for found in differences(LANES, slots, live))


def test_a_limit_that_nobody_declared_is_named() -> None:
    live = [*rules(), {"key": "signalbox/lane", "limit": 1}]
    assert "all of signalbox/lane has a limit of 1, declared is none" in differences(
        LANES, LANES.slots, live
    )


def of_lane(lane: Lane, count: int, *, queued: bool) -> list[InProgress]:
    return [InProgress({"signalbox/lane": lane.value}, queued) for _ in range(count)]


def test_runs_past_the_queue_fill_the_slots_and_as_many_more_are_needed() -> None:
    """The accident: the lanes are as full as they may be, and one more of `dg launch` waits."""
    full = [run for lane in OTHERS for run in of_lane(lane, LANES.limit(lane), queued=True)]
    assert len(full) < LANES.slots
    assert beyond(rules(), full) == 0
    (waiting,) = of_lane(Lane.ADHOC, 1, queued=False)
    assert len([*full, waiting]) == LANES.slots, "to Dagster there is no slot for a daily run"
    assert beyond(rules(), [*full, waiting]) == 1
    # One that has not come to its claim has no tag yet.
    assert beyond(rules(), [*full, InProgress({}, queued=False)]) == 1


COUNT = st.integers(0, 9)
COUNTS = st.fixed_dictionaries({lane: st.tuples(COUNT, COUNT) for lane in OTHERS})


@settings(deadline=None)
@given(COUNTS)
def test_the_daily_lane_has_its_slot_whatever_comes_past_the_queue(
    counts: Mapping[Lane, tuple[int, int]],
) -> None:
    runs: list[InProgress] = []
    others = 0
    for lane, (asked, past) in counts.items():
        started = min(asked, LANES.limit(lane))
        runs += of_lane(lane, started, queued=True) + of_lane(lane, past, queued=False)
        others += min(started + past, LANES.limit(lane))
    free = LANES.slots + beyond(rules(), runs) - len(runs)
    assert free >= 1
    assert free == LANES.slots - others, "and no more than the others leave"


def test_what_the_queue_has_started_itself_adds_no_slot() -> None:
    """Of runs that were queued before there were lanes each would let one more start."""
    older = [InProgress({}, queued=True) for _ in range(9)]
    assert beyond(rules(), [*older, *of_lane(Lane.ADHOC, 9, queued=True)]) == 0
    assert beyond(rules(), of_lane(Lane.DAILY, 9, queued=False)) == 0, "it has no limit"


# --- the file ---------------------------------------------------------------------------------

BEFORE = """# Mine.
telemetry:
  enabled: false

concurrency:
  runs:
    # Old words.
    max_concurrent_runs: 4
    tag_concurrency_limits:
    - key: dagster/backfill
      limit: 2

run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator

# Where everything is.
storage:
  postgres:
    postgres_url: x
"""


def test_the_section_is_replaced_and_all_else_stays() -> None:
    after = with_lanes(BEFORE, LANES)
    assert with_lanes(after, LANES) == after
    assert after.count(GENERATED) == 1
    kept = {k: v for k, v in yaml.safe_load(BEFORE).items() if k != "concurrency"}
    found = yaml.safe_load(after)
    assert found.pop("concurrency") == concurrency_section(LANES)
    assert found == kept
    assert "# Where everything is.\nstorage:" in after


def test_a_file_without_the_section_gets_it() -> None:
    after = with_lanes("telemetry:\n  enabled: false\n", LANES)
    assert yaml.safe_load(after)["concurrency"] == concurrency_section(LANES)
    assert with_lanes(after, LANES) == after


def test_an_older_home_gets_what_is_the_projects_and_keeps_its_storage() -> None:
    project = dagster_yaml().read_text()
    after = renewed(BEFORE, project)
    found, wanted = yaml.safe_load(after), yaml.safe_load(project)
    assert found["storage"] == {"postgres": {"postgres_url": "x"}}
    for name in ("concurrency", "run_coordinator", "instance_class", "run_monitoring"):
        assert found[name] == wanted[name], name
    assert after.startswith("# Mine.\n")
    assert renewed(after, project) == after
    assert renewed(project, project) == project


@pytest.mark.parametrize("text", ["- a list\n", "a: [\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dagster.yaml"
    with pytest.raises(HomeError, match="is missing"):
        read_instance_file(file)
    file.write_text(text)
    with pytest.raises(HomeError, match="copy the project's over it"):
        read_instance_file(file)
