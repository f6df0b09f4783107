"""Ledger, MLflow's aliases and the serving slot: drift by any hand is seen in one tick."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import platform_assets.line.projection as projection
from platform_assets.domain.errors import TransientError
from platform_assets.domain.reconcile import Seen
from platform_assets.domain.serving import Served
from platform_assets.line.alerting import update
from platform_assets.line.projection import project, projected, reconcile
from platform_assets.line.services import Services
from resources.tracking.client import quiet_mlflow
from tests.promoting import MODEL, crowned
from tests.small import Line, Templates, copied, small_spec

OLD, NEW, LAST = "2013-01-04", "2013-01-07", "2013-01-08"


def version(line: Line, day: str) -> int:
    return int(line.versions("model")[day].detail["model_version"])


def promote(line: Line, day: str) -> int:
    number = version(line, day)
    crowned(line.services.ledger, number, model_date=date.fromisoformat(day))
    return number


def client(line: Line) -> Any:
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(line.home.mlflow_uri, line.home.mlflow_uri)


def aliases(line: Line) -> dict[str, int]:
    found = client(line).get_registered_model(MODEL).aliases
    return {alias: int(number) for alias, number in found.items()}


def alerts(line: Line) -> list[tuple[str, str]]:
    """The open alerts on what is served, by kind and subject."""
    opened = line.services.alerts.all("flights", only_open=True)
    return [(a.kind, a.subject) for a in opened if a.kind in ("drift", "rolled_back")]


def tick(line: Line) -> str:
    """One evaluation of the real sensor; what it says."""
    sensor = line.defs.resolve_sensor_def("flights_reconcile")
    with dg.build_sensor_context(
        instance=line.instance, repository_def=line.defs.get_repository_def()
    ) as context:
        return sensor.evaluate_tick(context).skip_message or ""


@pytest.fixture
def templates(shared_folder: Path, home_template: Path) -> Templates:
    return Templates(shared_folder, home_template)


@pytest.fixture
def line(templates: Templates, tmp_path: Path) -> Iterator[Line]:
    """Two champions, the later one in force, and projected."""
    with copied(templates.models, tmp_path) as found:
        promote(found, OLD)
        promote(found, NEW)
        project(found.services)
        yield found


def held(line: Line) -> Line:
    """The same home, of a catalog that leaves drift to a person."""
    return Line(line.home, small_spec(serving={"on_drift": "hold"}), line.instance)


def served(line: Line, day: str) -> Served:
    return Served(version=version(line, day), digest=line.versions("model")[day].data_version)


def test_the_projection_follows_the_ledger_and_alerts_nobody(line: Line) -> None:
    assert aliases(line) == {"champion": version(line, NEW), "previous": version(line, OLD)}
    assert line.services.slot.serves() == served(line, NEW)
    assert tick(line) == "all as the ledger says"
    last = promote(line, LAST)
    said = tick(held(line))  # lagging behind is no drift, whatever the catalog says of drift
    assert said == "brought up to the ledger: alias champion, alias previous, slot"
    assert aliases(line) == {"champion": last, "previous": version(line, NEW)}
    assert line.services.slot.serves() == served(line, LAST)
    assert alerts(line) == []


@pytest.mark.parametrize("at", ["_set_alias", "_deploy", "_note"])
def test_who_dies_half_way_has_moved_nothing_by_another_hand(
    line: Line, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(line, LAST)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # as death does, it comes to no line that would note anything

    with monkeypatch.context() as patch:
        patch.setattr(projection, at, dies)
        with pytest.raises(KeyboardInterrupt):
            reconcile(line.services)
    other = held(line)
    tick(other)  # which would mend nothing that somebody else had changed
    assert tick(other) == "all as the ledger says"
    assert aliases(line) == {"champion": version(line, LAST), "previous": version(line, NEW)}
    assert line.services.slot.serves() == served(line, LAST)
    assert alerts(line) == []


def moved(line: Line) -> None:
    client(line).set_registered_model_alias(MODEL, "champion", str(version(line, OLD)))


def dropped(line: Line) -> None:
    client(line).delete_registered_model_alias(MODEL, "previous")


def added(line: Line) -> None:
    client(line).set_registered_model_alias(MODEL, "challenger", str(version(line, OLD)))


def relinked(line: Line) -> None:
    root = line.services.slot.root
    (root / "current").unlink()
    (root / "current").symlink_to("versions/1-nothing")


def emptied(line: Line) -> None:
    (line.services.slot.root / "current").unlink()


def rewritten(line: Line) -> None:
    path = line.services.slot.files / "MLmodel"
    path.write_text(path.read_text().replace("lightgbm", "elsewhere", 1))


HANDS = [
    (moved, "alias champion"),
    (dropped, "alias previous"),
    (added, "alias challenger"),
    (relinked, "slot"),
    (emptied, "slot"),
    (rewritten, "slot"),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("hand", "what"), HANDS)
def test_drift_by_any_hand_is_seen_within_one_tick_alerted_and_mended(
    line: Line, hand: Callable[[Line], None], what: str
) -> None:
    before = (aliases(line), line.services.slot.serves())
    hand(line)
    assert (aliases(line), line.services.slot.serves()) != before
    assert what in tick(line)
    assert (aliases(line), line.services.slot.serves()) == before
    assert alerts(line) == [("drift", f"{MODEL} {what}")]
    assert tick(line) == "all as the ledger says"
    update(line.services)  # the sensor of alerts
    assert alerts(line) == []
    closed = line.services.alerts.all("flights")[-1]
    assert (closed.kind, "is as the ledger says" in closed.text) == ("healed", True)


@pytest.mark.parametrize(("hand", "what"), [HANDS[0], HANDS[5]])
def test_drift_is_held_where_the_catalog_says_so(
    line: Line, hand: Callable[[Line], None], what: str
) -> None:
    hand(line)
    found = (aliases(line), line.services.slot.serves())
    other = held(line)
    for _ in range(2):
        assert what.split()[-1] in tick(other)
        update(other.services)
    assert (aliases(line), line.services.slot.serves()) == found
    assert alerts(line) == [("drift", f"{MODEL} {what}")]
    reconcile(other.services, mend=True)
    update(other.services)
    assert alerts(line) == []
    assert aliases(line)["champion"] == version(line, NEW)
    assert line.services.slot.serves() == served(line, NEW)


@pytest.mark.parametrize("policy", ["mend", "hold"])
def test_a_decision_follows_the_ledger_alone_and_leaves_drift_to_the_policy(
    line: Line, policy: str
) -> None:
    """What was left to a person is not reset by the next decision, nor mended unseen."""
    other = line if policy == "mend" else held(line)
    dropped(line)
    last = promote(line, LAST)
    said = projected(other.services)
    assert said is not None
    assert "MLflow's alias previous is unset" in said
    assert aliases(line) == {"champion": last}  # its own change at once, the slot too
    assert line.services.slot.serves() == served(line, LAST)
    assert alerts(line) == []
    assert "alias previous" in tick(other)
    assert alerts(line) == [("drift", f"{MODEL} alias previous")]
    assert ("previous" in aliases(line)) == (policy == "mend")


def test_an_alias_of_a_promotion_that_died_before_its_note_is_nobody_elses(line: Line) -> None:
    between = promote(line, OLD)
    client(line).set_registered_model_alias(MODEL, "champion", str(between))  # and it died
    last = promote(line, LAST)
    assert "brought up to the ledger: alias champion" in tick(held(line))
    assert aliases(line)["champion"] == last
    assert alerts(line) == []


def test_of_a_ledger_that_never_stands_still_nothing_is_compared(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, whole = itertools.cycle([OLD, NEW]), projection._seen

    def meanwhile(services: Services) -> Seen:
        promote(line, next(days))
        return whole(services)

    monkeypatch.setattr(projection, "_seen", meanwhile)
    before = aliases(line)
    with pytest.raises(TransientError, match="changed during each of 5 looks"):
        reconcile(line.services)
    said = projected(line.services)
    assert said is not None
    assert "the ledger has the change" in said
    assert aliases(line) == before
    assert alerts(line) == []


def test_plain_mlflow_keeps_silent(line: Line) -> None:
    """The failure: after any of these nobody is told, and what loads by alias loads another."""
    plain = client(line)
    moved(line)
    assert int(plain.get_model_version_by_alias(MODEL, "champion").version) == version(line, OLD)
    plain.delete_model_version(MODEL, str(version(line, OLD)))
    assert "champion" not in aliases(line)  # it went with the version, without a word
    assert len(line.services.ledger.promotions(MODEL)) == 2


def test_a_deleted_version_is_told_and_what_is_served_stays(line: Line) -> None:
    number = version(line, NEW)
    client(line).delete_model_version(MODEL, str(number))
    said = tick(line)
    assert f"version {number} is in the ledger (it is champion) and was deleted in MLflow" in said
    assert alerts(line) == [
        ("drift", f"{MODEL} alias champion"),
        ("drift", f"{MODEL} version {number}"),
    ]
    assert line.services.slot.serves() == served(line, NEW)
    # What lies in the slot can be served again without the registry, for its digest is known.
    emptied(line)
    assert "brought up to the ledger: slot" in tick(line)
    assert line.services.slot.serves() == served(line, NEW)


def test_another_artifact_than_the_recorded_one_is_not_deployed(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(line, LAST)
    monkeypatch.setattr(projection, "recorded_digest", lambda *_: "ab" * 32)
    said = tick(line)
    assert "it could not be set right: the files of model flight-delay version" in said
    assert line.services.slot.serves() == served(line, NEW)
    assert aliases(line)["champion"] == version(line, LAST)  # the alias is another matter
    monkeypatch.undo()
    assert "slot" in tick(line)
    assert line.services.slot.serves() == served(line, LAST)


def test_a_champion_of_no_recorded_digest_is_told_and_what_is_served_stays(line: Line) -> None:
    last = version(line, LAST)
    # As if its record were gone: no model of this date has that number.
    crowned(line.services.ledger, last, model_date=date.fromisoformat(OLD))
    said = tick(line)
    assert f"version {last} is champion and the ledger has no digest of its files" in said
    assert ("drift", f"{MODEL} slot") in alerts(line)
    assert line.services.slot.serves() == served(line, NEW)
    assert aliases(line)["champion"] == last
    promote(line, OLD)
    tick(line)
    assert line.services.slot.serves() == served(line, OLD)
    assert tick(line) == "all as the ledger says"


def test_a_home_without_a_champion_is_quiet(templates: Templates, tmp_path: Path) -> None:
    with copied(templates.features, tmp_path) as found:
        assert tick(found) == "all as the ledger says"
        assert found.services.slot.serves() is None


QUIET = """
import sys
from platform_assets.line.projection import reconcile
from tests.small import opened
from resources.home import Home

with opened(Home.locate()) as line:
    assert not reconcile(line.services).drifts
print(sorted({"mlflow", "lightgbm", "sklearn"} & set(sys.modules)))
"""


@pytest.mark.heavy
def test_a_quiet_look_imports_no_mlflow(line: Line) -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET],
        env={**os.environ, **line.home.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
