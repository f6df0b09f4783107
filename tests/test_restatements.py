"""The ledger's restatements: one open a partition, the newest, and a person's word is kept."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.ledger import upgrade
from resources.ledger.records import RestatementRecord
from resources.ledger.restatements import Restatements

NOW = datetime(2013, 2, 12, 5, tzinfo=UTC)
PARTITION = "JFK|2013-02-09"


@pytest.fixture
def store(tmp_path: Path) -> Restatements:
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    return Restatements(url)


def change(now: str = "b", partition: str = PARTITION) -> RestatementRecord:
    return RestatementRecord(
        pipeline="flights",
        partition=partition,
        used_version="a",
        now_version=now,
        changes={"text": "flights: corrected 10:00"},
        touches={"models": []},
        decision="list",
        reason="beyond the lateness",
        state="open",
        found_at=NOW,
    )


def test_the_same_change_is_no_news(store: Restatements) -> None:
    assert store.found(change())
    assert not store.found(change())
    assert store.found(change(partition="LGA|2013-02-09"))
    assert [r.partition for r in store.all("flights")] == [PARTITION, "LGA|2013-02-09"]


def test_a_newer_change_supersedes_and_keeps_what_a_person_said(store: Restatements) -> None:
    store.found(change("b"))
    assert store.approve("flights", [PARTITION], "ann", retrain=False) == [PARTITION]
    assert store.found(change("c"))
    old, new = store.all("flights")
    assert (old.state, new.state) == ("superseded", "approved")
    assert (new.approved_by, new.touches["retrain"]) == ("ann", False)
    assert store.all("flights", only_open=True) == [new]


def test_what_was_approved_can_be_approved_again(store: Restatements) -> None:
    store.found(change())
    store.approve("flights", [PARTITION], "ann")
    (first,) = store.all("flights")
    assert store.approve("flights", [PARTITION], "ben") == [PARTITION]
    (second,) = store.all("flights")
    assert second.approved_by == "ben"
    assert first.approved_at is not None
    assert second.approved_at is not None
    assert second.approved_at > first.approved_at


def test_only_open_ones_of_the_pipeline_are_approved(store: Restatements) -> None:
    store.found(replace(change(), pipeline="grid_load"))
    store.found(change())
    (record,) = store.all("flights")
    store.end(record.number, "done", "features a -> b", NOW)
    assert store.approve("flights", [PARTITION], "ann") == []
    store.remark(record.number, "features requested")
    store.relist(record.number, "its run failed")
    (over,) = store.all("flights")
    assert (over.state, over.outcome, over.reason) == (
        "done",
        "features a -> b",
        "beyond the lateness",
    )


def test_what_is_touched_by_now_replaces_what_was_and_not_what_a_person_said(
    store: Restatements,
) -> None:
    store.found(change())
    store.approve("flights", [PARTITION], "ann", retrain=False)
    (record,) = store.all("flights")
    now = {"models": [{"date": "2013-02-10", "version": 3}], "evaluations": ["2013-02-10"]}
    store.touch(record.number, {**now, "retrain": True})
    (found,) = store.all("flights")
    assert found.touches == {**now, "retrain": False}
    store.end(record.number, "done", "identical", NOW)
    store.touch(record.number, {"models": []})
    (over,) = store.all("flights")
    assert over.touches == found.touches


def test_what_failed_waits_for_a_person_again(store: Restatements) -> None:
    store.found(replace(change(), decision="restate"))
    (record,) = store.all("flights")
    store.remark(record.number, "features are requested")
    store.relist(record.number, "its run failed")
    (listed,) = store.all("flights", only_open=True)
    assert (listed.decision, listed.state, listed.reason, listed.outcome) == (
        "list",
        "open",
        "its run failed",
        None,
    )


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.sampled_from(["b", "c", "d", "approve", "end"]), max_size=8), st.integers())
def test_at_the_most_one_is_open_and_it_is_the_newest(
    store: Restatements, steps: list[str], seed: int
) -> None:
    partition, newest, approved = f"P{seed}|2013-02-09", "", False
    for record in store.all("flights", only_open=True, partition=partition):
        store.end(record.number, "done", "", NOW)
    for step in steps:
        found = store.all("flights", only_open=True, partition=partition)
        if step == "approve":
            approved = bool(store.approve("flights", [partition], "ann")) or approved
        elif step == "end":
            for record in found:
                store.end(record.number, "done", "", NOW)
            newest, approved = "", False
        else:
            assert store.found(change(step, partition)) == (step != newest)
            newest = step
        now = store.all("flights", only_open=True, partition=partition)
        assert [r.now_version for r in now] == ([newest] if newest else [])
        assert all((r.state == "approved") == approved for r in now)
