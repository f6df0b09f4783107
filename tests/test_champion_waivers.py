"""A model that rests on a waiver that was revoked is not crowned, and does not stay champion."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import platform_assets.line.crowning
import platform_assets.line.promoting
from platform_assets.domain.errors import HeldError, RefusedError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.waiver import Shortage, Waiver
from platform_assets.line.crowning import decide_champion
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import train_model
from platform_assets.line.promoting import roll_back
from platform_assets.line.services import Services
from tests.small import HELD, Line, Templates, copied, small_spec
from tests.test_projection import promote

pytestmark = pytest.mark.heavy
DATES = ("2013-01-04", "2013-01-07")


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """The models of two days are judged."""
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        for day in DATES:
            evaluate_model(found.services, PartitionKey.parse(day), "run")
        yield found


def waiver(line: Line) -> Waiver:
    now = line.services.clock.as_of()
    return line.services.waivers.give(
        Waiver(
            name="",
            pipeline="flights",
            partition=HELD,
            reason="the station was down",
            by="ann",
            given_at=now,
            until=now + timedelta(days=1),
            covers={"weather": Shortage(hours=("2013-01-06T11Z",))},
        )
    )


def rests(line: Line, stage: str, day: str, name: str) -> None:
    """Have a model or a judgement rest on a waiver, as it would had its rows left under it."""
    record = line.versions(stage)[day]
    line.services.ledger.record_version(
        replace(record, detail={**record.detail, "waivers": [name]})
    )


def crowned(line: Line) -> str:
    decide_champion(line.services, "run")
    champion = line.services.ledger.champion("flights")
    assert champion is not None
    return champion.model_date.isoformat()


@pytest.mark.parametrize("stage", ["model", "evaluation"])
def test_a_revoked_waiver_takes_the_crown(
    line: Line, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = crowned(line)
    other = next(day for day in DATES if day != best)
    name = waiver(line).name
    rests(line, stage, best, name)
    assert crowned(line) == best  # while it counts
    line.services.waivers.revoke("flights", name, "bob", "it was not", line.services.clock.as_of())
    with monkeypatch.context() as patch:
        patch.setattr(platform_assets.line.crowning, "lapsed", lambda *_, **__: {})
        assert crowned(line) == best  # without the question
    outcome = decide_champion(line.services, "run")
    assert outcome.metadata["model_date"] == other
    assert "revoked by bob: it was not" in outcome.metadata["left_out"][best]
    rests(line, stage, other, name)
    with pytest.raises(HeldError, match="no judged model may be champion"):
        decide_champion(line.services, "run")


def test_an_expired_waiver_keeps_a_champion_and_makes_none(line: Line) -> None:
    best = crowned(line)
    name = waiver(line).name
    rests(line, "model", best, name)
    now = line.services.clock.as_of()
    line.services.ledger.advance_clock("flights", now + timedelta(days=2))
    assert crowned(line) == best
    for day in DATES:
        rests(line, "model", day, name)
    evaluated = line.versions("model")
    never = next(day for day in DATES if day != best)
    assert evaluated[never].detail["waivers"] == [name]
    outcome = decide_champion(line.services, "run")
    assert (outcome.metadata["model_date"], list(outcome.metadata["left_out"])) == (best, [never])


def revoke(line: Line, name: str) -> None:
    line.services.waivers.revoke("flights", name, "bob", "it was not", line.services.clock.as_of())


def train_again(line: Line, day: str) -> None:
    """A date has another model, a bad one, which is judged on rows without a waiver."""
    spec = small_spec(model={"trainer": "tests.bad_trainer:OppositeTrainer"})
    key = PartitionKey.parse(day)
    train_model(Services.open(spec, line.home), key, "again", lane="adhoc")
    evaluate_model(line.services, key, "again")


@pytest.mark.parametrize(("named", "again"), [(False, True), (True, False)])
@pytest.mark.parametrize("stage", ["model", "evaluation"])
def test_nobody_comes_back_by_hand_who_rests_on_a_revoked_waiver(
    line: Line, stage: str, named: bool, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = (promote(line, day) for day in DATES)
    name = waiver(line).name
    rests(line, stage, DATES[0], name)
    if again:
        train_again(line, DATES[0])
    revoke(line, name)
    to = before if named else None
    with pytest.raises(RefusedError, match="no longer counts: waiver W-0001 was revoked by bob"):
        roll_back(line.services, to, by="ann", reason="it is slow")
    with monkeypatch.context() as patch:
        patch.setattr(platform_assets.line.promoting, "lapsed", lambda *_, **__: {})
        change = roll_back(line.services, to, by="ann", reason="it is slow")
    assert change.version == before  # without the question


@pytest.mark.parametrize("stage", ["model", "evaluation"])
def test_a_champion_whose_date_was_trained_again_loses_the_crown_too(
    line: Line, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = crowned(line)
    version = line.services.ledger.champion("flights").version  # type: ignore[union-attr]
    name = waiver(line).name
    rests(line, stage, best, name)
    train_again(line, best)
    assert crowned(line) == best
    revoke(line, name)
    with monkeypatch.context() as patch:
        patch.setattr(platform_assets.line.crowning, "lapsed", lambda *_, **__: {})
        assert crowned(line) == best  # without the question
    decide_champion(line.services, "run")
    found = line.services.ledger.champion("flights")
    assert found is not None
    assert found.version != version
