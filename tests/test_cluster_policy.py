"""The cluster's own admission, evaluated: the same rule as ours, for whatever others create."""

from copy import deepcopy
from typing import Any

import pytest

from platform_assets.domain.cluster_policy import policy
from platform_assets.domain.images import ImageLock
from tests.cel import CelError, Expression, Policy
from tests.test_admission import ATTRIBUTES, BAD, GOOD, LOCK, NO_ATTRIBUTES, everywhere
from tests.test_cluster_render import settings_with

CLASS = "signalbox-step-daily"
OF_OTHERS = ("PyTorchJob", "JobSet", "list", "as dagster-k8s writes it")
"""Places of the tests on admission that are no kind of Kubernetes' own: pods come of them, and
those are judged."""


def policy_for(lock: ImageLock) -> Policy:
    return Policy(policy(lock, settings_with())[0]["spec"])


POLICY = policy_for(LOCK)


def in_lane(document: dict[str, Any]) -> dict[str, Any]:
    """The document with a lane's PriorityClass in each of its pods, as an API server has it."""
    found = deepcopy(document)
    spec = found["spec"]
    if found["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    if found["kind"] != "Pod":
        spec = spec["template"]["spec"]
    spec["priorityClassName"] = CLASS
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            if container["image"] is None:
                del container["image"]
    for volume in spec.get("volumes") or ():
        if volume.get("image", {}).get("reference", "") is None:
            del volume["image"]["reference"]
        attributes = volume.get("csi", {}).get("volumeAttributes", {})
        attributes |= {name: "" for name, value in attributes.items() if value is None}
    return found


def places(image: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(place, in_lane(m)) for place, m in everywhere(image) if place not in OF_OTHERS]


def test_no_bad_reference_gets_through_in_any_kind() -> None:
    assert len(BAD) >= 200
    assert len(places(GOOD)) == 9
    for image in BAD:
        for place, manifest in places(image):
            refused = POLICY.refusals(manifest)
            assert refused, (ascii(image), place)
            assert not any("priorityClassName" in message for message in refused)


def test_the_good_one_gets_through_in_every_kind() -> None:
    for place, manifest in places(GOOD):
        assert POLICY.refusals(manifest) == [], place
    pod = places(GOOD)[0][1]["spec"]["template"]
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController"):
        assert POLICY.refusals({"kind": kind, "spec": {"template": pod}}) == []
    assert POLICY.refusals({"kind": "PodTemplate", "template": pod}) == []


def test_nothing_starts_outside_of_the_lanes() -> None:
    (_, manifest), *_ = places(GOOD)
    for wrong in ("system-node-critical", "signalbox-step-nightly", None):
        manifest["spec"]["template"]["spec"]["priorityClassName"] = wrong
        assert len(POLICY.refusals(manifest)) == 1
    del manifest["spec"]["template"]["spec"]["priorityClassName"]
    assert len(POLICY.refusals(manifest)) == 1


def test_an_empty_lock_lets_nothing_start() -> None:
    for _, manifest in places(GOOD):
        assert len(policy_for(ImageLock()).refusals(manifest)) == 2


def test_what_was_there_before_the_lock_moved_on_can_still_be_changed() -> None:
    old = GOOD[:-4] + "0000"
    pod = in_lane({"kind": "Pod", "spec": {"containers": [{"name": "x", "image": old}]}})
    pod["metadata"] = {"finalizers": ["batch.kubernetes.io/job-tracking"]}
    # The Job controller takes its finalizer from a pod that ended.
    assert POLICY.refusals({**pod, "metadata": {}}, before=pod) == []
    # It could not, and the pod would stay for good, if all images were judged each time.
    assert POLICY.refusals({**pod, "metadata": {}}) != []
    # What an update adds is judged: another image, an ephemeral container.
    for change in (
        {"containers": [{"name": "x", "image": f"{old[:-64]}{'e' * 64}"}]},
        {"ephemeralContainers": [{"name": "debug", "image": "registry.example:5000/team/train:1"}]},
    ):
        assert POLICY.refusals({**pod, "spec": {**pod["spec"], **change}}, before=pod) != []


def of_csi(**attributes: str) -> dict[str, Any]:
    csi = {"driver": "csi.example", "volumeAttributes": attributes}
    containers = [{"name": "x", "image": GOOD}]
    volumes = [{"name": "disk", "emptyDir": {}}, {"name": "weights", "csi": csi}]
    return in_lane({"kind": "Pod", "spec": {"containers": containers, "volumes": volumes}})


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_image_that_a_csi_driver_mounts_is_judged_by_whatever_name(attribute: str) -> None:
    more = {"imagePullPolicy": "Always", "share": "s"}
    assert POLICY.refusals(of_csi(**{attribute: GOOD}, **more)) == []
    for image in ("registry.example:5000/team/train:latest", f"{GOOD[:-4]}0000", ""):
        bad = of_csi(**more, **{attribute: image})
        assert POLICY.refusals(bad), image
        # What was there stays changeable; what is put there is judged.
        assert POLICY.refusals({**bad, "metadata": {}}, before=bad) == []
        assert POLICY.refusals(bad, before=of_csi(**{attribute: GOOD}, **more)), image


@pytest.mark.parametrize("attribute", NO_ATTRIBUTES)
def test_other_attributes_of_a_csi_driver_are_its_own(attribute: str) -> None:
    assert POLICY.refusals(of_csi(**{attribute: "x"})) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1 in 'x'][0]", ValueError),
        ("object.x", CelError),
        ("has(object.a.x)", False),
        ("has(object.x.y)", CelError),
        ("has(object.a) && object.a.b == 'c'", True),
        ("has(object.x) && object.x.y == 'c'", False),
        ("object.l.map(i, i + '!').filter(i, i != 'p!')", ["q!"]),
        ("object.l.all(i, i in ['p', \"q\"])", True),
        ("object.l.all(i, i in [])", False),
        ("object.a == null ? 'n' : object.l == [] ? 'e' : 'f'", "f"),
        (r"'a.b'.matches(r'^a\.b$')", True),
        (r"'a.b\n'.matches('x')", False),
        ("!(object.a == null)", True),
        ("object.l && true", CelError),
        ("object.a.all(k, k == 'b')", True),
        ("object.a.filter(k, k.matches(r'^c$'))", []),
        ("object.a.map(k, object.a[k])", ["c"]),
        ("object.a['x']", CelError),
        ("object.a in [object.a]", True),
    ],
)
def test_the_evaluator_does_as_the_language_says(text: str, value: Any) -> None:
    names = {"object": {"a": {"b": "c"}, "l": ["p", "q"]}}
    if isinstance(value, type):
        with pytest.raises(value):
            Expression(text).value(names)
    else:
        assert Expression(text).value(names) == value
