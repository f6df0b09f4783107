"""Where a model is rebuilt: in the image that it was trained in, or here."""

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.images import ImageRef


class Place(BaseModel):
    """Where a model is trained again.

    Attributes:
        image: in a container of this image; empty: in the process that asks.
        reason: why there.
    """

    model_config = ConfigDict(frozen=True)

    image: str = ""
    reason: str


def place_of(recorded: str, digest: str, here: str, engine: str) -> Place:
    """Where to train again.

    Args:
        recorded: the image that the model was trained in, by repository and digest; empty where
            its repository is not known.
        digest: of that image; empty where it was trained in none.
        here: digest of the image that this process runs in; empty where it runs in none.
        engine: what starts containers; empty where there is nothing that does.
    """
    if not digest:
        return Place(reason="no image was recorded with it")
    if digest == here:
        return Place(reason=f"this process runs in the image that was recorded, {digest}")
    if not recorded:
        return Place(
            reason=f"it was trained in the image {digest}, whose registry was not recorded and "
            "which stands in no images.lock.yaml: environments are compared, none is rebuilt"
        )
    image = str(ImageRef.parse(recorded))
    if not engine:
        return Place(
            reason=f"it was trained in {image}, and neither podman nor docker is here to run it: "
            "environments are compared, none is rebuilt"
        )
    return Place(image=image, reason=f"it was trained in {image}, and is again, by {engine}")
