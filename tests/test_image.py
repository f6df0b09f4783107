"""The image of the project, and its pods: built, pinned, built again, and run by digest."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import CodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import (
    DEFAULT_DAGSTER_ENTRY_POINT,
    JobPythonOrigin,
    RepositoryPythonOrigin,
)
from typer.testing import CliRunner

from platform_assets.cli.app import app
from platform_assets.domain.cluster import Sources, files_inside
from platform_assets.domain.cluster_apps import config_maps, environment
from platform_assets.domain.errors import HeldError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.placing import USER
from platform_assets.factory.grid import dagster_key
from platform_assets.factory.instance import dagster_yaml, make_home
from platform_assets.line.days import build_day
from platform_assets.line.features import build_features
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.failures import load_budgets
from resources.home import QUIET, Home
from resources.images import VARIABLE, load_lock
from resources.lanes import load_lanes, with_lanes
from tests import cluster as fake
from tests import oci, podman
from tests import postgres as postgres_server
from tests.test_cluster_render import settings_with

FIRST, LAST = date(2013, 1, 2), date(2013, 1, 8)
NEW = "EWR"
SHORTER = {"window_days: 28": "window_days: 7", "min_days: 21": "min_days: 3"}

# e2e: one at a time, or each worker of the test run would build an image of its own.
pytestmark = [
    *(pytest.mark.heavy, pytest.mark.e2e, pytest.mark.embedded, pytest.mark.image),
    pytest.mark.timeout(1500),
]


@dataclass(frozen=True)
class Built:
    """The image in a registry, and the lock that has it."""

    engine: podman.Engine
    base: str
    digest: str
    image_id: str
    lock: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("image")
    if podman.missing():
        pytest.skip(podman.ADVICE)
    with oci.running(folder) as registry, podman.engine(registry.host) as engine:
        base = engine.base()
        image_id = engine.build(base, "1")
        digest = engine.push(f"{registry.host}/signalbox:1")
        lock = folder / "images.lock.yaml"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, str(lock))
            signalbox("images", "pin", "train", f"{registry.host}/signalbox:1", "--allow-registry")
        yield Built(engine, base, digest, image_id, lock)


def signalbox(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def lock(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(built.lock))


def test_the_lock_says_what_the_image_is_made_of(built: Built) -> None:
    entry = load_lock().images["train"]
    assert entry.digest == built.digest
    assert entry.config == f"sha256:{built.image_id}"
    lock = podman.ROOT / "requirements.lock"
    assert entry.lock_digest == oci.sha256(lock.read_bytes())
    assert entry.base == built.base.rpartition("@")[2]


def test_the_image_is_run_by_nobody_in_particular_on_a_root_that_stays(built: Built) -> None:
    image = str(load_lock().images["train"].ref)
    run = ("podman", "run", "--rm", "--network=host", "--read-only", "--cap-drop=all", image)
    assert built.engine.run(*run, "id", "-u") == str(USER)
    # What the checks need is not in it, and what starts is compiled: nothing can be written.
    listed = built.engine.run(*run, "sh", "-c", "ls -d /opt/signalbox/lib/python3.11/*/*.dist-info")
    names = {Path(line).name.partition("-")[0].lower() for line in listed.splitlines()}
    assert {"dagster", "lightgbm", "signalbox"} <= names
    assert not {name.replace("-", "_") for name in podman.left_out()} & names
    code = "import platform_assets.component as c, os; print(os.path.exists(c.__cached__))"
    assert built.engine.run(*run, "python", "-c", code) == "True"
    # Its own lock is not in it: its digest would be.
    there = built.engine.run(*run, "sh", "-c", "find / -name images.lock.yaml 2>/dev/null; true")
    assert there == ""


def test_built_again_it_has_the_same_digest(built: Built) -> None:
    assert built.engine.build(built.base, "2") == built.image_id
    host = built.engine.host
    assert built.engine.push(f"{host}/signalbox:2") == built.digest
    report = json.loads(signalbox("images", "verify", "--json"))
    assert [image["state"] for image in report["images"]] == ["as locked"]


# --- a run of the flights pipeline ----------------------------------------------------------------


@pytest.fixture
def where(tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator["Where"]:
    """A home whose databases are Postgres', a week landed, all but one partition of it built."""
    if not postgres_server.is_there():
        pytest.skip(f"no Postgres server is installed; {postgres_server.ADVICE}")
    with postgres_server.server() as url, fake.running(tmp_path) as cluster:
        ledger, dagster = (postgres_server.create_database(url) for _ in range(2))
        root = tmp_path / "home"
        home = replace(Home.locate(root), ledger_url=ledger, dagster_url=dagster)
        catalog = root / "catalog"
        variables = {"SIGNALBOX_DEPLOYMENT": "k8s", "SIGNALBOX_CATALOG": str(catalog)}
        for name, value in {**home.environment(), **variables}.items():
            monkeypatch.setenv(name, value)
        make_home(home)
        # The catalog's own flights, trained on less than four weeks: to have the test end sooner.
        file = podman.ROOT / "platform_assets" / "catalog" / "flights.yaml"
        catalog.mkdir()
        text = file.read_text()
        for long, short in SHORTER.items():
            assert text.count(long) == 1
            text = text.replace(long, short)
        (catalog / file.name).write_text(text)
        spec = load_catalog()["flights"]
        services = Services.open(spec, home)
        land_flights(services, FIRST, LAST, quiet=True)
        for number in range((LAST - FIRST).days + 1):
            day = FIRST + timedelta(days=number)
            for airport in spec.partitions.values:
                if (day, airport) != (LAST, NEW):
                    with contextlib.suppress(HeldError):  # of some days the weather lacks an hour
                        build_features(services, PartitionKey(day, airport), "by hand")
            if day != LAST:
                with contextlib.suppress(HeldError):
                    build_day(services, PartitionKey(day), "by hand")
        # Pods see the home alone: what the kubeconfig names stands in it too.
        token = Path(shutil.copy(cluster.token_file, root / "token"))
        named = Path(cluster.kubeconfig).read_text()
        assert named.count(str(cluster.token_file)) == 1
        (root / "kubeconfig").write_text(named.replace(str(cluster.token_file), str(token)))
        # The volume is the cluster's: what is in it belongs to the user of the image.
        subprocess.run(["chown", "-R", f"{USER}:{USER}", str(root)], check=True)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(folder.stat().st_mode | 0o011)
        yield Where(home, services, cluster, built.engine)


@dataclass(frozen=True)
class Where:
    """A home, a cluster that is told of by a fake, and podman as its node."""

    home: Home
    services: Services
    cluster: fake.Cluster
    engine: podman.Engine

    def config(self) -> dict[str, Any]:
        """The cluster's dagster.yaml, but for the way to the API server."""
        document = files_inside(self.sources)["dagster.yaml"]
        config = document["run_launcher"]["config"]
        config["load_incluster_config"] = False
        config["kubeconfig_file"] = str(self.home.root / "kubeconfig")
        return document

    @property
    def sources(self) -> Sources:
        one = {"cpu": "1", "memory": "2Gi"}
        containers = dict.fromkeys(("platform", "run", "step", "largest"), one)
        settings = settings_with(
            home=str(self.home.root), namespace=fake.NAMESPACE, containers=containers
        )
        lanes = load_lanes()
        project = yaml.safe_load(with_lanes(dagster_yaml().read_text(), lanes))
        return Sources(lanes, load_lock(), settings, project, QUIET, load_budgets())

    def maps(self) -> list[dict[str, Any]]:
        """The cluster's ConfigMaps, but for what this machine has in the place of servers."""
        sources = self.sources
        variables = environment(sources.settings, QUIET)
        variables["SIGNALBOX_MLFLOW_URI"] = self.home.mlflow_uri
        variables["SIGNALBOX_CATALOG"] = str(self.home.root / "catalog")
        # Neither lake nor checkpoints: both lie in the home here.
        del variables["SIGNALBOX_LAKE_URL"]
        del variables["SIGNALBOX_CHECKPOINTS_URL"]
        files = {
            "dagster.yaml": yaml.safe_dump(self.config()),
            "lanes.yaml": (podman.ROOT / "platform_assets" / "lanes.yaml").read_text(),
            "failures.yaml": (podman.ROOT / "platform_assets" / "failures.yaml").read_text(),
            "images.lock.yaml": Path(os.environ[VARIABLE]).read_text(),
        }
        return config_maps(files, sources.settings, variables)

    def secrets(self) -> dict[str, dict[str, str]]:
        settings = self.sources.settings
        databases = {
            "SIGNALBOX_LEDGER_URL": self.home.ledger_url,
            "SIGNALBOX_DAGSTER_URL": str(self.home.dagster_url),
        }
        nobody = {"AWS_ACCESS_KEY_ID": "nobody"}
        return {settings.postgres.secret: databases, settings.s3.secret: nobody}


def test_a_run_of_the_flights_pipeline_in_pods_by_digest(
    where: Where, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, cluster = where.engine, where.cluster
    bind = ("type=none", "o=bind", f"device={where.home.root}")
    options = [part for option in bind for part in ("--opt", option)]
    engine.run("podman", "volume", "create", *options, podman.HOME_VOLUME)
    for name, values in where.secrets().items():
        engine.secret(name, values)
    node = podman.Node(cluster, engine, where.maps())
    node.prepare(str(load_lock().images["train"].ref))
    node.start()
    (where.home.dagster / "dagster.yaml").write_text(yaml.safe_dump(where.config()))
    flights, last = where.services.spec, PartitionKey(LAST)
    try:
        with dg.DagsterInstance.from_config(str(where.home.dagster)) as instance:
            features = launch(
                instance, "flights_features", dagster_key(flights, PartitionKey(LAST, NEW))
            )
            wait(instance, features, engine)
            wait(instance, launch(instance, "flights_day", dagster_key(flights, last)), engine)
            trained = launch(instance, "flights_train", dagster_key(flights, last))
            wait(instance, trained, engine)
            made_of = {
                asset: instance.fetch_materializations(dg.AssetKey(["flights", asset]), limit=5)
                for asset in ("features", "model")
            }
            (made,) = made_of["model"].records
            told = [entry.message for entry in instance.all_logs(trained)]
            ids = {
                entry.step_key: entry.dagster_event.engine_event_data.metadata["imageID"].value
                for run_id in (features, trained)
                for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
                if entry.dagster_event
                and "imageID" in entry.dagster_event.engine_event_data.metadata
            }
        # A run has ended before its worker's pod has.
        podman.wait_for(lambda: len(node.image_ids) == len(node.ran), 60, str(engine.log))
    finally:
        node.end()
    assert made.run_id == trained
    assert made.partition_key == dagster_key(flights, last)

    # Three run workers and four steps, each in the image of the lock and in the place of its lane.
    image = str(load_lock().images["train"].ref)
    assert len(node.ran) == 7
    assert set(cluster.images()) == {image}
    # What podman says of the image before anything starts is what each container then ran.
    config = load_lock().images["train"].config
    assert cluster.image_ids == {image: config}
    assert node.image_ids == dict.fromkeys(node.ran, config)
    for job in node.ran.values():
        spec = job["spec"]["template"]["spec"]
        role = "step" if "step" in job["metadata"]["name"] else "run"
        assert spec["priorityClassName"] == f"signalbox-{role}-adhoc"
    assert any("Executing step" in message for message in told)
    # The model says which image it was trained in.
    from mlflow import MlflowClient

    client = MlflowClient(where.home.mlflow_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (trained_as,) = client.search_runs(experiments)
    assert trained_as.data.tags["signalbox.image"] == built.digest

    # Each step's own container ran what podman says of the image. The pods do not know their names
    # here, for podman tells them the machine's, so the partitions say the image alone.
    assert ids == dict.fromkeys(
        ("flights__features", "flights__snapshot", "flights__model"), config
    )
    for asset in ("features", "model"):
        event = made_of[asset].records[0].asset_materialization
        assert event is not None
        assert event.metadata["image"].value == image

    # It is rebuilt in that image, to the same bytes, though this process runs in none.
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    rebuilt = json.loads(signalbox("reproduce", "flights@1", "--json"))
    assert (rebuilt["verdict"], rebuilt["rebuilt_in"]) == ("identical", image)
    assert all(not comparison["differences"] for comparison in rebuilt["comparisons"])


def launch(instance: dg.DagsterInstance, job: str, partition: str) -> str:
    """Launch a run as the queue's daemon would, of the code that is in the image."""
    from platform_assets.definitions import build_definitions

    definition = build_definitions().resolve_job_def(job)
    pointer = CodePointer.from_module("platform_assets.definitions", "defs", None)
    origin = RepositoryPythonOrigin("python", pointer, None, DEFAULT_DAGSTER_ENTRY_POINT)
    run = instance.create_run_for_job(
        definition,
        tags={"dagster/partition": partition},
        job_code_origin=JobPythonOrigin(job, origin),
    )
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    return run.run_id


def wait(instance: dg.DagsterInstance, run_id: str, engine: podman.Engine) -> None:
    def status() -> dg.DagsterRunStatus:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def over() -> bool:
        if any("-run-" in entry and "ended with 0" not in entry for entry in engine.log):
            return True
        return status() in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE)

    podman.wait_for(over, 240, f"run {run_id} is {status()}: {engine.log}")
    if status() is not dg.DagsterRunStatus.SUCCESS:
        told = [
            f"{e.message} {e.dagster_event.event_specific_data if e.dagster_event else ''}"
            for e in instance.all_logs(run_id)
        ]
        raise AssertionError("\n".join([*told[-12:], *engine.log]))
