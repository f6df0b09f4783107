"""How the MLflow run of a training ended, when its own process cannot say so any more."""

from typing import Literal

End = Literal["FINISHED", "FAILED", "KILLED"]

OVER = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
"""States of a Dagster run that has ended."""


def end_of(dagster: str | None, *, recorded: bool) -> End | None:
    """The state that the MLflow run of a training has to have.

    Args:
        dagster: state of the Dagster run; None where Dagster does not know it (any more).
        recorded: whether the ledger has a model of this MLflow run.

    Returns:
        None while the Dagster run goes on. What was recorded is finished, whatever became of the
        run: a neighbour in its batch may have failed. What was not is not, though the run says
        SUCCESS: then another attempt of it has made the model.
    """
    if dagster is not None and dagster not in OVER:
        return None
    if recorded:
        return "FINISHED"
    return "KILLED" if dagster == "CANCELED" else "FAILED"
