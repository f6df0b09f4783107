"""Which rank is slow, by its step times alone; and what the catalog may ask of processes."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from platform_assets.domain.errors import SpecError, UsageError
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.domain.stragglers import Place, Straggler, StragglerTerms, judge
from platform_assets.line import straggling
from platform_assets.line.alerting import list_alerts, update
from platform_assets.line.launching import open_failures
from platform_assets.line.services import Services
from resources.distributed import extra
from resources.distributed.launching import Processes
from resources.distributed.layout import Folder, Job, TimesWriter, read_times
from resources.home import Home
from resources.plots import step_times
from resources.training import with_processes
from tests.nyc import changed, flights_spec

TERMS = StragglerTerms(ratio=1.5, steps=20, seconds=2.0)


def found(*times: Sequence[float], terms: StragglerTerms = TERMS) -> Straggler | None:
    places = {
        n: Place(n, len(times), f"host-{n}", pod=f"pod-{n}", node=f"node-{n}", pid=100 + n)
        for n in range(len(times))
    }
    return judge(dict(enumerate(times)), places, terms)


def test_a_rank_that_is_slow_for_the_stated_while_is_named() -> None:
    straggler = found([0.1] * 40, [0.2] * 40, [0.1] * 40)
    assert straggler is not None
    assert straggler.place.rank == 1
    assert straggler.ratio == pytest.approx(2.0)
    assert straggler.steps == 20
    assert straggler.reason == (
        "rank 1 of 3 (host host-1, process 101, pod pod-1, node node-1) took 4.0 s for its part of "
        "the last 20 steps, the others 2.0 s: 2.0 times as long or more in every quarter of them, "
        "allowed is less than 1.5 times for 20 steps and 2 s"
    )


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (([0.2] * 40,), "it is alone"),
        (([0.1] * 40, [0.14] * 40), "not slow enough"),
        (([0.1] * 19, [0.3] * 19), "not for so many steps"),
        (([0.01] * 40, [0.03] * 40), "not for so many seconds"),
        (([0.1] * 40, [0.1] * 39 + [30.0]), "one hiccup"),
        (([0.1] * 40, [0.1] * 30 + [0.3] * 10), "for half of the while only"),
        (([0.1] * 40, [0.3] * 25 + [0.1] * 15), "it was, and is not any more"),
        (([0.4] * 40, [0.4] * 40), "all are slow alike"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nobody_is_named_where(times: tuple[list[float], ...], why: str) -> None:
    assert found(*times) is None, why


def test_steps_that_are_short_are_looked_at_for_as_many_seconds_as_stated() -> None:
    assert found([0.01] * 100, [0.03] * 100) is not None, "3 s of steps are there"


def test_of_several_the_slowest_is_named() -> None:
    straggler = found([0.1] * 30, [0.3] * 30, [0.1] * 30, [0.5] * 30, [0.1] * 30)
    assert straggler is not None
    assert straggler.place.rank == 3


def test_a_duty_cycle_is_slow_though_most_steps_are_not() -> None:
    """Stopped every fifth step: the median of the steps would not show it."""
    assert found([0.1] * 40, ([0.1] * 4 + [0.9]) * 8) is not None


# --- what is written ----------------------------------------------------------------------------


def test_times_are_written_in_few_bytes_and_read_as_far_as_they_are(tmp_path: Path) -> None:
    writer = TimesWriter(tmp_path / "times", every=0.5)
    for step in range(1, 11):
        writer.add(step, 0.01 * step, now=100 + 0.1 * step)
    assert [step for step, _ in read_times(tmp_path / "times")] == [1, 2, 3, 4, 5, 6]
    writer.flush()
    assert (tmp_path / "times").stat().st_size == 80
    assert read_times(tmp_path / "times", most=2)[0] == (9, pytest.approx(0.09))
    with (tmp_path / "times").open("ab") as file:
        file.write(b"\x01\x02\x03")  # of a rank that was killed as it wrote
    assert len(read_times(tmp_path / "times")) == 10


def test_an_event_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    from resources.distributed.layout import EVENTS, Events

    folder = Folder(tmp_path)
    folder.make(Job("m:f", {}))
    events = Events(folder)
    folder.tell("round", step=1, metrics={})
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"kind": "rou')
    assert [event["step"] for event in events.new()] == [1]
    with (tmp_path / EVENTS).open("a") as file:
        file.write('nd", "step": 2}\n')
    assert [event["step"] for event in events.new()] == [2]


def test_the_plot_is_a_picture() -> None:
    curves = {"rank 0": [(n, 0.01) for n in range(5000)], "rank 1": [(1, 0.02)]}
    assert step_times(curves).startswith(b"\x89PNG")
    assert step_times({}).startswith(b"\x89PNG")


# --- what the catalog may say -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"min": 3, "max": 2}, "min is 3; allowed are 1 to max (2)"),
        ({"max": 3, "nodes": 2}, "max is 3 on 2 nodes; allowed are multiples of nodes"),
        ({"min": 3, "max": 8, "nodes": 2}, "allowed are multiples of 4, for a node is lost with"),
        ({"max": 0}, "greater than or equal to 1"),
        ({"maximum": 2}, "maximum"),
        ({"straggler": {"ratio": 1.0}}, "greater than 1"),
        ({"straggler": {"action": "shoot"}}, "'alert' or 'replace'"),
    ],
)
def test_a_wrong_number_of_processes_is_refused_at_load(given: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError) as refused:
        changed(flights_spec(), model={"processes": given})
    assert why in str(refused.value)
    assert "model.processes" in str(refused.value)


def test_it_is_no_part_of_the_code_version_and_part_of_the_fingerprint() -> None:
    from platform_assets.line.inputs import stage_version

    plain, several = (
        flights_spec(),
        changed(flights_spec(), model={"processes": {"min": 1, "max": 2}}),
    )
    assert stage_version(plain, "snapshot") == stage_version(several, "snapshot")
    assert several.model.processes is not None
    assert several.model.processes.begun == "2 on 1"


def test_a_trainer_that_trains_in_one_process_is_not_given_several() -> None:
    from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer

    with pytest.raises(UsageError, match="asks for up to 2, and LightGBMTrainer trains in one"):
        with_processes(LightGBMTrainer(), Processes(ProcessesSpec(max=2)))
    assert with_processes(LightGBMTrainer(), None) == {}


def test_without_pytorch_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from resources.training import load_trainer

    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"`pip install signalbox\[torch\]`"):
        load_trainer("platform_assets.trainers.torch_tabular:TorchTabularTrainer")


# --- alerted ------------------------------------------------------------------------------------


def test_a_straggler_is_alerted_until_a_training_has_none(home: Home) -> None:
    services = Services.open(flights_spec(), home)
    straggler = found([0.1] * 40, [0.2] * 40, [0.1] * 40)
    assert straggler is not None
    straggling.note(services, "run-1", "2013-02-09", straggler, replaced=True)
    straggling.note(services, "run-1", "2013-02-09", straggler, replaced=True)
    told = [r for r in update(services) if r.kind == "straggler"]
    assert [r.subject for r in told] == ["flights/model 2013-02-09 rank 1"]
    assert "rank 1 of 3 (host host-1, process 101, pod pod-1, node node-1)" in told[0].text
    assert told[0].text.endswith("it was replaced")
    assert "kubectl cordon node-1" in told[0].advice
    assert [r for r in update(services) if r.kind == "straggler"] == [], "once"
    straggling.forget(services, datetime(2013, 1, 1, tzinfo=UTC))
    assert straggling.straggler_alerts(services), "that training had begun before it was named"
    straggling.forget(services, datetime.now(UTC))
    (healed,) = update(services)
    assert healed.kind == "healed"
    assert "a later training had no rank that was slow" in healed.text
    assert [a for a in list_alerts(services) if a["kind"] == "straggler"] == []


def test_a_straggler_is_no_failed_run(home: Home) -> None:
    services = Services.open(flights_spec(), home)
    straggler = found([0.1] * 40, [0.2] * 40)
    assert straggler is not None
    straggling.note(services, "run-1", "2013-02-09", straggler, replaced=False)
    assert open_failures(services) == []


def test_the_page_s_declaration_is_one() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "distributed.md").read_text()
    block = re.search(r"```yaml\n(model:\n.*?)```", text, re.DOTALL)
    assert block is not None
    given = yaml.safe_load(block[1])["model"]
    spec = changed(flights_spec(), model=given)
    assert spec.model.processes == ProcessesSpec(
        min=1, max=2, straggler=StragglerTerms(ratio=1.5, steps=20, seconds=10)
    )
    command = "python -m tests.pipelines.flights_ranks\n"
    assert command in text, "tests/test_torch_pipeline.py types it"
