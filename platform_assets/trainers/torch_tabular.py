"""A small neural network over numbers and categories, by PyTorch."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError
from platform_assets.domain.promotion import Kind
from platform_assets.trainers.torch_frames import FrameReader, Layout, write_frames
from resources.distributed.extra import require_torch
from resources.tracking.torch_models import FrameModel
from resources.training import OnRound, Parameters, require_trainable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from resources.distributed.launching import Checkpoints, Processes
    from resources.distributed.rank import Rank

_DEFAULTS: dict[str, bool | int | float | str] = {
    "epochs": 5,
    "batch_size": 256,
    "hidden": 32,
    "layers": 2,
    "embedding": 8,
    "learning_rate": 0.003,
    "weight_decay": 0.0001,
    "dropout": 0.0,
    "num_threads": 1,
}
_METRIC = {"binary_classification": "train_log_loss", "regression": "train_rmse"}

Frames = Callable[[], "Iterator[tuple[pd.DataFrame, pd.Series[float]]]"]
"""Makes an iterator over parts of features and target, the same each time."""


class TorchTabularTrainer:
    """Trains a multi-layer perceptron with an embedding for each category.

    Parameters: epochs, batch_size (over all ranks together), hidden, layers, embedding (at most so
    many numbers a category), learning_rate, weight_decay, dropout, num_threads (of each rank).
    A round is an epoch, its metric that of the training rows while they were passed.

    Missing numbers become the mean, missing or unseen categories a category of their own. Equal
    rows, parameters, seed and number of ranks give an equal model on a CPU, bit for bit.
    """

    flavor = "pytorch"
    requirements = ("torch", "pandas", "numpy")
    entry = f"{__name__}:train_ranks"
    """Called in each rank. A trainer of your own may name another function."""

    def check_installed(self) -> None:
        require_torch()

    def fit(
        self,
        frame: "pd.DataFrame",
        target: "pd.Series[float]",
        *,
        kind: Kind,
        parameters: Parameters,
        seed: int,
        on_round: OnRound,
        checkpointer: "Checkpoints | None" = None,
        processes: "Processes | None" = None,
    ) -> object:
        import numpy as np

        require_trainable(target, kind)
        # Rows come by date; a batch shall be of all of them.
        order = np.random.default_rng(seed).permutation(len(frame))
        shuffled = frame.iloc[order], target.iloc[order]
        return self.fit_stream(
            lambda: iter([shuffled]),
            kind=kind,
            parameters=parameters,
            seed=seed,
            on_round=on_round,
            checkpointer=checkpointer,
            processes=processes,
        )

    def fit_stream(
        self,
        frames: Frames,
        *,
        kind: Kind,
        parameters: Parameters,
        seed: int,
        on_round: OnRound,
        checkpointer: "Checkpoints | None" = None,
        processes: "Processes | None" = None,
    ) -> object:
        """As `fit`, of rows that come in parts and need not fit into memory.

        They are passed twice: once for categories, means and deviations, once to be written for
        the ranks. Batches are shuffled within 8,192 rows at a time, in the order in which these
        come; each epoch takes them in another order.
        """
        require_torch()
        from resources.distributed.launching import temporary
        from resources.distributed.local import run_alone

        settings = _settings(parameters)
        layout = Layout.of(frames, kind)
        run = run_alone if processes is None else processes.run
        with temporary() as root:
            rows = root / "rows.arrow"
            write_frames(rows, frames, layout)
            arguments = {
                "rows": str(rows),
                "layout": layout.model_dump(mode="json"),
                "settings": settings,
                "seed": seed,
            }
            handed = run(self.entry, arguments, root, on_round=on_round, checkpointer=checkpointer)
            return _model(layout, settings, handed)

    def predict(self, model: object, frame: "pd.DataFrame") -> "np.ndarray":
        import numpy as np

        if not len(frame):
            return np.empty(0)
        assert isinstance(model, FrameModel)
        return model.predict(frame)

    def importance(self, model: object) -> Mapping[str, float]:
        """Sum of the absolute weights from a feature to the first layer.

        Numbers are scaled to a deviation of 1 before; a category counts by all numbers of its
        embedding.
        """
        assert isinstance(model, FrameModel)
        weights: Any = getattr(model.module, "first_weights", None)
        return {} if weights is None else weights(model.columns)


def _settings(parameters: Parameters) -> dict[str, bool | int | float | str]:
    """The parameters, with those that are not given at their defaults.

    Raises:
        UsageError: a name that is not known, or a value out of range.
    """
    for name in parameters:
        if name not in _DEFAULTS:
            raise UsageError(
                f"model.parameters.{name} is no parameter of TorchTabularTrainer; allowed are "
                f"{', '.join(sorted(_DEFAULTS))}"
            )
    settings = {**_DEFAULTS, **parameters}
    for name, value in settings.items():
        least, whole = (0.0, False) if isinstance(_DEFAULTS[name], float) else (1, True)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or float(value) < least or (name == "dropout" and float(value) >= 1):
            raise UsageError(
                f"model.parameters.{name} is {value!r}; allowed is "
                f"{'a whole number from 1 on' if whole else 'a number from 0 on'}"
                f"{', less than 1' if name == 'dropout' else ''}"
            )
    return settings


def _network(layout: Layout, settings: Mapping[str, Any]) -> Any:
    from platform_assets.trainers.torch_network import Network

    return Network(
        kind=layout.kind,
        sizes=[len(values) + 1 for values in layout.categories.values()],
        places=[layout.columns.index(name) for name in layout.categories],
        numbers=[n for n, name in enumerate(layout.columns) if name not in layout.categories],
        mean=layout.mean,
        scale=layout.scale,
        target=(layout.target_mean, layout.target_scale),
        hidden=int(settings["hidden"]),
        layers=int(settings["layers"]),
        embedding=int(settings["embedding"]),
        dropout=float(settings["dropout"]),
    )


def _model(layout: Layout, settings: Mapping[str, Any], handed: Path) -> FrameModel:
    import torch

    network = _network(layout, settings)
    network.load_state_dict(torch.load(handed, weights_only=True))
    network.eval()
    return FrameModel(network, layout.columns, layout.categories)


def train_ranks(rank: "Rank") -> None:
    """What each rank does: its part of every batch, and the same step of the optimizer.

    A batch holds as many rows whatever the number of ranks is, so that a training that goes on
    with fewer of them goes on in the same way, but for the order in which numbers are added.
    """
    import torch

    arguments, settings = rank.arguments, rank.arguments["settings"]
    layout = Layout.model_validate(arguments["layout"])
    torch.set_num_threads(int(settings["num_threads"]))
    batch, seed = int(settings["batch_size"]), int(arguments["seed"])
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    network = _network(layout, settings)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=float(settings["learning_rate"]),
        weight_decay=float(settings["weight_decay"]),
    )
    progress = torch.zeros(2, dtype=torch.float64)  # sum of the losses, and rows, of the epoch
    first = rank.resume(network, optimizer, {"progress": progress})
    reader = FrameReader(Path(arguments["rows"]), layout.rows, batch, seed)
    total = reader.steps * int(settings["epochs"])
    parameters = list(network.parameters())
    network.train()
    if first == 0 and rank.world > 1:
        # Beyond the first draw, each rank has random numbers of its own.
        torch.manual_seed(seed * 1009 + rank.rank)
    for step in range(first, total):
        with rank.timed():
            rows, wanted, size = reader.batch(step, rank.rank, rank.world)
            optimizer.zero_grad(set_to_none=True)
            loss = network.loss(torch.from_numpy(rows), torch.from_numpy(wanted))
            (loss / size).backward()
            parts = [p.grad.reshape(-1) for p in parameters]
            flat = torch.cat([*parts, loss.detach().reshape(1)])
        rank.sum_(flat)
        with rank.timed():
            start = 0
            for parameter in parameters:
                end = start + parameter.numel()
                parameter.grad.copy_(flat[start:end].reshape(parameter.shape))
                start = end
            optimizer.step()
            progress += torch.tensor([float(flat[-1]), size], dtype=torch.float64)
        if (step + 1) % reader.steps == 0:
            mean = float(progress[0] / progress[1])
            told = mean if layout.kind == "binary_classification" else mean**0.5
            rank.report((step + 1) // reader.steps, {_METRIC[layout.kind]: told})
            progress.zero_()
        rank.done(step + 1)
    rank.finish(network.state_dict())
