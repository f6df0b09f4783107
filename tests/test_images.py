"""An image is a repository and a digest, written out; the lock says which may run."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.errors import UsageError
from platform_assets.domain.images import (
    ImageLock,
    ImageRef,
    LockedImage,
    Resolved,
    TaggedImage,
    parse_lock,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
GOOD = f"registry.example:5000/team/train@{DIGEST}"

hosts = st.sampled_from(["localhost", "localhost:5000", "registry:5000", "r.example", "a-b.c.d:1"])
parts = st.from_regex(r"\A[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}\Z").filter(str.isascii)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__)


def entry(**changes: Any) -> LockedImage:
    fields = {
        "repository": "registry.example:5000/team/train",
        "tag": "2026-11",
        "digest": DIGEST,
        "config": "sha256:" + "c" * 64,
        "platform": "linux/amd64",
        "resolved_at": datetime(2026, 11, 1, tzinfo=UTC),
        "resolved_by": "ada",
    }
    return LockedImage.model_validate(fields | changes)


@given(hosts, st.lists(parts, min_size=1, max_size=3), digests)
def test_a_pinned_reference_is_read_whole(host: str, path: list[str], digest: str) -> None:
    text = f"{host}/{'/'.join(path)}@{digest}"
    ref = ImageRef.parse(text)
    assert (str(ref), ref.registry, ref.digest) == (text, host, digest)
    with pytest.raises(UsageError, match="names no tag"):
        TaggedImage.parse(text)


@given(st.text(max_size=120))
def test_no_other_text_is_one(text: str) -> None:
    with pytest.raises(UsageError, match="allowed is REGISTRY/REPOSITORY@sha256:") as refused:
        ImageRef.parse(text)
    assert str(refused.value).isascii()


@given(
    st.integers(0, len(GOOD) - 1),
    st.sampled_from(
        ["", " ", "\n", "\t", "\x00", "@", ":", "/", "A", "\u0430", "\u200b", "\u212a"]
    ),
)
def test_one_character_away_it_is_another_or_none(place: int, character: str) -> None:
    text = GOOD[:place] + character + GOOD[place + 1 :]
    try:
        ref = ImageRef.parse(text)
    except UsageError:
        return
    assert str(ref) == text
    assert ref == ImageRef.parse(GOOD) or text != GOOD
    assert text.isascii()
    assert not any(c.isspace() for c in text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("registry.example/train:latest", "it has no digest"),
        ("registry.example/train", "it has no digest"),
        (f"train@{DIGEST}", "does not say from which registry"),
        (f"team/train@{DIGEST}", "does not say from which registry"),
        (f"registry.example/train:1@{DIGEST}", "it has a tag and a digest"),
        (f"registry.example/train@{DIGEST.upper()}", "is no digest"),
        (f"registry.example/train@{DIGEST[:-1]}", "is no digest"),
        (f"registry.example/train@{DIGEST}0", "is no digest"),
        (f"registry.example/train@sha512:{HEX}{HEX}", "is no digest"),
        (f"registry.example/train@{DIGEST}@{DIGEST}", "more than one @"),
        (f" registry.example/train@{DIGEST}", "a space"),
        (f"registry.example/train@{DIGEST}\n", "a space or a control character"),
        (f"registry.example/Train@{DIGEST}", "is no repository"),
        (f"registry.example/tr\u0430in@{DIGEST}", "which only looks like"),
        (f"registry.example//train@{DIGEST}", "is no repository"),
        (f"registry.example/{'x' * 5000}@{DIGEST}", "characters"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        ImageRef.parse(text)
    assert why in str(refused.value)


def test_a_lock_gives_images_by_name_and_names_by_image() -> None:
    lock = ImageLock(registries=("registry.example:5000",), images={"train": entry()})
    assert str(lock.named("train").ref) == GOOD
    assert lock.of(ImageRef.parse(GOOD)) == "train"
    assert lock.of(ImageRef.parse(GOOD[:-1] + "0")) is None
    with pytest.raises(UsageError, match=r"no image 'serve'; it has train; .* images pin serve"):
        lock.named("serve")
    again = lock.with_image("serve", entry(digest="sha256:" + "1" * 64))
    assert sorted(again.images) == ["serve", "train"]
    assert parse_lock(again.model_dump(mode="json"), "x") == again


def test_a_cluster_may_report_any_of_three_digests() -> None:
    index, config = "sha256:" + "1" * 64, "sha256:" + "c" * 64
    assert entry().ids == {DIGEST, config}
    assert entry(index=index).ids == {DIGEST, config, index}


def test_what_a_registry_answers_becomes_an_entry() -> None:
    found = Resolved(digest=DIGEST, index="", config="sha256:" + "c" * 64, platform="linux/amd64")
    image = TaggedImage.parse("registry.example:5000/team/train:2026-11")
    at = datetime(2026, 11, 1, tzinfo=UTC)
    assert found.locked(image, at=at, by="ada") == entry()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"registries": []}, "images.train: its registry registry.example:5000 is not among"),
        ({"registries": ["http://registry.example"]}, "no host of a registry"),
        ({"version": 2}, "version: "),
        ({"extra": 1}, "extra: "),
        ({"images": {"Train": entry().model_dump()}}, "'Train' is no name of an image"),
        ({"images": {"train": entry().model_dump() | {"digest": "latest"}}}, "train.digest"),
        (
            {"images": {"train": entry().model_dump() | {"resolved_at": "2026-11-01T00:00:00"}}},
            "train.resolved_at",
        ),
    ],
)
def test_a_lock_that_is_wrong_is_refused(changes: dict[str, Any], says: str) -> None:
    document = {
        "version": 1,
        "registries": ["registry.example:5000"],
        "images": {"train": entry().model_dump()},
    }
    with pytest.raises(UsageError) as refused:
        parse_lock(document | changes, "images.lock.yaml")
    assert str(refused.value).startswith("images.lock.yaml is refused, no image may run")
    assert says in str(refused.value)
    with pytest.raises(UsageError, match="found list"):
        parse_lock([], "images.lock.yaml")
