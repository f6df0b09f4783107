"""What holds of MLflow's stores alike: a sqlite file, and a real tracking server."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from platform_assets.domain.errors import RefusedError, TransientError, UsageError
from resources.tracking import DAGSTER_RUN_TAG, TrackedRun, Tracking, model_digest
from resources.tracking.client import quiet_mlflow
from resources.tracking.messages import Begun
from resources.tracking.models import load_model, older_digest
from resources.tracking.settling import reconcile, sweep
from resources.tracking.store import OWNER_TAG
from tests.mlflow_server import MlflowServer
from tests.test_tracking import DIGEST, booster, never


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


def replace_owner(tracking: Tracking) -> Tracking:
    """The same store, as another home sees it."""
    return Tracking(tracking.uri, tracking.artifacts, owner="another home on the same server")


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
    other = rf"digest (?!{made.digest}).*recorded was {made.digest}"
    if served and how == "link":  # a server gives nothing away that a link of its folder leads to
        other = "cannot be had"
    with pytest.raises(RefusedError, match=other):
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


def test_a_digest_of_the_older_scheme_is_refused_by_name(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "r", {}) as run:
        made = logged(run, name)
    with tracking.verified(name, 1, digest=made.digest) as folder:
        older = older_digest(folder)
        document = yaml.safe_load((folder / "MLmodel").read_text())
        document["flavors"]["sklearn"]["pickled_model"] = "elsewhere.pkl"
        (folder / "MLmodel").write_text(yaml.safe_dump(document))
        assert older_digest(folder) == older, "why it is not good enough"
        assert model_digest(folder) != made.digest
    with pytest.raises(RefusedError, match="did not count the MLmodel file") as error:
        tracking.load(name, 1, "sklearn", digest=older)
    assert "signalbox/restate" in str(error.value)
    assert "changed since" not in str(error.value)


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


# --- what a run writes down


def test_reconcile_follows_each_end_of_a_dagster_run(tracking: Tracking, name: str) -> None:
    client = client_of(tracking)
    experiment = client.create_experiment(name)
    ends = {"S": "SUCCESS", "F": "FAILURE", "C": "CANCELED", "U": None, "R": "FAILURE"}
    ids = {}
    for key in ends:
        ids[key] = client.create_run(experiment, tags={DAGSTER_RUN_TAG: key}).info.run_id
    foreign = client.create_run(experiment).info.run_id  # somebody else's: not ours to end
    others = {DAGSTER_RUN_TAG: "F", OWNER_TAG: "another home on the same server"}
    theirs = client.create_run(experiment, tags=others).info.run_id
    changed = dict(reconcile(tracking, ends.__getitem__, lambda _, run: run == ids["R"]))
    assert changed == {
        ids["R"]: "FINISHED",
        ids["S"]: "FAILED",  # another attempt of that run has made the model
        ids["F"]: "FAILED",
        ids["C"]: "KILLED",
        ids["U"]: "FAILED",
    }
    assert client.get_run(ids["C"]).info.status == "KILLED"
    assert client.get_run(foreign).info.status == "RUNNING"
    assert client.get_run(theirs).info.status == "RUNNING"
    assert dict(reconcile(replace_owner(tracking), ends.get, never)) == {theirs: "FAILED"}


def test_run_that_ends_while_reconcile_looks_keeps_its_state(tracking: Tracking, name: str) -> None:
    client = client_of(tracking)
    run = client.create_run(client.create_experiment(name), tags={DAGSTER_RUN_TAG: "d"})

    def ends_meanwhile(_: str) -> str:
        client.set_terminated(run.info.run_id, "FINISHED")
        return "FAILURE"

    assert reconcile(tracking, ends_meanwhile, never) == []
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_snapshot_is_an_input_with_its_whole_digest(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "2013-02-09", {"signalbox/pipeline": "flights"}) as run:
        run.log_snapshot("flights/snapshot", DIGEST, "lake/snapshots/1.json", 22_000)
    found = client_of(tracking).get_run(run.run_id)
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == (
        "flights/snapshot",
        "sb1:0123456789abcdef0123456789abcdef",
    )
    assert json.loads(entry.dataset.source) == {"uri": "lake/snapshots/1.json"}
    assert json.loads(entry.dataset.profile) == {"num_rows": 22_000}
    tags = {tag.key: tag.value for tag in entry.tags}
    assert tags == {
        "mlflow.data.context": "training",
        "signalbox.digest": DIGEST,
        "signalbox.rows": "22000",
    }
    assert found.data.tags["signalbox.snapshot.flights/snapshot"] == DIGEST
    assert found.data.tags["signalbox/pipeline"] == "flights"
    assert found.data.tags["mlflow.runName"] == "2013-02-09"
    assert found.data.tags["mlflow.user"]
    assert found.data.tags["mlflow.source.name"]


def test_rounds_come_in_batches_and_all_arrive(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "rounds", {}) as run:
        sent: list[int] = []
        send = run._link.client.log_batch

        def counted(run_id: str, metrics: Any) -> None:
            sent.append(len(metrics))
            send(run_id, metrics)

        run._link.client.log_batch = counted
        for number in range(1, 1201):
            run.log_round(number, {"loss": 1 / number, "auc": 0.5})
        run.log_metrics({"final": 1.0})
    assert max(sent) <= 1000
    assert len(sent) <= 8  # 2,401 metrics: by size three batches, by time a few more
    history = client_of(tracking).get_metric_history(run.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(n, 1 / n) for n in range(1, 1201)]


def test_parameters_are_text_and_a_long_one_is_cut_visibly(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "parameters", {}) as run:
        run.log_parameters({"rate": 0.06, "name": "x", "columns": ["a", "b"], "none": None})
        run.log_parameters({"long": "y" * 7000})
    client = client_of(tracking)
    found = client.get_run(run.run_id).data.params
    assert found["rate"] == "0.06"
    assert found["columns"] == '["a", "b"]'
    assert found["none"] == "None"
    assert found["long"].endswith("... [cut, 7000 characters, whole in parameters.json]")
    whole = Path(client.download_artifacts(run.run_id, "parameters.json")).read_text()
    assert json.loads(whole) == {"long": "y" * 7000}


def test_model_is_on_the_run_in_the_registry_and_behind_an_alias(
    tracking: Tracking, name: str
) -> None:
    model, frame, expected = booster()
    with tracking.run(name, "model", {}) as run:
        run.log_parameters({"rounds": 3})
        logged = run.log_model(
            model,
            "lightgbm",
            name=name,
            input_example=frame,
            predictions=expected,
            requirements=["lightgbm"],
        )
        run.log_metrics({"auc": 0.7})
    assert (logged.version, logged.uri) == (1, f"models:/{name}/1")
    client = client_of(tracking)
    version = client.get_model_version(name, "1")
    assert (version.run_id, version.tags["signalbox.digest"]) == (run.run_id, logged.digest)
    (output,) = client.get_run(run.run_id).outputs.model_outputs
    entry = client.get_logged_model(output.model_id)
    assert (str(entry.status), entry.params) == ("READY", {"rounds": "3"})
    assert [(m.key, m.value) for m in entry.metrics] == [("auc", 0.7)]
    assert json.loads(entry.tags["mlflow.modelVersions"])[0]["version"] == 1

    assert tracking.alias(name, "champion") is None
    assert tracking.alias("nobody", "champion") is None
    tracking.set_alias(name, "champion", 1)
    assert tracking.alias(name, "champion") == 1
    loaded: Any = tracking.load(name, 1, "lightgbm", digest=logged.digest)
    assert (loaded.predict(frame) == expected).all()
    wrong: list[Callable[[], object]] = [
        lambda: tracking.load(name, 9, "lightgbm", digest=logged.digest),
        lambda: tracking.set_alias(name, "champion", 9),
    ]
    for call in wrong:
        with pytest.raises(UsageError):
            call()
    for flavor in ("tracking", "no_such_flavor"):
        with pytest.raises(RefusedError, match=f"stored as lightgbm .* reads {flavor}"):
            tracking.load(name, 1, flavor, digest=logged.digest)
    assert tracking.alias(name, "champion") == 1


def test_judgement_is_added_to_a_run_that_has_ended(tracking: Tracking, name: str) -> None:
    with tracking.run(name, "judged", {}) as run:
        pass
    tracking.log_judgement(run.run_id, {"log_loss": 0.4})
    found = client_of(tracking).get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"log_loss": 0.4})


def test_model_that_cannot_be_stored_fails_the_run_and_is_not_registered(
    tracking: Tracking, name: str
) -> None:
    model, frame, expected = booster()
    with pytest.raises(UsageError, match="not installed"), tracking.run(name, "m", {}) as run:
        run.log_model(
            model,
            "lightgbm",
            name=name,
            input_example=frame,
            predictions=expected,
            requirements=["no-such-distribution"],
        )
    client = client_of(tracking)
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert client.search_registered_models(f"name = '{name}'") == []
    (entry,) = client.search_logged_models([client.get_experiment_by_name(name).experiment_id])
    assert str(entry.status) == "FAILED"


def test_what_is_told_twice_is_there_once(tracking: Tracking, name: str) -> None:
    """Each message may have been carried out though nobody heard the answer."""
    with tracking.run(name, "r", {}) as run:
        run.log_parameters({"a": 1})
        run.log_snapshot("s", DIGEST, "lake/1.json", 5)
        run.log_figure("p", b"PNG")
        run.log_round(1, {"loss": 0.5, "nan": float("nan")})
        run.log_round(2, {"loss": 0.4, "nan": float("nan")})
        sent: list[Any] = []
        run._link = Twice(run._link, sent)  # type: ignore[assignment]
        run.log_parameters({"a": 1})
        run.log_snapshot("s", DIGEST, "lake/1.json", 5)
        run.log_figure("p", b"PNG")
        run.flush()
    kinds = ["parameters", "dataset", "artifact", "metrics", "end"]
    assert [message["kind"] for message in sent[::2]] == kinds
    client = client_of(tracking)
    for key in ("loss", "nan"):
        assert [m.step for m in client.get_metric_history(run.run_id, key)] == [1, 2]
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert len(found.inputs.dataset_inputs) == 1


class Twice:
    """A link over which each message goes twice."""

    def __init__(self, link: Any, sent: list[Any]) -> None:
        self._link, self._sent = link, sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send(self, run_id: str, message: Any) -> None:
        for _ in range(2):
            self._sent.append(message)
            self._link.send(run_id, message)


# --- one entry of the spool that cannot be told


def left_by_a_killed_process(tracking: Tracking, name: str) -> str:
    """A run in the spool that nobody holds any more; MLflow's id of it."""
    assert tracking.spool is not None
    begun = Begun(uuid.uuid4().hex, name, "r", {DAGSTER_RUN_TAG: "gone"}, 1)
    entry = tracking.spool.open(begun.key)
    run = TrackedRun(tracking.link(), begun, entry)
    run.drain()
    entry.keep(asdict(begun), [])
    run.release()  # as the kernel does
    return run.run_id


@pytest.fixture
def spooling(tracking: Tracking, tmp_path: Path) -> Tracking:
    return Tracking(tracking.uri, tracking.artifacts, spool=tmp_path / "spool")


def delete_run(client: Any, run_id: str) -> None:
    client.delete_run(run_id)


def delete_experiment(client: Any, run_id: str) -> None:
    client.delete_experiment(client.get_run(run_id).info.experiment_id)


@pytest.mark.parametrize("delete", [delete_run, delete_experiment])
def test_a_deleted_run_is_set_aside_and_hinders_nothing_behind_it(
    spooling: Tracking, name: str, delete: Callable[[Any, str], None]
) -> None:
    assert spooling.spool is not None
    runs = [left_by_a_killed_process(spooling, f"{name}-{n}") for n in range(3)]
    client = client_of(spooling)
    keys = {path.stem for path in spooling.spool.folder.glob("*.json")}
    first = next(entry.read()[0]["run_id"] for entry in spooling.spool.abandoned())
    delete(client, first)
    others = {run_id for run_id in runs if run_id != first}
    assert dict(sweep(spooling, lambda _: "FAILURE", never)) == dict.fromkeys(others, "FAILED")
    assert {client.get_run(run_id).info.status for run_id in others} == {"FAILED"}
    ((key, reason),) = spooling.spool.refused().items()
    assert key in keys
    assert "active" in reason
    kept = json.loads((spooling.spool.folder / "refused" / f"{key}.json").read_text())
    assert kept["run"]["run_id"] == first
    assert not spooling.spool.pending()
    assert sweep(spooling, lambda _: "FAILURE", never) == []


def test_an_entry_that_cannot_be_read_is_set_aside(spooling: Tracking, name: str) -> None:
    assert spooling.spool is not None
    run_id = left_by_a_killed_process(spooling, name)
    torn = spooling.spool.folder / "0.json"
    torn.write_text('{"run": ')
    assert sweep(spooling, lambda _: "FAILURE", never) == [(run_id, "FAILED")]
    assert "cannot be read" in spooling.spool.refused()["0"]
    assert (spooling.spool.folder / "refused" / "0.json").read_text() == '{"run": '


def test_what_is_refused_of_a_run_does_not_keep_its_end_from_it(
    spooling: Tracking, name: str
) -> None:
    assert spooling.spool is not None
    run_id = left_by_a_killed_process(spooling, name)
    wrong = {"kind": "parameters", "values": {300 * "k": "x"}}
    for entry in spooling.spool.abandoned():
        entry.keep(entry.read()[0], [wrong])
    sweep(spooling, lambda _: "FAILURE", never)
    assert client_of(spooling).get_run(run_id).info.status == "FAILED"
    (key,) = spooling.spool.refused()
    kept = json.loads((spooling.spool.folder / "refused" / f"{key}.json").read_text())
    assert kept["messages"] == [wrong]


def test_an_error_that_may_pass_keeps_its_entry_and_the_others_go_on(
    spooling: Tracking, name: str
) -> None:
    assert spooling.spool is not None
    runs = [left_by_a_killed_process(spooling, name) for _ in range(2)]
    fails = next(entry.read()[0]["run_id"] for entry in spooling.spool.abandoned())

    def recorded(_: object, run_id: str) -> bool:
        if run_id == fails:
            raise TransientError("the ledger is locked")
        return False

    with pytest.raises(TransientError, match="locked"):
        sweep(spooling, lambda _: "FAILURE", recorded)
    states = {run_id: client_of(spooling).get_run(run_id).info.status for run_id in runs}
    assert states == {run_id: "RUNNING" if run_id == fails else "FAILED" for run_id in runs}
    assert sweep(spooling, lambda _: "FAILURE", never) == [(fails, "FAILED")]
