"""deploy/: rendered from lanes, lock and settings, valid, and agreeing with them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster_k8s.client
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import platform_assets.instance.kubernetes.executor as own_executor
import platform_assets.instance.kubernetes.gangs as own_gangs
from platform_assets.cli.app import app
from platform_assets.cli.doctor import examine
from platform_assets.domain.admission import admit
from platform_assets.domain.cluster_access import RULES, accounts, network
from platform_assets.domain.cluster_apps import environment, launcher
from platform_assets.domain.cluster_lanes import classes, quotas
from platform_assets.domain.cluster_policy import image_pattern
from platform_assets.domain.cluster_settings import ClusterSettings, parse_settings, quantity
from platform_assets.domain.errors import UsageError
from platform_assets.domain.images import ImageLock, ImageRef
from platform_assets.domain.lanes import Lane
from platform_assets.domain.manifest_rules import Known, problems
from platform_assets.domain.placing import (
    PLATFORM_CLASS,
    PLATFORM_PRIORITY,
    ROLES,
    class_of,
    preempts,
    priority_of,
)
from platform_assets.factory.instance import dagster_yaml
from resources.cluster import differences, instance_document, load_settings, render, write
from resources.home import CHECKPOINTS_URL, Home
from resources.images import VARIABLE as IMAGES
from resources.images import change_lock
from resources.lanes import load_lanes
from tests.test_admission import BAD, GOOD, LOCK

ROOT = Path(__file__).resolve().parents[1]
VERSION = kubernetes_validate.latest_version()
NOT_CORE = ("kustomize.config.k8s.io/", "kueue.x-k8s.io/")
"""Kinds that no schema here knows: see docs/kubernetes.md."""


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageLock:
    """A lock that has the image of the platform."""
    monkeypatch.setenv(IMAGES, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    return LOCK


def rendered() -> dict[str, list[dict[str, Any]]]:
    texts = render(dagster_yaml().read_text())
    return {path: list(yaml.safe_load_all(text)) for path, text in texts.items()}


def core(files: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What is Kubernetes' own: neither values of a chart nor kinds of somebody else's."""
    for path, documents in files.items():
        if path != "helm/values.yaml":
            for document in documents:
                if not document["apiVersion"].startswith(NOT_CORE):
                    yield document


def one(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [
        m
        for m in core(rendered())
        if m["kind"] == kind and (not name or m["metadata"]["name"] == name)
    ]
    return found


# --- agreement ------------------------------------------------------------------------------------


def test_the_committed_files_are_as_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (IMAGES, "SIGNALBOX_LANES", "SIGNALBOX_FAILURES", "SIGNALBOX_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    assert differences(ROOT / "deploy", render(dagster_yaml().read_text())) == []


def test_what_is_changed_by_hand_or_in_a_source_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: ImageLock
) -> None:
    folder = tmp_path / "deploy"
    runner = CliRunner()

    def told(*options: str) -> tuple[int, Any]:
        done = runner.invoke(app, ["cluster", "render", "--out", str(folder), "--json", *options])
        return done.exit_code, json.loads(done.stdout)

    code, document = told("--check")
    assert code == 1
    assert not folder.exists()
    assert f"{'base/quotas.yaml'} is missing" in document["changed"]
    code, document = told()
    assert (code, document["unpinned"]) == (0, None)
    assert told("--check") == (0, {**document, "changed": [], "checked": True})

    # By hand, or left over; what somebody else put there is none of ours.
    (folder / "base" / "network.yaml").write_text("")
    head = (folder / "base" / "home.yaml").read_text()
    (folder / "base" / "old.yaml").write_text(head)
    (folder / "helm" / "chart" / "chart.yaml").write_text("kind: Deployment\n")
    assert told("--check")[1]["changed"] == [
        "base/network.yaml differs",
        "base/old.yaml is rendered no more",
    ]
    assert told()[0] == 0
    assert not (folder / "base" / "old.yaml").exists()
    assert (folder / "helm" / "chart" / "chart.yaml").exists()

    # The lanes.
    lanes = tmp_path / "lanes.yaml"
    lanes.write_text(
        (ROOT / "platform_assets" / "lanes.yaml").read_text().replace("slots: 6", "slots: 9")
    )
    monkeypatch.setenv("SIGNALBOX_LANES", str(lanes))
    changed = told("--check")[1]["changed"]
    assert "base/quotas.yaml differs" in changed
    assert "base/config.yaml differs" in changed
    monkeypatch.delenv("SIGNALBOX_LANES")

    # The images.
    change_lock(
        lambda lock: lock.model_copy(update={"registries": ("a.example", *lock.registries)})
    )
    assert "base/admission.yaml differs" in told("--check")[1]["changed"]


def test_the_doctor_compares_deploy(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> tuple[bool, str]:
        (finding,) = [f for f in examine(home) if f.name == "deploy"]
        return finding.ok, finding.found

    assert found() == (True, f"{ROOT / 'deploy'} is as rendered")
    project = tmp_path / "project"
    project.mkdir()
    (project / "dagster.yaml").write_text(dagster_yaml().read_text())
    monkeypatch.setattr(
        "platform_assets.factory.instance.dagster_yaml", lambda: project / "dagster.yaml"
    )
    assert found() == (True, "none here")
    write(project / "deploy", render(dagster_yaml().read_text()))
    (project / "deploy" / "base" / "access.yaml").unlink()
    assert found() == (False, f"in {project / 'deploy'} base/access.yaml is missing")
    monkeypatch.setenv("SIGNALBOX_LANES", str(ROOT / "platform_assets" / "lanes.yaml"))
    assert found()[0]


def test_without_a_pinned_image_nothing_that_was_rendered_can_start() -> None:
    lock = ImageLock()
    deployment = one("Deployment", "daemon")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert ImageRef.parse(image).registry == "unpinned.invalid"
    assert not admit(deployment, lock).allowed


def test_the_queue_of_the_cluster_has_the_limits_of_the_lanes() -> None:
    instance = yaml.safe_load(one("ConfigMap", "signalbox-instance")["data"]["dagster.yaml"])
    assert instance["concurrency"] == yaml.safe_load(dagster_yaml().read_text())["concurrency"]
    assert instance["run_launcher"]["class"] == "PinnedK8sRunLauncher"
    assert instance["storage"] == {"postgres": {"postgres_url": {"env": "SIGNALBOX_DAGSTER_URL"}}}


# --- validity -------------------------------------------------------------------------------------


def test_every_core_manifest_is_valid(pinned: ImageLock) -> None:
    known = Known(pinned, classes())
    kinds = []
    for manifest in core(rendered()):
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        assert problems(manifest, known) == []
        kinds.append(manifest["kind"])
    assert len(kinds) == 39
    assert {"ResourceQuota", "ValidatingAdmissionPolicy", "NetworkPolicy"} <= set(kinds)


def test_what_pods_name_is_there(pinned: ImageLock) -> None:
    manifests = list(core(rendered()))
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    settings = load_settings()
    by_hand = {("Secret", settings.postgres.secret), ("Secret", settings.s3.secret)}
    named = set()
    for manifest in manifests:
        if manifest["kind"] != "Deployment":
            continue
        spec = manifest["spec"]["template"]["spec"]
        named |= {("ServiceAccount", spec["serviceAccountName"])}
        named |= {("PriorityClass", spec["priorityClassName"])}
        for volume in spec["volumes"]:
            if "configMap" in volume:
                named.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                named.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for source in spec["containers"][0]["envFrom"]:
            for ref, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if ref in source:
                    named.add((kind, source[ref]["name"]))
    assert named - there == by_hand
    assert not any(kind == "Secret" for kind, _ in there)


def test_every_file_is_in_a_kustomization() -> None:
    files = rendered()
    listed = set()
    for path, (document, *_) in files.items():
        folder, _, name = path.rpartition("/")
        if name == "kustomization.yaml":
            for resource in document["resources"]:
                if resource.startswith("../"):
                    assert f"{resource.removeprefix('../')}/kustomization.yaml" in files
                elif f"{folder}/{resource}/kustomization.yaml" in files:
                    continue
                else:
                    listed.add(f"{folder}/{resource}")
    others = {path for path in files if not path.endswith("kustomization.yaml")}
    # The chart's manifests are whoever's who renders them.
    assert listed - others == {"helm/chart/chart.yaml"}
    assert others - listed == {"helm/values.yaml"}


# --- the rules beside the schema ------------------------------------------------------------------


def a_job(**changes: Any) -> dict[str, Any]:
    container = {"name": "dagster", "image": GOOD, **changes.pop("container", {})}
    spec = {"restartPolicy": "Never", "containers": [container], **changes.pop("pod", {})}
    metadata = {"name": "j", **changes.pop("metadata", {})}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"template": {"spec": spec}},
    }


def gpus(asked: object, most: object) -> dict[str, Any]:
    resources = {"requests": {"nvidia.com/gpu": asked}, "limits": {"nvidia.com/gpu": most}}
    return {"container": {"resources": resources}}


LET_PASS: list[tuple[str, dict[str, Any], str]] = [
    ("name", {"metadata": {"name": "Train_1"}}, "is no name"),
    ("long name", {"metadata": {"name": "j" * 64}}, "is no name"),
    ("label", {"metadata": {"labels": {"lane": "of today!"}}}, "label lane is 'of today!'"),
    ("label's key", {"metadata": {"labels": {"/lane": "daily"}}}, "is no key of a label"),
    ("tag", {"container": {"image": "registry.example:5000/team/train:1"}}, "has no digest"),
    ("short digest", {"container": {"image": GOOD[:-1]}}, "is no digest of SHA-256"),
    ("not in the lock", {"container": {"image": GOOD[:-1] + "0"}}, "not stand in the lock"),
    ("priority", {"pod": {"priorityClassName": "signalbox-step-nightly"}}, "does not exist"),
    ("restart", {"pod": {"restartPolicy": "Always"}}, "restartPolicy is 'Always'"),
    ("quantity", {"container": {"resources": {"limits": {"memory": "4GB"}}}}, "is no quantity"),
    ("minus", {"container": {"resources": {"limits": {"cpu": "-1"}}}}, "less than nothing"),
    ("GPU", gpus("1", "2"), "both are one"),
    ("part of a GPU", gpus("500m", "500m"), "there are no parts"),
    (
        "limit",
        {"container": {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}},
        "more cpu than its limit",
    ),
    ("mount", {"container": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}}, "no volume"),
    ("container", {"container": {"name": "Dagster"}}, "no name of a container"),
    ("port", {"container": {"ports": [{"name": "x" * 16, "containerPort": 1}]}}, "has a port"),
    ("privileged", {"container": {"securityContext": {"privileged": True}}}, "privileged true"),
    ("network", {"pod": {"hostNetwork": True}}, "hostNetwork is true"),
]


@pytest.mark.parametrize(
    ("changes", "words"), [x[1:] for x in LET_PASS], ids=[x[0] for x in LET_PASS]
)
def test_what_the_schema_lets_pass(changes: dict[str, Any], words: str) -> None:
    known = Known(LOCK, classes())
    assert problems(a_job(), known) == []
    bad = a_job(**changes)
    kubernetes_validate.validate(bad, VERSION, strict=True)  # which has no objection
    found = problems(bad, known)
    assert len(found) == 1
    assert words in found[0]


def test_a_deployment_that_selects_other_pods() -> None:
    bad = one("Deployment", "daemon")
    bad["spec"]["template"]["metadata"]["labels"] = {"a": "b"}
    kubernetes_validate.validate(bad, VERSION, strict=True)
    known = Known(LOCK, classes())
    assert any("does not match" in found for found in problems(bad, known))


@given(st.integers(0, 10**6), st.sampled_from(["", "m", "k", "M", "Ki", "Mi", "Gi"]))
def test_quantities_are_numbers(number: int, suffix: str) -> None:
    factor = {"": 1, "m": 0.001, "k": 1000, "M": 10**6, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    assert float(quantity(f"{number}{suffix}")) == pytest.approx(number * factor[suffix])


# --- lanes ----------------------------------------------------------------------------------------


def test_priorities_keep_the_order_of_the_lanes_and_run_workers_above_steps() -> None:
    for role in ROLES:
        values = [priority_of(role, lane) for lane in Lane]
        assert values == sorted(set(values), reverse=True)
    lowest = min(priority_of("run", lane) for lane in Lane)
    assert lowest > max(priority_of("step", lane) for lane in Lane)
    highest = max(priority_of("run", lane) for lane in Lane)
    assert highest < PLATFORM_PRIORITY
    # A backfill's run worker stands above today's step, and must not push it out.
    assert not any(preempts("run", lane) for lane in Lane if lane is not Lane.DAILY)
    found = {m["metadata"]["name"]: m for m in core(rendered()) if m["kind"] == "PriorityClass"}
    assert set(found) == set(classes())
    assert found[class_of("step", Lane.BACKFILL)]["preemptionPolicy"] == "Never"
    assert found[PLATFORM_CLASS]["value"] < 1_000_000_000  # above are the cluster's own
    assert not any(m["globalDefault"] for m in found.values())


def test_a_quota_holds_what_its_lane_may_run_at_once() -> None:
    lanes, settings = load_lanes(), load_settings()
    found = {q["metadata"]["name"]: q["spec"] for q in quotas(lanes, settings)}
    for lane in Lane:
        hard = found[f"lane-{lane}"]["hard"]
        assert int(hard["pods"]) == lanes.limit(lane) * (1 + settings.steps_at_once)
        each = settings.containers.run, *[settings.containers.step] * settings.steps_at_once
        cpu = sum(quantity(c.cpu) for c in each) * lanes.limit(lane)
        memory = sum(quantity(c.memory) for c in each) * lanes.limit(lane)
        assert quantity(hard["requests.cpu"]) == cpu
        assert quantity(hard["requests.memory"]) == quantity(hard["limits.memory"]) == memory
    # Every class is in one quota, and what has none in the one that lets nothing in.
    scoped = [
        (m["operator"], m["values"])
        for q in found.values()
        for m in q["scopeSelector"]["matchExpressions"]
    ]
    together = [name for operator, values in scoped if operator == "In" for name in values]
    assert sorted(together) == sorted(classes())
    assert [values for operator, values in scoped if operator == "NotIn"] == [classes()]
    assert found["no-lane"]["hard"] == {"pods": "0"}


def settings_with(**changes: Any) -> ClusterSettings:
    document = yaml.safe_load((ROOT / "platform_assets" / "cluster.yaml").read_text())
    return parse_settings({**document, **changes}, "cluster.yaml")


def test_gpus_are_counted_by_lane() -> None:
    settings = settings_with(gpus={"daily": 4})
    found = {q["metadata"]["name"]: q["spec"]["hard"] for q in quotas(load_lanes(), settings)}
    assert found["lane-daily"]["requests.nvidia.com/gpu"] == "4"
    assert found["lane-backfill"]["requests.nvidia.com/gpu"] == "0"


def test_the_place_of_the_checkpoints_reaches_every_container() -> None:
    bucket = settings_with().s3.model_dump()
    settings = settings_with(s3={**bucket, "checkpoints": "s3://other/checkpoints"})
    assert environment(settings, {})[CHECKPOINTS_URL] == "s3://other/checkpoints"
    settings = settings_with(s3={**bucket, "checkpoints": ""})
    assert CHECKPOINTS_URL not in environment(settings, {})  # the home's volume
    with pytest.raises(UsageError, match=r"s3\.checkpoints"):
        settings_with(s3={**bucket, "checkpoints": "/checkpoints"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"namespace": "Signalbox"}, "namespace: "),
        ({"home": "home"}, "home: "),
        ({"gpus": {"nightly": 1}}, "gpus.nightly"),
        ({"volume": {"size": "100G"}}, "allowed are 512Mi, 4Gi, 1Ti"),
        ({"api_server": {"cidr": "10.0.0.1/8", "port": 443}}, "api_server.cidr"),
        ({"mlflow": {"cidr": "10.0.0.0/8", "port": 5000, "url": "mlflow"}}, "mlflow.url"),
        ({"storage": "fast"}, "storage: "),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"cluster\.yaml is refused, nothing") as refused:
        settings_with(**changes)
    assert words in str(refused.value)


# --- access ---------------------------------------------------------------------------------------

VERBS = {"create": "create", "read": "get", "list": "list", "delete": "delete"}
CALL = re.compile(r"\.(create|read|list|delete|patch|replace)_namespaced_(\w+?)\(")
RESOURCES = {
    "job": "jobs",
    "job_status": "jobs/status",
    "pod": "pods",
    "pod_log": "pods/log",
    "event": "events",
}


def test_the_role_has_what_dagster_k8s_calls_and_no_more() -> None:
    called = set()
    for module in (dagster_k8s.client, own_executor):
        for method, what in CALL.findall(Path(str(module.__file__)).read_text()):
            called.add((RESOURCES[what], VERBS[method]))
    allowed = {(what, verb) for _, whats, verbs in RULES for what in whats for verb in verbs}
    assert called - allowed == set()
    assert {resource for resource, _ in allowed} == set(RESOURCES.values())
    # A get and a watch more, which kubectl in the daemon's pod needs to look.
    more = {("jobs", "get"), ("jobs", "watch"), ("pods", "watch"), ("events", "get")}
    assert allowed - called <= more


def test_ranks_of_several_nodes_have_their_rights_where_the_cluster_has_jobset() -> None:
    def of(settings: ClusterSettings) -> tuple[list[dict[str, Any]], set[str], Any]:
        (role,) = [m for m in accounts(settings) if m["kind"] == "Role"]
        names = {policy["metadata"]["name"] for policy in network(settings)}
        return role["rules"], names, launcher(settings)["config"].get("ranks_claim")

    without, policies, claim = of(settings_with())
    assert claim is None
    rules, more, claim = of(settings_with(jobset=True))
    assert claim == "signalbox-home"
    (added,) = [rule for rule in rules if rule not in without]
    assert added["apiGroups"] == ["jobset.x-k8s.io"]
    source = Path(str(own_gangs.__file__)).read_text()
    called = re.findall(r"\.(create|get|list|delete)_namespaced_custom_object\(", source)
    assert set(added["verbs"]) == set(called)
    assert more - policies == {"ranks", "steps-of-ranks"}
    for policy in network(settings_with(jobset=True)):
        kubernetes_validate.validate(policy, VERSION, strict=True)


# --- the policy -----------------------------------------------------------------------------------


def test_the_policy_and_the_rule_decide_alike() -> None:
    pattern = re.compile(image_pattern(LOCK.registries).replace("$", r"\Z"))
    assert pattern.match(GOOD)
    for image in BAD:
        ours = admit({"kind": "Pod", "spec": {"containers": [{"name": "x", "image": image}]}}, LOCK)
        assert not ours.allowed
        if pattern.match(image or ""):  # then it is the list of the lock that refuses it
            assert ImageRef.parse(str(image)).registry in LOCK.registries
            assert image not in {str(entry.ref) for entry in LOCK.images.values()}
        else:
            with pytest.raises(UsageError):
                _parsed(image)


def _parsed(image: str | None) -> None:
    ref = ImageRef.parse(image or "")
    if ref.registry not in LOCK.registries:
        raise UsageError("another registry")


def test_the_policys_expression_is_in_what_re2_knows() -> None:
    assert not re.compile(image_pattern([])).match(GOOD)
    pattern = image_pattern(LOCK.registries)
    # No look-around, no back-reference, no possessive or atomic group, no repeat beyond 1000.
    assert not re.search(r"\(\?[^:]|\\[1-9kAZbB]|[*+?}]\+", pattern)
    assert all(int(n) <= 1000 for n in re.findall(r"\{(\d+)", pattern))


def test_the_policy_names_the_images_and_covers_every_kind_with_pods(pinned: ImageLock) -> None:
    policy = one("ValidatingAdmissionPolicy")
    by_digest, in_lock, lane = (v["expression"] for v in policy["spec"]["validations"])
    assert f"i.matches(r'{image_pattern(pinned.registries)}')" in by_digest
    assert json.dumps([GOOD]) in in_lock
    assert json.dumps(classes()) in lane
    covered = {
        r for rule in policy["spec"]["matchConstraints"]["resourceRules"] for r in rule["resources"]
    }
    assert covered == {
        *("pods", "pods/ephemeralcontainers", "podtemplates", "replicationcontrollers"),
        *("deployments", "statefulsets", "daemonsets", "replicasets", "jobs", "cronjobs"),
    }
    assert policy["spec"]["failurePolicy"] == "Fail"
    assert one("ValidatingAdmissionPolicyBinding")["spec"]["validationActions"] == ["Deny"]


def test_the_doctor_of_a_pod_compares_its_dagster_yaml_with_the_clusters(
    home: Home, monkeypatch: pytest.MonkeyPatch, pinned: ImageLock
) -> None:
    def found() -> tuple[bool, str]:
        (finding,) = [f for f in examine(home) if f.name == "instance"]
        return finding.ok, finding.found

    document = instance_document(dagster_yaml().read_text())
    # What is only there in a cluster: here nothing of a pod's ServiceAccount is mounted.
    document["run_launcher"]["config"]["load_incluster_config"] = False
    live = {**document, "storage": None}
    (home.dagster / "dagster.yaml").write_text(
        yaml.safe_dump({name: section for name, section in live.items() if section})
    )
    assert "differs from the project's in run_launcher" in found()[1]
    monkeypatch.setenv("SIGNALBOX_DEPLOYMENT", "k8s")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("platform_assets.cli.doctor.instance_document", lambda _: document)
    assert found()[0], found()
