"""Which image each asset of a pipeline is made in, and where its runs are."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from platform_assets.domain.errors import UsageError

DEPLOYMENT = "SIGNALBOX_DEPLOYMENT"
"""Variable: `local` (one process a run) or `k8s` (Jobs of a cluster, images by digest)."""

DEFAULT_IMAGE = "train"
IMAGE_TAG = "signalbox/image"
"""Tag of an op: the name in the lock of the image that its step runs in."""

Deployment = Literal["local", "k8s"]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]


class ImagesSpec(BaseModel):
    """Names in images.lock.yaml by asset; what is not named runs in `train`.

    It has no say in what is made: another image makes another model only by what is in it, which
    the run fingerprint holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: _Name = DEFAULT_IMAGE
    day: _Name = DEFAULT_IMAGE
    snapshot: _Name = DEFAULT_IMAGE
    model: _Name = DEFAULT_IMAGE
    evaluation: _Name = DEFAULT_IMAGE
    champion: _Name = DEFAULT_IMAGE

    def of(self, stage: str) -> str:
        """The image of an asset; of what is no asset of the line the default."""
        return str(getattr(self, stage, DEFAULT_IMAGE))

    def names(self) -> frozenset[str]:
        """All that are needed."""
        return frozenset(self.model_dump().values())


def deployment(variables: Mapping[str, str]) -> Deployment:
    """Where runs are, by the variables of this process.

    Raises:
        UsageError: the variable says something else.
    """
    chosen = variables.get(DEPLOYMENT, "").strip() or "local"
    if chosen == "local" or chosen == "k8s":
        return chosen  # type: ignore[return-value]
    raise UsageError(f"{DEPLOYMENT} is {chosen!r}; allowed are local and k8s")
