"""What holds of MLflow's stores alike: a sqlite file, and a real tracking server."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platform_assets.domain.errors import RefusedError, UsageError
from resources.tracking import TrackedRun, Tracking, model_digest
from resources.tracking.client import quiet_mlflow
from resources.tracking.models import load_model
from tests.mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose migrations ran once."""
    path = tmp_path_factory.mktemp("prepared") / "mlflow.db"
    Tracking(f"sqlite:///{path}", path.parent / "artifacts").prepare()
    return path


@pytest.fixture(scope="session")
def server(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path_factory.mktemp("server"), prepared)
    found.start()
    yield found
    found.kill()


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.heavy)])
def tracking(request: pytest.FixtureRequest, prepared: Path, tmp_path: Path) -> Tracking:
    if request.param == "server":
        return Tracking(request.getfixturevalue("server").url, None)
    shutil.copy(prepared, tmp_path / "mlflow.db")
    return Tracking(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")


@pytest.fixture
def name() -> str:
    """Of an experiment and a model; a server is shared by all tests."""
    return f"t-{uuid.uuid4().hex[:12]}"


def client_of(tracking: Tracking) -> Any:
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri, tracking.uri)


def forest() -> tuple[Any, Any, Any]:
    """(model of sklearn, frame, predictions)."""
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    frame = pd.DataFrame(np.random.RandomState(0).rand(50, 2), columns=list("ab"))
    model = LinearRegression().fit(frame, frame.a)
    return model, frame, model.predict(frame)


def logged(run: TrackedRun, name: str) -> Any:
    model, frame, predictions = forest()
    return run.log_model(
        model,
        "sklearn",
        name=name,
        input_example=frame,
        predictions=predictions,
        requirements=["scikit-learn"],
    )


# --- bytes that were not recorded


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def stored(tracking: Tracking, name: str, server: MlflowServer | None) -> Path:
    """The folder in which the store itself keeps the files of the first version."""
    root = server.folder / "artifacts" if server else tracking.artifacts
    assert root is not None
    source = client_of(tracking).get_model_version(name, "1").source
    (model_id,) = [part for part in source.split("/") if part.startswith("m-")]
    (found,) = [path.parent for path in root.rglob("MLmodel") if model_id in path.parts]
    return found


def tampered(folder: Path, how: str, trap: Path) -> None:
    """Have the model's files write a file when they are loaded.

    `inside`: a pickle in the model's folder. `outside`: no file of the folder but its MLmodel is
    touched. `link`: the model's own file is a link to elsewhere.
    """
    import cloudpickle
    import yaml

    pickled = cloudpickle.dumps(Trap(trap))
    own = next(path for path in folder.iterdir() if path.suffix == ".skops")
    place = folder / "model.pkl" if how == "inside" else trap.parent / "elsewhere.pkl"
    place.write_bytes(pickled)
    if how == "link":
        (folder / "model.pkl").symlink_to(place)
    document = yaml.safe_load((folder / "MLmodel").read_text())
    flavor = document["flavors"]["sklearn"]
    flavor["serialization_format"] = "cloudpickle"
    flavor["pickled_model"] = str(place) if how == "outside" else "model.pkl"
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    assert own.exists()


@pytest.mark.parametrize("how", ["inside", "outside", "link"])
def test_nothing_is_unpickled_that_was_not_recorded(
    tracking: Tracking, name: str, how: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with tracking.run(name, "r", {}) as run:
        made = logged(run, name)
    _, frame, expected = forest()
    loaded: Any = tracking.load(name, 1, "sklearn", digest=made.digest)
    assert (loaded.predict(frame) == expected).all()
    served = None if tracking.artifacts else request.getfixturevalue("server")
    folder, trap = stored(tracking, name, served), tmp_path / "ran"
    tampered(folder, how, trap)
    with pytest.raises(
        RefusedError, match=rf"digest (?!{made.digest}).*recorded was {made.digest}"
    ):
        tracking.load(name, 1, "sklearn", digest=made.digest)
    assert not trap.exists()
    load_model(folder, "sklearn")  # as MLflow does it: the file is loaded, and runs
    assert trap.exists()


def test_another_recorded_digest_and_lost_files_are_refused(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "r", {}) as run:
        made = logged(run, name)
    with pytest.raises(RefusedError, match="restore them, or train the model again"):
        tracking.load(name, 1, "sklearn", digest="ab" * 32)
    with pytest.raises(UsageError):
        tracking.load(name, 2, "sklearn", digest=made.digest)
    if tracking.artifacts:
        shutil.rmtree(stored(tracking, name, None))
        with pytest.raises(RefusedError, match="cannot be had from"):
            tracking.load(name, 1, "sklearn", digest=made.digest)


def test_byte_code_beside_the_sources_is_not_taken_along(
    tracking: Tracking, name: str, request: pytest.FixtureRequest
) -> None:
    with tracking.run(name, "r", {}) as run:
        made = logged(run, name)
    served = None if tracking.artifacts else request.getfixturevalue("server")
    folder = stored(tracking, name, served)
    (folder / "code" / "__pycache__").mkdir(parents=True)
    (folder / "code" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"evil")
    with tracking.verified(name, 1, digest=made.digest) as copy:
        assert model_digest(copy) == made.digest
        assert not list(copy.rglob("*.pyc"))
    assert not copy.exists()


def test_what_a_model_was_registered_with_can_be_asked(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "r", {}) as run:
        made = logged(run, name)
        run.log_document("environment.json", {"python": "3"})
    assert tracking.recorded_digest(name, 1) == made.digest
    assert tracking.recorded_digest(name, 2) is None
    assert tracking.recorded_digest(f"{name}x", 1) is None
    tracking.retag(run.run_id, {"signalbox.waivers": "w1"})
    found = client_of(tracking)
    assert found.get_run(run.run_id).data.tags["signalbox.waivers"] == "w1"
    text = Path(found.download_artifacts(run.run_id, "environment.json")).read_text()
    assert json.loads(text) == {"python": "3"}
