"""Runs on the fake cluster: the same ops under dagster-k8s's executor and under the pinned one.

Only the distance between two looks at a step is shorter than in earnest.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.test_utils import instance_for_test
from dagster_k8s.launcher import K8sRunLauncher

from platform_assets.domain.images import ImageLock, LockedImage
from tests import cluster as fake
from tests import cluster_steps
from tests.cluster_steps import STEPS

__all__ = ["LOCK", "RUN", "STEPS", "TRAIN", "Ended", "execute"]

HOST = "registry.example:5000"


def entry(name: str, digit: str) -> LockedImage:
    return LockedImage(
        repository=f"{HOST}/{name}",
        tag="1",
        digest=f"sha256:{digit * 64}",
        config=f"sha256:{'c' * 64}",
        platform="linux/amd64",
        resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
        resolved_by="ada",
    )


LOCK = ImageLock(
    registries=(HOST,), images={"run": entry("run", "1"), "train": entry("train", "2")}
)
RUN, TRAIN = (str(LOCK.images[name].ref) for name in ("run", "train"))


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        told: what its log says of its failures and of the cluster, a line each.
        attempts: how often the step was started.
        hung: it was interrupted, for it never would have ended.
    """

    success: bool
    told: str
    attempts: int
    hung: bool
    events: tuple[str, ...]
    tags: dict[str, str]


def execute(
    cluster: fake.Cluster,
    job: str,
    happens: Callable[[], object] | None = None,
    *,
    hangs_if: Callable[[], object] | None = None,
    tags: dict[str, str] | None = None,
    **config: Any,
) -> Ended:
    """Run a job whose steps are pods of the fake.

    Args:
        happens: once the step's code runs.
        tags: of the run.
        hangs_if: interrupt the run once this holds: by then something should have happened.
    """
    definition = getattr(cluster_steps, job)
    plain = definition.executor_def is cluster_steps.stock
    settings = {
        "load_incluster_config": False,
        "kubeconfig_file": cluster.kubeconfig,
        "job_namespace": fake.NAMESPACE,
        **({"job_image": RUN} if plain else {"image": "run"}),
        **config,
    }
    folder = tempfile.mkdtemp(dir=cluster.folder)
    steps = Path(os.environ[STEPS])
    for note in steps.iterdir():
        note.unlink()
    hung, over = [], threading.Event()

    def interrupt() -> None:
        hung.append(True)
        os.kill(os.getpid(), signal.SIGINT)

    if happens is not None:
        cluster.when(lambda: any(steps.glob("step-*")), happens, over)
    if hangs_if is not None:
        cluster.when(hangs_if, interrupt, over)
    launcher = {
        "module": K8sRunLauncher.__module__,
        "class": K8sRunLauncher.__name__,
        "config": {
            "service_account_name": "dagster",
            "instance_config_map": "dagster-instance",
            "load_incluster_config": False,
            "kubeconfig_file": cluster.kubeconfig,
            "job_image": RUN,
            "dagster_home": folder,
        },
    }
    with instance_for_test(
        overrides={"run_launcher": launcher}, temp_dir=folder, set_dagster_home=True
    ) as instance:
        mark = Path(folder).name
        try:
            result = dg.execute_job(
                dg.reconstructable(definition),
                instance,
                run_config={"execution": {"config": settings}},
                tags={"of": mark, **(tags or {})},
            )
            success, run_id = result.success, result.run_id
        except BaseException:
            if not hung:
                raise
            (found,) = instance.get_runs(dg.RunsFilter(tags={"of": mark}))
            success, run_id = False, found.run_id
        finally:
            over.set()
        entries = [e for e in instance.all_logs(run_id) if e.dagster_event is not None]
        told = [
            f"{entry.message} {getattr(entry.dagster_event.event_specific_data, 'error', '')}"
            for entry in entries
            if entry.dagster_event is not None
        ]
        run = instance.get_run_by_id(run_id)
        assert run is not None
        events = tuple(e.dagster_event.event_type_value for e in entries if e.dagster_event)
    attempts = len(list(steps.glob("step-*")))
    return Ended(success, "\n".join(told), attempts, bool(hung), events, dict(run.tags))
