"""`signalbox drill image-drift`: a patched package behind a tag that has not moved.

Images are pushed to a registry on the loopback; what a training gets of one are the packages of
its layers, unpacked and put before all others on the path of a process. Either side pulls the same
images: the plain one by tag, Signalbox by the digest of its lock.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from platform_assets.domain.canary import EnvironmentTerms
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.images import ImageRef, TaggedImage
from platform_assets.domain.manifest import window
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills import prep_package as prep
from platform_assets.drills.drill_images import (
    IMAGE_NAME,
    bump,
    by_tag,
    pin,
    pulled,
    rebuilt,
    verified,
)
from platform_assets.drills.harness import Scene
from platform_assets.drills.loopback_registry import REAL, Store, a_registry
from platform_assets.drills.measure import BETTER, Rows, chosen_dates
from platform_assets.drills.report import DrillReport, Figure, Measurement, Step
from platform_assets.line.days import build_day
from platform_assets.line.features import build_features
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.environment import IMAGE
from resources.images import load_lock
from resources.intervals import paired_bootstrap

NAME = "image-drift"
TITLE = "a package whose patch changes the features, behind an unmoved tag"
TAG = "2013-05"
TRAINER = "platform_assets.drills.drifting:PreparedTrainer"
SECONDS = 1800.0
WINDOW, MODELS = 7, 3


@dataclass(frozen=True)
class Case:
    """What is played: on which pipeline, and with which models the loss is measured."""

    spec: PipelineSpec


@dataclass
class Pod:
    """Processes that have the packages of an image, as its containers would."""

    scene: Scene
    spec: PipelineSpec

    def run(self, image: ImageRef, *steps: Sequence[Any], home: bool = True) -> list[Any]:
        """Do some steps of `drifting` in one process.

        Raises:
            RefusedError: the process failed; with the last that it said.
        """
        root = Path(__file__).resolve().parents[2]
        own = pulled(image, self.scene.home.root / "pulled" / image.digest.partition(":")[2])
        with tempfile.TemporaryDirectory(dir=self.scene.home.root) as folder:
            answer = Path(folder, "answer.json")
            asked = {
                "spec": self.spec.model_dump(mode="json"),
                "steps": [list(step) for step in steps],
                "answer": str(answer),
                "home": home,
            }
            path = os.pathsep.join([str(own), str(root), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, "-m", "platform_assets.drills.drifting"],
                input=json.dumps(asked),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env={**os.environ, "PYTHONPATH": path, IMAGE: str(image)},
                check=False,
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
                raise RefusedError(f"drill {NAME} could not be played: {last[0]}")
            return list(json.loads(answer.read_text(encoding="utf-8")))


def play(scene: Scene) -> DrillReport:
    """The drill on the pipeline of the catalog."""
    return play_case(scene, Case(load_catalog()["flights"]))


def play_case(scene: Scene, case: Case) -> DrillReport:
    """Play it: plain trainings by tag, and Signalbox's by digest, across the same rebuilds."""
    spec = _small(case.spec)
    rows = Rows(case.spec)
    first = _whole_stretch(rows, spec)
    days = [first + timedelta(days=WINDOW - 1 + n) for n in range(MODELS)]
    measured = chosen_dates(rows, scene.days)
    with scene.part(f"building {first} to {days[-1] + timedelta(days=spec.evaluation.days)}"):
        services = Services.open(spec, scene.home)
        _build(services, first, days[-1])
        folder = scene.home.root / "measured"
        _write_rows(rows, measured, folder)
    with a_registry(scene.home.root / "registry") as store:
        return _played(Pod(scene, spec), store, case.spec, days, folder)


def _played(
    pod: Pod, store: Store, whole: PipelineSpec, days: Sequence[date], folder: Path
) -> DrillReport:
    scene, spec = pod.scene, pod.spec
    tagged = TaggedImage(f"{store.host}/team/train", TAG)
    lock = scene.home.root / "images.lock.yaml"
    measuring = Pod(scene, _prepared(whole))
    d1, d2, d3 = (day.isoformat() for day in days)
    file = str(next(folder.glob("*.train.parquet")))
    plain_step = ("plain", file, scene.home.mlflow_uri)

    with scene.part(f"{prep.NAME} {prep.BEFORE} behind the tag"):
        before = rebuilt(store, tagged, prep.BEFORE)
        pin(lock, tagged)
        locked = load_lock(lock).named(IMAGE_NAME).ref
        plain_then, scores_then = measuring.run(
            by_tag(tagged), plain_step, ("measure", str(folder))
        )
        trained, _, crowned = pod.run(locked, ("train", d1), ("judge", d1), ("decide",))
    with scene.part(f"{prep.NAME} {prep.PATCHED} behind the same tag"):
        patched = rebuilt(store, tagged, prep.PATCHED)
        plain_now, scores_now = measuring.run(by_tag(tagged), plain_step, ("measure", str(folder)))
        report = verified(lock)
        (unmoved,) = pod.run(load_lock(lock).named(IMAGE_NAME).ref, ("train", d2))
    with scene.part("the lock is bumped to it"):
        words = bump(lock, tagged)
        drifted, _, held, canary, still, forced = pod.run(
            load_lock(lock).named(IMAGE_NAME).ref,
            *(("train", d3), ("judge", d3), ("decide",), ("canary",), ("decide",)),
            ("promote", _version_after(pod, 3)),
        )
    with scene.part(f"{prep.NAME} {prep.MENDED} is built, and the lock bumped to it"):
        rebuilt(store, tagged, prep.MENDED)
        mended_words = bump(lock, tagged)
        mended, _, waits, second, free = pod.run(
            load_lock(lock).named(IMAGE_NAME).ref,
            *(("train", d3), ("judge", d3), ("decide",), ("canary",), ("decide",)),
        )
    measurements = _measurements(spec, scores_then, scores_now)
    plain = (
        Step(
            did=f"trains by the tag {TAG}, behind which is {prep.NAME} {prep.BEFORE}",
            found=f"version {plain_then['version']} is champion, by {plain_then['package']}",
            ok=plain_then["package"] == prep.BEFORE,
        ),
        Step(
            did="somebody rebuilds the image under the same tag; it trains again, same rows",
            found=f"the run succeeded, version {plain_now['version']} is champion, by "
            f"{plain_now['package']}; nothing that it logged says so",
            ok=plain_now["package"] == prep.PATCHED and before != patched,
        ),
        *(
            Step(did=f"{m.metric} of {m.n} dates with either release", found=_said(m))
            for m in measurements
        ),
    )
    mine = (
        Step(
            did=f"the tag is pinned, {d1} trained in the digest, judged and promoted",
            found=f"version {trained['version']} is champion, trained in {locked.digest[:19]}",
            ok=crowned["champion"] == trained["version"],
        ),
        Step(
            did="the image is rebuilt under the same tag; `signalbox images verify`",
            found=f"{report.state}: {report.reason}",
            ok=not report.as_locked,
        ),
        Step(
            did=f"{d2} is trained by the lock, which has not moved",
            found="the check `environment` says that nothing has changed"
            if not unmoved["changes"]
            else f"the check says {'; '.join(unmoved['changes'])}",
            ok=not unmoved["changes"],
        ),
        Step(
            did=f"the lock is bumped, which says {', '.join(words)}; {d3} is trained in it",
            found=f"the check `environment` fails: {_package(drifted)}",
            ok=f"{prep.NAME} {prep.BEFORE} -> {prep.PATCHED}" in drifted["changes"]
            and drifted["state"] == "held",
        ),
        Step(
            did="the gate decides, before there is a canary",
            found=f"version {held['candidate']} is refused for {', '.join(held['failed'])}; "
            f"champion stays version {held['champion']}",
            ok="environment" in held["failed"] and held["champion"] == crowned["champion"],
        ),
        Step(
            did="`signalbox canary` trains the champion's own snapshot again in the new image",
            found=_canary(canary),
            ok=not canary["passed"] and bool(canary["largest_difference"]),
        ),
        Step(
            did="the gate decides again, and a person tries `signalbox promote`",
            found=f"champion stays version {still['champion']}; the person is told: "
            f"{forced['reason'][forced['reason'].find('environment: ') :][:600]}",
            ok="environment" in still["failed"]
            and forced["refused"]
            and still["champion"] == crowned["champion"],
        ),
        Step(
            did=f"{prep.MENDED} takes the patch back: bumped ({', '.join(mended_words)}), {d3} "
            "trained in it, and held until a canary has passed",
            found=_canary(second),
            ok=mended["state"] == "held"
            and "environment" in waits["failed"]
            and second["passed"]
            and second["largest_difference"] == 0,
        ),
        Step(
            did="the gate decides about that one",
            found="the environment no longer keeps it from being promoted; the gate goes by its "
            f"metric: champion is version {free['champion']}"
            + (f", refused for {', '.join(free['failed'])}" if free["failed"] else ""),
            ok="environment" not in free["failed"],
        ),
    )
    found = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"{prep.NAME} {prep.PATCHED} takes what lies outside of 0 to 1000 for outliers. "
        "It is built into the image behind a tag that trainings pull every day. What is trained, "
        "who notices, and what becomes champion?",
        plain=plain,
        signalbox=mine,
        figures=(
            Figure(
                what="champions trained with the patched package",
                ideal=0,
                plain=1,
                signalbox=float(free["champion"] == drifted["version"]),
            ),
            Figure(
                what="promotions that were held until a canary",
                ideal=2,
                plain=0,
                signalbox=sum("environment" in one["failed"] for one in (held, waits)),
            ),
        ),
        measurements=measurements,
        notes=_notes(store, spec, days),
        verdict="",
    )
    log_loss = measurements[0]
    return found.concluded(
        f"By its tag the patched image was trained in and became champion: log loss "
        f"{log_loss.mean:+.4f} ({log_loss.low:+.4f} to {log_loss.high:+.4f}), "
        f"{log_loss.conclusion}. By digest it was not followed; bumped to, it was named, held, and "
        "refused by a canary. The release that took the patch back was let go by one."
    )


def _notes(store: Store, spec: PipelineSpec, days: Sequence[date]) -> tuple[str, ...]:
    return (
        f"The registry is {store.kind}."
        + ("" if store.kind == REAL else " With docker-registry installed the drill takes that."),
        "No container is started: a training is a process with the packages of the image's layers "
        "in front of all others, and the image's digest in SIGNALBOX_IMAGE. The package is the "
        "drill's own; its releases are real wheels, whose metadata and lists of files differ.",
        f"On Signalbox's side models of {days[0]} to {days[-1]} are trained on {WINDOW} days. The "
        "loss is measured with the catalog's own window, one training a date and release on the "
        "same rows; the interval is a bootstrap over the dates. Training and asking go through "
        "the same release.",
        "The tolerance of the canary is that of the catalog's default, "
        f"{spec.environment.tolerance:g}.",
    )


def _canary(found: Mapping[str, Any]) -> str:
    words = "passed" if found["passed"] else "did not pass"
    apart = found["predictions_apart"]
    return f"canary {found['canary']} {words}: {found['reason']}" + (
        f"; a prediction differs by {apart:.3g} at the most" if apart is not None else ""
    )


def _package(made: Mapping[str, Any]) -> str:
    return "; ".join(word for word in made["changes"] if word.startswith((prep.NAME, "image")))


def _said(m: Measurement) -> str:
    return (
        f"{m.mean:+.4f} ({m.low:+.4f} to {m.high:+.4f}) from {m.reference:.4f} by the patch: "
        f"{m.conclusion}"
    )


def _version_after(pod: Pod, count: int) -> int:
    """The number of the version that the next training registers."""
    models = Services.open(pod.spec, pod.scene.home).ledger.versions(pod.spec.asset("model"))
    assert len(models) == count - 1, "the drill knows what it has trained"
    return count


# --- rows -------------------------------------------------------------------------------------


def _prepared(spec: PipelineSpec) -> PipelineSpec:
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"trainer": TRAINER}),
            "environment": EnvironmentTerms(on_change="hold"),
        }
    )


def _small(spec: PipelineSpec) -> PipelineSpec:
    """The pipeline with the drill's trainer, a short window, and promotions that are held."""
    found = _prepared(spec)
    model = found.model.model_copy(update={"window_days": WINDOW, "min_days": WINDOW - 1})
    return found.model_copy(update={"model": model})


def _whole_stretch(rows: Rows, spec: PipelineSpec) -> date:
    needed, found = WINDOW + MODELS - 1 + spec.evaluation.days, 0
    for day in date_range(spec.partitions.start, spec.partitions.end):
        found = found + 1 if rows.is_whole(day) else 0
        if found == needed:
            return day - timedelta(days=needed - 1)
    raise RefusedError(f"drill {NAME} could not be played: no {needed} days in a row are whole")


def _build(services: Services, first: date, last_model: date) -> None:
    spec = services.spec
    last = last_model + timedelta(days=spec.evaluation.days)
    land_flights(services, first, last, quiet=True)
    services.zone.refresh(first, last)
    for day in date_range(first, last):
        for partition in spec.keys_of(day):
            build_features(services, PartitionKey.parse(partition), "drill", lambda _: None)
        build_day(services, PartitionKey(day), "drill")


def _write_rows(rows: Rows, dates: Sequence[date], folder: Path) -> None:
    """The rows that each date's model is trained and judged on, for processes to read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    spec = rows.spec
    for day in dates:
        before = [d for d in window(day, spec.model.window_days) if rows.is_whole(d)]
        pq.write_table(pa.concat_tables(map(rows.of, before)), folder / f"{day}.train.parquet")
        judged = pa.concat_tables(map(rows.of, spec.judged_on(day)))
        pq.write_table(judged, folder / f"{day}.judged.parquet")


def _measurements(
    spec: PipelineSpec, then: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[Measurement, ...]:
    found = []
    for metric in ("log_loss", "auc"):
        both = [day for day in then if metric in then[day] and metric in now[day]]
        differences = {day: now[day][metric] - then[day][metric] for day in both}
        interval = paired_bootstrap(list(differences.values()), seed=spec.model.seed)
        found.append(
            Measurement(
                what=f"{prep.NAME} {prep.PATCHED} minus {prep.BEFORE}",
                metric=metric,
                better=BETTER[metric],
                mean=interval.mean,
                low=interval.low,
                high=interval.high,
                n=interval.n,
                level=interval.level,
                reference=sum(then[day][metric] for day in both) / len(both),
                by_day=differences,
            )
        )
    return tuple(found)
