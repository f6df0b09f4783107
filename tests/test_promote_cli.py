"""`promote`, `rollback`, `promotions`, `release-hold`: what they do, and what bad use gets."""

import os
import resource
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from platform_assets.domain.errors import TransientError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line import gating
from platform_assets.line.crowning import CHAMPION_ALIAS, decide_champion
from platform_assets.line.judging import evaluate_model
from resources.ledger import promotions as swap
from resources.tracking import Tracking
from tests.promoting import MODEL, crowned, verdict
from tests.receiver import closed_port
from tests.small import Line
from tests.test_cli import Said, Shell, off, signalbox, small
from tests.test_promotions import everything

__all__ = ["signalbox", "small"]

pytestmark = pytest.mark.heavy
BY = ("--by", "ann")
BACK = ("rollback", "flights", "--reason", "off by a quarter", *BY)


@pytest.fixture
def line(small: Line) -> Line:
    """The model of the 4th is champion, that of the 7th is judged, that of the 8th is not."""
    evaluate_model(small.services, PartitionKey.parse("2013-01-04"), "run")
    decide_champion(small.services, "run")
    evaluate_model(small.services, PartitionKey.parse("2013-01-07"), "run")
    return small


def versions(line: Line) -> dict[str, int]:
    return {
        day.removeprefix("2013-01-"): int(record.detail["model_version"])
        for day, record in line.versions("model").items()
    }


def champion(line: Line) -> int:
    state = line.services.ledger.alias_state(MODEL)
    assert state is not None
    return state.version


def alias(line: Line) -> int | None:
    return line.services.tracking.alias(MODEL, CHAMPION_ALIAS)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that lets everybody pass; what it is asked for is as always."""
    whole = gating.judge
    monkeypatch.setattr(
        gating, "judge", lambda *given: whole(*given).model_copy(update={"passed": True})
    )


# --- what they do -------------------------------------------------------------------------------


def test_promote_then_roll_back_then_release(line: Line, signalbox: Shell, lenient: None) -> None:
    v = versions(line)
    said = signalbox("promote", "flights", str(v["07"]), "--evaluate", *BY, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document["previous"] == v["04"]
    assert said.document["by"] == "ann"
    assert champion(line) == alias(line) == v["07"]
    said = signalbox(*BACK)
    assert said.code == 0
    assert f"version {v['04']} is champion again" in said.out
    assert champion(line) == alias(line) == v["04"]
    document = signalbox("promotions", "flights", "--json").document
    assert [h["action"] for h in document["history"]] == ["promote", "promote", "rollback"]
    assert document["champion"] == {"version": v["04"], "change": 3}
    (hold,) = document["holds"]
    assert hold["version"] == v["07"]
    told = signalbox("promotions", MODEL)
    assert f"hold {hold['hold']}: version {v['07']} until it is released" in told.out
    # Neither the line nor a person brings it back.
    outcome = decide_champion(line.services, "run")
    assert champion(line) == v["04"]
    assert "off by a quarter" in outcome.metadata["left_out"]["2013-01-07"]
    again = ("promote", "flights", str(v["07"]), "--evaluate", *BY)
    signalbox(*again).refused(1, f"version {v['07']} is held until it is released by ann")
    assert signalbox("release-hold", "flights", str(hold["hold"])).code == 0
    signalbox("release-hold", "flights", str(hold["hold"])).refused(2, "has no hold")
    # Free, and still not brought back by itself.
    outcome = decide_champion(line.services, "run")
    assert "only a person promotes it again" in outcome.metadata["left_out"]["2013-01-07"]
    assert signalbox(*again).code == 0
    assert champion(line) == alias(line) == v["07"]


def test_the_job_rolls_back(line: Line, lenient: None) -> None:
    v = versions(line)
    crowned(line.services.ledger, v["07"])
    job = line.defs.resolve_job_def("flights_rollback")
    config = {"ops": {"flights__rollback": {"config": {"reason": "off", "by": "ann"}}}}
    result = job.execute_in_process(instance=line.instance, run_config=config)
    assert result.success
    assert champion(line) == alias(line) == v["04"]
    (seen,) = line.instance.fetch_observations(line.key("champion"), limit=5).records
    observed = seen.asset_observation
    assert observed is not None
    assert observed.metadata["action"].value == "rollback"
    failed = job.execute_in_process(instance=line.instance, run_config=config, raise_on_error=False)
    assert not failed.success
    assert champion(line) == v["04"]


def test_a_roll_back_goes_past_what_may_not_be_champion(
    line: Line, signalbox: Shell, lenient: None
) -> None:
    v = versions(line)
    for version in ("05", "07", "08"):
        crowned(line.services.ledger, v[version])
    client = line.services.tracking._client()
    client.delete_model_version(MODEL, str(v["07"]))
    to = str(v["07"])
    signalbox(*BACK, "--to", to).refused(1, f"version {to} is not in MLflow's registry")
    line.services.ledger.hold(MODEL, v["05"], reason="leaks", by="bob", since=datetime.now(UTC))
    assert signalbox(*BACK).code == 0
    assert champion(line) == v["04"]
    signalbox(*BACK).refused(1, "no other that was may be again", "leaks", "deleted there")


# --- bad use ------------------------------------------------------------------------------------


@pytest.fixture
def refused(line: Line, signalbox: Shell) -> Callable[..., Said]:
    """A command that is refused in a sentence and leaves ledger and alias as they were."""

    def call(code: int, arguments: tuple[str, ...], *words: str) -> Said:
        before, pointed = everything(line.services.ledger), alias(line)
        said = signalbox(*arguments)
        said.refused(code, *words)
        assert everything(line.services.ledger) == before
        assert alias(line) == pointed
        return said

    return call


def test_what_cannot_be_promoted(line: Line, refused: Callable[..., Said]) -> None:
    v = versions(line)
    ledger = line.services.ledger
    seventh = str(v["07"])
    refused(1, ("promote", "flights", seventh, *BY), f"no verdict against champion {v['04']}")
    verdict(ledger, v["07"], v["05"])
    said = f"verdicts on it against champion {v['05']} that do not count"
    refused(1, ("promote", "flights", seventh, *BY), said)
    # A verdict on this pair, of other rows.
    verdict(ledger, v["07"], v["04"])
    refused(1, ("promote", "flights", seventh, *BY), "on the present rows and terms")
    refused(2, ("promote", "flights", "99", *BY), "has no version 99", "the latest are")
    refused(1, ("promote", "flights", str(v["04"]), *BY), "is champion already")
    refused(2, ("promote", "flights", "0", *BY), "greater than or equal to 1")
    refused(2, ("promote", "nosuch", "1", *BY), "'nosuch' is no pipeline")
    refused(2, ("promote", "flights", seventh), "--by")
    refused(2, ("promote", "flights", seventh, "--by", " "), "a promotion needs a name")
    refused(2, ("rollback", "flights", "--reason", "", *BY), "a roll back needs a reason")
    refused(1, (*BACK, "--to", seventh), f"version {v['07']} was never champion")
    refused(1, (*BACK, "--to", str(v["04"])), "is champion already")
    refused(1, BACK, "no other that was may be again")
    # The day after the 5th is held for good.
    fifth = ("promote", "flights", str(v["05"]), "--evaluate", *BY)
    refused(1, fifth, "is judged on", "not there")


def test_an_archived_and_a_deleted_version(line: Line, refused: Callable[..., Said]) -> None:
    v = versions(line)
    client = line.services.tracking._client()
    client.transition_model_version_stage(MODEL, str(v["07"]), "Archived")
    for evaluate in ((), ("--evaluate",)):
        arguments = ("promote", "flights", str(v["07"]), *evaluate, *BY)
        refused(1, arguments, "is archived in MLflow's registry")
    client.delete_model_version(MODEL, str(v["08"]))
    refused(1, ("promote", "flights", str(v["08"]), "--evaluate", *BY), "it was deleted there")


def test_a_champion_that_was_deleted_in_mlflow(
    line: Line, refused: Callable[..., Said], signalbox: Shell
) -> None:
    v = versions(line)
    line.services.tracking._client().delete_model_version(MODEL, str(v["04"]))
    arguments = ("promote", "flights", str(v["07"]), "--evaluate", *BY)
    refused(1, arguments, "is champion in the ledger and cannot be compared with", "rollback")
    found = off(signalbox("doctor", "--json"))["mlflow of flights"]
    assert f"version {v['04']} is not in MLflow's registry" in found["found"]
    assert "signalbox rollback flights" in found["advice"]


def test_two_aliases_on_one_version_are_nobodys_business(
    line: Line, signalbox: Shell, lenient: None
) -> None:
    v = versions(line)
    for other in ("previous", "mine"):
        line.services.tracking.set_alias(MODEL, other, v["04"])
    assert signalbox("promote", "flights", str(v["07"]), "--evaluate", *BY).code == 0
    assert champion(line) == alias(line) == v["07"]
    assert line.services.tracking.alias(MODEL, "mine") == v["04"]


def test_with_the_registry_down_nothing_is_promoted(
    line: Line, refused: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    seventh = str(versions(line)["07"])

    def down(*_: object) -> None:
        raise TransientError("the MLflow store did not answer, it must be reachable: try again")

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "absence", down)
        refused(1, ("promote", "flights", seventh, "--evaluate", *BY), "did not answer")


def test_the_registry_goes_down_in_between(
    line: Line, signalbox: Shell, lenient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the ledger and the alias: the decision stands, and it is said that MLflow lags."""
    v = versions(line)

    def down(*_: object) -> None:
        raise TransientError("the MLflow store did not answer, it must be reachable: try again")

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "set_alias", down)
        said = signalbox("promote", "flights", str(v["07"]), "--evaluate", *BY)
    assert said.code == 0
    assert "the ledger has the change, alias champion: it could not be set right" in said.err
    assert (champion(line), alias(line)) == (v["07"], v["04"])
    said = signalbox("doctor", "--json")  # it lags, and is brought up: nothing is off
    assert said.code == 0
    checks = {check["name"]: check["found"] for check in said.document["checks"]}
    assert checks["serving of flights"].startswith("behind the ledger: alias champion")
    decide_champion(line.services, "run")
    assert alias(line) == v["07"]


@pytest.mark.embedded
def test_with_the_ledger_gone_nothing_is_promoted(line: Line, signalbox: Shell) -> None:
    pointed = alias(line)
    path = Path(line.home.ledger_url.removeprefix("sqlite:///"))
    path.rename(path.with_suffix(".away"))
    try:
        for command in (("promote", "flights", "2", *BY), BACK, ("promotions", "flights")):
            signalbox(*command).refused(1, "there is no ledger at")
        told = off(signalbox("doctor", "--json"))["ledger"]["found"]
        assert f"there is no ledger at {path}" in told
        assert "run `signalbox init`" in told
    finally:
        path.with_suffix(".away").rename(path)
    assert alias(line) == pointed


def test_with_a_ledger_on_postgres_down_nothing_is_promoted(
    line: Line, signalbox: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, pointed, slot = everything(line.services.ledger), alias(line), line.services.slot
    served, port = slot.serves(), closed_port()
    url = f"postgresql://ann:secret@127.0.0.1:{port}/ledger"
    seventh = str(versions(line)["07"])
    words = (
        f"the ledger postgresql://ann:***@127.0.0.1:{port}/ledger does not answer",
        "Connection refused",
        "see that its server runs and that SIGNALBOX_LEDGER_URL names it, then try again",
    )
    with monkeypatch.context() as patch:
        patch.setenv("SIGNALBOX_LEDGER_URL", url)
        for command in (
            ("promote", "flights", seventh, *BY),
            ("promote", "flights", seventh, "--evaluate", *BY),
            BACK,
            ("promotions", "flights"),
            ("release-hold", "flights", "1"),
        ):
            signalbox(*command).refused(1, *words)
        said = signalbox("doctor", "--json")
        assert "Traceback" not in said.err
        told = off(said)["ledger"]["found"]
        assert all(word in told for word in words)
        assert "secret" not in said.out + said.err
    assert everything(line.services.ledger) == before
    assert alias(line) == pointed
    assert slot.serves() == served


@pytest.mark.embedded
def test_with_a_full_disk_nothing_is_promoted(line: Line, lenient: None) -> None:
    """In a child of its own: the limit on the size of files stands for the disk."""
    v, services = versions(line), line.services
    champ, before = services.ledger.alias_state(MODEL), everything(services.ledger)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine = verdict(services.ledger, v["07"], v["04"])
            path = Path(line.home.ledger_url.removeprefix("sqlite:///") + "-wal")
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, -1))
            candidate = gating.registered(services)[v["07"]]
            services.ledger.promote(
                "flights",
                MODEL,
                v["07"],
                model_date=gating.date_of(candidate),
                expected=champ,
                evaluation_id=mine.id,
                reason="x" * 100_000,
                by="ann",
                run_id="run",
                at=datetime.now(UTC),
            )
        except TransientError as error:
            code = 0 if "free some disk space" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    after = everything(services.ledger)
    assert after[:2] == before[:2]
    assert after[3] == before[3]
    assert alias(line) == v["04"]


def test_a_clock_that_jumps_back_changes_no_order(
    line: Line, signalbox: Shell, lenient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    v = versions(line)

    class Back(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(1999, 1, 1, tzinfo=UTC)

    with monkeypatch.context() as patch:
        patch.setattr(swap, "datetime", Back)
        assert signalbox("promote", "flights", str(v["07"]), "--evaluate", *BY).code == 0
    history = signalbox("promotions", "flights", "--json").document["history"]
    assert [change["version"] for change in history] == [v["04"], v["07"]]
    assert history[1]["decided_at"] < history[0]["decided_at"]
    assert champion(line) == alias(line) == v["07"]
    assert decide_champion(line.services, "run").metadata["registered_version"] == v["07"]


def test_promotions_prints_all_that_is_known(line: Line, signalbox: Shell) -> None:
    decide_champion(line.services, "run")
    document = signalbox("promotions", "flights", "--json").document
    v = versions(line)
    assert {e["candidate"] for e in document["evaluations"]} == {v["04"], v["07"]}
    assert document["history"][0]["evaluation"] == document["evaluations"][0]["evaluation"]
