"""The folder that a step and its ranks on other nodes share: a volume that many nodes can write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.processes import ProcessesSpec

FOLDER = "SIGNALBOX_RANKS_FOLDER"
"""Variable: the folder of one attempt of a step."""

POD_IP = "SIGNALBOX_POD_IP"
"""Variable: the address by which the other pods of a training reach this one."""

MOUNT = "/ranks"
SUB_PATH = "ranks"
"""Folder of the volume; the volume may be the home's."""


@dataclass(frozen=True)
class Ranks:
    """Ranks in pods of their own, beside a step's.

    Attributes:
        asked: how many, on more than one node.
        claim: the PersistentVolumeClaim with their folder, ReadWriteMany.
    """

    asked: ProcessesSpec
    claim: str


def sharing(spec: Mapping[str, Any], name: str, claim: str) -> dict[str, Any]:
    """A pod's spec whose first container has the folder.

    Args:
        spec: of the pod.
        name: of the step's Job, which no other attempt has.
        claim: a PersistentVolumeClaim, ReadWriteMany.
    """
    volume = {"name": "ranks", "persistentVolumeClaim": {"claimName": claim}}
    mount = {"name": "ranks", "mountPath": MOUNT, "subPath": SUB_PATH}
    first, *others = spec["containers"]
    told = [one for one in first.get("env") or () if one.get("name") not in (FOLDER, POD_IP)]
    address = {"name": POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    first = {
        **first,
        "env": [*told, {"name": FOLDER, "value": f"{MOUNT}/{name}"}, address],
        "volumeMounts": [*(first.get("volumeMounts") or ()), mount],
    }
    return {
        **spec,
        "containers": [first, *others],
        "volumes": [*(spec.get("volumes") or ()), volume],
    }


def without_gpus(container: Mapping[str, Any], gpu: str) -> dict[str, Any]:
    """A container that asks for none: the ranks have them."""
    amounts = {
        kind: {name: amount for name, amount in of_kind.items() if name != gpu}
        for kind, of_kind in (container.get("resources") or {}).items()
        if isinstance(of_kind, Mapping)
    }
    return {**container, "resources": amounts} if amounts else dict(container)
