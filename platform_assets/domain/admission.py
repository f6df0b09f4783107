"""Admission: may the containers of this manifest start?

What is looked at is the manifest as it would be sent, whatever made it: a run's Job, a step's, a
CronJob, a kind of somebody else's that has pods in it. Every container in it, init containers and
sidecars and ephemeral ones among them, and every volume that is an image, must name an image by
its digest, from an allowed registry, that stands in the lock.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.images import DIGEST, LOCK_FILE, ImageLock, ImageRef, shown

WORKLOADS = (
    *("Pod", "PodTemplate", "ReplicationController", "ReplicaSet", "Deployment", "StatefulSet"),
    *("DaemonSet", "Job", "CronJob", "JobSet", "TrainJob"),
)
"""Kinds that have containers: one without is no good one."""

CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_SNAKE = {"init_containers": "initContainers", "ephemeral_containers": "ephemeralContainers"}
_WITHOUT = (
    *("metadata", "data", "stringData", "binaryData", "status", "volumes"),
    *("labels", "annotations", "nodeSelector", "node_selector", "matchLabels", "match_labels"),
    *("job_metadata", "pod_template_spec_metadata"),
)
"""What lies below these starts nothing by a text `image`: an image volume is looked at by itself,
and the `image` of a block device is none of a container."""

IMAGE_ATTRIBUTES = (
    *("image", "imageName", "imageRef", "imageReference", "imageURI", "imageUrl"),
    *("containerImage", "ociImage", "ociRef", "reference"),
)
"""Attributes of a CSI volume by which drivers that mount an image are told which one. Each driver
has words of its own; these are the ones that are looked for."""

_DEEPEST = 64


def attribute_pattern() -> str:
    """Whether the name of an attribute is one of IMAGE_ATTRIBUTES, in what RE2 and `re` both have.

    Case, and all that is no letter of ASCII, count for nothing: `IMAGE`, `image-ref`.
    """
    other = "[^a-zA-Z]*"
    words = sorted({name.lower() for name in IMAGE_ATTRIBUTES})
    spelled = (other.join(f"[{c}{c.upper()}]" for c in word) for word in words)
    return f"^{other}(?:{'|'.join(spelled)}){other}$"


_ATTRIBUTE = re.compile(attribute_pattern())
_ID = re.compile(rf"{DIGEST}\Z", re.ASCII)


@dataclass(frozen=True)
class Layer:
    """One place that images of a manifest may come from.

    Attributes:
        name: for a person, as in "the run's tag dagster-k8s/config".
        content: what it says, nested mappings, sequences and texts.
    """

    name: str
    content: Any


@dataclass(frozen=True)
class Found:
    """An image that a manifest names.

    Attributes:
        place: as in `spec.template.spec.initContainers[0]`.
        container: name of the container or volume; empty where it has none.
        image: the text as it stands; None where there is none, or no text.
    """

    place: str
    container: str
    image: str | None


@dataclass(frozen=True)
class Violation:
    """An image that may not start.

    Attributes:
        found: where it stands.
        why: what is wrong, for a person.
        source: the layer that it came from; empty where none of them has it.
    """

    found: Found
    why: str
    source: str

    def __str__(self) -> str:
        where = f"{self.found.container or 'unnamed'} ({self.found.place})"
        return f"{where}: {self.why}" + (f"; it comes from {self.source}" if self.source else "")


@dataclass(frozen=True)
class Admission:
    """What may start, and what may not.

    Attributes:
        admitted: name in the lock by place.
        violations: the others; with one of them nothing of the manifest may start.
    """

    admitted: Mapping[str, str]
    violations: tuple[Violation, ...]

    @property
    def allowed(self) -> bool:
        """Whether the manifest may be created."""
        return not self.violations

    def require(self, what: str) -> None:
        """Raise unless it is allowed.

        Raises:
            RefusedError: names each container, and where its image came from.
        """
        if self.violations:
            listed = "; ".join(str(violation) for violation in self.violations)
            raise RefusedError(
                f"{what} is refused, nothing was created: {listed}. Allowed are images of "
                f"{LOCK_FILE}, by digest; name one by its logical name, or add yours with "
                "`signalbox images pin NAME REGISTRY/REPOSITORY:TAG`"
            )


def admit(manifest: Mapping[str, Any], lock: ImageLock, layers: Sequence[Layer] = ()) -> Admission:
    """Judge a manifest.

    Args:
        manifest: as the API is sent it; keys in camelCase, or as dagster-k8s writes them.
        lock: the images that may run.
        layers: what the manifest was made of, the strongest first: to say where a bad one is from.
    """
    admitted: dict[str, str] = {}
    violations = []
    seen = list(images_of(manifest))
    # Other kinds (SparkApplication, Workflow) name images of containers that they make themselves.
    alone = "" if manifest.get("kind") in WORKLOADS else "image"
    ends = [found.place.rpartition(".")[2] for found in seen]
    if not any(end.startswith("containers[") or end == alone for end in ends):
        nothing = Found("(manifest)", str(manifest.get("kind") or ""), None)
        violations.append(Violation(nothing, "no container is found in it", ""))
    for found in seen:
        name, why = _judged(found, lock)
        if name is None:
            source = next((y.name for y in layers if _says(y.content, found.image)), "")
            violations.append(Violation(found, why, source))
        else:
            admitted[found.place] = name
    return Admission(admitted, tuple(violations))


def foresee(layers: Sequence[Layer], lock: ImageLock) -> tuple[Violation, ...]:
    """What the layers name that may not start, before a manifest is made of them.

    A layer may be silent. One that names a bad image is refused even where a stronger one would
    put another in its place: that one is changed some day.

    Args:
        layers: each as dagster-k8s reads it: `container_config`, `pod_spec_config`, or more.
        lock: the images that may run.
    """
    return tuple(
        Violation(found, _judged(found, lock)[1], layer.name)
        for layer in layers
        for found in images_of(layer.content)
        if _judged(found, lock)[0] is None
    )


def witnessed(manifest: Any, variable: str) -> Any:
    """A copy in which each container and init container is told its own image.

    A container cannot ask what it was started from. The variable says what was asked for, whatever
    somebody else had put there.
    """
    if isinstance(manifest, Mapping):
        copy = {key: witnessed(value, variable) for key, value in manifest.items()}
        for key in manifest:
            if _SNAKE.get(str(key), str(key)) in CONTAINERS:
                copy[key] = [_told(one, variable) for one in copy[key] or ()]
        return copy
    if isinstance(manifest, Sequence) and not isinstance(manifest, str | bytes):
        return [witnessed(value, variable) for value in manifest]
    return manifest


def _told(container: Any, variable: str) -> Any:
    if not isinstance(container, Mapping) or not _is_text(container.get("image")):
        return container
    others = [e for e in container.get("env") or () if e.get("name") != variable]
    return {**container, "env": [*others, {"name": variable, "value": container["image"]}]}


def other_image(image_id: str, image: str, lock: ImageLock) -> str:
    """Why what a container runs is not what was asked for; empty if it is.

    Args:
        image_id: as the cluster reports it: `docker-pullable://repository@sha256:…`, or a digest
            alone, of the index, the manifest or the configuration.
        image: as the pod has it, which is what was sent unless somebody changed it in between.
        lock: the images that may run.
    """
    found = _ID.search(image_id)
    if found is None:
        return f"the cluster reports {shown(image_id)} for {image}, which names no digest"
    try:
        name = lock.of(ImageRef.parse(image))
    except UsageError as error:
        # What was sent was admitted: somebody in the cluster has put another name there.
        return f"the cluster runs {found[0]}, and not what was sent: {error}"
    if name is None:
        return f"{image} does not stand in the lock any more"
    known = lock.images[name].ids
    if found[0] in known:
        return ""
    return (
        f"the cluster runs {found[0]} for {image}; allowed are {', '.join(sorted(known))}: what "
        "pulled or started it is not to be trusted"
    )


def images_of(manifest: Any) -> Iterator[Found]:
    """Every image that a manifest names, at whatever depth, whatever its kind."""
    yield from _walk(manifest, "", 0, True)


def _walk(node: Any, place: str, depth: int, alone: bool) -> Iterator[Found]:
    if depth > _DEEPEST:
        yield Found(place, "", None)
    elif isinstance(node, Mapping):
        if alone and _is_text(node.get("image")):
            found = f"{place}.image" if place else "image"
            yield Found(found, str(node.get("name") or ""), node["image"])
        for key, value in node.items():
            kind = _SNAKE.get(str(key), str(key))
            here = f"{place}.{kind}" if place else kind
            listed = kind in CONTAINERS and value is not None
            if listed:
                yield from _containers(value, here)
            elif kind == "volumes" and isinstance(value, Sequence) and not isinstance(value, str):
                yield from _volumes(value, here)
            below = alone and not listed and kind not in _WITHOUT
            yield from _walk(value, here, depth + 1, below)
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        for number, value in enumerate(node):
            yield from _walk(value, f"{place}[{number}]", depth + 1, alone)


def _containers(value: Any, place: str) -> Iterator[Found]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        yield Found(place, "", None)
        return
    for number, container in enumerate(value):
        here = f"{place}[{number}]"
        if not isinstance(container, Mapping):
            yield Found(here, "", None)
            continue
        image = container.get("image")
        yield Found(here, str(container.get("name") or ""), image if _is_text(image) else None)


def _volumes(value: Sequence[Any], place: str) -> Iterator[Found]:
    for number, volume in enumerate(value):
        image = volume.get("image") if isinstance(volume, Mapping) else None
        if image is not None:
            text = image.get("reference") if isinstance(image, Mapping) else image
            name = str(volume.get("name") or "")
            yield Found(f"{place}[{number}]", name, text if _is_text(text) else None)
        csi = volume.get("csi") if isinstance(volume, Mapping) else None
        if isinstance(csi, Mapping):
            yield from _of_csi(csi, f"{place}[{number}].csi", str(volume.get("name") or ""))


def _of_csi(csi: Mapping[str, Any], place: str, name: str) -> Iterator[Found]:
    for key in ("volumeAttributes", "volume_attributes"):
        told = csi.get(key)
        for attribute, value in told.items() if isinstance(told, Mapping) else ():
            if _ATTRIBUTE.fullmatch(str(attribute)):
                here = f"{place}.volumeAttributes.{attribute}"
                yield Found(here, name, value if _is_text(value) else None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _judged(found: Found, lock: ImageLock) -> tuple[str | None, str]:
    """The name in the lock, or None and why not."""
    if found.image is None:
        return None, "it names no image"
    try:
        ref = ImageRef.parse(found.image)
    except UsageError as error:
        return None, str(error)
    if ref.registry not in lock.registries:
        allowed = ", ".join(lock.registries) or "none"
        return None, f"{ref} is of registry {ref.registry}; allowed are {allowed}"
    name = lock.of(ref)
    if name is None:
        same = [n for n, i in sorted(lock.images.items()) if i.repository == ref.repository]
        known = f"of that repository the lock has {', '.join(same)}, at another digest"
        return None, f"{shown(str(ref))} does not stand in the lock" + (
            f"; {known}" if same else ""
        )
    return name, ""


def _says(content: Any, image: str | None) -> bool:
    """Whether a layer holds a text that is this image, at whatever depth."""
    if image is None:
        return False
    if isinstance(content, str):
        return content == image
    if isinstance(content, Mapping):
        return any(_says(value, image) for value in content.values())
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return any(_says(value, image) for value in content)
    return False
