"""What is wrong with a manifest that a schema of Kubernetes lets pass.

The schema knows fields and their types. The API server refuses more (names, labels, quantities, GPU
requests that are not the limit), and some of what it accepts fails only when a pod is to start: an
unknown PriorityClass, a volume that is not there.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.admission import admit, images_of
from platform_assets.domain.cluster_settings import LABEL, quantity
from platform_assets.domain.images import ImageLock
from platform_assets.domain.placing import insecure

Manifest = Mapping[str, Any]

_LABEL = re.compile(LABEL[:-1] + r"\Z", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?", re.ASCII)
OF_LABEL = ("Namespace", "Service")
"""Kinds whose name is a label of DNS, not a whole name."""

AMOUNTS = ("requests", "limits", "hard", "default", "defaultRequest", "max", "min")
"""Keys that hold quantities by resource."""

WHOLE = "nvidia.com/"
"""Resources of which there are no parts, and which cannot be overcommitted."""


@dataclass(frozen=True)
class Known:
    """What a manifest may name.

    Attributes:
        lock: the images.
        priority_classes: by name.
    """

    lock: ImageLock
    priority_classes: Collection[str]


def problems(manifest: Manifest, known: Known) -> list[str]:
    """Every problem of one manifest, as `Kind name: what is wrong`."""
    metadata = manifest.get("metadata") or {}
    kind = str(manifest.get("kind") or "(no kind)")
    found = [*_names(kind, metadata), *_quantities(manifest)]
    if next(images_of(manifest), None) is not None:
        found += [str(violation) for violation in admit(manifest, known.lock).violations]
    for place, spec in _pod_specs(manifest):
        found += [f"{place}: {why}" for why in _pod(kind, spec, known)]
    if kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
        found += _selected(manifest)
    return [f"{kind} {metadata.get('name')}: {why}" for why in found]


def _names(kind: str, metadata: Manifest) -> Iterator[str]:
    name = metadata.get("name")
    rule = _LABEL if kind in OF_LABEL else _SUBDOMAIN
    longest = 63 if kind in (*OF_LABEL, "Job") else 52 if kind == "CronJob" else 253
    if not isinstance(name, str) or not rule.fullmatch(name) or len(name) > longest:
        yield f"{name!r} is no name; allowed are lower-case letters, digits, -; {longest} at most"
    namespace = metadata.get("namespace")
    if namespace is not None and not _LABEL.fullmatch(namespace):
        yield f"{namespace!r} is no namespace"
    yield from _labels(metadata)


def _labels(metadata: Manifest) -> Iterator[str]:
    for key, value in (metadata.get("labels") or {}).items():
        yield from _key(key, "label")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            yield f"label {key} is {value!r}; allowed are letters, digits, -, _ and ., 63 at most"
    for key in metadata.get("annotations") or {}:
        yield from _key(key, "annotation")


def _key(key: str, what: str) -> Iterator[str]:
    prefix, slash, name = key.rpartition("/")
    good = _KEY.fullmatch(name) and (not slash or _SUBDOMAIN.fullmatch(prefix))
    if not good:
        yield f"{key!r} is no key of a {what}"


def _quantities(node: Any, place: str = "") -> Iterator[str]:
    """Every amount under `requests`, `limits` and `hard`, at whatever depth."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{place}.{key}" if place else str(key)
            if key in AMOUNTS and isinstance(value, Mapping):
                for name, amount in value.items():
                    yield from _amount(f"{here}.{name}", amount)
            yield from _quantities(value, here)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, value in enumerate(node):
            yield from _quantities(value, f"{place}[{number}]")


def _amount(place: str, amount: Any) -> Iterator[str]:
    try:
        if quantity(str(amount)) < 0:
            yield f"{place} is {amount!r}, less than nothing"
    except ValueError as error:
        yield f"{place}: {error}"


def _pod_specs(node: Any, place: str = "") -> Iterator[tuple[str, Manifest]]:
    """The specs of pods in a manifest, whatever its kind."""
    if isinstance(node, Mapping):
        if isinstance(node.get("containers"), Sequence):
            yield place, node
            return
        for key, value in node.items():
            yield from _pod_specs(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, value in enumerate(node):
            yield from _pod_specs(value, f"{place}[{number}]")


def _pod(kind: str, spec: Manifest, known: Known) -> Iterator[str]:
    yield from insecure(spec)
    policy = spec.get("restartPolicy")
    allowed = ("Never", "OnFailure") if kind in ("Job", "CronJob") else ("Always", None)
    if kind != "Pod" and policy not in allowed:
        yield f"restartPolicy is {policy!r}; allowed in a {kind} are {', '.join(map(str, allowed))}"
    priority = spec.get("priorityClassName")
    if priority is not None and priority not in known.priority_classes:
        there = ", ".join(sorted(known.priority_classes)) or "none"
        yield f"priorityClassName {priority!r} does not exist; there are {there}"
    volumes = {volume.get("name") for volume in spec.get("volumes") or ()}
    names: list[Any] = []
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        name = container.get("name")
        if not isinstance(name, str) or not _LABEL.fullmatch(name):
            yield f"{name!r} is no name of a container"
        if name in names:
            yield f"there are two containers {name!r}"
        names.append(name)
        yield from _container(container, volumes)


def _container(container: Manifest, volumes: Collection[Any]) -> Iterator[str]:
    name = container.get("name")
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") not in volumes:
            yield f"container {name} mounts {mount.get('name')!r}, which is no volume of the pod"
    for port in container.get("ports") or ():
        if "name" in port and not _PORT_NAME.fullmatch(port["name"]):
            yield f"container {name} has a port {port['name']!r}; 15 characters are allowed"
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for what in sorted({*requests, *limits}):
        try:
            asked = quantity(str(requests.get(what, limits.get(what))))
            most = quantity(str(limits[what])) if what in limits else None
        except ValueError:
            continue  # told with the quantities
        if what.startswith(WHOLE):
            if asked != asked.to_integral_value():
                yield f"container {name} asks for {asked} of {what}, of which there are no parts"
            if most != asked:
                yield f"container {name} asks for {asked} of {what} with limit {most}; both are one"
        elif most is not None and asked > most:
            yield f"container {name} asks for more {what} than its limit"


def _selected(manifest: Manifest) -> Iterator[str]:
    spec = manifest.get("spec") or {}
    wanted = ((spec.get("selector") or {}).get("matchLabels") or {}).items()
    template = (spec.get("template") or {}).get("metadata") or {}
    yield from _labels(template)
    if not wanted <= (template.get("labels") or {}).items():
        yield "its selector does not match the labels of its own pods"
