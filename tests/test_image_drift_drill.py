"""The drill image-drift shows what it says; without what it shows it fails."""

import shutil
from pathlib import Path

import pytest

from platform_assets.domain.images import TaggedImage
from platform_assets.drills import drill_images, image_drift, loopback_registry
from platform_assets.drills import prep_package as prep
from platform_assets.drills.harness import Scene
from platform_assets.drills.image_drift import Case, play_case
from platform_assets.drills.loopback_registry import STAND_IN, a_registry
from resources.home import Home
from resources.images import load_lock
from resources.oci import packages
from tests.small import small_spec

SMALL = {"values": ["JFK", "LGA"], "start": "2013-01-02", "end": "2013-03-31"}


@pytest.fixture
def scene(home: Home) -> Scene:
    return Scene(home, 2, lambda _: None)


@pytest.fixture
def case() -> Case:
    return Case(small_spec(partitions=SMALL))


@pytest.mark.heavy
@pytest.mark.embedded
def test_the_patched_package_is_followed_by_tag_and_refused_by_digest(
    scene: Scene, case: Case
) -> None:
    found = play_case(scene, case)
    assert found.ok, found.verdict
    champions, held = found.figures
    assert (champions.plain, champions.signalbox) == (1, 0)
    assert (held.plain, held.signalbox) == (0, 2)
    said = [step.found for step in found.signalbox]
    assert said[1].startswith("drifted: ")
    assert f"{prep.NAME} 1.4.0 -> 1.4.1" in said[3]
    assert "did not pass: it gave other files and other metrics" in said[5]
    assert "passed: it gave other files and the same metrics" in said[7]
    assert [m.metric for m in found.measurements] == ["log_loss", "auc"]


@pytest.mark.heavy
@pytest.mark.embedded
def test_where_nothing_holds_the_drill_fails(
    scene: Scene, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a catalog that only warns."""
    terms = image_drift.EnvironmentTerms
    monkeypatch.setattr(
        image_drift, "EnvironmentTerms", lambda **more: terms(**{**more, "on_change": "warn"})
    )
    found = play_case(scene, case)
    assert not found.ok
    assert "the gate decides, before there is a canary" in found.verdict
    assert found.figures[1].signalbox == 0


@pytest.mark.parametrize("real", [True, False], ids=["docker-registry", "stand-in"])
def test_an_image_is_pinned_and_its_drift_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    if not real:
        monkeypatch.setattr(loopback_registry.shutil, "which", lambda _: None)
    elif shutil.which(loopback_registry.PROGRAM) is None:
        pytest.skip("docker-registry is not installed")
    lock = tmp_path / "images.lock.yaml"
    with a_registry(tmp_path / "registry") as store:
        assert (store.kind == STAND_IN) is not real
        tagged = TaggedImage(f"{store.host}/team/train", "1")
        first = drill_images.rebuilt(store, tagged, prep.BEFORE)
        assert drill_images.rebuilt(store, tagged, prep.BEFORE) == first, "the same bytes"
        drill_images.pin(lock, tagged)
        assert drill_images.verified(lock).as_locked
        drill_images.rebuilt(store, tagged, prep.PATCHED)
        assert drill_images.verified(lock).state == "drifted"
        pinned = load_lock(lock).named(drill_images.IMAGE_NAME).ref
        assert pinned.digest == first
        assert packages(pinned)[f"python:{prep.NAME}"] == prep.BEFORE
        own = drill_images.pulled(pinned, tmp_path / "pulled")
        assert (own / f"{prep.MODULE}-{prep.BEFORE}.dist-info" / "RECORD").exists()
        words = drill_images.bump(lock, tagged)
        assert words == [f"{prep.NAME} {prep.BEFORE} -> {prep.PATCHED} (Python)"]
        assert drill_images.verified(lock).as_locked
