"""The drill preemption shows what it says, with a short training."""

import pytest

from platform_assets.drills.harness import Scene
from platform_assets.drills.preemption import play_interrupted
from resources.home import Home

pytestmark = [pytest.mark.heavy, pytest.mark.embedded, pytest.mark.timeout(900)]


def test_an_interrupted_training_is_gone_on_with_and_a_plain_one_begins_again(home: Home) -> None:
    found = play_interrupted(Scene(home, 2, lambda _: None), 600)
    assert found.ok, found.verdict
    _, _, rounds, _, times = found.figures
    # A signal comes between two looks of the drill: an attempt does some rounds more than 240.
    assert rounds.plain >= 600 + 3 * 240
    # SIGTERM loses no round. The second attempt, the one that gets SIGKILL, begins at round 240 at
    # the earliest, so it can lose 360 at the most: whatever the machine does, no more than 1.6
    # times the rounds, where plain Dagster does 2.2 times and more.
    assert 600 <= rounds.signalbox <= 1.6 * 600 < rounds.plain
    assert times.plain == 3
    assert "the same to the bit" in found.signalbox[1].found
    assert "0 other runs of it" in found.signalbox[2].found
