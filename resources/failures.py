"""The declaration of the budgets: `failures.yaml`."""

import os
from importlib.resources import files
from pathlib import Path

from platform_assets.domain.cluster_budgets import Budgets, parse_budgets
from resources.catalog import read_document

VARIABLE = "SIGNALBOX_FAILURES"


def failures_file() -> Path:
    """SIGNALBOX_FAILURES, else the declaration that comes with the project."""
    chosen = os.environ.get(VARIABLE)
    default = Path(str(files("platform_assets"))) / "failures.yaml"
    return Path(chosen).expanduser() if chosen else default


def load_budgets(path: Path | None = None) -> Budgets:
    """Read the declaration.

    Raises:
        UsageError: it is missing or no YAML, or names what there is not.
    """
    place = path or failures_file()
    return parse_budgets(read_document(place), str(place))
