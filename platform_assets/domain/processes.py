"""Several processes for one training: what the catalog may ask for (`model.processes`)."""

from collections.abc import Mapping

from pydantic import Field, ValidationError, model_validator

from platform_assets.domain.errors import UsageError
from platform_assets.domain.source_spec import Frozen
from platform_assets.domain.stragglers import StragglerTerms

MOST_PROCESSES = 1024

PROCESSES_TAG = "signalbox/processes"
"""Tag of an op that trains on several nodes: what the catalog asks for, as JSON."""


class ProcessesSpec(Frozen):
    """How many processes (ranks) train one model together, and what may go wrong with them.

    Attributes:
        min, max: a training starts with `max` and goes on as long as `min` are left.
        nodes: on how many machines they run, the same number on each; more than one needs
            Kubernetes.
        restarts: how often the ranks may be started again after one has died, in one attempt.
        step_timeout_seconds: a rank that the others have waited for so long hangs; all are
            started again from the last checkpoint.
        keep_alive_seconds: a place of which nothing was heard for so long is lost.
        straggler: when a rank is slow against the others, and what is done about it.
    """

    min: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    max: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    nodes: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    restarts: int = Field(default=3, ge=0, le=100)
    step_timeout_seconds: int = Field(default=600, ge=1)
    keep_alive_seconds: int = Field(default=15, ge=3)
    straggler: StragglerTerms = StragglerTerms()

    @model_validator(mode="after")
    def _fits(self) -> "ProcessesSpec":
        if self.min > self.max:
            raise ValueError(
                f"min is {self.min}; allowed are 1 to max ({self.max}), else no training could "
                "start with as many as it needs"
            )
        if self.max % self.nodes:
            raise ValueError(
                f"max is {self.max} on {self.nodes} nodes; allowed are multiples of nodes, for "
                "each node runs as many processes as the others"
            )
        if self.min % self.each:
            raise ValueError(
                f"min is {self.min} with {self.each} processes on each of {self.nodes} nodes; "
                f"allowed are multiples of {self.each}, for a node is lost with all it runs"
            )
        return self

    @property
    def begun(self) -> str:
        """For the fingerprint: what decides the order in which numbers are added."""
        return f"{self.max} on {self.nodes}"

    @property
    def each(self) -> int:
        """Processes on one node."""
        return self.max // self.nodes if self.nodes > 1 else 1

    @property
    def least_nodes(self) -> int:
        """Nodes without which it does not go on."""
        return self.min // self.each


def process_tags(asked: ProcessesSpec | None) -> dict[str, str]:
    """The tag of an op that trains on several nodes; none where one pod trains."""
    if asked is None or asked.nodes == 1:
        return {}
    return {PROCESSES_TAG: asked.model_dump_json()}


def processes_of_tag(tags: Mapping[str, str]) -> ProcessesSpec | None:
    """What the tag of an op asks for; None where one pod trains.

    Raises:
        UsageError: the tag is not what the catalog writes.
    """
    text = tags.get(PROCESSES_TAG)
    if not text:
        return None
    try:
        return ProcessesSpec.model_validate_json(text)
    except ValidationError as error:
        told = "; ".join(str(p["msg"]) for p in error.errors(include_url=False))
        raise UsageError(f"the tag {PROCESSES_TAG} is {text[:200]!r}: {told}") from None
