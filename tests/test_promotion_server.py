"""Promotion on a real `mlflow server`: what its end at any moment changes, and what is said of it.

The ledger decides; a server that was killed leaves it as it was, or lags behind it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from platform_assets.cli.doctor_serving import serving_findings
from platform_assets.domain.errors import TransientError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line import gating
from platform_assets.line.crowning import decide_champion
from platform_assets.line.judging import evaluate_model
from platform_assets.line.projection import reconcile
from resources.ledger.promotions import Promotions
from tests.homes import copy_home, drop_home
from tests.mlflow_server import MlflowServer
from tests.promoting import MODEL
from tests.small import Line, Templates, opened, small_spec
from tests.test_cli import Shell, off, signalbox, write_catalog
from tests.test_promotions import everything
from tests.test_tracking_stores import client_of, prepared

__all__ = ["prepared", "signalbox"]

pytestmark = pytest.mark.heavy
OLD, NEW = "2013-01-04", "2013-01-07"
BY = ("--by", "ann")


@pytest.fixture
def server(prepared: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path / "server", prepared)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def line(
    shared_folder: Path,
    home_template: Path,
    tmp_path: Path,
    server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Line]:
    """On the server: the model of the 4th is champion, that of the 7th is judged; any passes."""
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(write_catalog(tmp_path / "catalog", small_spec())))
    whole = gating.judge
    features = Templates(shared_folder, home_template).features
    home = replace(copy_home(features, tmp_path / "home"), mlflow_uri=server.url)
    try:
        with opened(home) as found:
            found.must("snapshot", "model", partition=OLD)
            found.must("snapshot", "model", partition=NEW)
            found.must("evaluation", partition=OLD)
            found.must("champion")
            evaluate_model(found.services, PartitionKey.parse(NEW), "run")
            monkeypatch.setattr(
                gating, "judge", lambda *given: whole(*given).model_copy(update={"passed": True})
            )
            yield found
    finally:
        drop_home(home.root)


def version(line: Line, day: str) -> int:
    return int(line.versions("model")[day].detail["model_version"])


def in_force(line: Line) -> int:
    state = line.services.ledger.alias_state(MODEL)
    assert state is not None
    return state.version


def run_of(line: Line, day: str) -> Any:
    """The MLflow run of a training, as the server has it."""
    run_id = line.versions("model")[day].detail["mlflow_run_id"]
    return client_of(line.services.tracking).get_run(run_id)


def wrong(line: Line) -> list[str]:
    """What the doctor finds off of ledger, aliases and slot, while the server answers."""
    return [text for ok, text, _ in serving_findings(line.services) if not ok]


def test_the_gate_and_a_promotion_leave_true_states_on_the_server(
    line: Line, signalbox: Shell
) -> None:
    old, new = version(line, OLD), version(line, NEW)
    first = run_of(line, OLD)
    assert first.info.status == "FINISHED"
    assert first.data.tags["signalbox.gate"] == "passed"
    assert first.data.tags["signalbox.gate_against"] == "no champion"
    assert "signalbox.gate" not in run_of(line, NEW).data.tags
    said = signalbox("promote", "flights", str(new), "--evaluate", *BY)
    assert (said.code, said.err) == (0, "")
    second = run_of(line, NEW)
    assert second.info.status == "FINISHED", "a judgement opens no run again"
    assert second.data.tags["signalbox.gate"] == "passed"
    assert second.data.tags["signalbox.gate_against"] == f"champion {old}"
    aliases = client_of(line.services.tracking).get_registered_model(MODEL).aliases
    assert {name: int(of) for name, of in aliases.items()} == {"champion": new, "previous": old}
    assert wrong(line) == []


@pytest.mark.parametrize("evaluate", [(), ("--evaluate",)])
def test_with_the_server_killed_nothing_is_promoted_and_the_doctor_says_why(
    line: Line, server: MlflowServer, signalbox: Shell, evaluate: tuple[str, ...]
) -> None:
    new, before = version(line, NEW), everything(line.services.ledger)
    server.kill()
    said = signalbox("promote", "flights", str(new), *evaluate, *BY)
    said.refused(1, server.url, "does not answer", "start it")
    with pytest.raises(TransientError):
        decide_champion(line.services, "run")
    assert everything(line.services.ledger) == before
    found = off(signalbox("doctor", "--json"))
    assert any(server.url in check["found"] for check in found.values()), found
    server.start()
    assert signalbox("promote", "flights", str(new), "--evaluate", *BY).code == 0
    assert in_force(line) == new
    assert wrong(line) == []


def test_the_server_is_killed_as_the_verdict_is_shown(
    line: Line, server: MlflowServer, signalbox: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow was not told is not recorded; the next try judges, and tells it once."""
    new, before = version(line, NEW), everything(line.services.ledger)
    killed(monkeypatch, server, gating, "_show", after=False)
    said = signalbox("promote", "flights", str(new), "--evaluate", *BY)
    said.refused(1, server.url, "does not answer", "start it")
    assert everything(line.services.ledger) == before
    monkeypatch.undo()
    server.start()
    assert "signalbox.gate" not in run_of(line, NEW).data.tags


def test_the_server_is_killed_between_ledger_and_alias(
    line: Line, server: MlflowServer, signalbox: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = version(line, OLD), version(line, NEW)
    with monkeypatch.context() as patch:
        killed(patch, server, Promotions, "promote", after=True)
        said = signalbox("promote", "flights", str(new), "--evaluate", *BY)
    assert said.code == 0
    assert "the ledger has the change, aliases and slot lag behind it" in said.err
    assert said.err.count("\n") == 1
    assert server.url in said.err
    assert in_force(line) == new
    history = line.services.ledger.promotions(MODEL)
    assert [(c.previous, c.version) for c in history] == [(None, old), (old, new)]
    assert any(server.url in c["found"] for c in off(signalbox("doctor", "--json")).values())
    server.start()
    assert line.services.tracking.alias(MODEL, "champion") == old, "it lags"
    assert wrong(line) == [], "and is nobody's drift"
    reconcile(line.services)
    assert line.services.tracking.alias(MODEL, "champion") == new
    assert run_of(line, NEW).info.status == "FINISHED"
    assert wrong(line) == []
    # Nor is rolled back to what nobody can look at.
    before = everything(line.services.ledger)
    server.kill()
    back = signalbox("rollback", "flights", "--reason", "off", *BY)
    # The one, or the other where a connection was kept open to it.
    back.refused(1, f"{server.url} does not answer ([Errno ")
    assert "Connection refused" in back.err or "Connection reset by peer" in back.err
    assert everything(line.services.ledger) == before


def killed(
    patch: pytest.MonkeyPatch, server: MlflowServer, where: object, name: str, *, after: bool
) -> None:
    """Kill the server as something is called, before it or when it is done."""
    whole: Callable[..., object] = getattr(where, name)

    def deadly(*given: object, **how: object) -> object:
        if not after:
            server.kill()
        done = whole(*given, **how)
        server.kill()
        return done

    patch.setattr(where, name, deadly)
