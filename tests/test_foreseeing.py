"""What would be refused on the cluster is found before: in definitions, and by the doctor."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster_k8s import k8s_job_executor

from platform_assets.cli.doctor import examine
from platform_assets.domain.admission import Layer, foresee
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.images import ImageLock, LockedImage
from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
from platform_assets.instance.kubernetes.foreseeing import (
    bad_definitions,
    bad_surroundings,
    require_definitions,
)
from resources.home import Home
from resources.images import VARIABLE, change_lock

ROOT = Path(__file__).resolve().parents[1]
HOST = "registry.example:5000"
CONFIG = "dagster-k8s/config"
MOVED = f"{HOST}/train:latest"
BAD = {"container_config": {"image": MOVED}}
TRAIN = LockedImage(
    repository=f"{HOST}/train",
    tag="1",
    digest=f"sha256:{'2' * 64}",
    config=f"sha256:{'c' * 64}",
    platform="linux/amd64",
    resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
    resolved_by="ada",
)
LOCK = ImageLock(registries=(HOST,), images={"train": TRAIN})
GOOD = {"container_config": {"image": str(TRAIN.ref)}}


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "images.lock.yaml"
    monkeypatch.setenv(VARIABLE, str(place))
    change_lock(lambda _: LOCK)
    return place


def an_asset(**tags: Any) -> dg.AssetsDefinition:
    @dg.asset(op_tags={name.replace("__", "/"): value for name, value in tags.items()})
    def model() -> None: ...

    return model


def a_job(tags: Any = None, config: Any = None, run: Any = None, executor: Any = None) -> Any:
    """A job whose op is in a graph, and is given its tags where it is used."""

    @dg.op
    def train() -> None: ...

    @dg.graph
    def night() -> None:
        train.tag(tags or {})()

    @dg.job(
        config=config, tags=run, executor_def=executor or pinned_k8s_job_executor, name="nightly"
    )
    def nightly() -> None:
        night()

    return nightly


def definitions(
    assets: Any = (), jobs: Any = (), executor: dg.ExecutorDefinition = pinned_k8s_job_executor
) -> dg.Definitions:
    return dg.Definitions(assets=list(assets), jobs=list(jobs), executor=executor)


CONFIGURED = pinned_k8s_job_executor.configured({"step_k8s_config": BAD})
VOLUMES = {"volumes": [{"name": "weights", "image": {"reference": MOVED}}]}
INIT = {"pod_spec_config": {"init_containers": [{"name": "f", "image": MOVED}]}}
CASES: dict[str, tuple[dg.Definitions, str]] = {
    "op tag of an asset": (
        definitions([an_asset(**{"dagster-k8s__config": BAD})]),
        f"the tag {CONFIG} of op model",
    ),
    "init container": (
        definitions([an_asset(**{"dagster-k8s__config": INIT})]),
        f"the tag {CONFIG} of op model",
    ),
    "op in a graph": (
        definitions(jobs=[a_job({CONFIG: json.dumps(BAD)})]),
        f"the tag {CONFIG} of op night.train",
    ),
    "run tag of a job": (
        definitions(jobs=[a_job(run={CONFIG: BAD})]),
        f"the tag {CONFIG} of job nightly",
    ),
    "config of a job": (
        definitions(
            jobs=[a_job(config={"execution": {"config": {"per_step_k8s_config": {"t": BAD}}}})]
        ),
        "job nightly's executor's per_step_k8s_config",
    ),
    "configured executor": (
        definitions(jobs=[a_job(executor=CONFIGURED)]),
        "job nightly's executor's step_k8s_config",
    ),
    "configured by a function": (
        definitions(
            jobs=[
                a_job(
                    executor=pinned_k8s_job_executor.configured(
                        lambda _: {"step_k8s_config": BAD}, config_schema={}
                    )
                )
            ]
        ),
        "job nightly's executor's step_k8s_config",
    ),
    "configured with a variable of the cluster": (
        definitions(
            jobs=[
                a_job(
                    executor=pinned_k8s_job_executor.configured(
                        {"image": {"env": "NOT_SET_HERE"}, "step_k8s_config": BAD}
                    )
                )
            ]
        ),
        "job nightly's executor's step_k8s_config",
    ),
    "a step that is called as a field is": (
        definitions(
            jobs=[a_job(config={"execution": {"config": {"per_step_k8s_config": {"data": BAD}}}})]
        ),
        "job nightly's executor's per_step_k8s_config",
    ),
    "image volume": (
        definitions(jobs=[a_job({CONFIG: json.dumps({"pod_spec_config": VOLUMES})})]),
        f"the tag {CONFIG} of op night.train",
    ),
}


@pytest.mark.parametrize(("defs", "source"), CASES.values(), ids=list(CASES))
def test_a_bad_image_is_found_in_definitions(defs: dg.Definitions, source: str) -> None:
    dg.Definitions.validate_loadable(defs)  # Dagster has nothing against it
    with pytest.raises(RefusedError) as refused:
        require_definitions(defs, pinned_k8s_job_executor)
    assert f"'{MOVED}' is refused: it has no digest" in str(refused.value)
    assert f"it comes from {source}" in str(refused.value)


def test_names_that_the_lock_lacks_are_found() -> None:
    named = an_asset(signalbox__image="serve")
    with pytest.raises(RefusedError, match=r"no image 'serve'; .* signalbox/image of op model"):
        require_definitions(definitions([named]), pinned_k8s_job_executor)
    configured = pinned_k8s_job_executor.configured({"image": "old"})
    with pytest.raises(RefusedError, match=r"no image 'old'; .* job nightly's executor's image"):
        require_definitions(definitions(jobs=[a_job(executor=configured)]), pinned_k8s_job_executor)


def test_what_nobody_would_judge_is_found() -> None:
    defs = definitions([an_asset()], [a_job(executor=k8s_job_executor)])
    dg.Definitions.validate_loadable(defs)
    with pytest.raises(RefusedError, match=r"k8s \(executor\): nobody judges what it starts"):
        require_definitions(defs, pinned_k8s_job_executor)
    with pytest.raises(RefusedError, match="job __ASSET_JOB"):
        require_definitions(
            definitions([an_asset()], executor=k8s_job_executor), pinned_k8s_job_executor
        )


def test_good_definitions_are_let_through() -> None:
    tags = {"dagster-k8s__config": GOOD, "signalbox__image": "train"}
    metadata = {"pod_template_spec_metadata": {"labels": {"image": "gpu"}}}
    near = {"label_selector": {"match_labels": {"image": "gpu"}}, "topology_key": "zone"}
    apart = {"pod_anti_affinity": {"required_during_scheduling_ignored_during_execution": [near]}}
    spec = {"node_selector": {"image": "gpu"}, "affinity": apart}
    quiet = {**metadata, "pod_spec_config": spec}
    jobs = [
        a_job({CONFIG: json.dumps(quiet)}),
        a_job(executor=dg.multiprocess_executor).with_hooks(set()),
    ]
    assert (
        list(bad_definitions(definitions([an_asset(**tags)]), pinned_k8s_job_executor, LOCK)) == []
    )
    for job in jobs:
        defs = definitions([an_asset(**tags)], [job], dg.in_process_executor)
        assert list(bad_definitions(defs, pinned_k8s_job_executor, LOCK)) == []


def test_an_op_of_several_jobs_is_told_once() -> None:
    asset = an_asset(**{"dagster-k8s__config": BAD})
    again = dg.define_asset_job("again", selection="model")
    defs = definitions([asset], [again])
    assert len(list(bad_definitions(defs, pinned_k8s_job_executor, LOCK))) == 1


def test_a_silent_layer_is_no_bad_one() -> None:
    silent = [Layer("a", None), Layer("b", {}), Layer("c", "no image"), Layer("d", {"image": None})]
    assert foresee(silent, LOCK) == ()
    bare = [Layer("e", {"pod_spec_config": {"containers": [{"name": "f"}]}})]
    assert [str(found) for found in foresee(bare, LOCK)] == [
        "f (pod_spec_config.containers[0]): it names no image; it comes from e"
    ]


@pytest.mark.parametrize(
    ("config", "variables", "source"),
    [
        ({"run_k8s_config": BAD}, {}, "the run launcher's run_k8s_config"),
        ({"job_image": MOVED}, {}, "the run launcher's job_image"),
        ({"job_image": {"env": "OURS"}}, {"OURS": MOVED}, "the run launcher's job_image"),
        (VOLUMES, {}, "the run launcher's volumes"),
        ({}, {"DAGSTER_CURRENT_IMAGE": MOVED}, "(DAGSTER_CURRENT_IMAGE)"),
        (
            {},
            {"DAGSTER_CONTAINER_CONTEXT": json.dumps({"k8s": {"run_k8s_config": BAD}})},
            "the code location's container context",
        ),
    ],
)
def test_what_surrounds_a_run_is_judged(
    config: dict[str, Any], variables: dict[str, str], source: str
) -> None:
    (found,) = bad_surroundings(config, variables, LOCK)
    assert source in str(found)
    assert "it has no digest" in str(found)


def test_good_surroundings() -> None:
    variables = {"DAGSTER_CURRENT_IMAGE": str(TRAIN.ref), "DAGSTER_CONTAINER_CONTEXT": "{}"}
    assert bad_surroundings({"image": "train", "run_k8s_config": GOOD}, variables, LOCK) == ()
    assert bad_surroundings({}, {}, LOCK) == ()
    (found,) = bad_surroundings({"image": "serve"}, {}, LOCK)
    assert "no image 'serve'" in str(found)
    with pytest.raises(UsageError, match="DAGSTER_CONTAINER_CONTEXT is no JSON"):
        bad_surroundings({}, {"DAGSTER_CONTAINER_CONTEXT": "{"}, LOCK)


def test_the_doctor_finds_it_in_the_instance(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def images() -> tuple[bool, str]:
        (finding,) = [f for f in examine(home) if f.name == "images"]
        return finding.ok, finding.found

    monkeypatch.setenv("SIGNALBOX_DEPLOYMENT", "k8s")
    assert images()[0]
    file = home.dagster / "dagster.yaml"
    before = file.read_text()
    launcher = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": {"job_image": MOVED}}
    file.write_text(yaml.safe_dump({"run_launcher": launcher}))
    ok, said = images()
    assert not ok
    assert "it comes from the run launcher's job_image" in said
    file.write_text(before)
    asset = an_asset(**{"dagster-k8s__config": BAD})
    monkeypatch.setattr("platform_assets.definitions.assemble", lambda: definitions([asset]))
    ok, said = images()
    assert not ok
    assert f"it comes from the tag {CONFIG} of op model" in said


THEIRS = f"""
import dagster as dg

@dg.asset(op_tags={{"{CONFIG}": {BAD!r}}})
def theirs() -> None: ...
"""


@pytest.mark.heavy
def test_dagster_definitions_validate_finds_it(tmp_path: Path) -> None:
    for folder in ("platform_assets", "resources", "sensors"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "platform_assets" / "defs" / "theirs.py").write_text(THEIRS)

    def validate(where: str) -> subprocess.CompletedProcess[str]:
        command = ("dagster", "definitions", "validate", "-m", "platform_assets.definitions")
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env={
                **os.environ,
                "SIGNALBOX_DEPLOYMENT": where,
                "PYTHONPATH": str(tmp_path),
                "DAGSTER_HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    local = validate("local")
    assert local.returncode == 0, local.stdout + local.stderr
    cluster = validate("k8s")
    assert cluster.returncode != 0
    assert f"it comes from the tag {CONFIG} of op theirs" in cluster.stdout + cluster.stderr
