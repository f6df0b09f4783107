"""The gate on the line: who is truly worse is refused, and a verdict is good for its pair alone."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from platform_assets.domain.errors import PromotionConflictError, RefusedError, TransientError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line import crowning
from platform_assets.line.crowning import CHAMPION_ALIAS, decide_champion, promote
from platform_assets.line.gating import known_verdict, registered, verdict_on
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import train_model
from platform_assets.line.projection import project
from platform_assets.line.promoting import promote_version, roll_back
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources.ledger.promotions import AliasState, EvaluationRecord
from resources.tracking import Tracking
from tests.promoting import NOON, crowned, verdict
from tests.small import Line, Templates, copied, opened, small_spec
from tests.test_champion_waivers import rests, waiver

pytestmark = pytest.mark.heavy
FIRST, NEXT = "2013-01-04", "2013-01-07"
GROWN = {
    "num_boost_round": 200,
    "learning_rate": 0.3,
    "num_leaves": 31,
    "min_data_in_leaf": 5,
    "num_threads": 1,
}


class ShuffledTrainer(LightGBMTrainer):
    """Trains on labels that were shuffled: nothing is to be learned, and much is."""

    def fit(self, frame: Any, target: Any, **how: Any) -> object:
        order = np.random.default_rng(1).permutation(len(target))
        return super().fit(frame, target.iloc[order].reset_index(drop=True), **how)


class PartialTrainer(LightGBMTrainer):
    """Trains on the first rows alone: as if the days had arrived in part."""

    def fit(self, frame: Any, target: Any, **how: Any) -> object:
        return super().fit(frame.head(60), target.head(60), **how)


class PlainTrainer(LightGBMTrainer):
    """Another file, and so another fingerprint; the same training."""


@pytest.fixture
def line(templates: Templates, tmp_path: Path) -> Iterator[Line]:
    """The model of the 4th is champion."""
    with copied(templates.models, tmp_path) as found:
        evaluate_model(found.services, PartitionKey.parse(FIRST), "run")
        decide_champion(found.services, "run")
        yield found


@pytest.fixture
def templates(shared_folder: Path, home_template: Path) -> Templates:
    return Templates(shared_folder, home_template)


def in_force(line: Line) -> AliasState:
    state = line.services.ledger.alias_state("flight-delay")
    assert state is not None
    return state


def trained(line: Line, trainer: str, day: str = NEXT, **model: object) -> int:
    """Train and judge the model of a date by another trainer; its version."""
    fields = {"trainer": f"tests.test_gate:{trainer}", "parameters": GROWN, **model}
    with opened(line.home, small_spec(model=fields)) as other:
        train_model(other.services, PartitionKey.parse(day), "worse", lane="by hand")
        evaluate_model(other.services, PartitionKey.parse(day), "worse")
    return int(line.versions("model")[day].detail["model_version"])


def newest(line: Line, version: int) -> EvaluationRecord:
    return line.services.ledger.evaluations("flight-delay", version)[-1]


@pytest.mark.parametrize("trainer", ["ShuffledTrainer", "PartialTrainer"])
def test_a_truly_worse_model_is_refused_on_every_path(line: Line, trainer: str) -> None:
    services, before = line.services, in_force(line)
    worse = trained(line, trainer)
    outcome = decide_champion(services, "run")
    assert not outcome.changed
    found = newest(line, worse)
    assert (found.candidate, found.champion, found.passed) == (worse, before.version, False)
    evidence = found.report["evidence"]
    assert evidence["candidate"]["metric"] > evidence["champion"]["metric"] + 0.05
    assert f"it is worse than version {before.version}" in found.report["reason"]
    assert in_force(line) == before
    assert services.tracking.alias("flight-delay", CHAMPION_ALIAS) == before.version
    # The job of the sensor, then by hand with the verdict that it has.
    line.must("champion")
    candidate = registered(services)[worse]
    with pytest.raises(RefusedError, match="did not pass its evaluation"):
        promote(services, candidate, before, found, by="ann", run_id="run")
    assert in_force(line) == before


def gate_shown(line: Line) -> dg.AssetCheckEvaluation:
    """What the check `gate` says now."""
    record = line.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(line.key("champion"), "gate"), limit=1
    )[0]
    assert record.event is not None
    assert record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def test_a_decision_that_is_held_does_not_leave_the_last_green_check(line: Line) -> None:
    line.must("champion")
    assert gate_shown(line).passed
    champion = line.versions("model")[FIRST]
    line.services.ledger.hold(
        "flight-delay", in_force(line).version, reason="it leaks", by="ann", since=NOON
    )
    result = line.run("champion")
    shown = gate_shown(line)
    assert (result.success, shown.passed) == (False, False)
    assert shown.severity == dg.AssetCheckSeverity.ERROR
    assert "nothing was decided" in (shown.description or "")
    assert "it leaks" in (shown.description or "")
    assert champion.detail["model_version"] == in_force(line).version, "it stays"


def test_a_champion_that_cannot_be_compared_with_fails_the_check(line: Line) -> None:
    line.must("champion")
    evaluate_model(line.services, PartitionKey.parse(NEXT), "run")
    line.services.tracking._client().delete_model_version(
        "flight-delay", str(in_force(line).version)
    )
    result = line.run("champion")
    shown = gate_shown(line)
    assert (result.success, shown.passed) == (False, False)
    assert "cannot be compared with" in (shown.description or "")


def test_the_verdict_is_shown_as_a_check_and_in_mlflow(line: Line) -> None:
    worse = trained(line, "ShuffledTrainer")
    line.must("champion")
    shown = gate_shown(line)
    assert not shown.passed
    assert shown.severity == dg.AssetCheckSeverity.WARN
    assert shown.metadata["candidate"].value == worse
    assert f"version {worse} is refused" in (shown.description or "")
    run_id = registered(line.services)[worse].detail["mlflow_run_id"]
    run = line.services.tracking._client().get_run(run_id)
    assert run.data.tags["signalbox.gate"] == "refused"
    assert run.data.tags["signalbox.gate_against"] == f"champion {in_force(line).version}"
    assert run.data.metrics["gate_passed"] == 0
    assert run.data.metrics["gate_high"] < 0


@pytest.mark.parametrize("at", ["retag", "log_judgement"])
def test_a_verdict_that_mlflow_did_not_take_is_shown_by_the_next_try(
    line: Line, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, worse = line.services, trained(line, "ShuffledTrainer")
    known = services.ledger.evaluations("flight-delay")

    def away(*_: object) -> None:
        raise TransientError("the MLflow store did not answer, it must be reachable: try again")

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, at, away)
        with pytest.raises(TransientError):
            decide_champion(services, "run")
        # Recorded now, it would be known to the next try, and never be shown.
        assert services.ledger.evaluations("flight-delay") == known
    decide_champion(services, "again")
    run_id = registered(services)[worse].detail["mlflow_run_id"]
    data = services.tracking._client().get_run(run_id).data
    assert data.tags["signalbox.gate"] == "refused"
    assert data.metrics["gate_passed"] == 0
    assert len(services.ledger.evaluations("flight-delay", worse)) == 1


def test_a_decision_that_finds_nothing_new_judges_nothing_again(line: Line) -> None:
    trained(line, "ShuffledTrainer")
    decide_champion(line.services, "run")
    before = line.services.ledger.evaluations("flight-delay")
    outcome = decide_champion(line.services, "again")
    assert outcome.metadata["decisions"] == []
    assert line.services.ledger.evaluations("flight-delay") == before


def test_a_verdict_against_another_champion_does_not_promote(line: Line) -> None:
    services, seen = line.services, in_force(line)
    version = line.versions("model")[NEXT].detail["model_version"]
    other = line.versions("model")["2013-01-08"].detail["model_version"]
    mine = verdict(services.ledger, version, seen.version)
    crowned(services.ledger, other)
    candidate = registered(services)[version]
    with pytest.raises(PromotionConflictError, match=f"version {other} is in force"):
        promote(services, candidate, seen, mine, by="ann", run_id="run")
    with pytest.raises(RefusedError, match="says nothing of"):
        promote(services, candidate, in_force(line), mine, by="ann", run_id="run")
    assert in_force(line).version == other


def test_whoever_is_overtaken_while_deciding_decides_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person promotes another version between the verdict and the swap."""
    services = line.services
    evaluate_model(services, PartitionKey.parse(NEXT), "run")
    candidate = line.versions("model")[NEXT].detail["model_version"]
    other = line.versions("model")["2013-01-08"].detail["model_version"]
    first = in_force(line).version
    against: list[int | None] = []
    whole = crowning.verdict_on

    def better(*args: Any, **how: Any) -> EvaluationRecord:
        """Whatever the scores are: it passes."""
        found = whole(*args, **how)
        against.append(found.champion)
        passed = services.ledger.record_evaluation(replace(found, id=0, passed=True))
        if len(against) == 1:
            crowned(services.ledger, other)
        return passed

    monkeypatch.setattr(crowning, "verdict_on", better)
    monkeypatch.setattr(crowning, "_is_new", lambda *_: True)
    decide_champion(services, "run")
    history = services.ledger.promotions("flight-delay")
    assert [(c.previous, c.version) for c in history][:2] == [(None, first), (first, other)]
    assert against[:2] == [first, other], "judged again, against the winner"
    assert all(before.version == after.previous for before, after in pairwise(history))
    assert candidate in {change.version for change in history[2:]}


def test_a_number_that_stands_for_another_model_needs_its_own_verdict(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a registry that was set up anew: it counts from 1 again."""
    services, seen = line.services, in_force(line)
    evaluate_model(services, PartitionKey.parse(NEXT), "run")
    version = int(line.versions("model")[NEXT].detail["model_version"])
    old, champion = registered(services)[version], registered(services)[seen.version]
    found = verdict_on(services, old, seen.version, champion, "run")
    passed = services.ledger.record_evaluation(replace(found, id=0, passed=True))
    assert known_verdict(services, old, seen.version, champion) == passed
    with services.claim(services.spec.asset("model"), NEXT, "anew") as lease:
        services.ledger.record_version(replace(old, data_version="cd" * 32), lease)
    new = registered(services)[version]
    assert known_verdict(services, new, seen.version, champion) is None
    assert known_verdict(services, old, seen.version, new) is None, "nor of another champion"
    with pytest.raises(RefusedError, match="has no verdict against"):
        promote_version(services, version, by="ann")
    monkeypatch.setattr(Tracking, "verified", lambda *_, **__: nullcontext())
    with pytest.raises(RefusedError, match="each needs a verdict of its own"):
        promote(services, new, seen, passed, by="ann", run_id="run")
    assert in_force(line) == seen
    # By the number alone it would be the same one.
    monkeypatch.setattr(EvaluationRecord, "digest", "cd" * 32)
    promote(services, new, seen, passed, by="ann", run_id="run")
    assert in_force(line).version == version


def test_what_was_changed_after_its_verdict_is_neither_promoted_nor_rolled_back_to(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, seen = line.services, in_force(line)
    evaluate_model(services, PartitionKey.parse(NEXT), "run")
    version = int(line.versions("model")[NEXT].detail["model_version"])
    candidate, champion = registered(services)[version], registered(services)[seen.version]
    found = verdict_on(services, candidate, seen.version, champion, "run")
    services.ledger.record_evaluation(replace(found, id=0, passed=True))
    with monkeypatch.context() as patch:
        patch.setattr("resources.tracking.store.model_digest", lambda _: "ef" * 32)
        with pytest.raises(RefusedError, match=r"they were changed since"):
            promote_version(services, version, by="ann")
    assert in_force(line) == seen
    promote_version(services, version, by="ann")
    kept = services.slot.kept(seen.version, champion.data_version)
    assert kept is not None, "and could be served again whatever became of the registry's files"
    shutil.rmtree(services.slot.root)
    with monkeypatch.context() as patch:
        patch.setattr("resources.tracking.store.model_digest", lambda _: "ef" * 32)
        with pytest.raises(RefusedError, match=r"cannot be served: .* they were changed since"):
            roll_back(services, seen.version, by="ann", reason="off")
    assert in_force(line).version == version
    assert roll_back(services, None, by="ann", reason="off").version == seen.version


def test_the_terms_of_the_catalog_decide(line: Line) -> None:
    """The same scores, other terms: what the catalog asks now counts, and is judged by anew."""
    evaluate_model(line.services, PartitionKey.parse(NEXT), "run")
    candidate = registered(line.services)[int(line.versions("model")[NEXT].detail["model_version"])]
    champion = registered(line.services)[in_force(line).version]
    first = verdict_on(line.services, candidate, in_force(line).version, champion, "run")
    with opened(line.home, small_spec(evaluation={"gate": {"min_rows": 100_000}})) as strict:
        second = verdict_on(strict.services, candidate, in_force(line).version, champion, "run")
    assert second.id != first.id
    assert not second.passed
    assert "too few to tell" in second.report["reason"]
    slices = first.report["evidence"]["slice_rows"]
    assert {"airport=JFK", "airport=LGA"} < set(slices)
    assert any(name.startswith("carrier=") for name in slices)


def test_the_alias_is_set_when_the_next_one_looks(line: Line) -> None:
    """A promoter that dies between ledger and alias leaves the alias behind, until a look."""
    other = line.versions("model")["2013-01-08"].detail["model_version"]
    first = in_force(line).version
    crowned(line.services.ledger, other, model_date=date(2013, 1, 8))
    assert line.services.tracking.alias("flight-delay", CHAMPION_ALIAS) == first
    assert "alias champion" in project(line.services).done
    assert line.services.tracking.alias("flight-delay", CHAMPION_ALIAS) == other


SMALL = {"num_boost_round": 20, "num_leaves": 7, "min_data_in_leaf": 20, "num_threads": 1}
"""Of labels that were shuffled it learns little: its mean is right, and so is its calibration."""


def test_a_champion_whose_date_was_trained_again_is_still_compared_with(line: Line) -> None:
    services, before = line.services, in_force(line)
    worse = trained(line, "ShuffledTrainer", FIRST, parameters=SMALL)
    outcome = decide_champion(services, "run")
    assert (outcome.changed, in_force(line)) == (False, before)
    found = newest(line, worse)
    assert found.report["evidence"]["champion"]["version"] == before.version
    assert f"it is worse than version {before.version}" in found.report["reason"]
    with pytest.raises(RefusedError, match=f"worse than version {before.version}"):
        promote_version(services, worse, by="ann", evaluate=True)
    assert in_force(line) == before
    # Compared with nobody it would be champion.
    candidate = registered(services)[worse]
    assert verdict_on(services, candidate, before.version, None, "run", absent="so").passed


def test_a_champion_that_was_deleted_and_trained_again_does_not_stop_the_line(line: Line) -> None:
    services, before = line.services, in_force(line)
    again = trained(line, "PlainTrainer", FIRST)
    services.tracking._client().delete_model_version("flight-delay", str(before.version))
    outcome = decide_champion(services, "run")
    assert (outcome.changed, in_force(line).version) == (True, again)
    assert "is not in MLflow's registry any more" in str(outcome.metadata["reason"])


def test_by_hand_an_absent_champion_is_stood_in_for_by_the_best_other(line: Line) -> None:
    services, before = line.services, in_force(line)
    evaluate_model(services, PartitionKey.parse(NEXT), "run")
    good = int(line.versions("model")[NEXT].detail["model_version"])
    worse = trained(line, "ShuffledTrainer", "2013-01-08", parameters=SMALL)
    name = waiver(line).name
    rests(line, "model", FIRST, name)
    services.waivers.revoke("flights", name, "bob", "it was not", services.clock.as_of())
    known = services.ledger.evaluations("flight-delay")
    with pytest.raises(RefusedError, match=r"revoked by bob: it was not.*best of the others"):
        promote_version(services, worse, by="ann")
    assert services.ledger.evaluations("flight-delay") == known
    with pytest.raises(RefusedError, match=rf"version {worse} is refused.*improvement"):
        promote_version(services, worse, by="ann", evaluate=True)
    assert in_force(line) == before
    found = newest(line, worse)
    assert found.report["evidence"]["champion"]["version"] == good
    # Compared with nobody it would be champion.
    candidate = registered(services)[worse]
    assert verdict_on(services, candidate, before.version, None, "run", absent="so").passed
