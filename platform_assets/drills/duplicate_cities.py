"""`signalbox drill duplicate-cities`: thirty backfills rebuild the same cities at the same time."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills.crowd import Done, Job, naive_lake, overlapping, run_together
from platform_assets.drills.harness import Scene
from platform_assets.drills.measure import Rows
from platform_assets.drills.report import DrillReport, Figure, Step
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.scoring import score
from resources.training import load_trainer, training_frame

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "duplicate-cities"
TITLE = "30 backfills of overlapping cities and days run at once"


@dataclass(frozen=True)
class Case:
    """What is played.

    Attributes:
        days: dates that are rebuilt, all of them whole; the model trains on them.
        backfills: how many run at once.
    """

    spec: PipelineSpec
    days: int = 10
    backfills: int = 30


def play(scene: Scene) -> DrillReport:
    """The drill on the pipeline of the catalog."""
    return play_case(scene, Case(load_catalog()["flights"]))


def play_case(scene: Scene, case: Case) -> DrillReport:
    """Play it: the same runs with an appending asset, and with Signalbox's features."""
    from deltalake import write_deltalake

    spec, rows = case.spec, Rows(case.spec)
    first = _whole_stretch(rows, case)
    last = first + timedelta(days=case.days - 1)
    services = Services.open(spec, scene.home)
    judged = [last + timedelta(days=n + 1) for n in range(spec.evaluation.days)]
    jobs = overlapping(spec.partitions.values, first, case.days, case.backfills)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        with scene.part(f"landing {first} to {last}"):
            land_flights(services, first, last, quiet=True)
            services.zone.refresh(first, last)  # the appending asset asks nobody
            # Its table is there already, as it is when history is rebuilt.
            write_deltalake(naive_lake(scene.home), rows.of(first).slice(0, 0))
        with scene.part(f"{len(jobs)} backfills at once, an appending asset"):
            plain_done = run_together("plain", spec, scene.home, jobs)
        with scene.part(f"{len(jobs)} backfills at once, Signalbox"):
            done = run_together("signalbox", spec, scene.home, jobs)
    with scene.part("a model trained on each"):
        import pyarrow as pa

        wanted = sorted({partition for job in jobs for partition in job.partitions})
        whole = _rows_of(rows, wanted)
        naive, kept = _naive_rows(scene), _signalbox_rows(services)
        held_out = pa.concat_tables([rows.of(day) for day in judged])
        scores = {
            name: _trained(spec, table, held_out)
            for name, table in (("ideal", whole), ("plain", naive), ("signalbox", kept))
        }
    report = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"{len(jobs)} runs rebuild the features of {first} to {last} at the same time, "
        f"each {jobs[0].days} days of one of {len(spec.partitions.values)} cities: how many rows "
        "does the table have afterwards?",
        plain=_plain_steps(plain_done, naive, whole),
        signalbox=_signalbox_steps(services, done, jobs, kept, whole),
        figures=_figures(spec, whole, naive, kept, scores),
        notes=(
            "New York has three airports, so thirty backfills share three cities; each city and "
            "day is in about "
            f"{sum(job.days for job in jobs) / len(wanted):.0f} of them.",
            f"Each model is trained on the table as it is, {case.days} days, same trainer, "
            f"parameters and seed, and judged on {judged[0]} to {judged[-1]}. One training a "
            "side: the figures say what came out here, they carry no interval.",
            "Both sides compute the same rows with the same code; they differ in how they write.",
        ),
        verdict="",
    )
    said = sum(one.ok for one in plain_done)
    return report.concluded(
        f"The appending asset left {naive.num_rows} rows where there are {whole.num_rows}, and "
        f"{said} of {len(jobs)} runs said success; Signalbox left each row once."
    )


def _whole_stretch(rows: Rows, case: Case) -> date:
    """The first date of a stretch of whole days, to be trained on and judged after."""
    spec = case.spec
    needed = case.days + spec.evaluation.days
    found = 0
    for day in date_range(spec.partitions.start, spec.partitions.end):
        found = found + 1 if rows.is_whole(day) else 0
        if found == needed:
            return day - timedelta(days=needed - 1)
    raise RefusedError(f"drill {NAME} could not be played: no {needed} days in a row are whole")


def _rows_of(rows: Rows, partitions: Sequence[PartitionKey]) -> "pa.Table":
    """The rows that these partitions should have, each once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    key = rows.spec.partitions.key
    tables = []
    for day in sorted({partition.date for partition in partitions}):
        table = rows.of(day)
        names = pa.array([p.key for p in partitions if p.date == day], pa.string())
        tables.append(table.filter(pc.is_in(table[key].cast(pa.string()), value_set=names)))
    return pa.concat_tables(tables)


def _naive_rows(scene: Scene) -> "pa.Table":
    from deltalake import DeltaTable

    return DeltaTable(naive_lake(scene.home)).to_pyarrow_table()


def _signalbox_rows(services: Services) -> "pa.Table":
    """All that the tables hold, read without the ledger: what is there twice shows."""
    return services.dataset.newest_rows()


def _distinct(table: "pa.Table") -> int:
    """How many rows differ from all others."""
    return int(table.group_by(table.column_names, use_threads=False).aggregate([]).num_rows)


def _trained(spec: PipelineSpec, table: "pa.Table", held_out: "pa.Table") -> tuple[float, float]:
    """Log loss of a model on the rows that it was trained on, and on the days after."""
    trainer = load_trainer(spec.model.trainer)
    # A model depends on the order of its rows too: only what the tables hold is to make it differ.
    table = table.sort_by([(name, "ascending") for name in sorted(table.column_names)])
    frame, target = training_frame(table, spec)
    model = trainer.fit(
        frame,
        target,
        kind=spec.model.kind,
        parameters=spec.model.parameters,
        seed=spec.model.seed,
        on_round=lambda *_: None,
    )
    own = score(spec, table, trainer.predict(model, frame))
    after = score(spec, held_out, trainer.predict(model, training_frame(held_out, spec)[0]))
    return own["log_loss"], after["log_loss"]


def _said(done: Sequence[Done]) -> str:
    failed = [one for one in done if not one.ok]
    text = f"{len(done) - len(failed)} of {len(done)} runs succeeded"
    return text + (f"; the first that failed says: {failed[0].said}" if failed else "")


def _plain_steps(done: Sequence[Done], naive: "pa.Table", whole: "pa.Table") -> tuple[Step, ...]:
    return (
        Step(
            did="the runs start at once, each appends what it computes",
            found=_said(done),
            ok=any(one.ok for one in done),  # some give up: so many append to one table at once
        ),
        Step(
            did="the rows of the table are counted",
            found=f"{naive.num_rows} rows, {_distinct(naive)} of them different; there should be "
            f"{whole.num_rows}",
            ok=naive.num_rows > whole.num_rows,
        ),
    )


def _signalbox_steps(
    services: Services,
    done: Sequence[Done],
    jobs: Sequence[Job],
    kept: "pa.Table",
    whole: "pa.Table",
) -> tuple[Step, ...]:
    asset = services.spec.asset("features")
    wanted = sorted({str(partition) for job in jobs for partition in job.partitions})
    versions = services.ledger.histories(asset, wanted)
    asked = sum(job.days for job in jobs)
    return (
        Step(
            did="the runs start at once, on the features of the catalog",
            found=_said(done),
            ok=all(one.ok for one in done),
        ),
        Step(
            did=f"{asked} times a partition was asked for; the commits are counted",
            found=f"{len(versions)} versions of {len(wanted)} partitions: of each the first run "
            "wrote it, the others found it done",
            ok=sorted(record.partition for record in versions) == wanted,
        ),
        Step(
            did="the rows of the table are counted",
            found=f"{kept.num_rows} rows, {_distinct(kept)} of them different; there should be "
            f"{whole.num_rows}",
            ok=kept.num_rows == whole.num_rows == _distinct(kept),
        ),
    )


def _figures(
    spec: PipelineSpec,
    whole: "pa.Table",
    naive: "pa.Table",
    kept: "pa.Table",
    scores: dict[str, tuple[float, float]],
) -> tuple[Figure, ...]:
    counted = Figure(
        what="rows in the table",
        ideal=whole.num_rows,
        plain=naive.num_rows,
        signalbox=kept.num_rows,
    )
    twice = Figure(
        what="rows that are there more than once",
        ideal=0,
        plain=naive.num_rows - _distinct(naive),
        signalbox=kept.num_rows - _distinct(kept),
    )
    losses = [
        Figure(what=what, **{side: found[n] for side, found in scores.items()})
        for n, what in enumerate(
            ("log loss on the rows trained on", "log loss on the days that follow")
        )
    ]
    return (counted, twice, *losses)
