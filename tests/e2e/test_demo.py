"""`signalbox demo` and `make demo` as a newcomer types them, with no terminal."""

import json
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from platform_assets.demo.play import LAST_OF_HISTORY, TODAY
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.dagster_api import DagsterApi
from resources.home import Home
from tests.e2e.conftest import Start
from tests.e2e.station import require_nothing_left, until
from tests.ports import free_port

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]

BIN = Path(sys.executable).parent
STAGES = (
    "home",
    "landing the history",
    "starting Dagster",
    "backfill of the history",
    "today, hour by hour",
)


def services_of(root: Path) -> Services:
    return Services.open(load_catalog()["flights"], Home.locate(root))


def require_played(root: Path) -> None:
    """Fail unless everything that the demo promises is in the home, and nothing is left."""
    services = services_of(root)
    spec, ledger = services.spec, services.ledger
    assert ledger.current_version(spec.asset("model"), TODAY.isoformat())
    champion = ledger.champion(spec.pipeline)
    assert champion is not None
    assert champion.model_date <= LAST_OF_HISTORY
    assert services.tracking.alias(spec.model.name, "champion") == champion.version
    assert "LGA|2013-01-06" not in ledger.current_versions(spec.asset("features"))
    require_nothing_left(services.home, 0)


def test_on_a_fresh_home(command: Start, tmp_path: Path) -> None:
    root, port = tmp_path / "home", free_port()
    demo = command(
        [str(BIN / "signalbox"), "demo", "--exit", "--json", "--port", str(port)],
        SIGNALBOX_HOME=str(root),
    )
    printed, errors = demo.communicate(timeout=1500)
    assert demo.returncode == 0, errors
    assert errors == ""
    document = json.loads(printed)
    assert document["ok"] is True
    assert document["failures"] == []
    assert set(document["seconds"]) == set(STAGES)
    assert "weather 23 of 24 hours" in document["held"]["LGA|2013-01-06"]
    assert document["assets"]["flights/model"]["watermark"] == TODAY.isoformat()
    assert document["champion"]["version"]
    print(f"seconds by stage: {document['seconds']}")
    require_played(root)


def test_make_demo_is_interrupted_and_typed_again(
    command: Start, home_template: Path, tmp_path: Path
) -> None:
    root, port = tmp_path / "home", free_port()
    shutil.copytree(home_template, root)
    api = DagsterApi(f"http://127.0.0.1:{port}")
    stamp = Path(sys.prefix) / ".ready"  # the environment that runs the tests is set up
    typed = ["make", "demo", f"VENV={sys.prefix}", "-o", str(stamp), f"PORT={port}", "ARGS=--exit"]

    def building() -> bool:
        try:
            runs = api.runs({"signalbox/lane": "backfill"})
        except Exception:
            return False
        return any(
            run["status"] == "STARTED" and ["flights", "features"] in paths(run) for run in runs
        )

    first = command(typed, SIGNALBOX_HOME=str(root))
    until(building, 600, "the first features to be built")
    first.send_signal(signal.SIGTERM)
    printed, errors = first.communicate(timeout=120)
    assert first.returncode != 0, printed
    require_nothing_left(Home.locate(root), 60)

    second = command(typed, SIGNALBOX_HOME=str(root))
    printed, errors = second.communicate(timeout=1500)
    assert second.returncode == 0, printed + errors
    # The interrupted backfill may have ended before anybody asks: its last runs died with it. What
    # it has left over is then built by another one.
    assert "Going on with backfill" in printed or "Native backfill" in printed
    assert "champion: flight-delay version" in printed
    require_played(root)
    services = services_of(root)
    trained = services.ledger.current_versions("flights/model")
    histories = Counter(len(services.ledger.history("flights/model", day)) for day in trained)
    assert histories == {1: len(trained)}, "a model was trained twice"


def paths(run: dict[str, object]) -> list[list[str]]:
    selection = run["assetSelection"] or []
    assert isinstance(selection, list)
    return [asset["path"] for asset in selection]
