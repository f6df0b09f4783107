"""What was let go once is asked about again: an acceptance that was withdrawn, a lost verdict."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

import platform_assets.line.days
import platform_assets.line.models
from platform_assets.domain.errors import HeldError
from platform_assets.domain.manifest import Snapshot, WindowRefusal
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.days import days_of, decide_snapshot
from platform_assets.line.explain import explain
from platform_assets.line.features import build_features
from platform_assets.line.gating import registered, rows_between, unexplained, verdict_on
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import require_snapshot
from tests.small import HELD, Line, Templates, copied, failure_of, opened, small_spec
from tests.test_every_path import forget

pytestmark = pytest.mark.heavy

SIXTH = date(2013, 1, 6)
NO_LONGER = "accepted by the catalog's rule, which no longer counts: it is late by now"


def accepting() -> PipelineSpec:
    spec = small_spec().model_dump()
    spec["sources"]["weather"]["contract"] |= {"at_deadline": "accept", "accept_lacking": 1}
    return small_spec(sources=spec["sources"])


@pytest.fixture
def accepted(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """A day of 23 hours left by the catalog's rule, and a snapshot was taken of it."""
    templates = Templates(shared_folder, home_template)
    with copied(templates.features, tmp_path, accepting()) as line:
        line.must("features", partition=HELD)
        line.must("snapshot", partition="2013-01-06")
        assert require_snapshot(line.services, SIXTH).detail["short"]
        yield line


def test_a_withdrawn_acceptance_is_not_trained_on(
    accepted: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(accepted.home, small_spec()) as line:
        services = line.services
        # At once, though no look has met the new rule yet.
        asked = services.ledger.verdict("flights", "flights/features", HELD)
        assert asked is not None
        assert asked.verdict == "accepted"
        with monkeypatch.context() as patch:
            patch.setattr(platform_assets.line.days, "unaccepted_now", lambda *_: {})
            patch.setattr(platform_assets.line.models, "unaccepted_now", lambda *_: {})
            assert isinstance(decide_snapshot(services, SIXTH), Snapshot)
            require_snapshot(services, SIXTH)
        told = explain(services, "flights/features", HELD)
        assert told["state"] == "held"
        assert NO_LONGER in told["reason"]
        ran = line.run("model", partition="2013-01-06")
        assert not ran.success
        assert f"{HELD}: it was built short of weather 23 of 24 hours" in failure_of(ran)
        assert NO_LONGER in failure_of(ran)
        ran = line.run("snapshot", "model", partition="2013-01-06")
        assert not ran.success
        assert NO_LONGER in failure_of(ran)
        assert line.versions("model") == {}

        # And afterwards by the verdict that was recorded.
        monkeypatch.setattr(platform_assets.line.days, "assess_range", lambda *_: {})
        recorded = services.ledger.verdict("flights", "flights/features", HELD)
        assert recorded is not None
        assert recorded.verdict == "late"
        assert HELD not in {p.partition for p in days_of(services, [SIXTH])[SIXTH].partitions}
        with monkeypatch.context() as patch:
            patch.setattr(platform_assets.line.days, "_unaccepted", lambda *_: {})
            assert days_of(services, [SIXTH])[SIXTH].state == "whole"


def test_an_acceptance_that_is_given_again_counts_again(accepted: Line) -> None:
    with opened(accepted.home, small_spec()) as line:
        assert isinstance(decide_snapshot(line.services, SIXTH), WindowRefusal)
        with pytest.raises(HeldError, match="which no longer counts"):
            require_snapshot(line.services, SIXTH)
    with opened(accepted.home, accepting()) as line:
        # By nothing but a new look at the partition itself.
        taken = decide_snapshot(line.services, SIXTH)
        assert isinstance(taken, WindowRefusal)
        assert "landed whole but are not built" in taken.reason
        build_features(line.services, PartitionKey.parse(HELD), "run")
        assert isinstance(decide_snapshot(line.services, SIXTH), Snapshot)
        line.must("snapshot", partition="2013-01-06")
        require_snapshot(line.services, SIXTH)


def test_rows_of_an_earlier_judgement_without_a_verdict_prove_nothing(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as line:
        services = line.services
        evaluate_model(services, PartitionKey.parse("2013-01-04"), "run")
        model = min(registered(services).items())[1]
        assert model.partition == "2013-01-04"
        rows = rows_between(services, model, None)
        assert unexplained(services, model, rows, expired=True) == []
        forget(line, "verdicts", "flights/features")
        assert rows_between(services, model, None) == rows
        report = verdict_on(services, model, None, None, "run")
        assert not report.passed
        assert "JFK|2013-01-05: no verdict on it is in the ledger" in str(report.report)
