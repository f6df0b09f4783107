"""Who changes the champion does so under the lease of its asset: by hand too, and by live metric.

The compare-and-swap tells who was faster. It does not tell who slept: nothing may have changed
while a promoter was taken for dead, and another one is at work in its place.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from platform_assets.domain.lease import Lease, LeaseLostError, Taken
from platform_assets.domain.partition import PartitionKey
from platform_assets.line import promoting
from platform_assets.line.crowning import decide_champion
from platform_assets.line.gating import require_registered, verdict_on
from platform_assets.line.judging import evaluate_model
from platform_assets.line.live_metric import watch_champion
from platform_assets.line.services import Services
from resources import processes
from resources.ledger.promotions import AliasState, Promotions
from tests.promoting import MODEL, crowned, verdict
from tests.small import Line
from tests.test_cli import Shell, signalbox, small
from tests.test_live_metric import judge as judged
from tests.test_live_metric import line as watched
from tests.test_promotions import everything

__all__ = ["signalbox", "small", "watched"]

pytestmark = pytest.mark.heavy
RESOURCE = "flights/champion"
BY = ("--by", "ann")


@pytest.fixture
def line(small: Line) -> Line:
    """The model of the 4th is champion; that of the 7th has a verdict against it that passed."""
    evaluate_model(small.services, PartitionKey.parse("2013-01-04"), "run")
    decide_champion(small.services, "run")
    evaluate_model(small.services, PartitionKey.parse("2013-01-07"), "run")
    ledger, state = small.services.ledger, in_force(small)
    seventh = require_registered(small.services, version(small, "07"))
    champion = require_registered(small.services, state.version)
    found = verdict_on(small.services, seventh, state.version, champion, "run")
    ledger.record_evaluation(replace(found, id=0, passed=True))
    return small


def version(line: Line, day: str) -> int:
    return int(line.versions("model")[f"2013-01-{day}"].detail["model_version"])


def in_force(line: Line) -> AliasState:
    found = line.services.ledger.alias_state(MODEL)
    assert found is not None
    return found


def taken_over(services: Services) -> Lease:
    """Another run takes the lease over, as after 30 seconds without a renewal."""
    other = replace(processes.holder("other"), machine="elsewhere")
    seen = services.leases.claim(RESOURCE, other)
    assert isinstance(seen, Taken), "nobody holds it"
    later = services.leases.claim(RESOURCE, other, over=seen)
    assert isinstance(later, Lease)
    return later


def asleep(monkeypatch: pytest.MonkeyPatch, line: Line, change: str, *, fenced: bool) -> None:
    """Who promotes, or rolls back, falls asleep before the ledger is told."""
    whole: Callable[..., object] = getattr(Promotions, change)

    def late(self: Promotions, *given: object, **how: object) -> object:
        taken_over(line.services)
        return whole(self, *given, **(how if fenced else how | {"lease": None}))

    monkeypatch.setattr(Promotions, change, late)


@pytest.mark.parametrize("fenced", [True, False])
def test_who_sleeps_over_a_promotion_by_hand_has_lost(
    line: Line, monkeypatch: pytest.MonkeyPatch, fenced: bool
) -> None:
    before = everything(line.services.ledger)
    asleep(monkeypatch, line, "promote", fenced=fenced)
    seventh = version(line, "07")
    if fenced:
        with pytest.raises(LeaseLostError, match="what the later run wrote stands"):
            promoting.promote_version(line.services, seventh, by="ann")
        assert everything(line.services.ledger) == before
    else:
        promoting.promote_version(line.services, seventh, by="ann")
        assert in_force(line).version == seventh, "without the token the sleeper wins"


@pytest.mark.parametrize("fenced", [True, False])
def test_who_sleeps_over_a_roll_back_by_hand_has_lost(
    line: Line, monkeypatch: pytest.MonkeyPatch, fenced: bool
) -> None:
    crowned(line.services.ledger, version(line, "07"))
    before = everything(line.services.ledger)
    asleep(monkeypatch, line, "roll_back", fenced=fenced)
    if fenced:
        with pytest.raises(LeaseLostError):
            promoting.roll_back(line.services, None, by="ann", reason="off")
        assert everything(line.services.ledger) == before
    else:
        promoting.roll_back(line.services, None, by="ann", reason="off")
        assert in_force(line).version == version(line, "04")


def test_the_live_metric_that_sleeps_rolls_nothing_back(
    watched: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(watched, "2013-01-07", "2013-01-08")
    before = everything(watched.services.ledger)
    asleep(monkeypatch, watched, "roll_back", fenced=True)
    with pytest.raises(LeaseLostError):
        watch_champion(watched.services, "run")
    assert everything(watched.services.ledger) == before


def test_by_hand_one_waits_for_the_run_that_decides_and_is_told_its_name(
    line: Line, signalbox: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promoting, "WAIT_SECONDS", 0.0)
    crowned(line.services.ledger, version(line, "05"))
    verdict(line.services.ledger, version(line, "07"), version(line, "05"))
    before = everything(line.services.ledger)
    seventh = str(version(line, "07"))
    commands = (
        ("promote", "flights", seventh, "--evaluate", *BY),
        ("rollback", "flights", "--reason", "off", *BY),
    )
    with line.services.claim(RESOURCE, None, "deciding"):
        for command in commands:
            signalbox(*command).refused(
                1, "flights/champion is being worked on: run deciding", "it may be tried again"
            )
        assert everything(line.services.ledger) == before
    said = signalbox(*commands[1])
    assert said.code == 0, said.err
    assert in_force(line).version == version(line, "04")
    found = line.services.leases.find(RESOURCE)
    assert found is not None
    assert found.released_at is not None, "given back"
