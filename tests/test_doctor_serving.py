"""What the doctor says of ledger, aliases, slot, deleted versions and clocks; and the CLI."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from platform_assets.cli.app import main
from platform_assets.cli.doctor_serving import serving_findings
from platform_assets.line.projection import project, reconcile
from resources.ledger import engine
from resources.ledger.tables import tables
from tests.promoting import MODEL
from tests.small import Line
from tests.test_projection import (
    LAST,
    NEW,
    aliases,
    client,
    line,
    moved,
    promote,
    rewritten,
    templates,
    version,
)

__all__ = ["line", "templates"]  # fixtures


def off(line: Line, now: datetime | None = None) -> list[str]:
    """What is found off; each comes with what to do."""
    found = [(text, advice) for ok, text, advice in serving_findings(line.services, now) if not ok]
    assert all(advice for _, advice in found)
    return [text for text, _ in found]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def test_each_thing_that_is_off_is_named(line: Line) -> None:
    assert off(line) == []
    moved(line)
    rewritten(line)
    said = off(line)
    assert len(said) == 2
    assert "MLflow's alias champion is version 1" in said[0]
    assert "its files were changed: the slot serves" in said[1]
    reconcile(line.services, mend=True)
    assert off(line) == []
    # One that never was champion: no alias, and no training of before, can be had any more.
    last = version(line, LAST)
    client(line).delete_model_version(MODEL, str(last))
    assert off(line) == [f"in the ledger and deleted in MLflow: version {last} (of {LAST})"]


def test_what_only_lags_is_named_and_is_not_off(line: Line) -> None:
    promote(line, LAST)
    assert off(line) == []
    ((_, said, _),) = serving_findings(line.services)
    assert said.startswith("behind the ledger: alias champion, alias previous, slot;")


def test_clocks_that_jumped_are_named_and_change_nothing(line: Line) -> None:
    now = datetime.now(UTC)
    assert [text for text in off(line, now - timedelta(hours=1)) if "in the future" in text]
    t = tables().promotions
    with engine.writing(line.home.ledger_url) as connection:
        back = now - timedelta(days=1)
        connection.execute(t.update().where(t.c.counter == 2).values(decided_at=back))
    (said,) = off(line, now)
    assert "change 2 of the champion is dated" in said
    assert said.endswith("a clock jumped back")
    project(line.services)
    assert aliases(line)["champion"] == version(line, NEW)


def test_the_command_mends_and_says_what_it_did(
    line: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    moved(line)
    assert command("reconcile", "flights", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["done"] == ["alias champion"]
    assert [(d["what"], d["act"], d["off"]) for d in found["drifts"]] == [
        ("alias champion", "mend", False)
    ]
    assert command("reconcile", "flights") == 0
    assert "are as the ledger says" in capsys.readouterr().out
    client(line).delete_model_version(MODEL, str(version(line, NEW)))
    assert command("reconcile", "flights") == 1
    assert "was deleted in MLflow" in " ".join(capsys.readouterr().out.split())
