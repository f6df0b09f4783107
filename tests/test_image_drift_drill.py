"""The drill image-drift shows what it says; without what it shows it fails."""

import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.images import ImageRef, TaggedImage
from platform_assets.drills import drill_images, image_drift, loopback_registry
from platform_assets.drills import prep_package as prep
from platform_assets.drills.harness import Scene
from platform_assets.drills.image_drift import Case, Pod, play_case
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


CHANGED = {"changes": [f"{prep.NAME} 1.4.0 -> 1.4.1"], "state": "held"}
CANARY = {"canary": 1, "reason": "", "predictions_apart": 0.0}


def answers() -> dict[str, list[dict[str, Any]]]:
    """What the processes of a drill that shows all of it say, by step."""
    score = {"2013-01-28": {"log_loss": 0.5, "auc": 0.7}, "2013-02-28": {"log_loss": 0.4}}
    score["2013-02-28"]["auc"] = 0.8
    environment = {"champion": 1, "candidate": 3, "failed": ["environment"]}
    return {
        "plain": [{"version": n, "package": p} for n, p in ((1, prep.BEFORE), (2, prep.PATCHED))],
        "measure": [score, score],
        "train": [
            {"version": 1, "changes": [], "state": "same"},
            {"version": 2, "changes": [], "state": "same"},
            {"version": 3, **CHANGED},
            {"version": 4, **CHANGED},
        ],
        "judge": [{}, {}, {}],
        "decide": [
            {"champion": 1},
            environment,
            environment,
            environment,
            {**environment, "failed": []},
        ],
        "canary": [
            {**CANARY, "passed": False, "largest_difference": 0.1},
            {**CANARY, "passed": True, "largest_difference": 0},
        ],
        "promote": [{"refused": True, "reason": ""}],
    }


@dataclass
class Told(Pod):
    """In place of processes: what they would have said."""

    said: dict[str, list[dict[str, Any]]]

    def run(self, image: ImageRef, *steps: Sequence[Any], home: bool = True) -> list[Any]:
        return [self.said[str(step[0])].pop(0) for step in steps]


@pytest.mark.parametrize(
    ("step", "number", "change", "off"),
    [
        ("plain", 1, {"package": prep.BEFORE}, "somebody rebuilds"),
        ("train", 1, {"changes": ["numpy 1 -> 2"]}, "which has not moved"),
        ("train", 2, {"changes": []}, "is trained in it"),
        ("decide", 1, {"failed": ["improvement"]}, "before there is a canary"),
        ("decide", 1, {"champion": 3}, "before there is a canary"),
        ("canary", 0, {"passed": True}, "`signalbox canary` trains"),
        ("decide", 2, {"failed": []}, "decides again"),
        ("promote", 0, {"refused": False}, "a person tries"),
        ("canary", 1, {"passed": False}, "takes the patch back"),
        ("decide", 4, {"failed": ["environment"]}, "decides about that one"),
        ("judge", 0, {}, ""),
    ],
)
def test_what_is_not_shown_fails_the_drill(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    number: int,
    change: dict[str, Any],
    off: str,
) -> None:
    said = answers()
    said[step][number] = {**said[step][number], **change}
    (tmp_path / "2013-01-28.train.parquet").touch()
    scene = Scene(Home.locate(tmp_path / "home"), 2, lambda _: None)
    scene.home.root.mkdir()
    pod = Told(scene, image_drift._small(small_spec()), said)
    monkeypatch.setattr(image_drift, "Pod", lambda *_: pod)
    monkeypatch.setattr(image_drift, "_version_after", lambda *_: 3)
    monkeypatch.setattr(loopback_registry.shutil, "which", lambda _: None)
    with a_registry(tmp_path) as store:
        days = [date(2013, 1, n) for n in (13, 14, 15)]
        found = image_drift._played(pod, store, small_spec(), days, tmp_path)
    assert found.ok is not bool(off), found.verdict
    assert off in found.verdict


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
        assert packages(pinned)[f"python:{prep.NAME}@{prep.SITE}"] == prep.BEFORE
        own = drill_images.pulled(pinned, tmp_path / "pulled")
        assert (own / f"{prep.MODULE}-{prep.BEFORE}.dist-info" / "RECORD").exists()
        words = drill_images.bump(lock, tagged)
        assert words == [f"{prep.NAME} {prep.BEFORE} -> {prep.PATCHED} (Python, {prep.SITE})"]
        assert drill_images.verified(lock).as_locked


@pytest.mark.parametrize("name", ["../outside", "/outside", "link"])
def test_nothing_of_a_layer_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    entry, packed = tarfile.TarInfo(name), tmp_path / "layer.tar"
    if name == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, "/"
    with tarfile.open(packed, "w") as archive:
        archive.addfile(entry)
    inside = tmp_path / "inside"
    with tarfile.open(packed) as archive, pytest.raises(RefusedError, match="holds"):
        drill_images.unpacked(archive, inside)
    assert not (tmp_path / "outside").exists()
