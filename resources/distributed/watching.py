"""Who is slow: the ranks' step times as they are written, judged by the terms of the catalog."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platform_assets.domain.stragglers import Place, Straggler, StragglerTerms, judge
from resources.distributed.layout import Folder, read_times

TAIL = 20_000
"""Steps of each rank that are looked at while it trains."""


@dataclass(frozen=True)
class Team:
    """The ranks that have met at one time.

    Attributes:
        born: when, in nanoseconds; the newest is at work.
        places: by rank.
        numbers: of the supervisor's places, by rank.
        times: step and seconds, by rank.
    """

    born: int
    places: dict[int, Place] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    times: dict[int, dict[int, float]] = field(default_factory=dict)

    def step(self) -> int:
        """The last step that a rank has told."""
        return max((max(found, default=0) for found in self.times.values()), default=0)

    def aligned(self) -> tuple[list[int], dict[int, list[float]]]:
        """The steps that all ranks have told, and each rank's seconds in them."""
        common = set.intersection(*map(set, self.times.values())) if self.times else set()
        steps = sorted(common)
        return steps, {rank: [found[s] for s in steps] for rank, found in self.times.items()}


def teams(folder: Folder, most: int | None = None) -> list[Team]:
    """All that have met, the oldest first.

    Args:
        folder: of the training.
        most: so many of each rank's last steps; None: all.
    """
    found: dict[int, Team] = {}
    for path in folder.ranks.glob("*.json"):
        about: dict[str, Any] = json.loads(path.read_bytes())
        team = found.setdefault(about["born"], Team(about["born"]))
        names = ("rank", "world", "host", "pod", "node", "pid")
        place = Place(**{name: about[name] for name in names})
        team.places[place.rank] = place
        team.numbers[place.rank] = about["place"]
        team.times[place.rank] = dict(read_times(_times(folder, path), most))
    return [found[born] for born in sorted(found)]


def latest(folder: Folder) -> Team | None:
    """The ranks at work; None as long as not all of them have told their names.

    Of their times the last ones only: what this costs must not grow with the steps.
    """
    met = teams(folder, most=TAIL)
    if not met or len(met[-1].places) < next(iter(met[-1].places.values())).world:
        return None
    return met[-1]


def slow(team: Team, terms: StragglerTerms) -> tuple[Straggler, int] | None:
    """The straggler among the ranks, and its place's number; None if there is none."""
    _, times = team.aligned()
    straggler = judge(times, team.places, terms)
    return None if straggler is None else (straggler, team.numbers[straggler.place.rank])


def summary(met: list[Team]) -> dict[str, Any]:
    """Figures of a training's step times, in milliseconds, of each team and rank."""
    said: dict[str, Any] = {}
    for number, team in enumerate(met, 1):
        steps, times = team.aligned()
        for rank in sorted(times):
            if not steps:
                continue
            ordered = sorted(times[rank])
            said[f"team {number}: {team.places[rank]}"] = {
                "steps": f"{steps[0]} to {steps[-1]}",
                "median_ms": round(1000 * ordered[len(ordered) // 2], 3),
                "p95_ms": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 3),
                "sum_s": round(sum(ordered), 3),
            }
    return said


def curves(met: list[Team]) -> Mapping[str, list[tuple[int, float]]]:
    """Seconds by step, of each rank number, over all teams; for the plot."""
    found: dict[str, list[tuple[int, float]]] = {}
    for team in met:
        steps, times = team.aligned()
        for rank, seconds in sorted(times.items()):
            found.setdefault(f"rank {rank}", []).extend(zip(steps, seconds, strict=True))
    return found


def _times(folder: Folder, about: Path) -> Path:
    return folder.times / f"{about.stem}.bin"
