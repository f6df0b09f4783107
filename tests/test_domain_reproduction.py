"""The verdict on a rebuilt model, and how a person names one."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.errors import UsageError
from platform_assets.domain.fingerprint import Difference
from platform_assets.domain.model_ref import ALIASES, ModelRef
from platform_assets.domain.reproduction import (
    Aspect,
    Comparison,
    Predictions,
    Verdict,
    conclude,
    differences,
)

THEN, NOW = "a" * 64, "b" * 64
CHANGED = (Difference("x", "1", "2"),)
aspects = st.permutations(list(Aspect))
flat = st.dictionaries(st.text(st.sampled_from("ab"), max_size=2), st.integers(0, 2), max_size=4)


def compared(changed: frozenset[Aspect], order: list[Aspect]) -> list[Comparison]:
    return [Comparison(aspect=a, differences=CHANGED if a in changed else ()) for a in order]


def predictions(largest: float, differing: int = 1) -> Predictions:
    return Predictions(on="the training rows", rows=10, differing=differing, largest=largest)


@given(changed=st.frozensets(st.sampled_from(list(Aspect))), order=aspects)
def test_it_parted_in_the_first_aspect_that_differs_however_they_are_listed(
    changed: frozenset[Aspect], order: list[Aspect]
) -> None:
    found = conclude(
        comparisons=compared(changed, order),
        digest_then=THEN,
        digest_now=NOW,
        predictions=predictions(0.5),
    )
    first = next((a for a in Aspect if a in changed), None)
    assert found.diverged is first
    assert [c.aspect for c in found.comparisons] == list(Aspect)
    assert (f"it first diverged in {first}: x was 1, is 2" in found.reason) == bool(first)


@given(changed=st.frozensets(st.sampled_from(list(Aspect))), order=aspects)
def test_equal_bytes_are_identical_whatever_else_differs(
    changed: frozenset[Aspect], order: list[Aspect]
) -> None:
    found = conclude(comparisons=compared(changed, order), digest_then=THEN, digest_now=THEN)
    assert found.verdict is Verdict.IDENTICAL
    assert found.diverged is None
    assert {c.aspect for c in found.comparisons if c.differences} == changed


@given(largest=st.floats(0, 1), tolerance=st.floats(0, 1))
def test_the_tolerance_is_the_largest_difference_that_passes(
    largest: float, tolerance: float
) -> None:
    found = conclude(
        comparisons=[],
        digest_then=THEN,
        digest_now=NOW,
        predictions=predictions(largest, differing=int(largest > 0)),
        tolerance=tolerance,
    )
    if largest == 0:
        assert found.verdict is Verdict.EQUAL
    else:
        assert (found.verdict is Verdict.WITHIN) == (largest <= tolerance)
    assert found.verdict.good == (largest == 0 or largest <= tolerance)


def test_a_difference_that_is_no_number_is_within_nothing() -> None:
    found = conclude(
        comparisons=[],
        digest_then=THEN,
        digest_now=NOW,
        predictions=predictions(math.nan),
        tolerance=1.0,
    )
    assert found.verdict is Verdict.DIFFERENT


def test_predictions_that_cannot_be_had_are_no_equal_ones() -> None:
    found = conclude(comparisons=[], digest_then=THEN, digest_now=NOW, unpredictable="it is gone")
    assert found.verdict is Verdict.DIFFERENT
    assert "cannot be compared: it is gone" in found.reason


@pytest.mark.parametrize(
    ("repeats", "recorded", "said"),
    [
        (False, True, "the trainer does not repeat itself"),
        (True, True, "code that the trainer imports"),
        (None, False, "not recorded are environment"),
    ],
)
def test_what_no_comparison_explains(repeats: bool | None, recorded: bool, said: str) -> None:
    found = conclude(
        comparisons=[Comparison(aspect=Aspect.ENVIRONMENT, recorded=recorded)],
        digest_then=THEN,
        digest_now=NOW,
        predictions=predictions(0.1),
        repeats=repeats,
    )
    assert found.diverged is None
    assert said in found.reason


@given(flat, flat)
def test_differences_are_exactly_the_fields_that_differ(
    then: Mapping[str, int], now: Mapping[str, int]
) -> None:
    found = differences({"packages": then}, {"packages": now})
    wanted = {f"packages.{k}" for k in then.keys() | now.keys() if then.get(k) != now.get(k)}
    assert {d.field for d in found} == wanted
    assert differences(then, then) == ()


def test_lists_are_the_same_however_they_were_kept() -> None:
    assert differences({"features": ("a", "b")}, {"features": ["a", "b"]}) == ()
    assert differences({"features": ("a", "b")}, {"features": ["b", "a"]})


# --- how a person names one -------------------------------------------------------------------


@given(
    name=st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True),
    which=st.one_of(st.integers(1, 10**8), st.sampled_from(ALIASES)),
)
def test_a_reference_is_read_as_it_is_written(name: str, which: int | str) -> None:
    ref = ModelRef.parse(f"{name}@{which}")
    assert str(ref) == f"{name}@{which}"
    assert ref == ModelRef.parse(str(ref))


def test_without_more_the_champion_is_meant() -> None:
    assert ModelRef.parse("flight-delay") == ModelRef(name="flight-delay", alias="champion")
    assert ModelRef.parse("flight-delay@v12").version == 12


@pytest.mark.parametrize(
    "text", ["", "@1", "a@", "a@0", "a@-1", "a@1.5", "a@newest", "a b@1", "a@1@2", "../x", "a@٣"]
)
def test_anything_else_is_wrong_use(text: str) -> None:
    with pytest.raises(UsageError):
        ModelRef.parse(text)
