"""Dagster's own storage in the home: made once, in one process, before anything else starts."""

from pathlib import Path

import dagster as dg

from resources.home import Home, initialise
from resources.tracking import Tracking


def dagster_yaml() -> Path:
    """The instance configuration that a home is made with."""
    here = Path(__file__).resolve()
    beside = here.parents[2] / "dagster.yaml"
    return beside if beside.exists() else here.parents[2] / "resources" / "dagster.yaml"


def prepare(home: Home) -> None:
    """Create Dagster's and MLflow's databases: both break when two processes do so at once."""
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        instance.get_runs_count()
        instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION), limit=1
        )
        instance.all_instigator_state()
    Tracking(home.mlflow_uri, home.mlflow_artifacts).prepare()


def make_home(home: Home) -> None:
    """Make or open a home; any number of processes may do so at once.

    Raises:
        HomeError: it cannot be written, or another version made it.
    """
    initialise(home, dagster_yaml=dagster_yaml(), prepare=prepare)
