"""Two ranks on this machine: equal bits, and what is done when one is killed, hangs or is slow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch", reason="`make setup-torch` installs it")

from platform_assets.domain.errors import TransientError, UsageError
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.domain.stragglers import StragglerTerms
from platform_assets.trainers.torch_tabular import TorchTabularTrainer
from resources.checkpoints import CheckpointsSpec, CheckpointStore, Interrupted, Notice, Saver
from resources.checkpoints.port import State
from resources.distributed.launching import Processes, temporary
from resources.distributed.layout import Folder, Job
from tests.test_torch_trainer import KEY, SMALL, STEPS, quiet, rows, weights
from tests.torch_ranks import Trainer

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]


def processes(**spec: Any) -> Processes:
    return Processes(ProcessesSpec(**{"min": 1, "max": 2, "keep_alive_seconds": 10, **spec}))


def fit(trainer: TorchTabularTrainer, ranks: Processes, **how: Any) -> Any:
    frame, target = rows()
    return trainer.fit(
        frame,
        target,
        kind="binary_classification",
        seed=7,
        processes=ranks,
        **{"parameters": SMALL, "on_round": quiet, **how},
    )


def close(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> bool:
    """Whether two models differ by rounding only."""
    import numpy as np

    numbers = [(np.frombuffer(one[n], "f4"), np.frombuffer(other[n], "f4")) for n in one]
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in numbers)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, bytes]:
    """Of two ranks that nothing happened to; and what is told of them."""
    ranks, told = processes(), []
    model = fit(TorchTabularTrainer(), ranks, on_round=lambda n, _m: told.append(n))
    assert told == [1, 2]
    assert ranks.history.teams == [(2, 0)]
    assert ranks.history.lost == []
    assert len(ranks.figures) == 2
    assert [len(points) for points in ranks.curves.values()] == [STEPS, STEPS]
    return weights(model)


class Leaving(Saver):
    """Is told to go once it has saved something."""

    def __init__(self, root: Path, token: int, *, leaves: bool) -> None:
        self.notice, self.leaves = Notice(), leaves
        store = CheckpointStore(root, KEY, token=token)
        super().__init__(store, "the training", CheckpointsSpec(), self.notice)

    def save(self, step: int, state: State, *, paused: float | None = None) -> None:
        assert paused is not None
        assert paused > 0
        before = self.account.cost_seconds
        super().save(step, state, paused=paused)
        assert self.account.cost_seconds == before + paused
        if self.leaves:
            self.notice.give()


class Unasked(Saver):
    """Takes a checkpoint only where a test's ranks have asked for it."""

    def due(self, step: int) -> bool:
        return False


def test_two_ranks_that_are_interrupted_go_on_to_equal_bits(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_STOP_AT", "3")
    with pytest.raises(Interrupted, match="step 3 is saved"):
        fit(Trainer("stopped"), processes(), checkpointer=Leaving(tmp_path, 1, leaves=True))
    ranks, again = processes(), Leaving(tmp_path, 2, leaves=False)
    model = fit(TorchTabularTrainer(), ranks, checkpointer=again)
    assert again.account.resumed_step == 3
    assert ranks.history.teams == [(2, 3)]
    assert weights(model) == undisturbed


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    ranks, told = processes(), list[str]()
    store = CheckpointStore(tmp_path, KEY, token=1)
    saver = Unasked(store, "the training", CheckpointsSpec(), Notice(), tell=told.append)
    model = fit(Trainer("disk_full"), ranks, checkpointer=saver)
    assert ranks.history.teams == [(2, 0)], "no rank was lost or started again"
    assert weights(model) == undisturbed
    saver.wait()
    assert (saver.account.failed, saver.account.taken) == (1, 1)
    (why,) = saver.account.problems
    assert "checkpoint of step 2" in why
    assert why in told
    found = store.load()
    assert found is not None
    assert found.step == 4


def test_a_rank_that_is_killed_is_started_again_in_its_place(
    undisturbed: dict[str, bytes],
) -> None:
    ranks = processes()
    told: list[int] = []
    model = fit(Trainer("rank_killed"), ranks, on_round=lambda n, _m: told.append(n))
    assert ranks.history.teams == [(2, 0), (2, 2)], "from the checkpoint of the second step on"
    assert weights(model) == undisturbed
    assert told == [1, 2]


def test_a_place_that_is_lost_is_made_up_for_where_no_fewer_are_allowed(
    undisturbed: dict[str, bytes],
) -> None:
    ranks = processes(min=2)
    model = fit(Trainer("place_lost"), ranks)
    assert ranks.history.teams == [(2, 0), (2, 2)]
    assert weights(model) == undisturbed


def test_a_rank_that_hangs_is_ended_and_all_go_on(undisturbed: dict[str, bytes]) -> None:
    ranks = processes(step_timeout_seconds=10, restarts=10)
    model = fit(Trainer("hanging"), ranks)
    assert ranks.history.teams[0] == (2, 0)
    assert len(ranks.history.teams) > 1
    assert close(weights(model), undisturbed)


def test_a_rank_that_is_slow_is_named_and_replaced(undisturbed: dict[str, bytes]) -> None:
    terms = StragglerTerms(ratio=3.0, steps=8, seconds=1.0, action="replace")
    seen: list[tuple[int, bool]] = []
    ranks = Processes(
        ProcessesSpec(min=1, max=2, keep_alive_seconds=10, straggler=terms),
        on_straggler=lambda straggler, replaced: seen.append((straggler.place.rank, replaced)),
    )
    parameters = {**SMALL, "epochs": 30}
    told: list[int] = []
    model = fit(
        Trainer("slowed"), ranks, parameters=parameters, on_round=lambda n, _m: told.append(n)
    )
    assert model is not None
    assert told == list(range(1, 31))
    assert seen == [(1, True)]
    ((straggler, _),) = ranks.history.stragglers
    assert straggler.ratio > 3
    assert straggler.place.host in straggler.reason
    assert f"process {straggler.place.pid}" in straggler.reason
    first, second, *_ = ranks.history.teams
    assert first == (2, 0)
    assert second[1] > 0, "from where the straggler was seen, not from the beginning"


def test_an_error_of_a_rank_is_told_and_not_tried_again() -> None:
    ranks = processes()
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed.*this rank cannot count"):
        fit(Trainer("wrong"), ranks)
    assert len(ranks.history.teams) <= 1


def test_what_a_rank_refuses_is_refused(tmp_path: Path) -> None:
    ranks, folder = processes(), Folder(tmp_path)
    folder.make(Job("m:f", {}))
    said = {"rank": 0, "world": 2, "trace": "", "text": "batch_size is too much"}
    said |= {"kind": "UsageError", "module": "platform_assets.domain.errors"}
    (folder.errors / "1.json").write_text(json.dumps(said))
    with pytest.raises(UsageError, match="batch_size is too much"):
        ranks._judged(3, folder)


def test_several_nodes_are_not_those_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nodes is 2; where one machine trains allowed is 1"):
        processes(max=2, nodes=2).run("m:f", {}, tmp_path, on_round=quiet)


def test_ranks_that_die_again_and_again_are_an_error_that_may_pass() -> None:
    with pytest.raises(TransientError, match="started again more than 1 times"):
        fit(Trainer("killed_for_good"), processes(max=1, restarts=1))


STEP = """
import sys
from resources.distributed.launching import Processes, temporary
from platform_assets.domain.processes import ProcessesSpec
with temporary() as root:
    Processes(ProcessesSpec(min=1, max=2)).run(
        "tests.torch_ranks:endless", {}, root, on_round=lambda *_: None
    )
"""


@pytest.mark.parametrize("how", ["step killed", "step terminated", "supervisor killed"])
def test_nothing_is_left_of_a_step_that_ends(tmp_path: Path, how: str) -> None:
    """Step, supervisor, agents and ranks: when the first goes, so do all."""
    environment = {**os.environ, "TEST_PIDS": str(tmp_path), "TMPDIR": str(tmp_path.parent)}
    step = subprocess.Popen([sys.executable, "-c", STEP], cwd=ROOT, env=environment)
    try:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2 and all_written(tmp_path))
        family = psutil.Process(step.pid).children(recursive=True)
        assert len(family) >= 5, "a supervisor, two agents, two ranks"
    finally:
        if how == "supervisor killed":
            psutil.Process(step.pid).children()[0].kill()
        else:
            step.send_signal(signal.SIGKILL if how == "step killed" else signal.SIGTERM)
        step.wait(60)
    wait_for(lambda: not [p for p in family if alive(p)])


def all_written(folder: Path) -> bool:
    return all(path.read_text() for path in folder.iterdir())


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_folder_is_gone_afterwards_also_that_of_a_process_that_was_killed() -> None:
    code = "import os; from resources.distributed.launching import temporary\n"
    code += "with temporary() as root: print(root, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    assert (left / "owner.json").exists()
    with temporary() as root, temporary() as other:
        assert not left.exists()
        assert root.is_dir()
        assert other.is_dir()
    assert not root.exists()
