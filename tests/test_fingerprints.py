"""A training's environment and fingerprint: recorded, shown in MLflow, and what they decide."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import resources.environment
from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import HomeError, TransientError, UsageError
from platform_assets.domain.fingerprint import Environment, RunFingerprint
from platform_assets.domain.partition import PartitionKey
from platform_assets.factory.events import RESTATE_TAG
from platform_assets.line import links, models
from platform_assets.line.fingerprints import training_code
from platform_assets.line.models import train_model
from platform_assets.line.services import Outcome
from resources.environment import GIT_COMMIT, IMAGE, environment
from resources.home import Home
from resources.tracking import Tracking
from resources.versions import sources_of
from tests.small import Line, Templates, copied, small_spec
from tests.test_exactly_once import JFK4, correct, registered

DAY = "2013-01-04"
DIGEST = "sha256:" + "5e" * 32


@pytest.fixture
def trained(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


def train(line: Line, run_id: str = "again", **changes: Any) -> Outcome:
    services = replace(line.services, spec=small_spec(model=changes)) if changes else line.services
    return train_model(services, PartitionKey(date.fromisoformat(DAY)), run_id, lane="adhoc")


def upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another LightGBM had been installed."""
    real = resources.environment._installed

    def newer(requirements: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((dict(real(requirements)) | {"lightgbm": "99.0"}).items()))

    monkeypatch.setattr(resources.environment, "_installed", newer)


# --- the environment


def test_environment_holds_what_the_trainer_requires_and_what_that_requires() -> None:
    found = environment(["scikit-learn"])
    assert found.packages["scikit-learn"] == metadata.version("scikit-learn")
    assert {"scipy", "joblib", "threadpoolctl", "numpy", "pandas", "pyarrow"} <= set(found.packages)
    assert found.packages["mlflow"] == metadata.version("mlflow")
    assert not {"lightgbm", "flask", "dagster", "pytest"} & set(found.packages)
    assert environment(["scikit-learn"]).lock_digest == found.lock_digest
    assert environment(["lightgbm"]).lock_digest != found.lock_digest


@pytest.mark.parametrize("requirement", ["no-such-thing", "no such thing"])
def test_a_requirement_that_is_not_there_is_refused(requirement: str) -> None:
    with pytest.raises(UsageError, match=r"correct|allowed"):
        environment([requirement])


def test_commit_is_that_of_the_code_and_dirty_where_tracked_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def found() -> tuple[str, bool]:
        resources.environment._repository.cache_clear()
        now = environment([], code)
        return now.git_commit, now.git_dirty

    code = tmp_path / "trainer.py"
    code.write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert found() == ("", False)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    assert found() == (commit, False)
    (tmp_path / "notes").write_text("")
    assert found() == (commit, False)
    code.write_text("changed")
    assert found() == (commit, True)
    monkeypatch.setenv(GIT_COMMIT, "AB" * 20)
    assert found() == ("ab" * 20, False)  # an image holds no repository
    monkeypatch.setenv(GIT_COMMIT, "main")
    with pytest.raises(HomeError, match="40 or 64"):
        found()


def test_image_is_known_by_its_digest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IMAGE, raising=False)
    assert environment([]).image_digest == ""
    for named in (DIGEST, f"registry:5000/train@{DIGEST}"):
        monkeypatch.setenv(IMAGE, named)
        assert environment([]).image_digest == DIGEST
    monkeypatch.setenv(IMAGE, "registry/train:latest")
    with pytest.raises(HomeError, match="can be moved"):
        environment([])


# --- the code


def test_sources_are_the_trainer_and_what_it_imports_from_its_folder(tmp_path: Path) -> None:
    package = tmp_path / "mine" / "trainers"
    (package / "deep").mkdir(parents=True)
    for folder in (package.parent, package, package / "deep"):
        (folder / "__init__.py").write_text("")
    (package.parent / "elsewhere.py").write_text("")
    (package / "trainer.py").write_text(
        "import json\nfrom mine.trainers import one\nfrom mine import elsewhere\n"
        "def fit():\n    from .deep import two\n"
    )
    (package / "one.py").write_text("import mine.trainers.three\nfrom . import trainer\n")
    (package / "deep" / "two.py").write_text("from ..four import x\n")
    for name in ("three", "four", "unused"):
        (package / f"{name}.py").write_text("")
    assert set(sources_of(package / "trainer.py")) == {
        "trainer.py",
        "one.py",
        "three.py",
        "four.py",
        "deep/__init__.py",
        "deep/two.py",
    }
    (tmp_path / "alone.py").write_text("import helper\nimport json")
    (tmp_path / "helper.py").write_text("import alone")
    assert set(sources_of(tmp_path / "alone.py")) == {"alone.py", "helper.py"}


def test_code_is_what_the_training_runs_and_no_description() -> None:
    before = training_code(small_spec())
    assert training_code(small_spec(model={"description": "other words"})) == before
    assert training_code(small_spec(dataset={"description": "other words"})) == before
    assert training_code(small_spec(model={"seed": 9})) == before  # a field of its own
    names = small_spec().dataset.features
    assert training_code(small_spec(dataset={"features": list(reversed(names))})) != before
    other = "platform_assets.trainers.sklearn_linear:LinearTrainer"
    assert training_code(small_spec(model={"trainer": other})) != before


# --- what is recorded, and what it decides


def test_a_training_is_found_by_its_fingerprint_in_ledger_and_mlflow(trained: Line) -> None:
    made = trained.versions("model")[DAY]
    parts = RunFingerprint.model_validate(made.detail["fingerprint_parts"])
    ran_in = Environment.model_validate(made.detail["environment"])
    assert parts.value == made.detail["fingerprint"]
    assert parts.snapshot == made.detail["snapshot"]
    assert parts.lock == ran_in.lock_digest == made.detail["environment"]["lock_digest"]
    assert ran_in.packages["lightgbm"] == metadata.version("lightgbm")
    from mlflow import MlflowClient

    client = MlflowClient(trained.home.mlflow_uri, trained.home.mlflow_uri)
    run = client.get_run(made.detail["mlflow_run_id"])
    assert run.data.tags["signalbox.fingerprint"] == parts.value
    assert run.data.tags["signalbox.lock"] == parts.lock
    assert run.data.tags["signalbox.image"] == "none"
    assert run.data.tags["signalbox.git_commit"] == (ran_in.git_commit or "none")
    stored = json.loads(
        Path(client.download_artifacts(run.info.run_id, "environment.json")).read_text()
    )
    assert stored["environment"] == made.detail["environment"]
    assert stored["fingerprint_parts"] == made.detail["fingerprint_parts"]


def test_an_upgrade_is_another_fingerprint_and_trains_again(
    trained: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trained.versions("model")[DAY]
    assert train(trained).metadata["already_done_by"] == before.run_id
    upgraded(monkeypatch)
    with monkeypatch.context() as without:  # as it was: no libraries in what it was made of
        without.setattr(Environment, "lock_digest", before.detail["environment"]["lock_digest"])
        assert train(trained).metadata["already_done_by"] == before.run_id
    assert "already_done_by" not in train(trained).metadata
    now = trained.versions("model")[DAY]
    assert now.detail["model_version"] != before.detail["model_version"]
    then, is_now = (
        RunFingerprint.model_validate(v.detail["fingerprint_parts"]) for v in (before, now)
    )
    assert [d.field for d in then.differences(is_now)] == ["lock"]
    was, has = (Environment.model_validate(v.detail["environment"]) for v in (before, now))
    assert [str(d) for d in was.differences(has)] == [
        f"packages.lightgbm was {was.packages['lightgbm']}, is 99.0"
    ]


def test_a_known_fingerprint_gives_the_known_model(trained: Line) -> None:
    first, versions = trained.versions("model")[DAY], registered(trained)
    other = train(trained, seed=2)
    assert len(registered(trained)) == len(versions) + 1
    assert other.metadata["registered_version"] != first.detail["model_version"]
    # What is current is of another seed: without the fingerprint this would train again.
    back = train(trained, run_id="back")
    assert len(registered(trained)) == len(versions) + 1
    now = trained.versions("model")[DAY]
    assert (now.run_id, now.data_version) == ("back", first.data_version)
    assert now.detail["model_version"] == first.detail["model_version"]
    assert back.metadata["known_model_of_run"] == first.run_id
    assert train(trained).metadata["already_done_by"] == "back"


def test_told_to_restate_it_trains_again_and_makes_the_same(trained: Line) -> None:
    versions = registered(trained)
    train(trained, seed=2)
    asked = replace(trained, spec=trained.spec)
    asked.__dict__["services"] = replace(trained.services, restate="backfill 1")
    outcome = train(asked)
    assert len(registered(trained)) == len(versions) + 2
    # Equal fingerprint, equal model: byte for byte, by the digest of its files.
    first = trained.history("model", DAY)[0]
    assert outcome.metadata["fingerprint"] == first.detail["fingerprint"]
    assert outcome.data_version == first.data_version


def test_a_known_model_that_the_registry_lost_is_trained_again(trained: Line) -> None:
    first = trained.versions("model")[DAY]
    train(trained, seed=2)
    from mlflow import MlflowClient

    client = MlflowClient(trained.home.mlflow_uri, trained.home.mlflow_uri)
    client.delete_model_version(trained.spec.model.name, str(first.detail["model_version"]))
    outcome = train(trained)
    assert outcome.metadata["registered_version"] not in (None, first.detail["model_version"])
    assert outcome.data_version == first.data_version


def test_the_current_model_is_trained_again_if_the_registry_lost_it(
    trained: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `signalbox doctor` and the alert of a deleted version advise."""
    first = trained.versions("model")[DAY]
    lost = int(first.detail["model_version"])
    assert train(trained).metadata["already_done_by"] == first.run_id
    from mlflow import MlflowClient

    client = MlflowClient(trained.home.mlflow_uri, trained.home.mlflow_uri)
    client.delete_model_version(trained.spec.model.name, str(lost))
    with monkeypatch.context() as patch:
        # Without the question, and while nobody can answer it, the ledger's word stands.
        patch.setattr(models, "not_lost", lambda *_: True)
        assert train(trained).metadata["already_done_by"] == first.run_id
    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "recorded_digest", down)
        assert train(trained).metadata["already_done_by"] == first.run_id
    outcome = train(trained)
    assert outcome.changed
    assert outcome.data_version == first.data_version, "the same bytes"
    now = int(trained.versions("model")[DAY].detail["model_version"])
    assert now != lost
    assert trained.services.tracking.absence(trained.spec.model.name, now) is None
    assert train(trained).metadata["registered_version"] == now, "once"


def down(*_: object) -> None:
    raise TransientError("the MLflow store did not answer, it must be reachable: try again")


def test_late_data_that_is_taken_back_brings_the_first_model_back(trained: Line) -> None:
    first = trained.versions("model")[DAY]
    original = trained.services.zone.read("weather", "JFK", date(2013, 1, 4))
    correct(trained)
    rebuild(trained)
    assert trained.versions("model")[DAY].data_version != first.data_version
    hours = sorted(set(original["time_hour"].to_pylist()))
    import pyarrow as pa
    import pyarrow.compute as pc

    own = original.filter(pc.equal(original["time_hour"], pa.scalar(hours[14])))
    trained.services.zone.deliver("weather", "JFK", hours[14], own)
    versions = registered(trained)
    rebuild(trained)
    assert trained.versions("model")[DAY].detail["model_version"] == first.detail["model_version"]
    assert registered(trained) == versions


def rebuild(line: Line) -> None:
    line.must("features", partition=JFK4)
    line.must("day", partition=DAY)
    line.must("snapshot", "model", partition=DAY)


def test_the_terms_are_no_part_of_the_model(trained: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows under a waiver are the same model, recorded with the waiver."""
    first, versions = trained.versions("model")[DAY], registered(trained)
    import platform_assets.line.models as models

    real = models.load_snapshot

    def waived(*arguments: Any) -> Any:
        found = real(*arguments)
        parts = [p.model_copy(update={"waivers": ("w1",)}) for p in found.partitions]
        return found.model_copy(update={"partitions": tuple(parts)})

    monkeypatch.setattr(models, "load_snapshot", waived)
    monkeypatch.setattr(models, "described", lambda _, names: dict.fromkeys(names, "by bob"))
    train(trained, run_id="waived")
    now = trained.versions("model")[DAY]
    assert (now.run_id, now.detail["waivers"]) == ("waived", ["w1"])
    assert now.detail["model_version"] == first.detail["model_version"]
    assert registered(trained) == versions
    from mlflow import MlflowClient

    client = MlflowClient(trained.home.mlflow_uri, trained.home.mlflow_uri)
    tags = client.get_run(first.detail["mlflow_run_id"]).data.tags
    assert (tags["signalbox.waivers"], tags["signalbox.waiver.w1"]) == ("w1", "by bob")
    assert digest_of(now.detail["fingerprint_parts"]) == first.detail["fingerprint"]


# --- links


def test_a_training_is_found_from_either_ui(trained: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(trained.home.mlflow_uri, trained.home.mlflow_uri)
    event = trained.materializations("model")[-1]
    assert "mlflow_run" not in event.metadata  # nobody has said where MLflow's UI is
    monkeypatch.setenv(links.DAGSTER_UI, "http://dagster.example:3000/")
    monkeypatch.setenv(links.MLFLOW_UI, "https://mlflow.example/ui")
    ran = trained.must("model", partition=DAY, tags={RESTATE_TAG: "true"})
    event = trained.materializations("model")[-1]
    detail = trained.versions("model")[DAY].detail
    run = client.get_run(detail["mlflow_run_id"])
    assert run.info.experiment_id == detail["mlflow_experiment_id"]
    place = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert event.metadata["mlflow_run"] == dg.MetadataValue.url(f"https://mlflow.example/ui{place}")
    back = f"http://dagster.example:3000/runs/{ran.run_id}"
    assert run.data.tags["signalbox.dagster_run"] == back
    assert f"]({back})" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["signalbox.lane"] == "adhoc"
    monkeypatch.setenv(links.MLFLOW_UI, "mlflow.example")
    with pytest.raises(HomeError, match="allowed is the address"):
        train(trained, "elsewhere")


def test_a_server_is_its_own_ui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(links.MLFLOW_UI, raising=False)
    home = Home.locate(tmp_path)
    assert links.mlflow_run_url(home, "1", "a") is None
    served = replace(home, mlflow_uri="https://me:secret@mlflow.example:5000/")
    assert links.mlflow_run_url(served, "1", "a") == (
        "https://mlflow.example:5000/#/experiments/1/runs/a"
    )
