"""The network of torch_tabular.py. The only module here that needs PyTorch to be imported."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Takes one float32 tensor (rows, columns), in which categories are codes, 0 for unknown.

    It gives probabilities of class 1, or values, of shape (rows,).
    """

    def __init__(
        self,
        *,
        kind: str,
        sizes: Sequence[int],
        places: Sequence[int],
        numbers: Sequence[int],
        mean: Sequence[float],
        scale: Sequence[float],
        target: tuple[float, float],
        hidden: int,
        layers: int,
        embedding: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.binary = kind == "binary_classification"
        self.places, self.numbers = list(places), list(numbers)
        widths = [min(embedding, (size + 1) // 2) for size in sizes]
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True)
        )
        self.widths = widths
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(list(scale), dtype=torch.float32))
        self.register_buffer("target", torch.tensor(list(target), dtype=torch.float32))
        parts: list[nn.Module] = []
        before = len(self.numbers) + sum(widths)
        for _ in range(layers):
            parts += [nn.Linear(before, hidden), nn.ReLU()]
            if dropout:
                parts.append(nn.Dropout(dropout))
            before = hidden
        self.body = nn.Sequential(*parts, nn.Linear(before, 1))

    def raw(self, rows: Tensor) -> Tensor:
        """Log-odds, or values by deviation; shape (rows,)."""
        numbers = (rows[:, self.numbers] - self.mean) / self.scale
        parts = [torch.nan_to_num(numbers, nan=0.0)]
        for place, embedding in zip(self.places, self.embeddings, strict=True):
            parts.append(embedding(rows[:, place].to(torch.int64)))
        found: Tensor = self.body(torch.cat(parts, dim=1))
        return found.squeeze(1)

    def forward(self, rows: Tensor) -> Tensor:
        raw = self.raw(rows)
        if self.binary:
            return torch.sigmoid(raw)
        return raw * self.target[1] + self.target[0]

    def loss(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Sum over the rows: log loss, or squared error by squared deviation of the target."""
        raw = self.raw(rows)
        if self.binary:
            return nn.functional.binary_cross_entropy_with_logits(raw, wanted, reduction="sum")
        scaled = (wanted - self.target[0]) / self.target[1]
        return ((raw - scaled) ** 2).sum()

    def first_weights(self, columns: Sequence[str]) -> dict[str, float]:
        """Sum of absolute weights into the first layer, by column."""
        first = self.body[0]
        assert isinstance(first, nn.Linear)
        weights = first.weight.detach().abs().sum(dim=0).tolist()
        found = {columns[n]: weights[at] for at, n in enumerate(self.numbers)}
        at = len(self.numbers)
        for place, width in zip(self.places, self.widths, strict=True):
            found[columns[place]] = sum(weights[at : at + width])
            at += width
        return {name: float(found[name]) for name in columns}
