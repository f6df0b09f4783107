"""What a slot holds, verified by the ledger, for who loads it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.serving import Served
from platform_assets.line.projection import recorded_digest
from platform_assets.line.services import Services
from resources.tracking.models import model_digest, private_copy


@contextmanager
def verified_slot(services: Services) -> Iterator[tuple[Path, Served]]:
    """A private copy of the files that the slot holds, of exactly the digest of the ledger.

    Raises:
        RefusedError: nothing is deployed, its files are others than those that were recorded, or
            nobody ever promoted the version.
    """
    spec, slot = services.spec, services.slot
    now = slot.serves()
    if now is None:
        raise RefusedError(
            f"nothing of {spec.model.name} is deployed in {slot.root}, it takes a champion; "
            f"`signalbox reconcile {spec.pipeline}` deploys the ledger's"
        )
    was = {change.version: change for change in services.ledger.promotions(spec.model.name)}
    change = was.get(now.version) if now.version is not None else None
    if change is None:
        raise RefusedError(
            f"the slot {slot.root} holds {now}, which never was champion of {spec.model.name}; "
            f"nothing was loaded, set it right with `signalbox reconcile {spec.pipeline} --mend`"
        )
    recorded = recorded_digest(services, change.version, change.model_date.isoformat())
    with tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
        folder, found = Path(temporary), ""
        # Of who changes the files from here on nothing is loaded.
        if now.digest:
            folder = private_copy(slot.files.resolve(), Path(temporary))
            found = model_digest(folder)
        if found != recorded:
            raise RefusedError(
                f"the slot {slot.root} holds files with digest {found or 'none'} as version "
                f"{change.version}, recorded was {recorded}; nothing of them was loaded, set it "
                f"right with `signalbox reconcile {spec.pipeline} --mend`"
            )
        yield folder, Served(version=change.version, digest=found)
