"""The drill promotion-race shows what it says, with fewer promoters."""

import os
from collections.abc import Callable

import pytest

from platform_assets.domain.errors import PromotionConflictError
from platform_assets.drills import promotion_race
from platform_assets.drills.harness import Scene
from platform_assets.drills.promotion_race import play_race
from resources.home import Home
from resources.ledger.promotions import Promotions

pytestmark = [pytest.mark.heavy, pytest.mark.embedded]


@pytest.fixture
def scene(home: Home) -> Scene:
    return Scene(home, 2, lambda _: None)


def test_of_the_promoters_one_replaced_the_champion(scene: Scene) -> None:
    found = play_race(scene, 6)
    assert found.ok, found.verdict
    believed, unknown, loss = found.figures
    assert (believed.plain, believed.signalbox) == (6, 1)
    assert (unknown.plain, unknown.signalbox) == (5, 0)
    assert loss.signalbox == loss.ideal
    assert "6 promoters believe" in found.verdict


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
