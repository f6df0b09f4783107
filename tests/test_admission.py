"""Nothing starts that is not pinned: bad references in every place of every kind."""

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from platform_assets.domain.admission import (
    IMAGE_ATTRIBUTES,
    Layer,
    admit,
    images_of,
    other_image,
    witnessed,
)
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.images import ImageLock, LockedImage

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
REPOSITORY = "registry.example:5000/team/train"
GOOD = f"{REPOSITORY}@{DIGEST}"
LOCK = ImageLock(
    registries=("registry.example:5000",),
    images={
        "train": LockedImage(
            repository=REPOSITORY,
            tag="2026-11",
            digest=DIGEST,
            index="sha256:" + "1" * 64,
            config="sha256:" + "c" * 64,
            platform="linux/amd64",
            resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
            resolved_by="ada",
        )
    },
)


def bad_references() -> list[str | None]:
    """Forms that are not the pinned image, by what is wrong with them."""
    tags = ["latest", "2026-11", "v1", "sha256", HEX, f"sha256-{HEX}", "stable@", "1.0.0-rc1"]
    found: list[str | None] = [f"{REPOSITORY}:{tag}" for tag in tags]
    found += [REPOSITORY, f"{REPOSITORY}:", f"{REPOSITORY}@", f"{REPOSITORY}@sha256:", "", None]
    found += [f"{REPOSITORY}@{DIGEST[:length]}" for length in range(8, 71)]
    found += [f"{REPOSITORY}@{DIGEST}{more}" for more in ("0", "f" * 64, ":latest", "@", "/x", "?")]
    found += [f"{REPOSITORY}:{tag}@{DIGEST}" for tag in ("latest", "2026-11")]
    found += [f"{REPOSITORY}@{DIGEST.upper()}", f"{REPOSITORY}@SHA256:{HEX}"]
    found += [f"{REPOSITORY}@sha256:{HEX[:i]}{HEX[i:].upper()}" for i in range(8, 60, 6)]
    found += [f"{REPOSITORY}@{name}:{HEX}" for name in ("sha1", "sha512", "md5", "sha-256", "")]
    found += [f"{REPOSITORY}@sha256:{'g' * 64}", f"{REPOSITORY}@sha256:{'0' * 64}"]
    found += [f"{REPOSITORY}@sha256:{digit * 64}" for digit in "0123456789abcdef"]
    hosts = ["evil.example", "registry.example", "registry.example:5001", "registry.example:05000"]
    hosts += ["registry.example:5000.evil.example", "evil.example/registry.example:5000"]
    hosts += ["registry-example:5000", "xregistry.example:5000", "127.0.0.1:5000", "docker.io"]
    found += [f"{host}/team/train@{DIGEST}" for host in hosts]
    found += [f"{scheme}{GOOD}" for scheme in ("http://", "https://", "docker://", "oci:", "//")]
    found += [f"team/train@{DIGEST}", f"train@{DIGEST}", DIGEST, HEX, f"@{DIGEST}"]
    paths = ["team/Train", "team//train", "team/train/", "team/../team/train", "team/./train"]
    paths += ["/team/train", "team/train-", "team/.train", "team/tr ain", "team/train%20", "team"]
    paths += ["team/train2", "other/train", "team/train/debug", "team\\train", "team/tr___ain"]
    found += [f"registry.example:5000/{path}@{DIGEST}" for path in paths]
    spaces = [" ", "\n", "\t", "\r", "\x00", "\x0b", "\u00a0", "\u2003", "\u200b", "\ufeff"]
    found += [space + GOOD for space in spaces] + [GOOD + space for space in spaces]
    found += [GOOD.replace("@", f"@{space}") for space in spaces]
    alike = {"a": "\u0430", "e": "\u0435", "i": "\u0456", "o": "\u043e", "s": "\u0455"}
    alike |= {"x": "\u0445", "5": "\uff15", "0": "\u0660", "@": "\uff20", ":": "\uff1a"}
    alike |= {"/": "\u2044", ".": "\u2024", "r": "\u0433"}
    found += [GOOD.replace(c, other) for c, other in alike.items() if c in GOOD]
    found += [GOOD.replace(c, other, 1) for c, other in alike.items() if c in GOOD]
    found += [GOOD.replace("e", "e\u0301", 1), unicodedata.normalize("NFD", "é") + GOOD]
    found += [f"{GOOD},{GOOD}", f"{GOOD} {GOOD}", "$(IMAGE)", "${IMAGE}", "{{ image }}"]
    return list(dict.fromkeys(found))


BAD = bad_references()


def pod(**changes: Any) -> dict[str, Any]:
    return {
        "containers": [{"name": "dagster", "image": GOOD}],
        **changes,
    }


def job(spec: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {"spec": spec}}}


def everywhere(image: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Manifests with one image in one place; all the others are good."""
    bad = {"name": "bad", "image": image}
    yield "container", job(pod(containers=[bad]))
    yield "second container", job(pod(containers=[{"name": "dagster", "image": GOOD}, bad]))
    yield "init container", job(pod(initContainers=[bad]))
    yield "as dagster-k8s writes it", job(pod(init_containers=[bad]))
    sidecar = bad | {"restartPolicy": "Always"}
    yield "sidecar", job(pod(initContainers=[sidecar]))
    yield "ephemeral", job(pod(ephemeralContainers=[bad]))
    yield "volume", job(pod(volumes=[{"name": "bad", "image": {"reference": image}}]))
    csi = {"driver": "csi.example", "volumeAttributes": {"image": image}}
    yield "CSI volume", job(pod(volumes=[{"name": "bad", "csi": csi}]))
    yield "pod", {"kind": "Pod", "spec": pod(initContainers=[bad])}
    cron = {"kind": "CronJob", "spec": {"jobTemplate": job(pod(initContainers=[bad]))}}
    yield "cron job", cron
    replicas = {"Master": job(pod()), "Worker": job(pod(containers=[bad]))}
    yield "PyTorchJob", {"kind": "PyTorchJob", "spec": {"pytorchReplicaSpecs": replicas}}
    sets = [{"template": {"spec": job(pod(containers=[bad]))}}]
    yield "JobSet", {"kind": "JobSet", "spec": {"replicatedJobs": sets}}
    yield "list", {"kind": "List", "items": [job(pod()), job(pod(containers=[bad]))]}


def alone(image: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Manifests of kinds that make their containers themselves, from an image they are told."""
    bad = {"name": "bad", "image": image}
    if not isinstance(image, str):
        return  # such a kind may leave it out
    for part in ("driver", "executor"):
        spark = {"image": GOOD, "driver": {"cores": 1}, part: bad}
        yield f"SparkApplication's {part}", {"kind": "SparkApplication", "spec": spark}
    yield "SparkApplication", {"kind": "SparkApplication", "spec": bad}
    for part in ("container", "script"):
        steps = [{"name": "good", "container": {"image": GOOD}}, {"name": "x", part: bad}]
        yield f"Workflow's {part}", {"kind": "Workflow", "spec": {"templates": steps}}


def test_at_least_200_forms_are_tried() -> None:
    assert len(BAD) >= 200
    assert GOOD not in BAD


@pytest.mark.parametrize("image", BAD, ids=lambda image: ascii(image)[:60])
def test_no_bad_reference_gets_through_anywhere(image: str | None) -> None:
    for place, manifest in (*everywhere(image), *alone(image)):
        admission = admit(manifest, LOCK)
        assert not admission.allowed, place
        (violation,) = admission.violations
        assert violation.found.container == "bad", place
        with pytest.raises(RefusedError, match=r"step x is refused, nothing was created: bad \("):
            admission.require("step x")


def test_the_good_one_gets_through_everywhere() -> None:
    for place, manifest in (*everywhere(GOOD), *alone(GOOD)):
        admission = admit(manifest, LOCK)
        assert admission.violations == (), place
        assert set(admission.admitted.values()) == {"train"}
        admission.require("step x")


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"kind": "Job"},
        job({}),
        job({"containers": []}),
        job({"containers": None}),
        job({"containers": "train"}),
        job({"containers": [GOOD]}),
        job({"containers": [{"name": "x"}]}),
        job({"containers": [{"name": "x", "image": {"name": GOOD}}]}),
        job({"initContainers": [{"name": "x", "image": GOOD}]}),
    ],
)
def test_a_manifest_without_images_is_not_a_good_one(manifest: dict[str, Any]) -> None:
    assert not admit(manifest, LOCK).allowed


def test_a_text_image_that_starts_nothing_is_none() -> None:
    volumes = [{"name": "disk", "rbd": {"image": "disk-1", "pool": "p"}}]
    assert admit(job(pod(volumes=volumes)), LOCK).allowed
    notes = {
        "kind": "ConfigMap",
        "metadata": {"annotations": {"image": "x"}},
        "data": {"image": "x"},
    }
    assert not list(images_of(notes))
    # And in a kind with containers it stands for none.
    assert not admit({"kind": "Job", "spec": {"image": GOOD}}, LOCK).allowed


ATTRIBUTES = (
    *IMAGE_ATTRIBUTES,
    *("IMAGE", "image-ref", "Image_Name", "containerIMAGE", "oci.ref", "image.url"),
)
"""Names of attributes by which a CSI driver may be told of an image."""
NO_ATTRIBUTES = ("imagePullPolicy", "images", "mage", "share", "", "imageRefs", "my-image")


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_image_that_a_csi_driver_mounts_is_one(attribute: str) -> None:
    def judged(image: str, key: str = "volumeAttributes") -> bool:
        csi = {"driver": "d", key: {attribute: image, "imagePullPolicy": "Always", "share": "s"}}
        return admit(job(pod(volumes=[{"name": "weights", "csi": csi}])), LOCK).allowed

    assert judged(GOOD)
    assert not judged(f"{REPOSITORY}:latest")
    assert not judged(f"{REPOSITORY}:latest", "volume_attributes")  # as dagster-k8s writes it


@pytest.mark.parametrize("attribute", NO_ATTRIBUTES)
def test_other_attributes_of_a_csi_driver_name_none(attribute: str) -> None:
    csi = {"driver": "d", "volumeAttributes": {attribute: "x"}}
    assert admit(job(pod(volumes=[{"name": "weights", "csi": csi}])), LOCK).allowed


def test_an_empty_lock_admits_nothing() -> None:
    assert not admit(job(pod()), ImageLock()).allowed


def test_a_manifest_without_end_is_refused() -> None:
    nested: dict[str, Any] = job(pod())
    for _ in range(200):
        nested = {"spec": nested}
    assert not admit(nested, LOCK).allowed


def test_the_strongest_layer_that_has_it_is_named() -> None:
    bad = f"{REPOSITORY}:latest"
    config = {"init_containers": [{"name": "fetch", "image": bad}]}
    layers = [
        Layer("the op's tag dagster-k8s/config", {"pod_spec_config": config}),
        Layer("the executor's job_image", GOOD),
        Layer("the run launcher's job_image", bad),
    ]
    admission = admit(job(pod(init_containers=config["init_containers"])), LOCK, layers)
    assert [str(v) for v in admission.violations] == [
        "fetch (spec.template.spec.initContainers[0]): "
        f"'{bad}' is refused: it has no digest, so it can be another image tomorrow; allowed is "
        "REGISTRY/REPOSITORY@sha256:<64 hexadecimal digits>; "
        "it comes from the op's tag dagster-k8s/config"
    ]


def test_each_image_is_found_once() -> None:
    for _, manifest in (*everywhere("x"), *alone("x")):
        places = [found.place for found in images_of(manifest)]
        assert len(places) == len(set(places))


def test_each_container_is_told_its_own_image_whatever_it_was_told_before() -> None:
    lie = {"name": "SIGNALBOX_IMAGE", "value": "x"}
    own = {"name": "A", "value": "1"}
    first = {"name": "a", "image": GOOD, "env": [lie, own]}
    manifest = job({"initContainers": [{"name": "b", "image": "other"}], "containers": [first]})
    told = witnessed(manifest, "SIGNALBOX_IMAGE")["spec"]["template"]["spec"]
    assert told["containers"][0]["env"] == [own, {"name": "SIGNALBOX_IMAGE", "value": GOOD}]
    assert told["initContainers"][0]["env"] == [{"name": "SIGNALBOX_IMAGE", "value": "other"}]
    assert first["env"] == [lie, own]
    assert witnessed({"data": {"image": "x"}}, "SIGNALBOX_IMAGE") == {"data": {"image": "x"}}


@pytest.mark.parametrize("form", ["{}", "x/y@{}", "docker-pullable://x/y@{}", "docker://{}"])
def test_what_a_cluster_reports_is_one_of_three_digests(form: str) -> None:
    for digest in LOCK.images["train"].ids:
        assert other_image(form.format(digest), GOOD, LOCK) == ""
    other = "sha256:" + "e" * 64
    assert f"runs {other} for {GOOD}" in other_image(form.format(other), GOOD, LOCK)
    assert "names no digest" in other_image(form.format("latest"), GOOD, LOCK)
    assert "names no digest" in other_image(form.format(DIGEST) + "0", GOOD, LOCK)
    assert "not stand in the lock any more" in other_image(DIGEST, GOOD, ImageLock())


@pytest.mark.parametrize("image", [text for text in bad_references() if text is not None])
def test_what_a_pod_names_is_a_reason_and_no_error(image: str) -> None:
    """Also where the digest is a known one: a tag in the pod is none that was sent."""
    assert other_image(DIGEST, image, LOCK) != ""
