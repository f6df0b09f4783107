"""The instance of deploy/: opened where there is no token, and as patient as failures.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._check import CheckError
from dagster._core.test_utils import instance_for_test
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import SERVICE_HOST_ENV_NAME

from platform_assets.domain.cluster_apps import CONFIG_FOLDER
from platform_assets.factory.instance import dagster_yaml
from platform_assets.instance.kubernetes.launcher import PinnedK8sRunLauncher
from platform_assets.instance.steered import SignalboxInstance
from resources.cluster import instance_document, render
from resources.failures import VARIABLE as FAILURES
from resources.failures import failures_file, load_budgets
from resources.images import VARIABLE, change_lock
from tests.test_admission import LOCK


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod without a token: the API server's address is there, but no ServiceAccount's."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    monkeypatch.setenv(SERVICE_HOST_ENV_NAME, "10.0.0.1")


def sections() -> dict[str, Any]:
    document = instance_document(dagster_yaml().read_text())
    return {name: document[name] for name in ("run_launcher", "run_monitoring")}


def test_the_instance_of_the_cluster_opens_without_a_token() -> None:
    found = sections()
    assert found["run_monitoring"]["max_resume_run_attempts"] > 0
    with instance_for_test(overrides=found) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, PinnedK8sRunLauncher)
        assert launcher.supports_resume_run
        assert launcher.steps["steps_at_once"] == 4
        assert instance.get_runs_count() == 0
        # What does speak to the cluster says what it lacks, each time.
        for _ in range(2):
            with pytest.raises(ConfigException):
                launcher.run_k8s_config  # noqa: B018


def test_a_step_does_not_make_the_launcher_to_open_the_instance() -> None:
    own = dagster_yaml().read_text()
    found = {**sections(), "instance_class": yaml.safe_load(own)["instance_class"]}
    with instance_for_test(overrides=sections()) as instance:
        assert instance._run_launcher is not None  # Dagster does: a step would import the client
    with instance_for_test(overrides=found) as instance:
        assert type(instance) is SignalboxInstance
        assert instance.run_monitoring_enabled
        assert instance._run_launcher is None
        assert isinstance(instance.run_launcher, PinnedK8sRunLauncher)
        assert instance.run_launcher is instance._run_launcher
    # A launcher that cannot resume is told of, when it is made.
    found["run_launcher"] = {
        "module": "dagster._core.launcher.sync_in_memory_run_launcher",
        "class": "SyncInMemoryRunLauncher",
    }
    with (
        instance_for_test(overrides=found) as instance,
        pytest.raises(CheckError, match="does not support resuming runs"),
    ):
        instance.run_launcher  # noqa: B018


def test_the_launcher_of_dagster_k8s_does_not_open_without_a_token() -> None:
    found = sections()
    own = found["run_launcher"]["config"]
    kept = ("service_account_name", "instance_config_map", "dagster_home", "load_incluster_config")
    found["run_launcher"] = {
        "module": K8sRunLauncher.__module__,
        "class": K8sRunLauncher.__name__,
        "config": {name: own[name] for name in kept},
    }
    with pytest.raises(ConfigException), instance_for_test(overrides=found):
        pass


def test_a_launcher_has_what_it_is_asked_for_once_there_is_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with instance_for_test(overrides=sections()) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, PinnedK8sRunLauncher)
        with pytest.raises(ConfigException):
            launcher.run_k8s_config  # noqa: B018
        monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda **_: None)
        assert launcher.run_k8s_config == {}
        assert launcher.job_image == str(LOCK.named("train").ref)
        assert launcher._instance is instance
        with pytest.raises(AttributeError, match="nothing_of_that_name"):
            launcher.nothing_of_that_name  # noqa: B018


def test_a_run_worker_may_spend_every_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = sections()["run_monitoring"]["max_resume_run_attempts"]
    budgets = load_budgets()
    assert most == sum(budget.retries for budget in budgets.failures.values()) == 37
    place = tmp_path / "failures.yaml"
    place.write_text("failures: {preempted: {retries: 50}}")
    monkeypatch.setenv(FAILURES, str(place))
    assert sections()["run_monitoring"]["max_resume_run_attempts"] == 77


def test_a_run_worker_may_wait_for_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = yaml.safe_load(dagster_yaml().read_text())["run_monitoring"]["start_timeout_seconds"]
    budgets = load_budgets()
    own = sections()["run_monitoring"]["start_timeout_seconds"]
    # With the local one it would have failed in the first minutes of what it is waited for.
    assert local < budgets.failures["quota"].patience < own  # type: ignore[index]
    assert own == 6 * 3600 + local
    place = tmp_path / "failures.yaml"
    place.write_text("failures: {quota: {patience: 7200}, unschedulable: {patience: 60}}")
    monkeypatch.setenv(FAILURES, str(place))
    assert sections()["run_monitoring"]["start_timeout_seconds"] == 7200 + local


def test_the_budgets_are_those_of_the_cluster() -> None:
    files = yaml.safe_load_all(render(dagster_yaml().read_text())["base/config.yaml"])
    maps = {document["metadata"]["name"]: document["data"] for document in files}
    place = maps["signalbox-env"][FAILURES]
    folder, _, name = place.rpartition("/")
    assert folder == CONFIG_FOLDER
    assert maps["signalbox-files"][name] == failures_file().read_text()


def test_every_declaration_that_a_variable_names_is_in_the_map() -> None:
    files = yaml.safe_load_all(render(dagster_yaml().read_text())["base/config.yaml"])
    maps = {document["metadata"]["name"]: document["data"] for document in files}
    named = [
        text.removeprefix(f"{CONFIG_FOLDER}/")
        for text in maps["signalbox-env"].values()
        if text.startswith(f"{CONFIG_FOLDER}/")
    ]
    assert sorted({*named, "workspace.yaml"}) == sorted(maps["signalbox-files"])
    assert len(named) == 4
