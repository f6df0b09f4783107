"""What is served: the port of a serving slot, and what the catalog says of serving."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from platform_assets.domain.promotion import PRIMARY_METRIC, Kind
from platform_assets.domain.source_spec import Frozen, listed

HIGHER_IS_BETTER = ("auc", "ndcg_at_")
"""How the names of metrics begin of which more is better; of all others less is."""


class Served(BaseModel):
    """What a slot serves.

    Attributes:
        version: as the slot says; None where it does not say, or says nonsense.
        digest: of the files that are there, 64 hexadecimal digits; empty where there are none.
    """

    model_config = ConfigDict(frozen=True)

    version: int | None
    digest: str

    def __str__(self) -> str:
        version = f"version {self.version}" if self.version is not None else "an unnamed version"
        return f"{version} with digest {self.digest[:12]}" if self.digest else f"{version}, no file"


class Slot(Protocol):
    """Where one model is served from."""

    def deploy(self, model: str, version: int, digest: str, files: Path) -> None:
        """Have a version served in the place of the one before: the whole of it, or nothing.

        Args:
            files: MLflow's folder of the model.

        Raises:
            RefusedError: the files have another digest; the one before stays.
            TransientError: somebody else deploys, or the disk is full; the one before stays.
        """
        ...

    def serves(self) -> Served | None:
        """What is served; None: nothing was ever deployed.

        Raises:
            TransientError: it cannot be told now.
        """
        ...


class RollbackTerms(Frozen):
    """When the champion is rolled back from without a person.

    Attributes:
        metric: empty: the one that decides about champions.
        bound: the worst value that is let pass.
        days: so many judged dates in succession, the newest ones, have to lie past the bound.
    """

    metric: str = ""
    bound: float = Field(allow_inf_nan=False)
    days: int = Field(default=1, ge=1, le=60)

    def metric_of(self, kind: Kind) -> str:
        return self.metric or PRIMARY_METRIC[kind]


class ServingSpec(Frozen):
    """How the decisions of the ledger reach what predicts.

    Attributes:
        on_drift: what to do where somebody else changed alias or slot: set it right, or leave it
            to a person. Both alert. What only lags behind the ledger follows in either case.
        keep: versions that stay in the slot's folder beside the one in force.
        endpoint: URL of a `signalbox serve`, whose digest is compared; empty: none is asked.
        rollback: none: no roll back without a person.
    """

    on_drift: Literal["mend", "hold"] = "mend"
    keep: int = Field(default=3, ge=0, le=100)
    endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    rollback: RollbackTerms | None = None

    def problems(self, kind: Kind, ranking: str) -> Mapping[str, str]:
        """What does not fit the model, by field.

        Args:
            ranking: name of the ranking metric, empty where there is none.
        """
        if self.rollback is None:
            return {}
        known = {"binary_classification": ("log_loss", "auc"), "regression": ("rmse", "mae")}[kind]
        allowed = (*known, ranking) if ranking else known
        if self.rollback.metric_of(kind) in allowed:
            return {}
        return {
            "serving.rollback.metric": f"found {self.rollback.metric!r}; the metrics of a {kind} "
            f"are {listed(allowed)}"
        }


def is_past(metric: str, value: float, bound: float) -> bool:
    """Whether a value is worse than a bound."""
    return value < bound if metric.startswith(HIGHER_IS_BETTER) else value > bound


def is_better(metric: str, value: float, other: float) -> bool:
    """Whether a value is better than another."""
    return value > other if metric.startswith(HIGHER_IS_BETTER) else value < other
