"""Dagster's own storage in the home: made once, in one process, before anything else starts."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import dagster as dg
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.tags import GRPC_INFO_TAG

from platform_assets.domain.lease import Holder
from platform_assets.instance.whereabouts import name_of, worker_of
from resources.home import DAGSTER_URL, Home, initialise
from resources.ledger.leases import Leases
from resources.processes import is_dead, machine, rebooted
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


def end_orphaned_runs(home: Home, *, foreign: bool = False, servers: bool = False) -> list[str]:
    """End the runs that are in progress although no process is: all were killed at once.

    Dagster itself would leave them as they are for good, and each would keep its slot in the
    queue. To be called only while no daemon works on the home. A run whose process lives goes on,
    and the next daemon watches it. One that may live where nobody can look is left too, and its
    log says so.

    Args:
        foreign: the home is a copy, whose runs belong to the home that it was copied from: none
            of them works here, and whoever ended one would end that home's process.
        servers: code servers may have gone on without the daemon, and their runs with them.

    Returns:
        The ids of the runs that were ended.
    """
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        in_progress = [
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.CANCELING,
        ]
        found = instance.get_runs(dg.RunsFilter(statuses=in_progress))
        runs = list(found) if foreign else _orphans(instance, home, found, servers=servers)
        for run in runs:
            if run.status is dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "Its process was killed while it was canceled.")
            else:
                why = "It ran in the home that this one was copied from." if foreign else KILLED
                instance.report_run_failed(run, why)
        return [run.run_id for run in runs]


def _orphans(
    instance: dg.DagsterInstance, home: Home, runs: Iterable[dg.DagsterRun], *, servers: bool
) -> list[dg.DagsterRun]:
    """The runs that no process can be at work on; the log of any other says why it is left."""
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return []  # a cluster's, which is asked by its own launcher whether a run lives
    held: dict[str, list[Holder]] = defaultdict(list)
    for record in Leases(home.ledger_url).held():
        held[record.holder.run_id].append(record.holder)
    orphans = []
    for run in runs:
        why = _may_live(home, run, held[run.run_id], servers=servers)
        if why is None:
            orphans.append(run)
        else:
            instance.report_engine_event(f"Dagster was started, and this run left: {why}.", run)
    return orphans


def _may_live(
    home: Home, run: dg.DagsterRun, holders: Sequence[Holder], *, servers: bool
) -> str | None:
    """Why a run may be at work still; None if it cannot be.

    Args:
        holders: of the leases that stand in the ledger under its id.
    """
    shared = home.dagster_url is not None
    tagged = worker_of(run)
    for worker in {*holders, *([tagged] if tagged else [])}:
        if is_dead(worker):
            continue
        if worker.machine == machine():
            return f"{name_of(worker)} is at work on it"
        # SQLite is not shared. On a server another machine may have the name of this one; but
        # whoever holds no lease does no work.
        if rebooted(worker) and not (shared and holders):
            continue
        return f"{name_of(worker)}, which cannot be looked at from here, may be at work on it"
    if not holders and GRPC_INFO_TAG in run.tags and (servers or shared):
        return "its code server may be at work on it"
    return None
