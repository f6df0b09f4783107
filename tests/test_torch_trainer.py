"""The PyTorch trainer in one process: what it makes, what it refuses, and how it goes on."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("torch", reason="`make setup-torch` installs it")

from platform_assets.domain.checkpoints import CheckpointKey, CheckpointsSpec
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.trainers.torch_tabular import TorchTabularTrainer
from resources.checkpoints import CheckpointStore, Interrupted, Notice, Saver
from resources.distributed import draws
from resources.tracking.models import load_model, save_model
from resources.training import training_frame
from tests.test_training import SPEC, dataset
from tests.torch_ranks import few

pytestmark = pytest.mark.torch

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 512, "hidden": 8, "embedding": 4}
STEPS = 6
"""1,199 rows in batches of 512, twice."""
KEY = CheckpointKey("flights/model", "2013-01-08", "f" * 64)


def quiet(_round: int, _metrics: Mapping[str, float]) -> None:
    return None


def rows() -> "tuple[pd.DataFrame, pd.Series[float]]":
    return training_frame(dataset(), SPEC)


def fit(table: pa.Table | None = None, *, seed: int = 7, kind: Any = None, **how: Any) -> Any:
    frame, target = training_frame(table if table is not None else dataset(), SPEC)
    if kind == "regression":
        target = frame["distance"] + target
    how.setdefault("parameters", SMALL)
    how.setdefault("on_round", quiet)
    return TorchTabularTrainer().fit(
        frame, target, kind=kind or "binary_classification", seed=seed, **how
    )


def weights(model: Any) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.module.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, bytes]:
    return weights(fit())


# --- what it makes ------------------------------------------------------------------------------


def test_equal_arguments_make_equal_models(undisturbed: dict[str, bytes]) -> None:
    assert weights(fit()) == undisturbed
    assert weights(fit(seed=8)) != undisturbed
    turned = dataset().take(pa.array(reversed(range(dataset().num_rows))))
    assert weights(fit(turned)) != undisturbed, "rows in another order are another training"


def test_it_learns_and_tells_of_each_epoch() -> None:
    told: list[tuple[int, float]] = []
    model = fit(
        parameters={"epochs": 12, "batch_size": 64},
        on_round=lambda n, metrics: told.append((n, metrics["train_log_loss"])),
    )
    assert [n for n, _ in told] == list(range(1, 13))
    assert told[-1][1] < 0.8 * told[0][1]
    frame, target = rows()
    found = TorchTabularTrainer().predict(model, frame)
    late = target.to_numpy() == 1
    assert found[late].mean() > found[~late].mean() + 0.1
    gains = TorchTabularTrainer().importance(model)
    assert tuple(gains) == SPEC.dataset.features
    assert min(gains.values()) > 0


def test_a_regression_predicts_values() -> None:
    model = fit(kind="regression", parameters={"epochs": 30, "batch_size": 64})
    frame, target = rows()
    found = TorchTabularTrainer().predict(model, frame)
    assert np.corrcoef(found, frame["distance"] + target)[0, 1] > 0.95


def test_a_row_s_prediction_does_not_depend_on_its_company() -> None:
    model = fit()
    whole, _ = rows()
    together = TorchTabularTrainer().predict(model, whole)
    for at in (0, 400, 1000):
        alone, _ = training_frame(dataset().slice(at, 1), SPEC)
        found = TorchTabularTrainer().predict(model, alone)
        assert found == pytest.approx(together[at : at + 1], abs=1e-6)


def test_unseen_and_missing_values_are_no_error() -> None:
    table = dataset()
    for name, value in (("dest", "XXX"), ("carrier", None), ("temp", None)):
        kind = table.schema.field(name).type
        part = pa.array([value] * 20 + table[name].to_pylist()[20:], kind)
        table = table.set_column(table.column_names.index(name), name, part)
    frame, _ = training_frame(table, SPEC)
    assert np.isfinite(TorchTabularTrainer().predict(fit(), frame)).all()
    assert np.isfinite(TorchTabularTrainer().predict(fit(table), frame)).all()


def test_what_is_stored_predicts_the_same_and_holds_no_pickle(tmp_path: Path) -> None:
    import mlflow.pyfunc

    model, trainer = fit(), TorchTabularTrainer()
    frame, _ = rows()
    example = frame.head(5)
    digests = [
        save_model(
            tmp_path / name,
            model,
            trainer.flavor,
            identity={"run_id": "", "model_id": "", "artifact_path": ""},
            input_example=example,
            predictions=trainer.predict(model, example),
            requirements=trainer.requirements,
        )
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
    wanted = trainer.predict(model, frame)
    again = load_model(tmp_path / "one", trainer.flavor)
    assert trainer.predict(again, frame).tolist() == wanted.tolist()
    served = mlflow.pyfunc.load_model(str(tmp_path / "one"))
    assert served.predict(frame).tolist() == wanted.tolist()
    raw = frame.astype(dict.fromkeys(SPEC.dataset.categories, object)).head(3)
    assert served.predict(raw) == pytest.approx(wanted[:3], abs=1e-6)
    content = b"".join(p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert str(Path(__file__).parents[1]).encode() not in content, "no folder of this machine"
    assert not list((tmp_path / "one").rglob("*.pth"))


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"lr": 0.1}, "lr is no parameter of TorchTabularTrainer; allowed are batch_size, "),
        ({"epochs": 0}, "epochs is 0; allowed is a whole number from 1 on"),
        ({"epochs": True}, "epochs is True; allowed is a whole number"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed is a number from 0 on, less than 1"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; allowed is a number from 0 on"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        fit(parameters=parameters)


def test_rows_that_nothing_can_be_learnt_from_are_refused() -> None:
    with pytest.raises(RefusedError, match="there is no row to train on"):
        fit(dataset().slice(0, 0))
    punctual = dataset().filter(pa.array([v == 0 for v in dataset()["delayed"].to_pylist()]))
    with pytest.raises(RefusedError, match="are of class 0; both are"):
        fit(punctual)


# --- interrupted --------------------------------------------------------------------------------


class Interrupting(Saver):
    """Is told to go after a step."""

    def __init__(self, root: Path, token: int, at: int | None) -> None:
        self.notice = Notice()
        store = CheckpointStore(root, KEY, token=token)
        super().__init__(store, "the training", CheckpointsSpec(), self.notice)
        self.at = at

    def due(self, step: int) -> bool:
        if step == self.at:
            self.notice.give()
        return super().due(step)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_resumed_equals_uninterrupted_at_every_step(
    tmp_path: Path, undisturbed: dict[str, bytes], dropout: float
) -> None:
    parameters = {**SMALL, "dropout": dropout}
    wanted = weights(fit(parameters=parameters)) if dropout else undisturbed
    for at in range(1, STEPS + 1):
        root = tmp_path / str(at)
        told: list[int] = []

        def note(n: int, _metrics: Mapping[str, float], told: list[int] = told) -> None:
            told.append(n)

        with pytest.raises(Interrupted):
            fit(parameters=parameters, on_round=note, checkpointer=Interrupting(root, 1, at))
        again = Interrupting(root, 2, None)
        model = fit(parameters=parameters, on_round=note, checkpointer=again)
        assert again.account.resumed_step == at
        assert weights(model) == wanted
        assert told == [1, 2], "each epoch once, none of them told by half"


class Full(Saver):
    """The disk of its training's files is full when the second step is to be saved."""

    def __init__(self, root: Path) -> None:
        store = CheckpointStore(root, KEY, token=1)
        super().__init__(store, "the training", CheckpointsSpec(), Notice())

    def due(self, step: int) -> bool:
        few(4096 if step == 2 else None)
        return step in (2, 4)

    def missed(self, step: int, why: str, *, paused: float | None = None) -> None:
        few(None)
        super().missed(step, why, paused=paused)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    saver = Full(tmp_path)
    try:
        model = fit(checkpointer=saver)
    finally:
        few(None)
    saver.wait()
    assert weights(model) == undisturbed
    assert (saver.account.failed, saver.account.taken, saver.account.durable_step) == (1, 1, 4)


def test_interrupted_at_every_step_again_and_again(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    for token in range(1, STEPS + 1):
        with pytest.raises(Interrupted):
            fit(checkpointer=Interrupting(tmp_path, token, token))
    model = fit(checkpointer=Interrupting(tmp_path, STEPS + 1, None))
    assert weights(model) == undisturbed


def test_a_long_one_interrupted_at_random_steps(tmp_path: Path) -> None:
    """120 steps with dropout, of which five, by chance, are the last of an attempt."""
    parameters = {**SMALL, "epochs": 40, "dropout": 0.5}
    wanted = weights(fit(parameters=parameters))
    steps = sorted(random.Random(11).sample(range(1, 120), 5))
    for token, at in enumerate(steps, 1):
        with pytest.raises(Interrupted):
            fit(parameters=parameters, checkpointer=Interrupting(tmp_path, token, at))
    last = Interrupting(tmp_path, len(steps) + 1, None)
    model = fit(parameters=parameters, checkpointer=last)
    assert last.account.resumed_step == steps[-1]
    assert weights(model) == wanted


def test_without_the_random_state_the_model_would_be_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of the test above: dropout draws numbers, and these have to go on."""
    parameters = {**SMALL, "dropout": 0.5}
    wanted = weights(fit(parameters=parameters))
    with pytest.raises(Interrupted):
        fit(parameters=parameters, checkpointer=Interrupting(tmp_path, 1, 3))
    monkeypatch.setattr(draws, "go_on", lambda _state: None)
    model = fit(parameters=parameters, checkpointer=Interrupting(tmp_path, 2, None))
    assert weights(model) != wanted


# --- rows in parts ------------------------------------------------------------------------------


def test_rows_in_parts_make_the_model_of_the_whole() -> None:
    """However they are cut: what counts is their order."""
    frame, target = rows()

    def parts(size: int) -> Any:
        def made() -> Iterator[Any]:
            for start in range(0, len(frame), size):
                cut = frame.iloc[start : start + size]
                # A part knows only the categories that are in it, as those of Arrow do.
                own = {
                    name: cut[name].astype(str).astype("category")
                    for name in SPEC.dataset.categories
                }
                yield cut.assign(**own), target.iloc[start : start + size]

        return made

    models = [
        TorchTabularTrainer().fit_stream(
            parts(size), kind="binary_classification", parameters=SMALL, seed=7, on_round=quiet
        )
        for size in (len(frame), 100, 333)
    ]
    assert weights(models[0]) == weights(models[1]) == weights(models[2])
