"""What deploy/helm says to the official chart, as far as it is known without the chart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from platform_assets.domain.placing import PLATFORM_CLASS
from platform_assets.factory.instance import dagster_yaml
from resources.cluster import load_settings, render
from resources.images import VARIABLE, change_lock
from tests import cluster as fake
from tests.test_pinned_kubernetes import LOCK, launch

RELEASE = "dagster"
"""Of the command in docs/kubernetes.md; the chart names what it makes by it."""

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Cluster]:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    with fake.running(tmp_path) as found:
        yield found


def values() -> dict[str, Any]:
    found = yaml.safe_load(render(dagster_yaml().read_text())["helm/values.yaml"])
    assert isinstance(found, dict)
    return found


def password(cluster: fake.Cluster, **config: Any) -> list[Any]:
    """Where the container of a run worker has the password of the chart's instance from."""
    launch(cluster, pinned=True, **config)
    ((_, job),) = cluster.jobs.items()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    cluster.jobs.clear()
    return [e["valueFrom"] for e in container["env"] if e["name"] == "DAGSTER_PG_PASSWORD"]


def test_nothing_of_ours_has_the_name_of_something_of_the_charts() -> None:
    for path, text in render(dagster_yaml().read_text()).items():
        if path.startswith("base/"):
            for document in yaml.safe_load_all(text):
                name = (document.get("metadata") or {}).get("name", "")
                # `dagster-instance` was: the one that is applied last is everybody's.
                assert not name.startswith(f"{RELEASE}-"), (path, name)


def test_the_charts_manifests_are_put_into_the_namespace() -> None:
    files = render(dagster_yaml().read_text())
    chart = yaml.safe_load(files["helm/chart/kustomization.yaml"])
    assert chart["namespace"] == load_settings().namespace
    assert chart["resources"] == ["chart.yaml"]
    whole = yaml.safe_load(files["helm/kustomization.yaml"])
    assert whole["resources"] == ["../base", "chart"]
    # Not to all: what is the whole cluster's in base/ has no namespace.
    assert "namespace" not in whole
    (patch,) = whole["patches"]
    changes = {c["path"].rpartition("/")[2]: c["value"] for c in json.loads(patch["patch"])}
    assert changes == {
        "priorityClassName": PLATFORM_CLASS,
        "automountServiceAccountToken": True,  # the ServiceAccount says that there is none
    }
    assert "deploy/helm/chart/chart.yaml" in (ROOT / "docs" / "kubernetes.md").read_text()


def test_runs_have_the_password_that_the_instance_of_the_chart_reads(
    cluster: fake.Cluster,
) -> None:
    own = values()["runLauncher"]["config"]["customRunLauncher"]["config"]
    secret = own["postgres_password_secret"]
    assert secret == values()["global"]["postgresqlSecretName"] == "signalbox-postgres"
    assert password(cluster) == []  # the instance of that run would not open
    reads = {"secretKeyRef": {"name": secret, "key": "postgresql-password"}}
    assert password(cluster, postgres_password_secret=secret) == [reads]
    # Ours has the password in its URL.
    config = yaml.safe_load_all(render(dagster_yaml().read_text())["base/config.yaml"])
    (text,) = [d["data"]["dagster.yaml"] for d in config if "dagster.yaml" in d["data"]]
    assert "postgres_password_secret" not in text


def test_the_chart_that_is_named_is_that_of_the_locked_dagster() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    version = next(
        line.split("==")[1].split()[0] for line in lock.splitlines() if line.startswith("dagster==")
    )
    assert f"--version {version}" in (ROOT / "docs" / "kubernetes.md").read_text()
