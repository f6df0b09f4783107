"""A training that is killed is launched again by the real daemon, and ends as one training."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from platform_assets.line.days import load_snapshot
from platform_assets.line.reproduce import train_again
from tests.e2e.conftest import server_on
from tests.e2e.station import SLOW_DAY, Station, until
from tests.interrupted_location import PARAMETERS, PLAN, ROUNDS, InterruptedTrainer

RUNS = """
query Runs($group: ID!) {
  runGroupOrError(runId: $group) { ... on RunGroup { runs { runId status } } }
}
"""


@pytest.fixture
def station(slow_station: Station) -> Station:
    """The slow pipeline, with a trainer that has checkpoints and is interrupted as a file says."""
    folder = slow_station.catalog
    (file,) = folder.glob("*.yaml")
    document = yaml.safe_load(file.read_text())
    document["model"] |= {
        "trainer": f"{InterruptedTrainer.__module__}:{InterruptedTrainer.__name__}",
        "parameters": PARAMETERS,
        "checkpoints": {"most_lost_seconds": 1},
    }
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return Station(slow_station.home, folder, server_on(slow_station.home, folder))


def mlflow_runs(station: Station) -> list[Any]:
    client = station.slow.tracking.link().client
    experiment = client.get_experiment_by_name("slow")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


@pytest.mark.heavy
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=["preempted", "killed"])
def test_the_daemon_launches_it_again_and_it_goes_on(
    station: Station, by: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"at": 6, "sleep_at": 3, "pause_at": 5, "pause_seconds": 4, "signal": int(by)}
    Path(station.home.root, PLAN).write_text(json.dumps(plan))
    with station.server as server:
        server.wait_until_ready()
        station.prepare_slow()
        first = station.launch("slow_train", SLOW_DAY)

        def group() -> list[Any]:
            found = server.api.query(RUNS, {"group": first})["runGroupOrError"]
            return list(found.get("runs") or [])

        def ended() -> list[Any]:
            return [run for run in group() if run["status"] == "SUCCESS"]

        (second,) = until(ended, 240, "the second attempt to end", server)
        assert second["runId"] != first
        assert station.run(first)["status"] == "FAILURE"
        assert len(group()) == 2, "nobody launched it a third time"
    services = station.slow
    record = services.ledger.current_version(services.spec.asset("model"), SLOW_DAY)
    assert record is not None
    found = mlflow_runs(station)
    told = [(r.info.run_id, r.info.status, r.data.tags, r.data.metrics) for r in found]
    assert len(found) == 1, told
    (run,) = found
    assert run.info.status == "FINISHED"
    assert run.data.metrics["interruptions"] == 1
    resumed = run.data.metrics["resumed_from_step"]
    assert resumed == 6 if by == signal.SIGTERM else 3 <= resumed < 6
    client = services.tracking.link().client
    history = client.get_metric_history(run.info.run_id, "train_log_loss")
    assert sorted({point.step for point in history}) == list(range(1, ROUNDS + 1))
    snapshot = services.ledger.current_version(services.spec.asset("snapshot"), SLOW_DAY)
    assert snapshot is not None
    day = services.partition(SLOW_DAY, keyed=False).date
    rows = services.dataset.read(load_snapshot(services, day, snapshot.data_version).partitions)
    monkeypatch.setenv("SIGNALBOX_HOME", str(station.home.root))  # where the trainer looks
    assert record.data_version == train_again(services.spec, rows).digest
