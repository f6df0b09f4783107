"""A training in several processes: what the line makes of their history."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.stragglers import Straggler
from platform_assets.line import straggling
from platform_assets.line.services import Services
from resources import plots
from resources.distributed.launching import Processes

RANKS = "ranks"
"""Key of a model version's detail: how many trained it, from which step on."""


class Ranks:
    """The processes of one training; none where the catalog asks for none."""

    def __init__(
        self, services: Services, partition: PartitionKey, run_id: str, log: Callable[[str], None]
    ) -> None:
        self._services, self._partition, self._run_id = services, str(partition), run_id
        self._began = datetime.now(UTC)
        asked = services.spec.model.processes
        self.processes = (
            None if asked is None else Processes(asked, tell=log, on_straggler=self._named)
        )

    def _named(self, straggler: Straggler, replaced: bool) -> None:
        straggling.note(self._services, self._run_id, self._partition, straggler, replaced=replaced)

    def ended_well(self) -> None:
        """The model is there: what was slow before, and is not now, is forgotten."""
        found = self.processes
        if found is None or found.history.stragglers:
            return
        if any(world > 1 for world, _ in found.history.teams):
            straggling.forget(self._services, self._began)

    def detail(self) -> dict[str, Any]:
        """For the model version: numbers of ranks, each with the step that they began at."""
        if self.processes is None:
            return {}
        return {RANKS: [list(team) for team in self.processes.history.teams]}

    def metadata(self) -> dict[str, Any]:
        """For people, in the asset's metadata."""
        if self.processes is None:
            return {}
        history = self.processes.history
        teams = ", then ".join(f"{world} from step {step} on" for world, step in history.teams)
        return {
            "ranks": teams or None,
            "ranks_lost": "; ".join(history.lost) or None,
            "stragglers": "; ".join(s.reason for s, _ in history.stragglers) or None,
            "stragglers_replaced": sum(replaced for _, replaced in history.stragglers),
            "step_times": dict(self.processes.figures) or None,
        }

    def figures(self) -> dict[str, bytes]:
        """The plot of step times."""
        if self.processes is None or not self.processes.curves:
            return {}
        return {"step times": plots.step_times(self.processes.curves)}
