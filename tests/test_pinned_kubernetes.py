"""Runs and steps on Kubernetes: stock dagster-k8s lets a moved image through, this does not."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes.client
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.launcher import LaunchRunContext
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.test_utils import instance_for_test
from dagster_k8s import k8s_job_executor
from dagster_k8s.launcher import K8sRunLauncher

from platform_assets.cli.doctor import examine
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.images import ImageLock, LockedImage
from platform_assets.instance.kubernetes import executor
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making
from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
from platform_assets.instance.kubernetes.launcher import PinnedK8sRunLauncher
from platform_assets.instance.kubernetes.looking import Seen, shown
from resources.home import Home
from resources.images import VARIABLE, change_lock, load_lock
from tests import cluster as fake

HOST = "registry.example:5000"
CONFIG = "dagster-k8s/config"


def entry(name: str, digit: str) -> LockedImage:
    return LockedImage(
        repository=f"{HOST}/{name}",
        tag="1",
        digest=f"sha256:{digit * 64}",
        config=f"sha256:{'c' * 64}",
        platform="linux/amd64",
        resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
        resolved_by="ada",
    )


LOCK = ImageLock(
    registries=(HOST,), images={"run": entry("run", "1"), "train": entry("train", "2")}
)
RUN, TRAIN = (str(LOCK.images[name].ref) for name in ("run", "train"))
BUMPED = ImageLock(
    registries=(HOST,), images={"run": entry("run", "3"), "train": entry("train", "4")}
)
GPU = entry("gpu", "5")
MOVED = f"{HOST}/train:latest"
VOLUME = {"name": "weights", "image": {"reference": MOVED}}


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "images.lock.yaml"
    monkeypatch.setenv(VARIABLE, str(place))
    change_lock(lambda _: LOCK)
    return place


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[fake.Cluster]:
    with fake.running(tmp_path) as found:
        yield found


# --- the client -----------------------------------------------------------------------------------


def job_with(**spec: Any) -> kubernetes.client.V1Job:
    container = kubernetes.client.V1Container(name="dagster", image=RUN)
    pod = kubernetes.client.V1PodSpec(**{"containers": [container], **spec})
    template = kubernetes.client.V1PodTemplateSpec(spec=pod)
    return kubernetes.client.V1Job(
        kind="Job",
        metadata=kubernetes.client.V1ObjectMeta(name="j"),
        spec=kubernetes.client.V1JobSpec(template=template),
    )


def client(cluster: fake.Cluster) -> AdmittingApiClient:
    configuration = kubernetes.client.Configuration(
        host=yaml.safe_load(Path(cluster.kubeconfig).read_text())["clusters"][0]["cluster"][
            "server"
        ]
    )
    return AdmittingApiClient(load_lock, configuration=configuration)


def test_what_is_written_is_judged_whatever_it_is(cluster: fake.Cluster) -> None:
    api = client(cluster)
    batch, core = kubernetes.client.BatchV1Api(api), kubernetes.client.CoreV1Api(api)
    custom = kubernetes.client.CustomObjectsApi(api)
    bad = kubernetes.client.V1Container(name="fetch", image=MOVED)
    spec = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "fetch", "image": MOVED}]}}
    cron = {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": spec}}}}
    ours = ("kubeflow.org", "v1", "ns", "pytorchjobs")
    replicas = {"kind": "PyTorchJob", "spec": {"pytorchReplicaSpecs": {"Worker": spec}}}
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": MOVED}]
    for write in (
        lambda: batch.create_namespaced_job("ns", job_with(init_containers=[bad])),
        lambda: batch.create_namespaced_job(body=job_with(containers=[bad]), namespace="ns"),
        lambda: batch.create_namespaced_job_with_http_info("ns", job_with(containers=[bad])),
        lambda: batch.replace_namespaced_job("j", "ns", job_with(init_containers=[bad])),
        lambda: batch.patch_namespaced_job("j", "ns", {"spec": {"template": spec}}),
        lambda: batch.patch_namespaced_job("j", "ns", patch),
        lambda: batch.create_namespaced_cron_job("ns", cron),
        lambda: core.create_namespaced_pod("ns", {"kind": "Pod", **spec}),
        lambda: core.create_namespaced_pod("ns", {"kind": "Pod", "spec": {}}),
        lambda: custom.create_namespaced_custom_object(*ours, replicas),
    ):
        with pytest.raises(RefusedError, match="is refused, nothing was"):
            write()
    assert cluster.requests == []
    batch.create_namespaced_job("ns", job_with())
    core.create_namespaced_config_map("ns", {"kind": "ConfigMap", "data": {"image": MOVED}})
    batch.patch_namespaced_job("j", "ns", {"metadata": {"labels": {"a": "b"}}})
    assert [method for method, _ in cluster.requests] == ["POST", "POST", "PATCH"]
    # The plain client sends it.
    plain = kubernetes.client.ApiClient(configuration=api.configuration)
    kubernetes.client.CoreV1Api(plain).create_namespaced_pod("ns", {"kind": "Pod", **spec})
    assert len(cluster.requests) == 4


def test_what_is_made_is_named(cluster: fake.Cluster) -> None:
    batch = kubernetes.client.BatchV1Api(client(cluster))
    bad = kubernetes.client.V1Container(name="fetch", image=MOVED)
    with pytest.raises(RefusedError, match=r"^Job j is refused"):
        batch.create_namespaced_job("ns", job_with(init_containers=[bad]))
    with making("step x", []), pytest.raises(RefusedError, match=r"^step x is refused"):
        batch.create_namespaced_job("ns", job_with(init_containers=[bad]))


# --- the run launcher -----------------------------------------------------------------------------


@dg.op
def nothing() -> None:
    pass


@dg.job
def empty() -> None:
    nothing()


def launch(
    cluster: fake.Cluster,
    pinned: bool,
    *,
    tags: dict[str, Any] | None = None,
    image: str | None = None,
    container_context: dict[str, Any] | None = None,
    launcher_image: str = "run",
    plain_tags: bool = False,
    job: str = "empty",
    steps: dict[str, Any] | None = None,
    **config: Any,
) -> DagsterRun:
    """Launch a run as the queue's daemon does; its Job goes to the fake."""
    definition = globals()[job]
    settings = {
        "service_account_name": "dagster",
        "instance_config_map": "dagster-instance",
        "dagster_home": "/opt/dagster",
        "job_namespace": fake.NAMESPACE,
        "load_incluster_config": False,
        "kubeconfig_file": cluster.kubeconfig,
        **({"image": launcher_image} if pinned else {"job_image": RUN}),
        **config,
    }
    if "job_image" in config:
        settings.pop("image", None)
    kind = PinnedK8sRunLauncher if pinned else K8sRunLauncher
    overrides = {
        "run_launcher": {"module": kind.__module__, "class": kind.__name__, "config": settings}
    }
    with instance_for_test(overrides=overrides) as instance:
        origin = dg.reconstructable(definition).get_python_origin()
        repository = origin.repository_origin._replace(
            container_image=image, container_context=container_context
        )
        run = instance.create_run_for_job(
            definition,
            run_config={"execution": {"config": steps}} if steps else {},
            tags={n: v if plain_tags else json.dumps(v) for n, v in (tags or {}).items()},
            job_code_origin=origin._replace(repository_origin=repository),
        )
        launcher = instance.run_launcher
        assert type(launcher) is kind
        launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        return run


def test_a_run_starts_in_the_image_of_the_lock(cluster: fake.Cluster) -> None:
    launch(cluster, pinned=True)
    assert cluster.images() == [RUN]


BAD_RUNS: list[tuple[str, dict[str, Any], str]] = [
    (
        "tag",
        {"tags": {CONFIG: {"container_config": {"image": MOVED}}}},
        "the run's tag dagster-k8s/config",
    ),
    (
        "init container of a tag",
        {
            "tags": {
                CONFIG: {"pod_spec_config": {"init_containers": [{"name": "f", "image": MOVED}]}}
            }
        },
        "the run's tag dagster-k8s/config",
    ),
    (
        "sidecar of a tag",
        {"tags": {CONFIG: {"pod_spec_config": {"containers": [{"name": "f", "image": MOVED}]}}}},
        "the run's tag dagster-k8s/config",
    ),
    ("code location", {"image": MOVED}, "the code location's image (DAGSTER_CURRENT_IMAGE)"),
    (
        "container context",
        {"container_context": {"k8s": {"run_k8s_config": {"container_config": {"image": MOVED}}}}},
        "the code location's container context",
    ),
    (
        "launcher",
        {"run_k8s_config": {"container_config": {"image": MOVED}}},
        "the run launcher's run_k8s_config",
    ),
    ("volumes", {"volumes": [VOLUME]}, "the run launcher's volumes"),
    ("job_image", {"job_image": MOVED}, "the run launcher's job_image"),
]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("settings", "source"), [bad[1:] for bad in BAD_RUNS], ids=[bad[0] for bad in BAD_RUNS]
)
def test_whatever_brings_a_moved_image_into_a_run(
    cluster: fake.Cluster, settings: dict[str, Any], source: str
) -> None:
    # The accident: dagster-k8s starts it, whatever is pinned elsewhere.
    launch(cluster, pinned=False, **settings)
    assert MOVED in json.dumps(list(cluster.jobs.values()))
    cluster.jobs.clear()
    cluster.requests.clear()

    with pytest.raises(RefusedError) as refused:
        launch(cluster, pinned=True, **settings)
    assert f"it comes from {source}" in str(refused.value)
    assert f"'{MOVED}' is refused: it has no digest" in str(refused.value)
    assert cluster.requests == []


BAD_STEPS: list[tuple[str, dict[str, Any], str]] = [
    ("moved", {}, "the tag dagster-k8s/config of step moved"),
    ("moved_before", {}, "the tag dagster-k8s/config of step moved_before"),
    ("moved_beside", {}, "the tag dagster-k8s/config of step moved_beside"),
    ("moved_volume", {}, "the tag dagster-k8s/config of step moved_volume"),
    (
        "job",
        {"step_k8s_config": {"container_config": {"image": MOVED}}},
        "the executor's step_k8s_config",
    ),
    (
        "job",
        {"per_step_k8s_config": {"trains": {"container_config": {"image": MOVED}}}},
        "the executor's per_step_k8s_config",
    ),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("job", "steps", "source"), BAD_STEPS)
def test_a_run_with_a_bad_step_does_not_start(
    cluster: fake.Cluster, job: str, steps: dict[str, Any], source: str
) -> None:
    # The accident: the first step has run by the time that anybody could know of the second.
    launch(cluster, pinned=False, job=f"stock_{job}", steps=steps)
    assert cluster.images() == [RUN]
    cluster.jobs.clear()
    cluster.requests.clear()
    with pytest.raises(RefusedError) as refused:
        launch(cluster, pinned=True, job=f"pinned_{job}", steps=steps)
    assert f"it comes from {source}" in str(refused.value)
    assert f"'{MOVED}' is refused: it has no digest" in str(refused.value)
    assert cluster.requests == []


def test_a_run_with_a_step_whose_image_nobody_knows_does_not_start(cluster: fake.Cluster) -> None:
    with pytest.raises(RefusedError, match=r"no image 'serve'; .* signalbox/image of step unknown"):
        launch(cluster, pinned=True, job="pinned_unknown")
    with pytest.raises(RefusedError, match=r"no image 'old'; .* the executor's image"):
        launch(cluster, pinned=True, job="pinned_job", steps={"image": "old"})
    assert cluster.requests == []
    # A good one is none the worse for it.
    launch(cluster, pinned=True, job="pinned_job", steps={"image": "train"})
    assert cluster.images() == [RUN]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (f"{HOST}/train@sha256:{'9' * 64}", "does not stand in the lock; of that repository"),
        (f"{HOST}/other@sha256:{'2' * 64}", "does not stand in the lock"),
        (f"elsewhere.example/train@sha256:{'2' * 64}", "is of registry elsewhere.example"),
    ],
    ids=["another digest", "another repository", "another registry"],
)
def test_a_digest_alone_is_not_enough(cluster: fake.Cluster, image: str, words: str) -> None:
    tags = {CONFIG: {"container_config": {"image": image}}}
    launch(cluster, pinned=False, tags=tags)
    assert cluster.images() == [image]
    cluster.jobs.clear()
    cluster.requests.clear()
    with pytest.raises(RefusedError, match=words):
        launch(cluster, pinned=True, tags=tags)
    assert cluster.requests == []


def test_an_image_that_a_csi_driver_mounts_is_refused(cluster: fake.Cluster) -> None:
    csi = {"driver": "csi.example", "volume_attributes": {"image": MOVED}}
    volumes = {"pod_spec_config": {"volumes": [{"name": "weights", "csi": csi}]}}
    launch(cluster, pinned=False, tags={CONFIG: volumes})
    assert MOVED in json.dumps(list(cluster.jobs.values()))
    cluster.jobs.clear()
    with pytest.raises(RefusedError, match=r"csi\.volumeAttributes\.image\): '.*' is refused"):
        launch(cluster, pinned=True, tags={CONFIG: volumes})
    assert cluster.jobs == {}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"pod_spec_config": {"restart_policy": "OnFailure"}}, "restartPolicy is OnFailure"),
        ({"job_spec_config": {"backoff_limit": 3}}, "backoffLimit is 3"),
    ],
    ids=["restartPolicy", "backoffLimit"],
)
def test_a_job_that_kubernetes_would_start_again_is_refused(
    cluster: fake.Cluster, config: dict[str, Any], why: str
) -> None:
    # dagster-k8s asks for it: another pod starts once Dagster has recorded the failure.
    launch(cluster, pinned=False, tags={CONFIG: config})
    (sent,) = cluster.jobs.values()
    policy = sent["spec"]["template"]["spec"]["restartPolicy"]
    assert why in (f"restartPolicy is {policy}", f"backoffLimit is {sent['spec']['backoffLimit']}")
    cluster.jobs.clear()
    cluster.requests.clear()
    with pytest.raises(RefusedError, match=f"nothing was created: {why}"):
        launch(cluster, pinned=True, tags={CONFIG: config})
    assert cluster.requests == []


def test_without_a_lock_nothing_starts(cluster: fake.Cluster, lock: Path) -> None:
    with pytest.raises(UsageError, match="no image 'serve'; it has run, train"):
        launch(cluster, pinned=True, launcher_image="serve")
    lock.unlink()
    with pytest.raises(RefusedError, match="allowed are none"):
        launch(cluster, pinned=True, job_image=RUN)
    assert cluster.requests == []


# --- the executor ---------------------------------------------------------------------------------


@dg.op(tags={"signalbox/image": "run"})
def prepares() -> int:
    return 1


@dg.op
def trains(x: int) -> int:
    return x + 1


@dg.op
def lasts(x: int) -> int:
    time.sleep(20)
    return x + 1


@dg.op(tags={CONFIG: {"container_config": {"image": MOVED}}})
def moved(x: int) -> int:
    return x + 1


@dg.op(tags={CONFIG: {"pod_spec_config": {"init_containers": [{"name": "f", "image": MOVED}]}}})
def moved_before(x: int) -> int:
    return x + 1


@dg.op(tags={CONFIG: {"pod_spec_config": {"containers": [{"name": "f", "image": MOVED}]}}})
def moved_beside(x: int) -> int:
    return x + 1


@dg.op(tags={CONFIG: {"pod_spec_config": {"volumes": [VOLUME]}}})
def moved_volume(x: int) -> int:
    return x + 1


@dg.op(tags={"signalbox/image": "serve"})
def unknown(x: int) -> int:
    return x + 1


@dg.op(tags={"signalbox/image": "run"}, retry_policy=dg.RetryPolicy(max_retries=1))
def bumps(context: dg.OpExecutionContext) -> int:
    """The lock changes under it; it lasts until somebody has looked, and is tried again."""
    if context.retry_number == 0:
        change_lock(lambda _: BUMPED)
        time.sleep(8)
        raise ValueError("the code's own")
    return 1


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_bumps() -> None:
    trains(bumps())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_job() -> None:
    trains(prepares())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_lasting() -> None:
    lasts(prepares())


@dg.job(executor_def=k8s_job_executor)
def stock_lasting() -> None:
    lasts(prepares())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_moved() -> None:
    moved(prepares())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_moved_before() -> None:
    moved_before(prepares())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_moved_beside() -> None:
    moved_beside(prepares())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_moved_volume() -> None:
    moved_volume(prepares())


@dg.job(executor_def=pinned_k8s_job_executor)
def pinned_unknown() -> None:
    unknown(prepares())


@dg.job(executor_def=k8s_job_executor)
def stock_job() -> None:
    trains(prepares())


@dg.job(executor_def=k8s_job_executor)
def stock_moved() -> None:
    moved(prepares())


@dg.job(executor_def=k8s_job_executor)
def stock_moved_before() -> None:
    moved_before(prepares())


@dg.job(executor_def=k8s_job_executor)
def stock_moved_beside() -> None:
    moved_beside(prepares())


@dg.job(executor_def=k8s_job_executor)
def stock_moved_volume() -> None:
    moved_volume(prepares())


def execute(
    cluster: fake.Cluster,
    job: str,
    of_runs: dict[str, Any] | None = None,
    container_context: dict[str, Any] | None = None,
    **config: Any,
) -> tuple[bool, str]:
    """Run a job whose steps are pods of the fake; whether it succeeded, and why not.

    Args:
        of_runs: config of the run launcher.
        container_context: of the code location.
        config: of the executor.
    """
    definition = globals()[job]
    settings = {
        "load_incluster_config": False,
        "kubeconfig_file": cluster.kubeconfig,
        "job_namespace": fake.NAMESPACE,
        **({"job_image": RUN} if definition.executor_def is k8s_job_executor else {}),
        **config,
    }
    folder = tempfile.mkdtemp(dir=cluster.folder)
    launcher = {
        "module": K8sRunLauncher.__module__,
        "class": K8sRunLauncher.__name__,
        "config": {
            "service_account_name": "dagster",
            "instance_config_map": "dagster-instance",
            "load_incluster_config": False,
            "kubeconfig_file": cluster.kubeconfig,
            "job_image": RUN,
            "dagster_home": folder,
            **(of_runs or {}),
        },
    }
    with instance_for_test(
        overrides={"run_launcher": launcher}, temp_dir=folder, set_dagster_home=True
    ) as instance:
        found = dg.reconstructable(definition)
        assert isinstance(found, ReconstructableJob)
        repository = found.repository._replace(container_context=container_context)
        result = dg.execute_job(
            found._replace(repository=repository),
            instance,
            run_config={"execution": {"config": settings}},
        )
        told = [
            f"{entry.message} {getattr(entry.dagster_event.event_specific_data, 'error', '')}"
            for entry in instance.all_logs(result.run_id)
            if entry.dagster_event is not None
        ]
        return result.success, "\n".join(told)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[fake.Cluster]:
    with fake.running(tmp_path, runs=True) as found:
        yield found


@pytest.mark.heavy
def test_steps_run_in_the_images_of_their_names(kubelet: fake.Cluster) -> None:
    success, told = execute(kubelet, "pinned_job")
    assert success, told
    assert kubelet.images() == [RUN, TRAIN]


STEP = {"container_config": {"image": MOVED}}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("job", "config", "source"),
    [
        ("moved", {}, "the op's tag dagster-k8s/config"),
        ("moved_before", {}, "the op's tag dagster-k8s/config"),
        ("moved_beside", {}, "the op's tag dagster-k8s/config"),
        ("moved_volume", {}, "the op's tag dagster-k8s/config"),
        ("job", {"of_runs": {"run_k8s_config": STEP}}, "the run launcher's run_k8s_config"),
        ("job", {"of_runs": {"volumes": [VOLUME]}}, "the run launcher's volumes"),
        (
            "job",
            {"container_context": {"k8s": {"run_k8s_config": STEP}}},
            "the code location's container context",
        ),
        ("job", {"volumes": [VOLUME]}, "the executor's config"),
        ("job", {"step_k8s_config": STEP}, "the executor's step_k8s_config"),
        (
            "job",
            {"per_step_k8s_config": {"trains": STEP}},
            "the executor's per_step_k8s_config",
        ),
    ],
)
def test_whatever_brings_a_moved_image_into_a_step(
    kubelet: fake.Cluster, job: str, config: dict[str, Any], source: str
) -> None:
    success, told = execute(kubelet, f"stock_{job}", **config)
    assert success, told
    assert MOVED in json.dumps(list(kubelet.jobs.values()))
    kubelet.jobs.clear()
    success, told = execute(kubelet, f"pinned_{job}", **config)
    assert not success
    assert f"it comes from {source}" in told
    assert MOVED not in json.dumps(list(kubelet.jobs.values()))


@pytest.mark.heavy
def test_a_step_whose_image_nobody_knows(kubelet: fake.Cluster) -> None:
    success, told = execute(kubelet, "pinned_unknown")
    assert not success
    assert "no image 'serve'; it has run, train" in told
    assert kubelet.images() == [RUN]


OTHER = f"docker-pullable://{HOST}/train@sha256:{'e' * 64}"


@pytest.mark.heavy
def test_a_step_that_runs_something_else_is_ended(kubelet: fake.Cluster) -> None:
    kubelet.image_ids = {TRAIN: OTHER, RUN: OTHER}
    success, told = execute(kubelet, "stock_lasting")
    assert success, told  # nobody looks at what really runs
    kubelet.jobs.clear()
    kubelet.image_ids = {TRAIN: OTHER}
    success, told = execute(kubelet, "pinned_lasting")
    assert not success
    assert f"step lasts was ended: the cluster runs sha256:{'e' * 64} for {TRAIN}" in told
    assert kubelet.images() == [RUN]  # its Job was deleted


@pytest.mark.heavy
def test_a_step_that_ends_before_a_look_is_compared_at_its_end(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "HEALTH_SECONDS", 3600)
    # It is over before the run's worker reads that it began.
    monkeypatch.setattr(executor.PinnedStepHandler, "begun", lambda *_: "")
    kubelet.image_ids = {RUN: OTHER}
    success, told = execute(kubelet, "pinned_job")
    assert not success
    assert "Execution of step 'prepares' failed: it ended before it was looked at" in told
    assert f"the cluster runs sha256:{'e' * 64} for {RUN}" in told
    assert kubelet.images() == [RUN]  # what comes after it never starts
    kubelet.jobs.clear()
    kubelet.image_ids = {}
    success, told = execute(kubelet, "pinned_job")
    assert success, told
    assert f"/dagster on node-1 runs {TRAIN}, as it was asked for" in told
    # Nobody to ask: said, and no reason to fail what was well.
    kubelet.faults.append(fake.Fault("GET", "/pods", 503, times=100))
    success, told = execute(kubelet, "pinned_job")
    assert success, told
    assert "step trains: what it ran was not compared at its end" in told


@pytest.mark.heavy
def test_a_success_counts_once_something_has_shown_what_ran(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "HEALTH_SECONDS", 3600)
    # It is over before the run's worker reads that it began.
    monkeypatch.setattr(executor.PinnedStepHandler, "begun", lambda *_: "")
    # Reported late: it is waited for, and is compared.
    kubelet.late = {RUN: 1.0}
    kubelet.image_ids = {RUN: OTHER}
    success, told = execute(kubelet, "stock_job")
    assert success, told  # nobody looks
    kubelet.jobs.clear()
    success, told = execute(kubelet, "pinned_job")
    assert not success
    assert f"the cluster runs sha256:{'e' * 64} for {RUN}" in told
    assert kubelet.images() == [RUN]  # what comes after it never starts
    kubelet.jobs.clear()
    kubelet.image_ids = {}
    success, told = execute(kubelet, "pinned_job")
    assert success, told
    assert f"/dagster on node-1 runs {RUN}, as it was asked for" in told
    # Gone before anybody could see what it was.
    kubelet.jobs.clear()
    kubelet.late, kubelet.removes = {RUN: 3600}, True
    success, told = execute(kubelet, "pinned_job")
    assert not success
    assert "what its container 'dagster' ran, for its pod is not there any more" in told
    assert kubelet.images() == [RUN]
    # There, and never reported.
    kubelet.jobs.clear()
    kubelet.removes = False
    monkeypatch.setattr(executor, "SHOWN_SECONDS", 1.0)
    success, told = execute(kubelet, "pinned_job")
    assert not success
    assert "the cluster reports no imageID of it within 1 s" in told
    assert kubelet.images() == [RUN]


STEP_JOB = "dagster-step-0a1b"


@pytest.mark.parametrize(
    ("place", "counts"),
    [
        (f"{STEP_JOB}-x7k2p/dagster on node-1", True),
        (f"{STEP_JOB}-x7k2p/mesh on node-1", False),
        (f"{STEP_JOB}-1-x7k2p/dagster on node-1", False),
        ("dagster-step-ffff-x7k2p/dagster on node-1", False),
    ],
    ids=["its own", "a sidecar", "the next attempt", "another step"],
)
def test_only_the_own_container_of_the_attempt_shows_what_a_step_ran(
    place: str, counts: bool
) -> None:
    assert shown(Seen(STEP_JOB, None, [], []), {place}) is counts
    named = {"spec": {"template": {"spec": {"containers": [{"name": "code"}, {"name": "mesh"}]}}}}
    other = Seen(STEP_JOB, named, [], [])
    assert shown(other, {place.replace("/dagster", "/code")}) is counts


@pytest.mark.heavy
def test_a_run_keeps_the_lock_that_it_started_with(kubelet: fake.Cluster) -> None:
    """A bump ends no step, refuses no retry, and brings no second image into the run."""
    success, told = execute(kubelet, "pinned_bumps")
    assert success, told
    assert load_lock() == BUMPED
    assert kubelet.images() == [RUN, RUN, TRAIN]
    kubelet.jobs.clear()
    success, told = execute(kubelet, "pinned_job")
    assert success, told
    assert kubelet.images() == [str(BUMPED.images[name].ref) for name in ("run", "train")]


def _renamed(pod: dict[str, Any]) -> None:
    """A webhook that writes a tag instead of the digest."""
    pod["spec"]["containers"] = [{**one, "image": MOVED} for one in pod["spec"]["containers"]]


def _joined(pod: dict[str, Any]) -> None:
    """A webhook that puts a container of its own beside ours, by tag."""
    beside = {"name": "mesh", "image": f"{HOST}/mesh:latest"}
    pod["spec"]["containers"] = [*pod["spec"]["containers"], beside]


@pytest.mark.heavy
@pytest.mark.parametrize(("webhook", "named"), [(_renamed, MOVED), (_joined, "mesh:latest")])
def test_a_tag_in_the_pod_does_not_silence_the_check(
    kubelet: fake.Cluster, webhook: Callable[[dict[str, Any]], None], named: str
) -> None:
    def mutates(pod: dict[str, Any]) -> None:
        if pod["spec"]["containers"][0]["image"] == TRAIN:
            webhook(pod)

    tagged = f"docker-pullable://{HOST}/mesh@sha256:{'d' * 64}"
    kubelet.image_ids = {TRAIN: OTHER, RUN: OTHER, MOVED: OTHER, f"{HOST}/mesh:latest": tagged}
    kubelet.webhook = webhook
    success, told = execute(kubelet, "stock_job")
    assert success, told  # nobody looks at what was made of it
    assert named in json.dumps(list(kubelet.pods.values()))
    kubelet.jobs.clear()
    kubelet.pods.clear()
    kubelet.image_ids.pop(RUN)
    kubelet.webhook = mutates
    success, told = execute(kubelet, "pinned_lasting")
    assert not success
    assert "Error while checking health" not in told
    assert "step lasts was ended: " in told
    assert named in told
    if webhook is _joined:  # the reason for the container beside it hides no other
        assert f"the cluster runs sha256:{'e' * 64} for {TRAIN}" in told
    assert kubelet.images() == [RUN]  # its Job was deleted


@pytest.mark.heavy
def test_what_really_runs_is_recorded(kubelet: fake.Cluster) -> None:
    kubelet.image_ids = {TRAIN: LOCK.images["train"].config}  # as containerd reports some
    success, told = execute(kubelet, "pinned_lasting")
    assert success, told
    assert f"/dagster on node-1 runs {TRAIN}, as it was asked for" in told
    # A container is told what it was started from, for the fingerprint of what it trains.
    for job in kubelet.jobs.values():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        told_to = {e["name"]: e.get("value") for e in container["env"]}
        assert told_to["SIGNALBOX_IMAGE"] == container["image"]


# --- the code location ----------------------------------------------------------------------------

LOAD = """
import platform_assets.definitions as location
print(location.defs.executor.name)
for key in ("features", "model", "champion"):
    asset = location.defs.get_assets_def(["flights", key])
    print(key, asset.op.tags.get("signalbox/image"))
"""


def load(**variables: str) -> tuple[int, str]:
    """Load the code location in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.heavy
def test_the_same_definitions_run_locally_and_on_a_cluster(lock: Path) -> None:
    told = {where: load(SIGNALBOX_DEPLOYMENT=where) for where in ("local", "k8s", "swarm")}
    assert [code for code, _ in told.values()] == [0, 0, 1]
    assert told["local"][1].splitlines() == [
        "in_process",
        *("features train", "model train", "champion train"),
    ]
    assert told["k8s"][1].splitlines()[0] == "pinned_k8s"
    assert "SIGNALBOX_DEPLOYMENT is 'swarm'; allowed are local and k8s" in told["swarm"][1]
    lock.unlink()
    code, said = load(SIGNALBOX_DEPLOYMENT="k8s")
    assert code == 1
    assert "images.lock.yaml has no image 'train'; it has none" in said
    assert load()[0] == 0


def test_the_catalog_chooses_an_image_by_asset(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from platform_assets.definitions import assemble, build_definitions
    from resources.catalog import catalog_folder

    document = yaml.safe_load((catalog_folder() / "flights.yaml").read_text())
    document["images"] = {"features": "run", "model": "gpu"}
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "flights.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(tmp_path / "catalog"))
    monkeypatch.setenv("SIGNALBOX_DEPLOYMENT", "k8s")
    with pytest.raises(UsageError, match="no image 'gpu'; it has run, train"):
        build_definitions()
    change_lock(lambda found: found.model_copy(update={"images": {**found.images, "gpu": GPU}}))
    built = build_definitions()
    asked = {
        key: built.get_assets_def(["flights", key]).op.tags["signalbox/image"]
        for key in ("features", "day", "model", "champion")
    }
    assert asked == {"features": "run", "day": "train", "model": "gpu", "champion": "train"}
    (canary,) = built.get_job_def("flights_canary").graph.nodes
    assert canary.tags["signalbox/image"] == "gpu"
    monkeypatch.setenv("SIGNALBOX_DEPLOYMENT", "local")
    assert assemble().get_assets_def(["flights", "model"]).op.tags["signalbox/image"] == "gpu"


def test_the_doctor_tells_of_images_that_the_lock_lacks(
    home: Home, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> tuple[bool, str]:
        (finding,) = [f for f in examine(home) if f.name == "images"]
        return finding.ok, finding.found

    assert found() == (True, f"2 in {lock}; runs are local and need none")
    monkeypatch.setenv("SIGNALBOX_DEPLOYMENT", "k8s")
    assert found() == (True, f"run, train in {lock}")
    lock.unlink()
    assert found() == (False, f"{lock} lacks train (flights): their steps are refused")
    lock.write_text("images: [")
    ok, said = found()
    assert not ok
    assert "valid YAML is needed" in said
