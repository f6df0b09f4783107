"""Dagster's own storage in the home: made once, in one process, before anything else starts."""

import tempfile
from pathlib import Path

import dagster as dg

from platform_assets.instance.forked import is_alive
from resources.home import DAGSTER_URL, Home, initialise
from resources.tracking import Tracking

POSTGRES_STORAGE = f"""
# Runs, events and schedules are in Postgres.
storage:
  postgres:
    postgres_url:
      env: {DAGSTER_URL}
"""


KILLED = "Its process was killed, and Dagster with it."


def dagster_yaml() -> Path:
    """The instance configuration that a home is made with."""
    here = Path(__file__).resolve()
    beside = here.parents[2] / "dagster.yaml"
    return beside if beside.exists() else here.parents[2] / "resources" / "dagster.yaml"


def instance_config(home: Home) -> str:
    """The text of a home's dagster.yaml: with Postgres as storage where one is named."""
    text = dagster_yaml().read_text(encoding="utf-8")
    return text + POSTGRES_STORAGE if home.dagster_url else text


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
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "dagster.yaml"
        config.write_text(instance_config(home), encoding="utf-8")
        initialise(home, dagster_yaml=config, prepare=prepare)


def end_orphaned_runs(home: Home, *, foreign: bool = False) -> list[str]:
    """End the runs that are in progress although no process is: all were killed at once.

    Dagster itself would leave them as they are for good, and each would keep its slot in the
    queue. To be called only while no daemon works on the home. A forked run may have outlived the
    daemon that launched it: it goes on, and the next daemon watches it.

    Args:
        foreign: the home is a copy, whose runs belong to the home that it was copied from: none
            of them works here, and whoever ended one would end that home's process.

    Returns:
        The ids of the runs that were ended.
    """
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        in_progress = [
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.CANCELING,
        ]
        runs = [
            run
            for run in instance.get_runs(dg.RunsFilter(statuses=in_progress))
            if foreign or not is_alive(run)
        ]
        for run in runs:
            if run.status is dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "Its process was killed while it was canceled.")
            else:
                why = "It ran in the home that this one was copied from." if foreign else KILLED
                instance.report_run_failed(run, why)
        return [run.run_id for run in runs]
