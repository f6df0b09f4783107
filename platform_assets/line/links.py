"""Addresses by which a training is found from Dagster's UI in MLflow's, and back."""

import os
import re

from platform_assets.domain.errors import HomeError
from resources.home import Home
from resources.tracking.client import shown

DAGSTER_UI = "SIGNALBOX_DAGSTER_UI"
"""Variable: address of Dagster's UI, such as http://dagster.example:3000.

`signalbox dev` sets it for its runs."""

MLFLOW_UI = "SIGNALBOX_MLFLOW_UI"
"""Variable: address of MLflow's UI, where it is not that of the tracking server.

`signalbox dev` sets it to where `signalbox mlflow` runs if no port is named."""

LOCAL_MLFLOW_UI = "http://127.0.0.1:5000"

_ADDRESS = re.compile(r"https?://[^\s/]\S*")


def require_addresses() -> None:
    """Refuse a training whose links would fail it when it is done.

    Raises:
        HomeError: a variable is no address.
    """
    for variable in (DAGSTER_UI, MLFLOW_UI):
        _address(variable)


def dagster_run_url(run_id: str) -> str | None:
    """The page of a Dagster run; None where nobody has said where the UI is.

    Raises:
        HomeError: the variable is no address.
    """
    base = _address(DAGSTER_UI)
    return f"{base}/runs/{run_id}" if base else None


def mlflow_run_url(home: Home, experiment_id: str, run_id: str) -> str | None:
    """The page of an MLflow run; None where the store is a database, and nobody has said where
    its UI is.

    Raises:
        HomeError: the variable is no address.
    """
    base = _address(MLFLOW_UI)
    if not base and home.mlflow_uri.startswith("http"):
        base = shown(home.mlflow_uri).rstrip("/")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}" if base else None


def _address(variable: str) -> str:
    named = os.environ.get(variable, "").strip().rstrip("/")
    if named and not _ADDRESS.fullmatch(named):
        raise HomeError(
            f"{variable} is {named!r}; allowed is the address of a UI, such as "
            "http://127.0.0.1:3000"
        )
    return named
