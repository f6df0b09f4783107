"""The drill promotion-race shows what it says, with fewer promoters."""

import os
from collections.abc import Callable

import pytest

from platform_assets.domain.errors import PromotionConflictError
from platform_assets.domain.reconcile import Projection
from platform_assets.drills import promotion_race
from platform_assets.drills.harness import Scene
from platform_assets.drills.promotion_race import play_race
from platform_assets.line import projection
from platform_assets.line.services import Services
from resources.home import Home
from resources.ledger.promotions import Promotions

pytestmark = [pytest.mark.heavy, pytest.mark.embedded]


@pytest.fixture
def scene(home: Home) -> Scene:
    return Scene(home, 2, lambda _: None)


def test_of_the_promoters_one_replaced_the_champion(scene: Scene) -> None:
    found = play_race(scene, 6)
    assert found.ok, found.verdict
    believed, unknown, named, loss = found.figures
    assert (believed.plain, believed.signalbox) == (6, 1)
    assert (unknown.plain, unknown.signalbox) == (5, 0)
    assert named.signalbox == named.ideal == 1
    assert named.plain in (1, 2)
    assert loss.signalbox == loss.ideal
    killed = found.signalbox[-1].found
    assert "the next look set them to 8 and 8" in killed
    assert "6 promoters believe" in found.verdict


def test_a_slot_that_does_not_follow_fails_the_drill(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each promoter deployed what it had promoted, some time later."""
    whole: Callable[..., None] = projection._deploy

    def once(services: Services, should: Projection) -> None:
        if services.slot.serves() is None:
            whole(services, should)

    monkeypatch.setattr(projection, "_deploy", once)
    found = play_race(scene, 3)
    assert not found.ok
    assert found.figures[2].signalbox == 2
    assert [step.ok for step in found.signalbox] == [True, False, False]


def test_without_the_comparison_the_drill_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that takes whatever state it finds for the expected one, as an alias does."""
    whole: Callable[..., object] = Promotions.promote
    parent = os.getpid()

    def careless(self: Promotions, *given: object, **how: object) -> object:
        if os.getpid() == parent:
            return whole(self, *given, **how)
        while True:
            state = self.alias_state(promotion_race.load_catalog()["flights"].model.name)
            try:
                return whole(self, *given, **(how | {"expected": state}))
            except PromotionConflictError:
                continue

    monkeypatch.setattr(Promotions, "promote", careless)
    monkeypatch.setattr("resources.ledger.promotions._require_verdict", lambda *_: None)
    found = play_race(scene, 6)
    assert not found.ok
    assert found.figures[0].signalbox > 1
