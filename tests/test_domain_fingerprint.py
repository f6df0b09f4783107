"""The run fingerprint: equal exactly where nothing differs that decides what a training makes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from platform_assets.domain.fingerprint import Environment, RunFingerprint

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.text("abcdefgh_", min_size=1, max_size=4)
VALUES = (
    st.booleans()
    | st.integers(-3, 3)
    | st.floats(-3, 3, allow_nan=False)
    | st.sampled_from(["", "1", "true", "gbdt"])
)
IMAGES = st.just("") | DIGESTS.map("sha256:{}".format)
FINGERPRINTS = st.builds(
    RunFingerprint,
    snapshot=DIGESTS,
    code=DIGESTS,
    trainer=st.sampled_from(["a.b:C", "a.b:D"]),
    parameters=st.dictionaries(NAMES, VALUES, max_size=4),
    seed=st.integers(0, 3),
    lock=DIGESTS,
    image=IMAGES,
)
ENVIRONMENTS = st.builds(
    Environment,
    python=st.sampled_from(["3.11.8", "3.11.9"]),
    platform=st.sampled_from(["Linux-x86_64-glibc2.36", "Linux-aarch64-glibc2.36"]),
    packages=st.dictionaries(NAMES, st.sampled_from(["1.0", "1.1"]), max_size=4),
    git_commit=st.sampled_from(["", "a" * 40]),
    git_dirty=st.booleans(),
    image_digest=IMAGES,
)


@given(FINGERPRINTS, FINGERPRINTS)
def test_fingerprints_are_equal_exactly_where_nothing_differs(
    one: RunFingerprint, other: RunFingerprint
) -> None:
    assert (one.value == other.value) == (one.differences(other) == ())


@given(FINGERPRINTS, st.data())
def test_each_field_decides_and_is_named(one: RunFingerprint, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(RunFingerprint.model_fields)))
    other = data.draw(FINGERPRINTS)
    changed = one.model_copy(update={field: getattr(other, field)})
    changed = RunFingerprint.model_validate(changed.parts())
    named = {difference.field.partition(".")[0] for difference in one.differences(changed)}
    assert named <= {field}
    assert bool(named) == (one.value != changed.value)
    back = changed.differences(one)
    assert [(d.field, d.now, d.then) for d in back] == [
        (d.field, d.then, d.now) for d in one.differences(changed)
    ]


@given(FINGERPRINTS)
def test_it_comes_back_from_the_ledgers_json(one: RunFingerprint) -> None:
    found = RunFingerprint.model_validate(json.loads(json.dumps(one.parts())))
    assert found.value == one.value
    assert one.differences(found) == ()


@given(FINGERPRINTS, st.randoms())
def test_the_order_of_parameters_does_not_matter(one: RunFingerprint, random: Any) -> None:
    parts = one.parts()
    names = list(parts["parameters"])
    random.shuffle(names)
    parts["parameters"] = {name: parts["parameters"][name] for name in names}
    assert RunFingerprint.model_validate(parts).value == one.value


@pytest.mark.parametrize(("then", "now"), [(1, 1.0), (1, True), ("1", 1), (0.0, -0.0)])
def test_what_python_finds_equal_and_a_trainer_may_not_differs(then: Any, now: Any) -> None:
    base = {"snapshot": "a" * 64, "code": "b" * 64, "trainer": "a:B", "seed": 1, "lock": "c" * 64}
    one = RunFingerprint(**base, parameters={"x": then})
    other = RunFingerprint(**base, parameters={"x": now})
    assert one.value != other.value
    assert [d.field for d in one.differences(other)] == ["parameters.x"]
    gone = RunFingerprint(**base, parameters={})
    assert [d.now for d in one.differences(gone)] == ["nothing"]


@given(ENVIRONMENTS, ENVIRONMENTS)
def test_the_lock_follows_from_what_is_installed_and_nothing_else(
    one: Environment, other: Environment
) -> None:
    apart = [d.field for d in one.differences(other)]
    of_lock = [f for f in apart if f in ("python", "platform") or f.startswith("packages.")]
    assert (one.lock_digest == other.lock_digest) == (of_lock == [])
    back = Environment.model_validate(json.loads(json.dumps(one.model_dump(mode="json"))))
    assert back == one
    assert one.model_dump(mode="json")["lock_digest"] == one.lock_digest


@pytest.mark.parametrize("image", ["latest", "sha256:abc", "train@sha256:" + "a" * 64])
def test_what_can_be_moved_is_no_image_digest(image: str) -> None:
    with pytest.raises(ValidationError):
        Environment(python="3", platform="x", packages={}, image_digest=image)
