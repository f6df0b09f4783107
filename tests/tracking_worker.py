"""Processes that test_tracking.py starts: what a run's state is worth shows after they ended.

    python tracking_worker.py <mode> <root of a prepared store> [more]

Each prints JSON lines. Training is small, seeded and the same every time.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from resources.tracking import DAGSTER_RUN_TAG, Tracking

# A shell starts what it puts into the background with Ctrl-C ignored, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
mode, root, *more = sys.argv[1:]
folder = Path(root) / "mlflow"
tracking = Tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")


def say(**document: Any) -> None:
    print(json.dumps(document), flush=True)


def train(kind: str, rounds: int = 5) -> tuple[object, str, Any, Any]:
    """(model, flavor, frame with a category column, predictions)."""
    import numpy as np
    import pandas as pd

    rng = np.random.RandomState(7)
    frame = pd.DataFrame(rng.rand(300, 3), columns=list("abc"))
    frame["d"] = pd.Categorical(np.where(frame.b > 0.5, "x", "y"))
    target = ((frame.a > 0.5) ^ (frame.d == "x")).astype(int)
    if kind == "lightgbm":
        import lightgbm

        settings = {"objective": "binary", "verbose": -1, "seed": 1, "deterministic": True}
        settings |= {"force_row_wise": True, "num_threads": 1, "min_data_in_leaf": 5}
        model = lightgbm.train(settings, lightgbm.Dataset(frame, target), rounds)
        return model, "lightgbm", frame, model.predict(frame)
    from sklearn.ensemble import HistGradientBoostingRegressor

    forest = HistGradientBoostingRegressor(
        max_iter=rounds, random_state=1, categorical_features="from_dtype"
    ).fit(frame, target)
    return forest, "sklearn", frame, forest.predict(frame)


def log_model(run: Any, kind: str, name: str, rounds: int = 5) -> Any:
    model, flavor, frame, predictions = train(kind, rounds)
    distribution = {"lightgbm": "lightgbm", "sklearn": "scikit-learn"}[flavor]
    return run.log_model(
        model,
        flavor,
        name=name,
        input_example=frame,
        predictions=predictions,
        requirements=[distribution],
    )


def states() -> None:
    """One run for each way that a block can end; the last exception ends the process too."""
    from dagster._core.errors import DagsterExecutionInterruptedError

    class CancelledError(DagsterExecutionInterruptedError):
        """Known by its base class only."""

    for error in (ValueError(), KeyboardInterrupt(), SystemExit(0), CancelledError()):
        try:
            with tracking.run("states", type(error).__name__, {}) as run:
                run.log_round(1, {"loss": 0.5})
                raise error
        except type(error):
            say(arrived=type(error).__name__)
    with tracking.run("states", "normal", {}) as run:
        run.log_round(1, {"loss": 0.5})
    with tracking.run("states", "uncaught", {}):
        raise RuntimeError("the process ends here")


def wait() -> None:
    """A run that goes on until a signal comes."""
    with tracking.run("wait", "wait", {DAGSTER_RUN_TAG: more[0]}) as run:
        run.log_parameters({"begun": True})
        say(run_id=run.run_id)
        time.sleep(120)


def register() -> None:
    """Registers versions of one new model, and logs one snapshot, together with other workers."""
    log_model_arguments = train("lightgbm")
    with tracking.run("warm", more[0], {}):  # everything imported and opened
        pass
    say(ready=True)
    sys.stdin.readline()
    model, flavor, frame, predictions = log_model_arguments
    for _ in range(3):
        with tracking.run("together", more[0], {}) as run:
            run.log_snapshot("flights/snapshot", "ab" * 32, "snapshots/1", 300)
            logged = run.log_model(
                model,
                flavor,
                name="brand-new",
                input_example=frame,
                predictions=predictions,
                requirements=[],
            )
            say(version=logged.version, run_id=run.run_id)


def digests() -> None:
    """The digests of trainings that do not differ between processes, and of one that does."""
    with tracking.run("digests", "digests", {}) as run:
        for kind in ("lightgbm", "sklearn"):
            logged = log_model(run, kind, f"digest-{kind}")
            place = tracking._client().get_model_version_download_uri(
                f"digest-{kind}", str(logged.version)
            )
            stored = Path(url2pathname(urlsplit(place).path))
            raw = [hashlib.sha256(path.read_bytes()).hexdigest() for path in stored.glob("*.skops")]
            say(kind=kind, digest=logged.digest, stored=str(stored), raw=raw)
        say(kind="other", digest=log_model(run, "lightgbm", "digest-lightgbm", 6).digest)


def audited() -> None:
    """A whole life of a store; says what reached out of this process, and what MLflow set up."""
    reached: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        watched = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.fork")
        if event in watched and arguments[:1] != ("uname",):  # the standard library's platform
            reached.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    tracking.prepare()
    with tracking.run("audited", "run", {}) as run:
        run.log_parameters({"seed": 1})
        logged = log_model(run, "lightgbm", "audited")
    tracking.load("audited", logged.version, "lightgbm", digest=logged.digest)
    from mlflow.telemetry.client import get_telemetry_client

    result = {"reached": reached, "telemetry": get_telemetry_client() is not None}
    Path(more[0]).write_text(json.dumps({**result, "git": "git" in sys.modules}))


def foreign() -> None:
    """Loads registered models as a program does that has never heard of Signalbox."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "resources"]:
        del sys.modules[name]
    sys.modules["resources"] = None  # type: ignore[assignment]
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    for kind in ("lightgbm", "sklearn"):
        _, _, frame, predictions = train(kind)
        uri = f"models:/digest-{kind}/1"
        served = mlflow.pyfunc.load_model(uri)
        strings = frame.astype({"d": str})
        say(
            flavor=bool(
                (getattr(mlflow, kind).load_model(uri).predict(frame) == predictions).all()
            ),
            categories=bool((served.predict(frame) == predictions).all()),
            strings=bool((served.predict(strings) == predictions).all()),
            signature=str(served.metadata.signature.inputs.input_names()),
            example=len(served.input_example),
        )


def dagster() -> None:
    """Dagster jobs whose op fails or is terminated: with dagster-mlflow's resource, and ours."""
    import dagster as dg
    from dagster_mlflow import mlflow_tracking

    @dg.op(required_resource_keys={"mlflow"})
    def fails_with_theirs(context: dg.OpExecutionContext) -> None:
        context.resources.mlflow.log_param("begun", True)
        raise ValueError("the training failed")

    @dg.op
    def fails_with_ours(context: dg.OpExecutionContext) -> None:
        with tracking.run("ours", "fails", {DAGSTER_RUN_TAG: context.run_id}):
            raise ValueError("the training failed")

    @dg.op
    def terminated_with_ours(context: dg.OpExecutionContext) -> None:
        with tracking.run("ours", "terminated", {DAGSTER_RUN_TAG: context.run_id}):
            os.kill(os.getpid(), signal.SIGTERM)  # what Dagster sends to end a run
            time.sleep(60)

    @dg.job(resource_defs={"mlflow": mlflow_tracking})
    def theirs() -> None:
        fails_with_theirs()

    @dg.job
    def ours() -> None:
        fails_with_ours()

    @dg.job
    def ours_terminated() -> None:
        terminated_with_ours()

    settings = {"experiment_name": "theirs", "mlflow_tracking_uri": tracking.uri}
    config = {"resources": {"mlflow": {"config": settings}}}
    with dg.DagsterInstance.ephemeral() as instance:
        for job, run_config in ((theirs, config), (ours, {}), (ours_terminated, {})):
            result = job.execute_in_process(run_config, instance, raise_on_error=False)
            say(job=job.name, success=result.success)


if mode == "prepare":
    tracking.prepare()
else:
    globals()[mode]()
