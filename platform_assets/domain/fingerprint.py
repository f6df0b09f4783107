"""The run fingerprint: one value over everything that decides what a training makes.

Equal fingerprints mean equal models: a training is seeded and deterministic, so what is not in
here must not matter to it. What is in, and what is left out, is said at each field.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from platform_assets.domain.digests import canonical_json, digest_of

SHA256 = r"^[0-9a-f]{64}$"
IMAGE_DIGEST = r"^(sha256:[0-9a-f]{64})?$"
NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """One field that was `then` and is `now`, both as text for people.

    Attributes:
        field: its name; of a parameter or a package `parameters.num_leaves`, `packages.numpy`.
    """

    field: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.field} was {self.then}, is {self.now}"


class Environment(BaseModel):
    """What a training ran in.

    Attributes:
        python: version of the interpreter, `3.11.9`.
        platform: system, processor and C library; not the kernel, which changes under a container.
        packages: installed version by distribution: the trainer's requirements and theirs.
        git_commit: 40 hexadecimal digits; empty where the code is in no repository.
        git_dirty: whether a tracked file differed from that commit.
        image_digest: `sha256:` and 64 hexadecimal digits; empty where no image is known.
    """

    model_config = ConfigDict(frozen=True)

    python: str
    platform: str
    packages: Mapping[str, str]
    git_commit: str = ""
    git_dirty: bool = False
    image_digest: str = Field(default="", pattern=IMAGE_DIGEST)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lock_digest(self) -> str:
        """SHA-256 over interpreter, platform and packages as they are installed.

        Not over a lock file: an upgrade by hand leaves that as it was, and trains another model.
        """
        return digest_of(
            {"python": self.python, "platform": self.platform, "packages": dict(self.packages)}
        )

    def differences(self, now: "Environment") -> tuple[Difference, ...]:
        """What has changed since, package by package; the lock digest follows from it."""
        return differing(self._fields(), now._fields())

    def _fields(self) -> dict[str, Any]:
        whole = self.model_dump(mode="json", exclude={"packages", "lock_digest"})
        return whole | {f"packages.{name}": version for name, version in self.packages.items()}


class RunFingerprint(BaseModel):
    """What decides what a training makes.

    Attributes:
        snapshot: digest of the manifest: which rows, in which versions.
        code: digest over the sources that make a model of those rows, and the definition of what
            they read (see line/fingerprints.py). Not the git commit: most commits change none.
        trainer: entry point, `package.module:Name`.
        parameters: those of the spec; `1`, `1.0` and `true` differ.
        seed: of everything that is random.
        lock: `Environment.lock_digest`. An upgrade of LightGBM is another fingerprint.
        image: `Environment.image_digest`; the image holds more than the packages.
        processes: how many begin to train together, and on how many nodes, `2 on 1`; empty: one.
        stream: whether the rows came in parts: they are shuffled in another way then.
    """

    model_config = ConfigDict(frozen=True)

    snapshot: str = Field(pattern=SHA256)
    code: str = Field(pattern=SHA256)
    trainer: str
    parameters: Mapping[str, bool | int | float | str]
    seed: int
    lock: str = Field(pattern=SHA256)
    image: str = Field(default="", pattern=IMAGE_DIGEST)
    # Left out where empty: the values of trainings before there were several stay as they are.
    processes: str = Field(default="", exclude_if=lambda found: not found)
    stream: bool = Field(default=False, exclude_if=lambda found: not found)

    @cached_property
    def value(self) -> str:
        """SHA-256 of all fields, 64 hexadecimal digits."""
        return digest_of(self.parts())

    def parts(self) -> dict[str, Any]:
        """The fields as JSON holds them; `RunFingerprint.model_validate` takes them back."""
        return self.model_dump(mode="json")

    def differences(self, now: "RunFingerprint") -> tuple[Difference, ...]:
        """What has changed since, field by field and parameter by parameter; none if equal."""
        return differing(self._fields(), now._fields())

    def _fields(self) -> dict[str, Any]:
        parts = self.parts()
        parameters = parts.pop("parameters")
        return parts | {f"parameters.{name}": value for name, value in parameters.items()}


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The fields of two flat documents that are not the same, by name."""
    return tuple(
        Difference(name, _said(then, name), _said(now, name))
        for name in sorted({*then, *now})
        # As JSON: Python finds 1, 1.0 and True equal, a trainer may not.
        if (name in then) != (name in now)
        or canonical_json(then[name]) != canonical_json(now[name])
    )


def _said(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields or fields[name] == "":
        return NOTHING
    value = fields[name]
    return value if isinstance(value, str) else canonical_json(value)
