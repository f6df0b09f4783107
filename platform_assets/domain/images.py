"""Images by digest: a reference that cannot be moved, and the lock that says which may run.

A tag is a name that somebody can give to another image at any time. What runs is named by
`registry/repository@sha256:<64 hexadecimal digits>` and by nothing else, and stands in
`images.lock.yaml` under a logical name, with where it came from, when and by whom it was looked up.

The grammar is that of the OCI distribution specification (distribution/reference), made narrower:
the registry must be written out, for what `python:3` means is decided on the machine that pulls it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from platform_assets.domain.errors import UsageError

DIGEST = r"sha256:[0-9a-f]{64}"
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
# A host is told from the first part of a path by its dot or its port; `localhost` by its name.
_PORT = r":[0-9]{1,5}"
HOST = rf"(?:(?:localhost|{_LABEL}(?:\.{_LABEL})+)(?:{_PORT})?|{_LABEL}{_PORT})"
COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
REPOSITORY = rf"{HOST}(?:/{COMPONENT})+"
TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
NAME = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
LOCK_FILE = "images.lock.yaml"
ALLOWED = "REGISTRY/REPOSITORY@sha256:<64 hexadecimal digits>"

_PINNED = re.compile(rf"({REPOSITORY})@({DIGEST})", re.ASCII)
_TAGGED = re.compile(rf"({REPOSITORY}):({TAG})", re.ASCII)
_HOST = re.compile(HOST, re.ASCII)
_LONGEST = 4096


@dataclass(frozen=True)
class ImageRef:
    """An image by digest.

    Attributes:
        repository: with its registry, `registry.example:5000/train`.
        digest: `sha256:` and 64 hexadecimal digits.
    """

    repository: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference that a text is, whole and without anything around it.

        Raises:
            UsageError: it is none; says what is wrong with it.
        """
        found = _PINNED.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None:
            raise UsageError(f"{shown(text)} is refused: {_wrong(text)}; allowed is {ALLOWED}")
        return cls(found[1], found[2])

    @property
    def registry(self) -> str:
        """The host, with its port if it has one."""
        return self.repository.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True)
class TaggedImage:
    """What a person names when an image is to be looked up: a repository and a tag."""

    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """`registry.example:5000/train:2026-11`.

        Raises:
            UsageError: it is none.
        """
        found = _TAGGED.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None:
            raise UsageError(
                f"{shown(text)} names no tag of a repository; allowed is REGISTRY/REPOSITORY:TAG, "
                "with the registry's host written out, as in registry.example:5000/train:2026-11"
            )
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


def shown(text: str) -> str:
    """A text from outside as one line of ASCII, cut: look-alikes and spaces become visible."""
    return ascii(text if len(text) <= 200 else text[:200] + "…")


def _wrong(text: str) -> str:
    """The first thing that is wrong with a reference, for a person."""
    if not text:
        return "it is empty"
    if not text.isascii():
        odd = next(c for c in text if not c.isascii())
        return f"it holds {odd!a}, which only looks like a character of a reference"
    if len(text) > _LONGEST:
        return f"it has {len(text)} characters"
    if any(c.isspace() or not c.isprintable() for c in text):
        return "it holds a space or a control character"
    before, at, digest = text.partition("@")
    if not at:
        return "it has no digest, so it can be another image tomorrow"
    if "@" in digest:
        return "it holds more than one @"
    if not re.fullmatch(DIGEST, digest, re.ASCII):
        return f"{digest!r} is no digest of SHA-256"
    if _TAGGED.fullmatch(before):
        return "it has a tag and a digest, and only the digest would count"
    if "/" not in before or not _HOST.fullmatch(before.partition("/")[0]):
        return "it does not say from which registry"
    return f"{before!r} is no repository, which is in lower case and begins with the registry"


class LockedImage(BaseModel):
    """One image of the lock.

    Attributes:
        repository: with its registry.
        tag: under which it was found; never used again for running. Empty where it was pinned by
            its digest, and no other entry says where that came from.
        digest: of the manifest that is run, that of the platform.
        index: digest of the multi-platform index that the tag pointed at; empty where the tag
            pointed at the manifest itself.
        config: digest of the image's configuration, which some clusters report as its ID.
        platform: `linux/amd64`.
        resolved_at: when it was looked up.
        resolved_by: who did.
        lock_digest: SHA-256 of the requirements.lock inside; empty where the image does not say.
        base: digest of the base image; empty where the image does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str = Field(pattern=rf"^{REPOSITORY}$")
    tag: str = Field(default="", pattern=rf"^(?:{TAG})?$")
    digest: str = Field(pattern=rf"^{DIGEST}$")
    index: str = Field(default="", pattern=rf"^(?:{DIGEST})?$")
    config: str = Field(pattern=rf"^{DIGEST}$")
    platform: str = Field(pattern=r"^[a-z0-9]+/[a-z0-9]+(?:/[a-z0-9]+)?$")
    resolved_at: AwareDatetime
    resolved_by: str = Field(min_length=1)
    lock_digest: str = Field(default="", pattern=rf"^(?:{DIGEST})?$")
    base: str = Field(default="", pattern=rf"^(?:{DIGEST})?$")

    @property
    def ref(self) -> ImageRef:
        """How it is run."""
        return ImageRef(self.repository, self.digest)

    @property
    def ids(self) -> frozenset[str]:
        """The digests that a cluster may report for it: index, manifest, configuration."""
        return frozenset({self.digest, self.index, self.config} - {""})


class ImageLock(BaseModel):
    """What `images.lock.yaml` says: the images that may run, by logical name.

    Attributes:
        version: of this format.
        registries: hosts that images may come from.
        images: the images; a name is that of the catalog, a DNS label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    registries: tuple[str, ...] = ()
    images: Mapping[str, LockedImage] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for host in self.registries:
            if not _HOST.fullmatch(host):
                raise ValueError(f"registries: {shown(host)} is no host of a registry")
        for name, image in self.images.items():
            if not re.fullmatch(NAME, name, re.ASCII):
                raise ValueError(
                    f"images: {shown(name)} is no name of an image; a name has lower-case letters, "
                    "digits and dashes, 63 at most"
                )
            if image.ref.registry not in self.registries:
                raise ValueError(
                    f"images.{name}: its registry {image.ref.registry} is not among the allowed "
                    f"({', '.join(self.registries) or 'none'})"
                )
        return self

    def named(self, name: str) -> LockedImage:
        """An image by its logical name.

        Raises:
            UsageError: there is none.
        """
        if name not in self.images:
            raise UsageError(
                f"{LOCK_FILE} has no image {name!r}; it has "
                f"{', '.join(sorted(self.images)) or 'none'}; add it with `signalbox images pin "
                f"{name} REGISTRY/REPOSITORY:TAG`"
            )
        return self.images[name]

    def of(self, ref: ImageRef) -> str | None:
        """The name under which an image by digest stands here."""
        return next((n for n, i in sorted(self.images.items()) if i.ref == ref), None)

    def known(self, image: LockedImage) -> LockedImage:
        """An image that was looked up by its digest, with tag and index of an entry that has it."""
        for other in self.images.values():
            if not image.tag and other.tag and other.ref == image.ref:
                more = {"tag": other.tag, "index": image.index or other.index}
                return image.model_copy(update=more)
        return image

    def with_image(self, name: str, image: LockedImage) -> "ImageLock":
        """The lock with one image put in its place; its registry must be allowed already."""
        images = {**self.images, name: image}
        document = {"version": self.version, "registries": self.registries, "images": images}
        return parse_lock(document, LOCK_FILE)


@dataclass(frozen=True)
class Resolved:
    """What a registry answers for a tag or digest: those of LockedImage, and what it is made of."""

    digest: str
    index: str
    config: str
    platform: str
    lock_digest: str = ""
    base: str = ""

    def locked(self, image: TaggedImage | ImageRef, *, at: datetime, by: str) -> LockedImage:
        """As an entry of the lock."""
        return LockedImage(
            repository=image.repository,
            tag=image.tag if isinstance(image, TaggedImage) else "",
            digest=self.digest,
            index=self.index,
            config=self.config,
            platform=self.platform,
            resolved_at=at,
            resolved_by=by,
            lock_digest=self.lock_digest,
            base=self.base,
        )


def parse_lock(document: Any, origin: str) -> ImageLock:
    """A document as a lock.

    Raises:
        UsageError: names each wrong field.
    """
    refused = f"{origin} is refused, no image may run until it is mended: "
    if not isinstance(document, Mapping):
        raise UsageError(f"{refused}found {type(document).__name__}, not a mapping")
    try:
        return ImageLock.model_validate(document)
    except ValidationError as error:
        problems = [
            ": ".join(
                filter(
                    None,
                    [
                        ".".join(str(part) for part in problem["loc"]),
                        problem["msg"].removeprefix("Value error, "),
                    ],
                )
            )
            for problem in error.errors(include_url=False)
        ]
        raise UsageError(refused + "; ".join(problems)) from None
