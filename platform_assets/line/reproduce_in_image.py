"""Rebuilding a model in the image that it was trained in, where there is something to run it."""

import json
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.fingerprint import Environment
from platform_assets.domain.rebuilding import Place, place_of
from platform_assets.line.fingerprints import ENVIRONMENT
from platform_assets.line.services import Services
from resources.catalog import catalog_environment
from resources.containers import Mount, container_engine, run_in
from resources.environment import IMAGE, image_digest
from resources.images import load_lock
from resources.ledger.records import VersionRecord

LAST_WORDS = 600


def place(services: Services, record: VersionRecord) -> Place:
    """Where a model is to be trained again, and why there."""
    recorded = record.detail.get(ENVIRONMENT)
    digest = Environment.model_validate(recorded).image_digest if recorded else ""
    named = str(record.detail.get("image") or "")
    if "@" not in named:  # a digest alone does not say where it lies
        locked = (image for image in load_lock().images.values() if image.digest == digest)
        named = next((str(image.ref) for image in locked), "")
    return place_of(named, digest, image_digest(), container_engine() if digest else "")


def reproduce_in(
    services: Services, record: VersionRecord, image: str, *, tolerance: float, declared: bool
) -> dict[str, Any]:
    """`reproduce` of a container of the image, as its document.

    Raises:
        RefusedError: the container did not come to a verdict.
    """
    spec, engine = services.spec, container_engine()
    variables = {**services.home.environment(), **catalog_environment(), IMAGE: image}
    places = [Path(place) for place in catalog_environment().values()]
    mounts = [Mount(place) for place in places if place.exists()]
    model = f"{spec.model.name}@{record.detail['model_version']}"
    command = ["signalbox", "reproduce", model, "--tolerance", repr(tolerance), "--json"]
    ended = run_in(
        engine,
        image,
        [*command, *(["--declared"] if declared else [])],
        [Mount(services.home.root, writable=True), *mounts],
        variables,
    )
    try:
        told = json.loads(ended.out)
        good, version = told["good"], told["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise RefusedError(
            f"{model} was not rebuilt in {image}: {engine} ended with code {ended.code} and said: "
            f"{' '.join((ended.err or ended.out).split())[-LAST_WORDS:] or 'nothing'}; mend that, "
            "or compare the environments alone with --here"
        ) from error
    if ended.code != (0 if good else 1) or version != record.detail["model_version"]:
        raise RefusedError(
            f"{model} was not rebuilt in {image}: {engine} ended with code {ended.code} and told "
            f"of version {version}; compare the environments alone with --here"
        )
    return {**told, "rebuilt_in": image}
