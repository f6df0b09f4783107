"""What the demo shows on the terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from platform_assets.terminal import print_table

Counts = Mapping[str, tuple[int, int, int]]


class Screen:
    """Lines, bars and the last table; silent if asked to be."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._console = Console(quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def bars(self) -> Iterator[Callable[[Counts], None]]:
        """A bar an asset; the yielded function takes (done, failed, of) by asset key."""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            tasks: dict[str, TaskID] = {}

            def update(counts: Counts) -> None:
                for asset, (done, failed, of) in counts.items():
                    if asset not in tasks:
                        tasks[asset] = progress.add_task(asset, total=of)
                    progress.update(tasks[asset], completed=done + failed, total=of)

            yield update

    def summary(self, document: Mapping[str, Any]) -> None:
        """Partitions made, held and why, the champion, where the time went, URLs."""
        if self.quiet:
            return
        columns = ("complete", "ready", "held", "missing", "watermark")
        print_table(
            f"As of {document['as_of']}",
            ("asset", *columns),
            [(a, *(c[column] for column in columns)) for a, c in document["assets"].items()],
        )
        for name, why in document["held"].items():
            self.say(f"held {name}: {why}")
        champion = document["champion"]
        if champion:
            self.say(
                f"champion: {champion['model']} version {champion['version']}, trained for "
                f"{champion['date']}: {champion['reason']}"
            )
        spent = ", ".join(f"{name} {s:.0f} s" for name, s in document["seconds"].items())
        self.say(f"time: {spent}")
        for name, url in document["urls"].items():
            self.say(f"{name}: {url}")
        for failure in document["failures"]:
            self.say(f"FAILED: {failure}")
