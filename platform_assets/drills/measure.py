"""What a partial last day costs a model: trained on it and on the whole day, judged the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from platform_assets.domain.errors import UsageError
from platform_assets.domain.manifest import window
from platform_assets.domain.partition import date_range, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills.report import Measurement
from resources.dataset import build_rows
from resources.intervals import paired_bootstrap
from resources.nycflights import Feed, load_feed
from resources.scoring import score
from resources.training import load_trainer, training_frame

if TYPE_CHECKING:
    import pyarrow as pa

BETTER: Mapping[str, Literal["lower", "higher"]] = {"log_loss": "lower", "auc": "higher"}


@dataclass
class Rows:
    """Rows of a pipeline's dates, straight from what the replay delivers; each built once."""

    spec: PipelineSpec
    _built: dict[tuple[date, int | None], "pa.Table"] = field(default_factory=dict)
    _whole: dict[date, bool] = field(default_factory=dict)

    @cached_property
    def _feeds(self) -> dict[str, Feed]:
        return {name: load_feed(name, source) for name, source in self.spec.sources.items()}

    def is_whole(self, day: date) -> bool:
        """Whether every hour of the day is delivered, of every source and key."""
        if day not in self._whole:
            self._whole[day] = all(
                feed.rows(key, hour) is not None
                for hour in local_hours(day, self.spec.partitions.timezone)
                for key in self.spec.partitions.values
                for feed in self._feeds.values()
            )
        return self._whole[day]

    def of(self, day: date, until_hour: int | None = None) -> "pa.Table":
        """Rows of a date; of its local hours below `until_hour` alone, if that is given."""
        import pyarrow as pa

        if (day, until_hour) not in self._built:
            spec, zone = self.spec, self.spec.zone
            hours = [
                hour
                for hour in local_hours(day, spec.partitions.timezone)
                if until_hour is None or hour.astimezone(zone).hour < until_hour
            ]
            tables = []
            for key in spec.partitions.values:
                landed = {}
                for name, feed in self._feeds.items():
                    found = [rows for h in hours if (rows := feed.rows(key, h)) is not None]
                    landed[name] = pa.concat_tables([feed.table.slice(0, 0), *found])
                tables.append(build_rows(spec, key, day, landed).table)
            self._built[day, until_hour] = pa.concat_tables(tables)
        return self._built[day, until_hour]


def chosen_dates(rows: Rows, count: int) -> tuple[date, ...]:
    """Dates that can be trained and judged on whole days, evenly spread over all there are.

    Raises:
        UsageError: there are not so many.
    """
    spec = rows.spec
    able = [
        day
        for day in date_range(spec.first_model_date, spec.last_judged_date)
        if rows.is_whole(day)
        and all(rows.is_whole(after) for after in spec.judged_on(day))
        and sum(map(rows.is_whole, window(day, spec.model.window_days))) >= spec.model.min_days
    ]
    if not 2 <= count <= len(able):
        raise UsageError(f"--days {count}: allowed are 2 to {len(able)}, the dates that qualify")
    return tuple(able[round(n * (len(able) - 1) / (count - 1))] for n in range(count))


def partial_against_whole(
    rows: Rows, dates: Sequence[date], until_hour: int, window_days: int, what: str
) -> tuple[Measurement, ...]:
    """Train each date's model twice, its own day partial and whole, and judge both the same.

    Args:
        rows: of the pipeline.
        dates: the dates to train for.
        until_hour: local hour that the partial day ends before.
        window_days: length of the trailing window; days of it that are not whole are left out.
        what: name of the comparison.

    Returns:
        A measurement a metric: the mean over the dates of partial minus whole.
    """
    spec = rows.spec
    partial: dict[date, dict[str, float]] = {}
    whole: dict[date, dict[str, float]] = {}
    for day in dates:
        before = [d for d in window(day, window_days)[:-1] if rows.is_whole(d)]
        partial[day] = _judged(rows, day, before, until_hour)
        whole[day] = _judged(rows, day, before, None)
    found = []
    for metric in ("log_loss", "auc", f"ndcg_at_{spec.evaluation.ndcg_at}"):
        both = [day for day in dates if metric in partial[day] and metric in whole[day]]
        differences = {day: partial[day][metric] - whole[day][metric] for day in both}
        interval = paired_bootstrap(list(differences.values()), seed=spec.model.seed)
        found.append(
            Measurement(
                what=what,
                metric=metric,
                better=BETTER.get(metric, "higher"),
                mean=interval.mean,
                low=interval.low,
                high=interval.high,
                n=interval.n,
                level=interval.level,
                reference=sum(whole[day][metric] for day in both) / len(both),
                by_day={day.isoformat(): value for day, value in differences.items()},
            )
        )
    return tuple(found)


def _judged(
    rows: Rows, day: date, before: Sequence[date], until_hour: int | None
) -> dict[str, float]:
    """Scores on the following days of a model of some days and its own."""
    import pyarrow as pa

    spec = rows.spec
    trainer = load_trainer(spec.model.trainer)
    own = rows.of(day, until_hour)
    frame, target = training_frame(pa.concat_tables([*map(rows.of, before), own]), spec)
    model = trainer.fit(
        frame,
        target,
        kind=spec.model.kind,
        parameters=spec.model.parameters,
        seed=spec.model.seed,
        on_round=lambda *_: None,
    )
    judged = pa.concat_tables([rows.of(after) for after in spec.judged_on(day)])
    return score(spec, judged, trainer.predict(model, training_frame(judged, spec)[0]))
