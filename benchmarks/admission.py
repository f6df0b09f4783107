"""What admission costs a Job: CPU of judging its body, as it would be sent.

The body is a run's Job as dagster-k8s makes it, with two init containers and two sidecars. The
client that judges and the one that does not are given it in turn, and nothing is sent; the
difference is what admission costs: reading the lock, judging each image, telling each container its
own, and putting the pod in the place of its lane. The lock is tried in several sizes.

    python -m benchmarks.admission [--jobs 200] [--json]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

LIMIT_MS = 5.0
IMAGES = (2, 20, 100)
ROUNDS = 5


def lock_of(images: int, place: Path) -> list[str]:
    """Write a lock; the references of its images."""
    from platform_assets.domain.images import ImageLock, LockedImage
    from resources.images import change_lock

    def image(number: int) -> LockedImage:
        return LockedImage(
            repository=f"registry.example/image-{number}",
            tag="1",
            digest=f"sha256:{number:064x}",
            config=f"sha256:{number + 1000:064x}",
            platform="linux/amd64",
            resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
            resolved_by="benchmark",
        )

    found = {f"image-{number}": image(number) for number in range(images)}
    lock = ImageLock(registries=("registry.example",), images=found)
    change_lock(lambda _: lock, place)
    return [str(one.ref) for one in found.values()]


def job(images: list[str]) -> Any:
    """A run's Job, with five containers."""
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        UserDefinedDagsterK8sConfig,
        construct_dagster_k8s_job,
    )

    others = [{"name": f"c{n}", "image": images[n % len(images)]} for n in range(4)]
    return construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image=images[0],
            dagster_home="/opt/dagster",
            instance_config_map="dagster-instance",
            service_account_name="dagster",
            env_vars=[f"NAME_{n}=value" for n in range(20)],
        ),
        ["dagster", "api", "execute_run", "x" * 2000],
        "dagster-run-1",
        pod_name="dagster-run-1",
        component="run_worker",
        labels={"dagster/run-id": "1"},
        user_defined_k8s_config=UserDefinedDagsterK8sConfig(
            pod_spec_config={"init_containers": others[:2], "containers": others[2:]}
        ),
    )


def cpu_ms(work: Callable[[], object], times: int) -> float:
    """CPU milliseconds of one call, of this process and all its threads."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times * 1000


def measure(jobs: int) -> dict[str, object]:
    """Both clients in turn, `ROUNDS` times each."""
    import kubernetes.client

    from platform_assets.domain.admission import Layer
    from platform_assets.domain.lanes import Lane
    from platform_assets.domain.placing import Place
    from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making
    from resources.images import VARIABLE, load_lock

    results = {}

    def nothing_sent(*_: Any, **__: Any) -> None:
        return None

    sends = "_ApiClient__call_api"
    # As the launcher says it; layers are only looked at where an image is refused.
    making_it = partial(making, "run 1", [Layer("the run launcher", {})], Place("run", Lane.DAILY))
    with tempfile.TemporaryDirectory(prefix="signalbox-admission-") as folder:
        for images in IMAGES:
            place = Path(folder) / f"{images}.yaml"
            body = job(lock_of(images, place))
            with (
                mock.patch.dict(os.environ, {VARIABLE: str(place)}),
                mock.patch.object(kubernetes.client.ApiClient, sends, nothing_sent),
            ):
                plain = kubernetes.client.BatchV1Api(kubernetes.client.ApiClient())
                judging = kubernetes.client.BatchV1Api(AdmittingApiClient(load_lock))
                without, judged = [], []
                for _ in range(ROUNDS):
                    for api, found in ((plain, without), (judging, judged)):
                        call = partial(api.create_namespaced_job, "n", body)
                        with making_it():
                            found.append(cpu_ms(call, jobs))
            more = [a - b for a, b in zip(judged, without, strict=True)]
            results[str(images)] = {
                "cpu_ms_least": round(min(more), 3),
                "cpu_ms_median": round(statistics.median(more), 3),
            }
    worst = max(found["cpu_ms_median"] for found in results.values())
    return {
        "jobs": jobs,
        "by_images_in_the_lock": results,
        "limit_ms": LIMIT_MS,
        "within_limit": worst <= LIMIT_MS,
    }


def main() -> int:
    """Exit code 1 when admission costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200, help="of each round")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: at least 1 is needed")
    document = measure(arguments.jobs)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print(f"{'images in the lock':<20} {'least':>10} {'median':>10}   CPU of one Job")
        for images, found in document["by_images_in_the_lock"].items():  # type: ignore[attr-defined]
            least, median = found["cpu_ms_least"], found["cpu_ms_median"]
            print(f"{images:<20} {least:>7.2f} ms {median:>7.2f} ms")
        print(f"limit {LIMIT_MS} ms: {'kept' if document['within_limit'] else 'BROKEN'}")
    return 0 if document["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
