"""Where the inventory of GPUs comes from: the cluster, or a file that somebody keeps."""

import os
from datetime import UTC, datetime
from pathlib import Path

from platform_assets.domain.errors import SignalboxError, SpecError, UsageError
from platform_assets.domain.gpu_inventory import Inventory, of_document
from platform_assets.domain.gpu_placing import Request, Reserve
from platform_assets.domain.gpu_planning import request_of
from platform_assets.domain.gpu_shapes import shape_of
from platform_assets.domain.lanes import Lane
from resources.catalog import load_catalog, read_document

VARIABLE = "SIGNALBOX_GPUS"
"""`cluster`, or a YAML file."""

CLUSTER = "cluster"
RESERVE = "SIGNALBOX_GPU_RESERVE"
"""A shape that stays free for the daily lane."""


def chosen_inventory(option: str | None = None) -> str:
    """`cluster` or a file, by the option, else the variable; empty if nobody says."""
    return (option if option is not None else os.environ.get(VARIABLE, "")).strip()


def reserve(option: str | None = None) -> Reserve | None:
    """What is kept for the daily lane, by the option, else the variable.

    Raises:
        UsageError: it is no shape.
    """
    text = (option if option is not None else os.environ.get(RESERVE, "")).strip()
    if not text:
        return None
    try:
        return Reserve(shape_of(text))
    except ValueError as error:
        name = "--reserve" if option is not None else RESERVE
        raise UsageError(f"{name}: {error}") from None


def read_inventory(file: str, now: datetime | None = None) -> Inventory:
    """The inventory of a file.

    Raises:
        UsageError: it is missing, no YAML, or wrong; names each wrong field.
    """
    try:
        document = read_document(Path(file).expanduser())
    except SpecError as error:
        told = "; ".join(f"{where}: {why}" for where, why in error.problems.items())
        raise UsageError(f"{file} is refused: {told}") from error
    return of_document(document, file, now or datetime.now(UTC))


def expected() -> tuple[Request, ...]:
    """What the models of the catalog ask for, one each: the fragmentation is measured for them.

    Without a catalog that can be read nothing is expected.
    """
    try:
        catalog = load_catalog()
    except SignalboxError:
        return ()
    return tuple(
        request_of(name, spec.model.gpus, spec.model.gpus.ordered(), Lane.DAILY)
        for name, spec in catalog.items()
        if spec.model.gpus is not None
    )
