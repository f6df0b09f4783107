"""Forked runs under a real daemon and webserver: ended from the UI, and a zygote that is killed."""

import psutil
import pytest

from tests.e2e.station import Station, processes_of, until
from tests.e2e.test_daemon import mlflow_states

TERMINATE = """
mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }
"""


def zygotes(station: Station) -> list[psutil.Process]:
    return [found for found in processes_of(station.home) if found.name() == "signalbox-forks"]


@pytest.mark.heavy
def test_a_run_is_ended_from_the_ui_and_a_killed_zygote_is_replaced(slow_station: Station) -> None:
    station, home = slow_station, slow_station.home
    with station.server as server:
        server.wait_until_ready()
        # Before any run: the daemon starts it, so that the first run need not wait for it.
        (zygote,) = until(lambda: zygotes(station), 120, "a zygote", server)
        run, pid = station.start_slow_training()
        assert psutil.Process(pid).ppid() == zygote.pid
        found = server.api.query(TERMINATE, {"run": run})["terminateRun"]
        assert found["__typename"] == "TerminateRunSuccess"
        until(lambda: station.run(run)["status"] == "CANCELED", 60, "the run to end", server)
        assert mlflow_states(home, run) == ["KILLED"]
        until(lambda: not psutil.pid_exists(pid), 30, "its process to end", server)

        zygote.kill()
        again, pid = station.start_slow_training()
        assert station.run(again)["status"] == "STARTED"
        (other,) = zygotes(station)
        assert psutil.Process(pid).ppid() == other.pid != zygote.pid
        # Nobody is its parent any more, and it goes on; run monitoring finds that it has gone.
        other.kill()
        assert psutil.pid_exists(pid)
        psutil.Process(pid).kill()
        until(lambda: station.run(again)["status"] == "FAILURE", 120, "monitoring", server)
