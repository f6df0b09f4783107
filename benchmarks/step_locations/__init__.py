"""The same trivial job in code locations of different weight."""

import dagster as dg


@dg.op
def trivial() -> int:
    """A step that does nothing."""
    return 1


@dg.job
def nothing() -> None:
    """A run of one step."""
    trivial()
