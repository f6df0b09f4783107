"""What a trainer's code has in each of its processes; and what it has alone, in one."""

import importlib
import json
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from platform_assets.domain.placing import NODE
from platform_assets.domain.stragglers import Place
from resources.distributed import shards
from resources.distributed.layout import Folder, TimesWriter, put
from resources.distributed.lifeline import die_with

PEER_LOST = 75
"""Exit code of a rank that could not go on without another."""

STOPPED = 76
"""Exit code of ranks that were asked to stop, and have saved where they are."""

POD = "HOSTNAME"


class PeerLostError(Exception):
    """Another rank of this training is gone, or hangs."""


class StoppedError(Exception):
    """The ranks were asked to stop; where they are is saved."""


class Control(Protocol):
    """Whom the first rank tells, and by whom it is told."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def asked(self, step: int) -> tuple[bool, bool]:
        """Whether a checkpoint is to be taken after this step, and whether to stop then."""
        ...

    def saved(self, step: int, path: Path, seconds: float) -> None:
        """A checkpoint is there; the ranks stood still for so long."""
        ...

    def missed(self, step: int, why: str, seconds: float) -> None:
        """It could not be written, and the training goes on."""
        ...


class Rank:
    """One of the processes that train a model together.

    Attributes:
        rank, world: its number from 0, and how many there are; 0 and 1 where it is alone.
        arguments: what the trainer has given to all of them.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        arguments: Mapping[str, Any],
        folder: Folder,
        control: Control,
        times: TimesWriter | None = None,
        keep: int = 2,
    ) -> None:
        self.rank, self.world, self.arguments = rank, world, arguments
        self.folder = folder
        self._control, self._times, self._keep = control, times, keep
        self._own = 0.0
        self._kept: shards.Kept | None = None

    # --- state ----------------------------------------------------------------------------------

    def resume(self, model: Any, optimizer: Any, tensors: Mapping[str, Any] | None = None) -> int:
        """Keep these from now on, and bring them to where the newest checkpoint left them.

        Args:
            model: a torch.nn.Module, the same on all ranks.
            optimizer: of its parameters.
            tensors: others that the training goes on from, by name.

        Returns:
            The number of steps that are done: 0 without a checkpoint. It is the position in the
            data too, for the batch of a step follows from its number.
        """
        self._kept = shards.Kept(model, optimizer, dict(tensors or {}))
        found = self.folder.newest()
        if found is None:
            return 0
        return shards.load(self._kept, found[1], rank=self.rank, world=self.world)

    # --- a step ---------------------------------------------------------------------------------

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around the rank's own work in a step, without what it waits for the others."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._own += time.perf_counter() - start

    def sum_(self, tensor: Any) -> None:
        """Add up a tensor over all ranks, in place, the same on each of them.

        Raises:
            PeerLostError: one of them does not answer.
        """
        if self.world > 1:
            import torch.distributed as dist

            with peers():
                dist.all_reduce(tensor)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics after a number of rounds; those of the first rank are recorded."""
        if self.rank == 0:
            self._control.report(step, metrics)

    def done(self, step: int) -> None:
        """A step is done: so many in all. Takes a checkpoint if one is asked for.

        Raises:
            StoppedError: a checkpoint was taken, and no more is to be done here.
            PeerLostError: another rank does not answer.
        """
        now = time.perf_counter()
        if self._times is not None:
            self._times.add(step, self._own, now)
        self._own = 0.0
        save, stop = self._agreed(step)
        if save:
            self._save(step)
        if stop:
            if self._times is not None:
                self._times.flush()
            raise StoppedError

    def finish(self, result: Mapping[str, Any]) -> None:
        """Hand the trained tensors over to the step, from the first rank."""
        if self._times is not None:
            self._times.flush()
        if self.rank == 0:
            import torch

            torch.save(dict(result), self.folder.result / "result.pt")
            put(self.folder.result / "done", b"")

    def _agreed(self, step: int) -> tuple[bool, bool]:
        """What the first rank was asked for; all ranks do it after the same step."""
        found = self._control.asked(step) if self.rank == 0 else (False, False)
        if self.world == 1:
            return found
        import torch
        import torch.distributed as dist

        both = torch.tensor([int(found[0]), int(found[1])])
        with peers():
            dist.broadcast(both, 0)
        return bool(both[0]), bool(both[1])

    def _save(self, step: int) -> None:
        assert self._kept is not None, "resume comes first"
        final = self.folder.checkpoint(step)
        fresh = final.with_name(f".{final.name}")
        why = ""
        if self.rank == 0:
            try:
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir(parents=True)
            except OSError as error:
                why = str(error)
        well = self._all_well(not why)
        # From here on: what one waits for another until then is not the checkpoint's.
        began = time.perf_counter()
        if well:
            try:
                with peers():
                    shards.save(self._kept, fresh, step=step, rank=self.rank, world=self.world)
            except shards.NotSavedError as error:
                why = str(error)
            well = self._all_well(not why)
        if self.rank > 0:
            return
        try:
            if well:
                shutil.rmtree(final, ignore_errors=True)
                fresh.rename(final)
        except OSError as error:
            well, why = False, str(error)
        seconds = time.perf_counter() - began
        if not well:
            shutil.rmtree(fresh, ignore_errors=True)
            self._control.missed(step, why or "another rank could not write", seconds)
            return
        self._control.saved(step, final, seconds)
        for old in sorted(self.folder.checkpoints.glob("step-*[0-9]"))[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _all_well(self, mine: bool) -> bool:
        """Whether it is with all ranks; none goes on before all have said it."""
        if self.world == 1:
            return mine
        import torch
        import torch.distributed as dist

        failed = torch.tensor([0 if mine else 1])
        with peers():
            dist.all_reduce(failed)
        return not int(failed[0])

    def _meet(self) -> None:
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


@contextmanager
def peers() -> Iterator[None]:
    """Around what needs the other ranks."""
    try:
        yield
    except RuntimeError as error:  # all that gloo says of a peer is one
        raise PeerLostError(str(error)) from error


class InProcess:
    """Control of a rank that is alone, in the step's own process."""

    def __init__(
        self,
        report: Callable[[int, Mapping[str, float]], None],
        asked: Callable[[int], tuple[bool, bool]],
        saved: Callable[[int, Path, float], None],
        missed: Callable[[int, str, float], None],
    ) -> None:
        self.report, self.asked, self.saved, self.missed = report, asked, saved, missed


class ByFolder:
    """Control through the folder that the step looks at."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        self._folder.tell("round", step=step, metrics=dict(metrics))

    def asked(self, step: int) -> tuple[bool, bool]:
        stop = self._folder.stop.exists()
        if stop or self._folder.asked.exists():
            self._folder.asked.unlink(missing_ok=True)
            return True, stop
        return False, False

    def saved(self, step: int, path: Path, seconds: float) -> None:
        self._folder.tell("saved", step=step, path=str(path), seconds=seconds)

    def missed(self, step: int, why: str, seconds: float) -> None:
        self._folder.tell("missed", step=step, why=why, seconds=seconds)


def call(entry: str, rank: Rank) -> None:
    """Call a trainer's function, `package.module:function`, with its rank."""
    module, _, name = entry.partition(":")
    function: Callable[[Rank], None] = getattr(importlib.import_module(module), name)
    function(rank)


def main(arguments: list[str]) -> int:
    """`python -m resources.distributed.rank FOLDER`, as torchrun starts it."""
    die_with(os.getppid())
    folder = Folder(Path(arguments[0]))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        return _main(folder, rank, world)
    except PeerLostError as error:
        print(f"rank {rank} of {world} goes no further, a peer is lost: {error}", file=sys.stderr)
        return PEER_LOST
    except Exception as error:  # noqa: BLE001 - told to the step, whatever it is
        traceback.print_exc()
        said = {
            "rank": rank,
            "world": world,
            "kind": type(error).__name__,
            "module": type(error).__module__,
            "text": str(error),
            "trace": traceback.format_exc(),
        }
        put(folder.errors / f"{_name()}.json", json.dumps(said).encode())
        return 1


def _name() -> str:
    """Of this process's files: each pod counts its processes from 1."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _main(folder: Folder, rank: int, world: int) -> int:
    import torch
    import torch.distributed as dist

    job = folder.job()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with peers():
        dist.init_process_group("gloo", timeout=timedelta(seconds=job.step_timeout_seconds))
        # Which ranks belong together: those that have met this time.
        born = torch.tensor([time.time_ns()])
        dist.broadcast(born, 0)
    place = Place(
        rank=rank,
        world=world,
        host=socket.gethostname(),
        pod=os.environ.get(POD, "") if os.environ.get(NODE) else "",
        node=os.environ.get(NODE, ""),
        pid=os.getpid(),
    )
    about = asdict(place) | {
        "born": int(born[0]),
        "place": int(os.environ.get("SIGNALBOX_PLACE", "0")),
        "agent": os.getppid(),
    }
    put(folder.ranks / f"{_name()}.json", json.dumps(about).encode())
    if rank == 0:
        newest = folder.newest()
        folder.tell("began", world=world, born=int(born[0]), step=newest[0] if newest else 0)
    times = TimesWriter(folder.times / f"{_name()}.bin")
    told = Rank(rank, world, job.arguments, folder, ByFolder(folder), times, job.keep)
    try:
        call(job.entry, told)
        with peers():
            told._meet()
    except StoppedError:
        if rank == 0:
            put(folder.result / "stopped", b"")
        with peers():
            told._meet()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
