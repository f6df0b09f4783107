"""A changed environment on the line: told, held, and let go by a canary alone."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from platform_assets.cli import canary as canary_command
from platform_assets.cli.app import main
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.audit import audit
from platform_assets.line.audit_page import audit_page
from platform_assets.line.canary import run_canary
from platform_assets.line.crowning import decide_champion, promote
from platform_assets.line.environments import PROBE, VALUE, passage_of, value_of
from platform_assets.line.explain import explain
from platform_assets.line.gating import registered, verdict_on
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import train_model
from platform_assets.line.promoting import promote_version, roll_back
from platform_assets.line.services import Services
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources import surroundings
from resources.ledger.environments import CanaryRecord
from resources.tracking import Tracking
from tests.small import Line, Templates, built_once, copied, failure_of, small_spec

pytestmark = pytest.mark.heavy
FIRST, NEXT = "2013-01-04", "2013-01-07"
POOR = {"num_boost_round": 4, "learning_rate": 0.03, "num_leaves": 15, "num_threads": 1}
GROWN = {"num_boost_round": 40, "num_leaves": 7, "min_data_in_leaf": 20, "num_threads": 1}
GATE = {"min_blocks": 2, "min_rows": 10, "slice_margin": 10, "max_bias": 10, "max_ece": 10}
PREP = "signalbox-test-prep"


class PreparingTrainer(LightGBMTrainer):
    """Reads its features through a package whose patch release rounds them coarsely."""

    def _prepared(self, frame: Any) -> Any:
        if metadata.version(PREP) == "1.0.0":
            return frame
        numbers = frame.select_dtypes("number").columns
        return frame.assign(**{name: (frame[name] / 300).round() for name in numbers})

    def fit(self, frame: Any, target: Any, **how: Any) -> object:
        return super().fit(self._prepared(frame), target, **how)

    def predict(self, model: object, frame: Any) -> Any:
        return super().predict(model, self._prepared(frame))


class AskingTrainer(PreparingTrainer):
    """Trains as ever; the package changes only what is asked of the model."""

    def fit(self, frame: Any, target: Any, **how: Any) -> object:
        return LightGBMTrainer.fit(self, frame, target, **how)


def put(folder: Path, version: str) -> str:
    """A folder with a version of the package, as an installer leaves it."""
    own = folder / f"site-{version}" / f"{PREP.replace('-', '_')}-{version}.dist-info"
    if not own.exists():
        own.mkdir(parents=True)
        told = f"Metadata-Version: 2.1\nName: {PREP}\nVersion: {version}\n"
        (own / "METADATA").write_text(told)
        (own / "RECORD").write_text(f"prep.py,sha256={version},1\n")
    return str(own.parent)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a version of the package in front of all others."""
    return lambda version: monkeypatch.syspath_prepend(put(tmp_path, version))


def crown(line: Line) -> None:
    """A champion of the 4th, trained with the package as it was; and the snapshot of the 7th."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(put(line.home.root.parent, "1.0.0"))
        line.must("snapshot", partition=FIRST)
        line.must("snapshot", partition=NEXT)
        services = of(line)
        trained(services, FIRST)
        evaluate_model(services, PartitionKey.parse(FIRST), "run")
        decide_champion(services, "run")


@pytest.fixture
def line(
    shared_folder: Path, home_template: Path, tmp_path: Path, install: Callable[[str], None]
) -> Iterator[Line]:
    """A champion of the 4th, and the package as it was then."""
    features = Templates(shared_folder, home_template).features
    install("1.0.0")
    with copied(built_once(shared_folder, "drift-champion", features, crown), tmp_path) as found:
        yield found


def of(line: Line, trainer: str = "PreparingTrainer") -> Services:
    """The services of a line that holds on a change, with a trainer of this module."""
    model = {"trainer": f"tests.test_canary:{trainer}", "parameters": POOR}
    gate = {"days": 1, "gate": GATE}
    spec = small_spec(model=model, evaluation=gate, environment={"on_change": "hold"})
    return replace(line.services, spec=spec)


def trained(services: Services, day: str) -> dict[str, Any]:
    return dict(train_model(services, PartitionKey.parse(day), "run", lane="adhoc").metadata)


def challenged(services: Services) -> None:
    """A candidate of the 7th that is truly better than the champion, judged."""
    grown = replace(services, spec=services.spec.model_copy(
        update={"model": services.spec.model.model_copy(update={"parameters": GROWN})}
    ))  # fmt: skip
    trained(grown, NEXT)
    evaluate_model(services, PartitionKey.parse(NEXT), "run")


def champion(services: Services) -> int:
    state = services.ledger.alias_state("flight-delay")
    assert state is not None
    return state.version


def lenient(services: Services, on_change: str = "warn", **more: Any) -> Services:
    spec = services.spec
    terms = spec.environment.model_copy(update={"on_change": on_change, **more})
    return replace(services, spec=spec.model_copy(update={"environment": terms}))


# --- what is recorded and told


def test_a_training_records_its_environment_and_what_the_fresh_model_said(line: Line) -> None:
    services = of(line)
    (record,) = registered(services).values()
    value = value_of(record)
    assert value == surroundings.environment_fingerprint().value
    document = services.environments.find(value)
    assert document is not None
    assert document["distributions"][PREP]["version"] == "1.0.0"
    assert 0 < len(record.detail[PROBE]) <= 64
    assert all(0 < said < 1 for said in record.detail[PROBE])
    run = services.tracking._client().get_run(record.detail["mlflow_run_id"])
    assert run.data.tags["signalbox.environment"] == value[:16]
    assert run.data.tags["signalbox.environment_change"] == "none"
    judged = services.ledger.current_version("flights/evaluation", FIRST)
    assert judged is not None
    assert judged.detail[VALUE] == value


def test_the_check_says_in_words_what_has_changed(
    line: Line, install: Callable[[str], None]
) -> None:
    spec = of(line).spec
    mine = replace(line, spec=spec)
    install("1.0.1")
    ran = mine.must("model", partition=NEXT)
    checks = {e.check_name: e for e in ran.get_asset_check_evaluations()}
    found = checks["environment"]
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert found.metadata["changes"].value == [f"{PREP} 1.0.0 -> 1.0.1"]
    assert "no canary has trained" in str(found.description)
    (event,) = [e for e in mine.materializations("model") if e.partition == NEXT]
    assert event.metadata["environment_change"].value["state"] == "held"  # type: ignore[index]
    record = mine.versions("model")[NEXT]
    run = mine.services.tracking._client().get_run(record.detail["mlflow_run_id"])
    assert run.data.tags["signalbox.environment_change"] == f"{PREP} 1.0.0 -> 1.0.1"
    warned = replace(line, spec=lenient(of(line)).spec)
    again = warned.must("model", partition=NEXT)
    (found,) = [e for e in again.get_asset_check_evaluations() if e.check_name == "environment"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_the_same_environment_passes_the_check_and_needs_no_canary(line: Line) -> None:
    mine = replace(line, spec=of(line).spec)
    ran = mine.must("model", partition=NEXT)
    (found,) = [e for e in ran.get_asset_check_evaluations() if e.check_name == "environment"]
    assert found.passed
    challenged(of(line))
    decide_champion(of(line), "run")
    assert champion(of(line)) > 1, of(line).ledger.evaluations("flight-delay")[-1].report["reason"]


# --- held, on every path


def test_a_better_model_of_another_environment_is_held_until_a_canary_has_passed(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = of(line)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    challenged(services)
    decide_champion(services, "run")
    assert champion(services) == 1
    (verdict,) = services.ledger.evaluations("flight-delay", 2)[-1:]
    failed = [c["name"] for c in verdict.report["conditions"] if not c["passed"]]
    assert failed == ["environment"], "but for that it is proven better"
    assert "OMP_NUM_THREADS not set -> 7" in verdict.report["reason"]
    for evaluate in (True, False):
        with pytest.raises(RefusedError, match="OMP_NUM_THREADS not set -> 7"):
            promote_version(services, 2, by="ann", evaluate=evaluate)
    canary = run_canary(services, by="ann")
    assert canary.passed
    assert canary.report["identical"]
    assert canary.report["predictions"] == 0
    decide_champion(services, "run")
    assert champion(services) == 2


def test_without_the_hold_the_drifted_model_is_promoted(
    line: Line, install: Callable[[str], None]
) -> None:
    """What plain MLflow and Dagster do: by the metric alone, nobody asks where it was trained."""
    install("1.0.1")
    services = lenient(of(line))
    challenged(services)
    decide_champion(services, "run")
    assert champion(services) == 2


def test_a_canary_that_finds_other_metrics_keeps_the_promotion_held(
    line: Line, install: Callable[[str], None]
) -> None:
    services = of(line)
    install("1.0.1")
    challenged(services)
    canary = run_canary(services, by="ann")
    assert not canary.passed
    assert not canary.report["identical"]
    assert canary.report["changes"] == [f"{PREP} 1.0.0 -> 1.0.1"]
    decide_champion(services, "run")
    assert champion(services) == 1
    with pytest.raises(RefusedError, match=r"canary \d+ is against it: it gave other files"):
        promote_version(services, 2, by="ann", evaluate=True)
    wide = lenient(services, "hold", tolerance=10)
    decide_champion(wide, "run")
    assert champion(wide) == 2, "the catalog states what is let pass"


def test_equal_files_are_no_proof_where_the_asking_has_changed(
    line: Line, install: Callable[[str], None]
) -> None:
    with_asking = of(line, "AskingTrainer")
    trained(with_asking, FIRST)
    evaluate_model(with_asking, PartitionKey.parse(FIRST), "run")
    number = max(registered(with_asking))
    # The first champion has to go for this one.
    state = with_asking.ledger.alias_state("flight-delay")
    record = registered(with_asking)[number]
    verdict = verdict_on(with_asking, record, state.version if state else None, None, "run")
    promote(with_asking, record, state, verdict, by="ann", run_id="run")
    install("1.0.1")
    canary = run_canary(with_asking, by="ann")
    assert canary.report["identical"], "the model has the same bytes"
    assert not canary.passed, "and says something else"


def test_a_verdict_of_before_does_not_outlive_its_canary(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger asks again as it writes: a later canary may have come out otherwise."""
    services = of(line)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    challenged(services)
    passed = run_canary(services, by="ann")
    candidate = registered(services)[2]
    state = services.ledger.alias_state("flight-delay")
    assert state is not None
    verdict = verdict_on(services, candidate, 1, registered(services)[1], "run")
    assert verdict.passed
    real = Tracking.verified

    def meanwhile(self: Tracking, *a: Any, **k: Any) -> Any:
        newer = replace(passed, id=0, passed=False, recorded_at=datetime.now(UTC))
        services.environments.record_canary(newer)
        return real(self, *a, **k)

    monkeypatch.setattr(Tracking, "verified", meanwhile)
    with pytest.raises(RefusedError, match="no canary stands behind"):
        promote(services, candidate, state, verdict, by="ann", run_id="run")
    assert champion(services) == 1


def of_another(record: CanaryRecord, **changes: Any) -> CanaryRecord:
    return replace(record, id=0, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"champion": 9}, {"digest": "f" * 64}, {"then": "a" * 64}, {"now": "b" * 64}, {"model": "x"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_canary_of_another_pair_says_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    services = of(line)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    trained(replace(services, restate="me"), NEXT)
    candidate = registered(services)[2]
    record = CanaryRecord(
        pipeline="flights",
        model="flight-delay",
        champion=1,
        digest=registered(services)[1].data_version,
        then=value_of(registered(services)[1]),
        now=value_of(candidate),
        passed=True,
        report={
            "identical": True,
            "measures": [{"on": "r", "metric": "m", "recorded": 1.0, "canary": 1.0}],
            "predictions": 0.0,
            "changes": [],
        },
        by="ann",
        run_id="run",
        recorded_at=datetime.now(UTC),
    )
    services.environments.record_canary(of_another(record, **changes))
    assert not passage_of(services, candidate, 1).verdict.free
    services.environments.record_canary(record)
    assert passage_of(services, candidate, 1).verdict.free


def test_a_model_of_unknown_environment_is_held(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = of(line)
    challenged(services)
    candidate = registered(services)[2]
    lost = replace(
        candidate, detail={k: v for k, v in candidate.detail.items() if k not in (VALUE, PROBE)}
    )
    found = passage_of(services, lost, 1)
    assert not found.verdict.free
    assert "nobody has recorded" in found.verdict.reason
    state = services.ledger.alias_state("flight-delay")
    verdict = verdict_on(services, candidate, 1, registered(services)[1], "run")
    with pytest.raises(RefusedError, match="nobody has recorded"):
        promote(services, lost, state, verdict, by="ann", run_id="run")


def test_a_roll_back_is_not_held(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains nothing: the model that comes back is the one that was."""
    services = of(line)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    challenged(services)
    run_canary(services, by="ann")
    decide_champion(services, "run")
    roll_back(services, 1, by="ann", reason="it was better")
    assert champion(services) == 1


# --- the canary itself


def test_the_job_of_the_ui_records_it_and_fails_where_it_is_against(
    line: Line, install: Callable[[str], None]
) -> None:
    services = of(line)
    mine = replace(line, spec=services.spec)
    job = mine.defs.resolve_job_def("flights_canary")
    mine.must("model", partition=NEXT)
    assert job.execute_in_process(instance=mine.instance, raise_on_error=False).success
    install("1.0.1")
    ran = job.execute_in_process(instance=mine.instance, raise_on_error=False)
    assert not ran.success
    assert f"{PREP} 1.0.0 -> 1.0.1" in str(
        services.environments.canaries("flight-delay")[-1].report
    )
    assert "is against the new environment" in failure_of(ran)
    said = [canary.passed for canary in services.environments.canaries("flight-delay")]
    assert said == [True, False]


def test_a_canary_that_passed_turns_the_check_green(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(line, spec=of(line).spec)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    mine.must("model", partition=NEXT)
    key = dg.AssetCheckKey(mine.key("model"), "environment")

    def passed() -> bool:
        log = mine.instance.event_log_storage
        (record,) = log.get_asset_check_execution_history(key, limit=1)
        assert record.event is not None
        assert record.event.dagster_event is not None
        return record.event.dagster_event.asset_check_evaluation_data.passed

    assert not passed()
    job = mine.defs.resolve_job_def("flights_canary")
    assert job.execute_in_process(instance=mine.instance, raise_on_error=False).success
    assert passed()


def test_without_a_champion_there_is_nothing_to_compare_with(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    with copied(Templates(shared_folder, home_template).features, tmp_path / "none") as found:
        with pytest.raises(RefusedError, match="has no champion yet"):
            run_canary(found.services, by="ann")
        assert found.services.environments.canaries("flight-delay") == []


# --- what a person is shown


def test_explain_and_the_audit_page_name_what_has_changed(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services = of(line)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    challenged(services)
    said = explain(services, "model", NEXT)
    assert said["environment_change"]["state"] == "held"
    words = [w for w in said["environment_change"]["changes"] if "OMP" in w]
    assert words == ["OMP_NUM_THREADS not set -> 7"]
    run_canary(services, by="ann")
    decide_champion(services, "run")
    record = registered(services)[2]
    document = audit(services, record)
    assert document["environment"]["against"] == 1
    assert document["environment"]["state"] == "shown by a canary"
    page = audit_page(services, record, document)
    assert "OMP_NUM_THREADS not set -&gt; 7" in page
    assert "canary 1 has shown that it makes no difference" in page
    assert 'Canary 1: <span class="good">passed' in page
    first = audit(services, registered(services)[1])
    assert first["environment"]["against"] is None
    assert first["environment"]["whole"]["distributions"][PREP]["version"] == "1.0.0"


def test_the_command_prints_the_verdict_and_fails_where_it_is_against(
    line: Line,
    install: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    services = of(line)
    monkeypatch.setattr(canary_command, "services_of", lambda _: services)
    with pytest.raises(SystemExit) as ended:
        main(["canary", "flights", "--by", "ann", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (ended.value.code, said["passed"], said["champion"]) == (0, True, 1)
    assert "nothing is held by it" in said["then_what"]
    install("1.0.1")
    with pytest.raises(SystemExit) as ended:
        main(["canary", "flights"])
    text = capsys.readouterr().out
    assert ended.value.code == 1
    assert f"{PREP} 1.0.0 -> 1.0.1" in text
    assert "stay held" in text


# --- by itself


def requested(line: Line, cursor: str | None = None) -> list[dg.RunRequest]:
    sensor = line.defs.resolve_sensor_def("flights_canary")
    with dg.build_sensor_context(
        instance=line.instance, cursor=cursor, repository_def=line.defs.get_repository_def()
    ) as context:
        return list(sensor.evaluate_tick(context).run_requests or [])


def test_the_sensor_has_a_new_environment_tried_once(
    line: Line, install: Callable[[str], None]
) -> None:
    services = of(line)
    mine = replace(line, spec=services.spec)
    assert requested(mine) == []
    install("1.0.1")
    trained(services, NEXT)
    (request,) = requested(mine)
    assert request.tags["signalbox/lane"] == "late"
    job = mine.defs.resolve_job_def("flights_canary")
    ran = job.execute_in_process(
        instance=mine.instance, raise_on_error=False, tags=dict(request.tags)
    )
    assert not ran.success
    assert requested(mine) == [], "what came out against it is not tried again by itself"


def test_a_catalog_that_only_warns_has_no_such_sensor(line: Line) -> None:
    names = {sensor.name for sensor in line.defs.sensors or ()}
    assert "flights_reconcile" in names
    assert "flights_canary" not in names
