"""MLflow runs whose state is true, models with a digest, datasets with their whole digest."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import HomeError, RefusedError, TransientError, UsageError
from resources.tracking import TrackedRun, Tracking, dataset_digest, model_digest
from resources.tracking.client import ATTEMPTS, QUIET, attempt, quiet_mlflow, shown
from resources.tracking.models import _without_addresses, pinned
from resources.tracking.run import PARAMETER_LENGTH, _cut
from resources.tracking.settling import reconcile
from resources.tracking.store import _folder_name

WORKER = Path(__file__).with_name("tracking_worker.py")
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose 60 migrations ran once; tests get copies."""
    path = tmp_path_factory.mktemp("prepared") / "mlflow.db"
    Tracking(f"sqlite:///{path}", path.parent / "artifacts").prepare()
    return path


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """Paths are people's: with spaces and accents."""
    root = tmp_path / "my home, é"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(prepared, root / "mlflow" / "mlflow.db")
    return root


@pytest.fixture
def tracking(root: Path) -> Tracking:
    return Tracking(f"sqlite:///{root}/mlflow/mlflow.db", root / "mlflow" / "artifacts")


def environment(**more: str) -> dict[str, str]:
    """Without what makes MLflow behave differently in tests and in CI."""
    kept = {k: v for k, v in os.environ.items() if k not in (*QUIET, "CI", "PYTEST_CURRENT_TEST")}
    own = {"PYTHONPATH": str(WORKER.parents[1]), "OMP_NUM_THREADS": "1"}
    return {**kept, **own, **more}


def start(mode: str, root: Path, *more: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(WORKER), mode, str(root), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        cwd=root,
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def states(root: Path) -> dict[str, str]:
    """State by run name, read from the database itself."""
    with sqlite3.connect(root / "mlflow" / "mlflow.db") as connection:
        return dict(connection.execute("SELECT name, status FROM runs"))


def client_of(tracking: Tracking) -> Any:
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking.uri, tracking.uri)


def never(_: object, __: str) -> bool:
    """A ledger that has no model of any run."""
    return False


# --- the state of a run


@pytest.mark.heavy
def test_state_tells_how_the_block_ended_also_after_the_process(root: Path) -> None:
    said = finish(start("states", root), code=1)
    arrived = ["ValueError", "KeyboardInterrupt", "SystemExit", "CancelledError"]
    assert [line["arrived"] for line in said] == arrived  # nothing is swallowed
    assert states(root) == {
        "ValueError": "FAILED",
        "KeyboardInterrupt": "KILLED",
        "SystemExit": "KILLED",
        "CancelledError": "KILLED",
        "normal": "FINISHED",
        "uncaught": "FAILED",
    }
    with sqlite3.connect(root / "mlflow" / "mlflow.db") as connection:
        (collected,) = connection.execute("SELECT count(*) FROM metrics").fetchone()
    assert collected == 5  # the last rounds of a failed training are kept, too


@pytest.fixture
def interrupted(root: Path) -> Iterator[tuple[str, str]]:
    """The ids of two runs: one whose process got Ctrl-C, one whose process was killed."""
    processes = [start("wait", root, name) for name in ("dagster-int", "dagster-kill")]
    ids = []
    try:
        for process, number in zip(processes, (signal.SIGINT, signal.SIGKILL), strict=True):
            assert process.stdout
            ids.append(json.loads(process.stdout.readline())["run_id"])
            process.send_signal(number)
            process.wait(120)
        yield ids[0], ids[1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.heavy
def test_killed_process_is_reconciled_with_dagster(
    tracking: Tracking, interrupted: tuple[str, str]
) -> None:
    client = client_of(tracking)

    def state(run_id: str) -> str:
        return str(client.get_run(run_id).info.status)

    pressed, killed = interrupted
    assert (state(pressed), state(killed)) == ("KILLED", "RUNNING")

    asked = []

    def going_on(dagster_run_id: str) -> str:
        asked.append(dagster_run_id)
        return "STARTED"

    assert reconcile(tracking, going_on, never) == []
    assert asked == ["dagster-kill"]
    assert state(killed) == "RUNNING"
    assert reconcile(tracking, lambda _: "FAILURE", never) == [(killed, "FAILED")]
    assert state(killed) == "FAILED"
    assert reconcile(tracking, lambda _: "FAILURE", never) == []


@pytest.mark.heavy
def test_dagster_mlflow_calls_a_failed_training_finished_and_we_do_not(root: Path) -> None:
    said = finish(start("dagster", root, PYTHONWARNINGS="ignore"))
    assert [line["success"] for line in said] == [False, False, False]
    # The accident: its resource leaves the run to MLflow's exit handler.
    assert states(root) == {"theirs": "FINISHED", "fails": "FAILED", "terminated": "KILLED"}


# --- the dataset


def test_mlflow_itself_does_not_see_past_row_10_000() -> None:
    quiet_mlflow()
    import pandas as pd
    from mlflow.data import from_pandas

    frame = pd.DataFrame({"a": range(20_000)})
    changed = frame.copy()
    changed.loc[15_000, "a"] = -1
    assert from_pandas(frame, "x").digest == from_pandas(changed, "x").digest


@settings(deadline=None)
@given(st.text("0123456789abcdef", min_size=64, max_size=64))
def test_short_digest_fits_and_starts_the_whole_one(digest: str) -> None:
    short = dataset_digest(digest)
    assert len(short) == 36
    assert digest.startswith(short.removeprefix("sb1:"))


@pytest.mark.parametrize("digest", ["", "ab" * 31, "AB" * 32, "sha256:" + "ab" * 32])
def test_what_is_no_sha256_is_refused(digest: str) -> None:
    with pytest.raises(UsageError, match="64 lower-case"):
        dataset_digest(digest)


# --- parameters, metrics, figures


@settings(deadline=None)
@given(st.text(max_size=7000), st.integers(100, PARAMETER_LENGTH))
def test_cut_text_fits_and_short_text_is_untouched(text: str, limit: int) -> None:
    cut = _cut(text, limit)
    assert len(cut) <= limit
    assert (cut == text) == (len(text) <= limit)


def test_figure_is_an_artifact_under_the_given_folder(tracking: Tracking, root: Path) -> None:
    with tracking.run("flights/a b", "figure", {}) as run:
        run.log_figure("calibration", b"\x89PNG")
    (path,) = (root / "mlflow" / "artifacts").rglob("figures/calibration.png")
    assert path.read_bytes() == b"\x89PNG"
    assert not (root / "mlruns").exists()
    with pytest.raises(UsageError, match="no file name"), tracking.run("e", "f", {}) as run:
        run.log_figure("../escape", b"")


@settings(deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_each_experiment_has_a_folder_of_its_own(one: str, other: str) -> None:
    folder = _folder_name(one)
    assert Path(folder).name == folder != ".."
    assert (folder == _folder_name(other)) == (one == other)


# --- models


@pytest.mark.heavy
def test_identical_trainings_in_different_processes_have_one_digest(root: Path) -> None:
    workers = [start("digests", root, PYTHONHASHSEED=seed) for seed in "12"]
    first, second = (finish(worker) for worker in workers)
    digests = [{line["kind"]: line["digest"] for line in said} for said in (first, second)]
    assert digests[0] == digests[1]
    assert digests[0]["lightgbm"] != digests[0]["other"]  # one round more
    # What a digest over the bytes would say of the same two sklearn models:
    assert first[1]["raw"] != second[1]["raw"]

    # Anybody can load them, by flavor and as pyfunc, from categories and from strings; doing so
    # writes into the folder, and the digest of what is stored stays.
    for line in finish(start("foreign", root)):
        assert line == {
            "flavor": True,
            "categories": True,
            "strings": True,
            "signature": "['a', 'b', 'c', 'd']",
            "example": 5,
        }
    # The newest version is the one that was loaded; whose it is, the two settled between them.
    loaded = [Path(said[1]["stored"]) for said in (first, second)]
    stored = next(path for path in loaded if (path / "registered_model_meta").exists())
    assert model_digest(stored) == digests[0]["sklearn"]
    (stored / "requirements.txt").write_text("mlflow==0")
    assert model_digest(stored) != digests[0]["sklearn"]


@pytest.mark.heavy
def test_two_processes_register_one_new_model_at_once(root: Path, tracking: Tracking) -> None:
    workers = [start("register", root, name) for name in "ab"]
    for worker in workers:
        assert worker.stdout
        assert json.loads(worker.stdout.readline()) == {"ready": True}
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [finish(worker) for worker in workers]
    versions = sorted(line["version"] for lines in said for line in lines)
    assert versions == [1, 2, 3, 4, 5, 6]
    client = client_of(tracking)
    for line in said[0] + said[1]:
        assert len(client.get_run(line["run_id"]).inputs.dataset_inputs) == 1


def test_requirements_are_pinned_to_what_is_installed() -> None:
    import lightgbm

    assert pinned(["lightgbm", "x>=2"]) == [f"lightgbm=={lightgbm.__version__}", "x>=2"]


def test_skops_state_counts_by_contents_not_by_addresses() -> None:
    def tree(address: int, content: str) -> tuple[Any, dict[str, str]]:
        node = {"__id__": address, "file": f"{address}.npy", "list": [{"__id__": 1, "v": 2}]}
        return node, {f"{address}.npy": content}

    assert _without_addresses(*tree(1, "A")) == _without_addresses(*tree(2, "A"))
    assert _without_addresses(*tree(1, "A")) != _without_addresses(*tree(1, "B"))


def booster() -> tuple[Any, Any, Any]:
    quiet_mlflow()
    import lightgbm
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(np.random.RandomState(0).rand(200, 3), columns=list("abc"))
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1}
    model = lightgbm.train(settings, lightgbm.Dataset(frame, frame.a > 0.5), 3)
    return model, frame, model.predict(frame)


# --- the store


@pytest.mark.heavy
def test_whole_life_is_silent_and_reaches_for_nothing(tmp_path: Path) -> None:
    process = start("audited", tmp_path, str(tmp_path / "result.json"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"reached": [], "telemetry": False, "git": False}
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as connection:
        places = dict(connection.execute("SELECT name, artifact_location FROM experiments"))
    assert places == {
        "Default": (tmp_path / "mlflow" / "artifacts" / "0").as_uri(),
        "audited": (tmp_path / "mlflow" / "artifacts" / "audited").as_uri(),
    }


def test_telemetry_is_off_before_mlflow_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "DEBUG")  # a person's own choice
    Tracking("sqlite:///nowhere.db", None)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "DEBUG"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, resources.tracking; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=WORKER.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"mlflow", "pandas", "numpy", "sklearn", "lightgbm", "sqlalchemy", "alembic", "dagster"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.heavy
def test_two_processes_and_a_killed_one_prepare_the_same_home(tmp_path: Path) -> None:
    doomed = start("prepare", tmp_path)
    folder = tmp_path / "mlflow"
    until = time.monotonic() + 60
    while not list(folder.glob(".prepare-*/mlflow.db")) and time.monotonic() < until:
        time.sleep(0.005)
    doomed.kill()
    doomed.communicate()
    assert not (folder / "mlflow.db").exists()  # half a schema is never in place
    for worker in [start("prepare", tmp_path) for _ in "ab"]:
        finish(worker)
    with sqlite3.connect(folder / "mlflow.db") as connection:
        assert len(connection.execute("SELECT * FROM alembic_version").fetchall()) == 1
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    before = (folder / "mlflow.db").read_bytes()
    Tracking(f"sqlite:///{folder}/mlflow.db", folder / "artifacts").prepare()
    assert (folder / "mlflow.db").read_bytes() == before


def test_store_that_was_never_prepared_is_not_made_up(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")
    with pytest.raises(HomeError, match="initialise the home first"):
        tracking.alias("m", "champion")
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    tracking = Tracking(f"sqlite:///{path}", tmp_path / "artifacts")
    path.write_text("notes")
    with pytest.raises(HomeError, match="not an MLflow database"):
        tracking.prepare()
    assert path.read_text() == "notes"
    path.unlink()
    (tmp_path / "artifacts").rmdir()
    (tmp_path / "artifacts").write_text("")
    with pytest.raises(HomeError, match="cannot be created"):
        tracking.prepare()
    with pytest.raises(UsageError, match="artifacts folder"):
        Tracking(f"sqlite:///{path}", None).prepare()


def test_path_that_mlflow_misreads_is_refused(tmp_path: Path) -> None:
    quiet_mlflow()
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    misread = tmp_path / "at%41"
    assert LocalArtifactRepository(str(misread)).artifact_dir == str(tmp_path / "atA")  # why
    with pytest.raises(HomeError, match="reads as an escape"):
        Tracking(f"sqlite:///{misread}/mlflow.db", misread / "artifacts").prepare()
    assert list(tmp_path.iterdir()) == []
    Tracking(f"sqlite:///{tmp_path}/100% ok/m.db", tmp_path / "100% ok").prepare()


def test_schema_of_another_release_says_what_to_do(tracking: Tracking, root: Path) -> None:
    with sqlite3.connect(root / "mlflow" / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of the future'")
    with pytest.raises(HomeError, match="mlflow db upgrade"):
        tracking.alias("m", "champion")


def test_deleted_experiment_is_not_written_to(tracking: Tracking) -> None:
    with tracking.run("gone", "r", {}):
        pass
    client = client_of(tracking)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(RefusedError, match="experiments restore"), tracking.run("gone", "r", {}):
        pytest.fail("the block was entered")


@contextmanager
def nearly_full_disk() -> Iterator[None]:
    """Files of this process can grow to 64 KiB, no further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_worth_another_try_and_fails_the_run(tracking: Tracking) -> None:
    def figure(run: TrackedRun) -> None:
        run.log_figure("p", bytes(2**17))

    def parameters(run: TrackedRun) -> None:
        run.log_parameters({str(number): "x" * 5000 for number in range(50)})

    def train(name: str, act: Callable[[TrackedRun], None]) -> None:
        with tracking.run("full", name, {}) as run, nearly_full_disk():
            act(run)

    with pytest.raises(TransientError, match="no space left"):
        train("figure", figure)
    with pytest.raises(TransientError, match="free space"):
        train("parameters", parameters)
    client = client_of(tracking)
    runs = client.search_runs([client.get_experiment_by_name("full").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]


def test_lost_race_is_tried_again_but_not_for_ever() -> None:
    quiet_mlflow()
    from mlflow.exceptions import MlflowException

    calls = []

    def collide(times: int) -> str:
        calls.append(1)
        if len(calls) <= times:
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.x")
        return "stored"

    assert attempt("sqlite:///x", lambda: collide(2)) == "stored"
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(TransientError):
        attempt("sqlite:///x", lambda: collide(99))
    assert len(calls) == ATTEMPTS


def test_password_of_a_server_is_not_in_messages() -> None:
    assert shown("https://me:secret@host:1/x") == "https://host:1/x"
    assert shown("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"
