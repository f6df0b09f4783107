"""The cluster's own admission: the image rule for whatever others create in the namespace.

The same rule as `domain.admission`, in the words of a ValidatingAdmissionPolicy: by digest, of an
allowed registry, in the lock. What was let in before stays changeable: a controller that takes its
finalizer from a pod would otherwise be refused once the lock has moved on, and the pod would stay
for good.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from platform_assets.domain.admission import attribute_pattern
from platform_assets.domain.cluster_lanes import classes
from platform_assets.domain.cluster_settings import ClusterSettings
from platform_assets.domain.images import COMPONENT, DIGEST, ImageLock

Manifest = dict[str, Any]

POLICY = "signalbox-pinned-images"
NOTHING = r"[^\s\S]"
"""No character at all."""

_API = "admissionregistration.k8s.io/v1"

_SPEC = (
    "{0} == null ? null : "
    "{0}.kind == 'Pod' ? {0}.spec : "
    "{0}.kind == 'CronJob' ? {0}.spec.jobTemplate.spec.template.spec : "
    "{0}.kind == 'PodTemplate' ? {0}.template.spec : "
    "{0}.spec.template.spec"
)
_KINDS = ("containers", "initContainers", "ephemeralContainers")


def image_pattern(registries: Iterable[str]) -> str:
    """The rule for one image as a regular expression, in what RE2 and Python's `re` both have.

    Without a registry there is none that matches.
    """
    hosts = "|".join(host.replace(".", r"\.") for host in sorted(registries))
    return rf"^(?:{hosts or NOTHING})(?:/{COMPONENT})+@{DIGEST}$"


def policy(lock: ImageLock, settings: ClusterSettings) -> list[Manifest]:
    """The policy and its binding to the namespace."""
    pinned = sorted(str(image.ref) for image in lock.images.values())
    allowed = ", ".join(lock.registries) or "none"
    by_digest = f".matches({_text(image_pattern(lock.registries))})"
    in_lock = f" in {json.dumps(pinned)}"
    lanes = json.dumps(classes())
    validations = [
        {
            "expression": _each(by_digest),
            "message": "an image is not REGISTRY/REPOSITORY@sha256:<64 hexadecimal digits> of an "
            f"allowed registry ({allowed})",
            "reason": "Forbidden",
        },
        {
            "expression": _each(in_lock),
            "message": "an image does not stand in images.lock.yaml: pin it with `signalbox images "
            "pin`, then render and apply deploy/ anew",
            "reason": "Forbidden",
        },
        {
            "expression": "oldObject != null || (has(variables.spec.priorityClassName) && "
            f"variables.spec.priorityClassName in {lanes})",
            "message": "priorityClassName is none of a lane: nothing runs beside the lanes",
            "reason": "Forbidden",
        },
    ]
    return [
        {
            "apiVersion": _API,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": POLICY},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "matchPolicy": "Equivalent",
                    "resourceRules": [
                        _rule("", "pods", "pods/ephemeralcontainers", "podtemplates"),
                        _rule("", "replicationcontrollers"),
                        _rule("apps", "deployments", "statefulsets", "daemonsets", "replicasets"),
                        _rule("batch", "jobs", "cronjobs"),
                    ],
                },
                "variables": [
                    {"name": "spec", "expression": _SPEC.format("object")},
                    {"name": "oldSpec", "expression": _SPEC.format("oldObject")},
                    {"name": "images", "expression": _images("variables.spec")},
                    {"name": "before", "expression": _before(_images)},
                    {
                        "name": "added",
                        "expression": "variables.images.filter(i, !(i in variables.before))",
                    },
                    {"name": "mounted", "expression": _mounted("variables.spec")},
                    {"name": "mountedBefore", "expression": _before(_mounted)},
                    {
                        "name": "addedMounted",
                        "expression": "variables.mounted.filter(a, "
                        "!(a in variables.mountedBefore))",
                    },
                ],
                "validations": validations,
            },
        },
        {
            "apiVersion": _API,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": POLICY},
            "spec": {
                "policyName": POLICY,
                "validationActions": ["Deny"],
                "matchResources": {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": settings.namespace}
                    }
                },
            },
        },
    ]


def _text(pattern: str) -> str:
    """As a raw string of CEL, in which a backslash is one."""
    assert "'" not in pattern
    return f"r'{pattern}'"


def _rule(group: str, *resources: str) -> Manifest:
    return {
        "apiGroups": [group],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": list(resources),
    }


def _images(spec: str) -> str:
    """Every image that a pod's spec names; a container without one names the empty text."""
    parts = [
        f"(has({spec}.{kind}) ? {spec}.{kind}.map(c, has(c.image) ? c.image : '') : [])"
        for kind in _KINDS
    ]
    reference = "has(v.image.reference) ? v.image.reference : ''"
    parts.append(
        f"(has({spec}.volumes) ? {spec}.volumes.filter(v, has(v.image)).map(v, {reference}) : [])"
    )
    return " + ".join(parts)


def _mounted(spec: str) -> str:
    """The attributes of every CSI volume of a pod's spec, a map each.

    Lists of what they name would have the order of the map, which is none: of no use to compare.
    """
    told = "has(v.csi) && has(v.csi.volumeAttributes)"
    named = f"{spec}.volumes.filter(v, {told}).map(v, v.csi.volumeAttributes)"
    return f"(has({spec}.volumes) ? {named} : [])"


def _before(what: Callable[[str], str]) -> str:
    return f"variables.oldSpec == null ? [] : {what('variables.oldSpec')}"


def _each(rule: str) -> str:
    """That a rule holds for whatever names an image."""
    other = f"!k.matches({_text(attribute_pattern())})"
    return (
        f"variables.added.all(i, i{rule}) && "
        f"variables.addedMounted.all(a, a.all(k, {other} || a[k]{rule}))"
    )
