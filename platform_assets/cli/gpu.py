"""`signalbox gpu`: where a job would go, why it waits, and traces replayed under policies."""

from pathlib import Path
from typing import Annotated, Any

import typer

from platform_assets.domain.errors import HomeError, UsageError
from platform_assets.domain.gpu_placing import POLICIES, Reserve
from platform_assets.domain.gpu_shapes import Shape, shape_of
from platform_assets.terminal import print_json, print_table

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ReserveShape = Annotated[
    str | None,
    typer.Option("--reserve", help="Shape that `ours` keeps free for the daily lane, as in 1x8."),
]

MOST_BYTES = 200_000_000
MOST_TOLD = 10

commands = typer.Typer(
    name="gpu",
    help="GPUs: where a training would go, why one waits, and traces replayed.",
    no_args_is_help=True,
)


@commands.callback()
def gpu() -> None:
    """GPUs: where a training would go, why one waits, and traces replayed."""


def shape(text: str | None, option: str) -> Shape | None:
    """A shape of the command line.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    try:
        return shape_of(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def read_text(place: Path, what: str) -> str:
    """A file that a person names.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    try:
        if place.stat().st_size > MOST_BYTES:
            raise UsageError(f"{place} has more than {MOST_BYTES} bytes; {what} is smaller")
        return place.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{place} cannot be read ({error.strerror}); name {what}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{place} is no text in UTF-8 ({error.reason}); name {what}") from error


@commands.command()
def simulate(
    trace: Annotated[str, typer.Argument(help="CSV file: nodes and jobs, see docs/gpus.md.")],
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help=f"One of {', '.join(POLICIES)}; repeat.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the policy `random`.")] = 0,
    reserve: ReserveShape = None,
    plots: Annotated[
        str | None, typer.Option("--plots", help="Folder for allocation.png and queue.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace under each policy: GPUs allocated, and times in the queue."""
    from platform_assets.domain.gpu_simulation import simulate as replay
    from platform_assets.domain.gpu_trace import parse_trace

    kept = shape(reserve, "--reserve")
    names = tuple(dict.fromkeys(policy or POLICIES))
    for name in names:
        if name not in POLICIES:
            raise UsageError(f"{name!r} is no policy; allowed are {', '.join(POLICIES)}")
    replayed = parse_trace(read_text(Path(trace), "a trace as CSV"), trace)
    held = Reserve(kept) if kept else None
    outcomes = {name: replay(replayed, name, seed=seed, reserve=held) for name in names}
    documents = {name: outcome.document() for name, outcome in outcomes.items()}
    written = []
    if plots is not None:
        from resources.plots import allocation, queue_times

        gpus = max(1, replayed.gpus)
        curves = {
            name: [(at, held / gpus) for at, held in outcome.curve]
            for name, outcome in outcomes.items()
        }
        waits = {name: outcome.waits() for name, outcome in outcomes.items()}
        images = {"allocation.png": allocation(curves), "queue.png": queue_times(waits)}
        written = write_images(Path(plots), images)
    if as_json:
        document = {"trace": trace, "nodes": len(replayed.nodes), "gpus": replayed.gpus}
        print_json({**document, "seed": seed, "policies": documents, "plots": written})
        return
    size = f"{len(replayed.jobs)} jobs, {replayed.gpus} GPUs, {len(replayed.nodes)} nodes"
    columns = ("policy", "allocated %", "at end %", "placed", "waiting", "never", "wait min", "p95")
    rows = [_row(document) for document in documents.values()]
    print_table(f"{Path(trace).name}: {size}", columns, rows)
    never = {name: why for one in documents.values() for name, why in one["never"].items()}
    for name, why in list(never.items())[:MOST_TOLD]:
        print(f"{name} never fits: {why}")
    if len(never) > MOST_TOLD:
        print(f"and {len(never) - MOST_TOLD} jobs more never fit; --json names them all")
    for place in written:
        print(f"wrote {place}")


def _row(document: dict[str, Any]) -> tuple[object, ...]:
    waits = document["wait_seconds"]

    def minutes(value: float | None) -> float | str:
        return "-" if value is None else round(value / 60, 1)

    return (
        document["policy"],
        round(100 * document["allocated_mean"], 1),
        round(100 * document["allocated_at_end"], 1),
        document["placed"],
        document["waiting"],
        len(document["never"]),
        minutes(waits["mean"]),
        minutes(waits["p95"]),
    )


def write_images(folder: Path, images: dict[str, bytes]) -> list[str]:
    """Images into a folder, which is made; their paths.

    Raises:
        HomeError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in images.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise HomeError(
            f"{folder} cannot be written ({error.strerror}); name another folder with --plots"
        ) from error
    return [str(folder / name) for name in images]
