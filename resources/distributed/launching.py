"""The step's side of a training in several processes: start it, follow it, end it."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from platform_assets.domain.errors import RefusedError, TransientError, UsageError
from platform_assets.domain.lease import Holder
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.domain.ranks_folder import FOLDER
from platform_assets.domain.stragglers import Straggler
from resources.distributed import supervisor, watching
from resources.distributed.engines import GRACE_SECONDS, Engine, Local, Nodes
from resources.distributed.extra import require_torch
from resources.distributed.layout import Events, Folder, Job, put
from resources.processes import holder, is_dead

PREFIX, OWNER = "signalbox-ranks-", "owner.json"
TICK = 0.1
LOOK_SECONDS = 1.0
"""How often the step times are judged."""

STARTING_SECONDS = 600
"""What loading PyTorch may take on a machine that has much else to do."""

OWN_CHECKPOINT_SECONDS = 60.0
"""Without a checkpointer, one is taken so often: an elastic restart goes on from it."""

LONGEST_SECONDS = 14 * 24 * 3600
"""No training on several nodes takes longer: what is older in their folder was left behind."""

_OWN = {"UsageError": UsageError, "RefusedError": RefusedError, "SpecError": UsageError}


class Checkpoints(Protocol):
    """What decides when a checkpoint is taken, and keeps it (resources/checkpoints)."""

    @property
    def interrupted(self) -> bool: ...

    def load(self) -> Any: ...

    def due(self, step: int) -> bool: ...

    def save(self, step: int, state: Mapping[str, Any], *, paused: float | None = None) -> None: ...

    def missed(self, step: int, why: str, *, paused: float | None = None) -> None: ...

    def wait(self) -> None: ...

    def stop_if_interrupted(self, step: int) -> None: ...


@dataclass
class History:
    """What happened to the ranks of one training.

    Attributes:
        teams: number of ranks and the step they began at, each time that they met.
        lost: places that were lost, each in words.
        stragglers: those that were named, and whether they were replaced.
    """

    teams: list[tuple[int, int]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stragglers: list[tuple[Straggler, bool]] = field(default_factory=list)


class Processes:
    """Runs a trainer's function in several processes, of this machine or of a cluster's nodes.

    One of it serves one training. It is given to a trainer as `processes`, if the catalog asks
    for them and the trainer's `fit` takes them.

    Attributes:
        spec: what the catalog asks for.
        history: what happened, as it happens.
    """

    def __init__(
        self,
        spec: ProcessesSpec,
        *,
        tell: Callable[[str], None] = lambda _: None,
        on_straggler: Callable[[Straggler, bool], None] = lambda _straggler, _replaced: None,
    ) -> None:
        self.spec = spec
        self.history = History()
        self.figures: dict[str, Any] = {}
        self.curves: Mapping[str, list[tuple[int, float]]] = {}
        self._tell, self._on_straggler = tell, on_straggler

    def run(
        self,
        entry: str,
        arguments: Mapping[str, Any],
        root: Path,
        *,
        on_round: Callable[[int, Mapping[str, float]], None],
        checkpointer: Checkpoints | None = None,
    ) -> Path:
        """Train, and wait for it.

        Args:
            entry: `package.module:function`, called with a `Rank` in each process.
            arguments: plain data for it.
            root: from `temporary()`.
            on_round: called with what the first rank reports, each round once.
            checkpointer: None: checkpoints are kept as long as this runs only.

        Returns:
            The file that the first rank has handed over (`Rank.finish`).

        Raises:
            UsageError: PyTorch is not installed, or a rank said so of what it was given.
            RefusedError: a rank refused its rows.
            TransientError: fewer than `min` ranks are left, or they hang.
            RuntimeError: a rank failed; the text is its own trace.
        """
        require_torch()
        spec, folder = self.spec, Folder(root)
        shared = os.environ.get(FOLDER)
        if spec.nodes > 1 and (shared is None or Path(shared) != root):
            raise UsageError(
                f"model.processes.nodes is {spec.nodes}; where one machine trains allowed is 1. "
                "Several nodes are those of a cluster: the pinned executor starts them as one "
                "JobSet, docs/distributed.md says what it takes"
            )
        job = Job(
            entry=entry,
            arguments=arguments,
            min=spec.min,
            max=spec.max,
            restarts=spec.restarts,
            step_timeout_seconds=spec.step_timeout_seconds,
            keep_alive_seconds=spec.keep_alive_seconds,
        )
        if checkpointer is not None:
            put_back(checkpointer, folder)
        # Last, for the ranks of other nodes begin when they see what it writes.
        engine: Engine = Nodes(folder, job, spec.nodes) if spec.nodes > 1 else Local(folder, job)
        try:
            code = _Following(self, folder, engine, on_round, checkpointer).follow()
        finally:
            engine.end()
            met = watching.teams(folder)
            self.figures, self.curves = watching.summary(met), watching.curves(met)
        return self._judged(code, folder)

    def _judged(self, code: int, folder: Folder) -> Path:
        if (folder.result / "done").exists() and code == supervisor.DONE:
            return folder.result / "result.pt"
        for path in sorted(folder.errors.glob("*.json")):
            said = json.loads(path.read_bytes())
            if said["module"] == "platform_assets.domain.errors" and said["kind"] in _OWN:
                raise _OWN[said["kind"]](said["text"])
            raise RuntimeError(
                f"rank {said['rank']} of {said['world']} failed, the others were ended: "
                f"{said['kind']}: {said['text']}\n{said['trace']}"
            )
        raise TransientError(
            f"the ranks of this training ended without a model (exit code {code}): "
            f"{'; '.join(self.history.lost) or 'they could not go on'}; fewer than "
            f"{self.spec.min} were left, or they were started again more than "
            f"{self.spec.restarts} times. {_last_words(folder)}"
        )

    def told(self, event: Mapping[str, Any]) -> None:
        """Write an event of the ranks down, and tell the log."""
        kind = event["kind"]
        if kind == "began":
            before = self.history.teams[-1][0] if self.history.teams else 0
            if self.spec.nodes > 1 and event["world"] < before:
                # Nobody counts them there: nodes come and go by the cluster's doing.
                self.history.lost.append(f"{before - event['world']} of {before} ranks were lost")
            self.history.teams.append((event["world"], event["step"]))
            self._tell(f"{event['world']} ranks train from step {event['step']} on")
        elif kind == "lost":
            words = (
                f"place {event['place']} was lost by signal {event['signal']}, "
                f"{event['left']} are left"
            )
            self.history.lost.append(words)
            self._tell(f"{words}; the training goes on from its last checkpoint")
        elif kind == "added":
            self._tell(f"place {event['place']} was added")

    def missed(self, step: int, why: str) -> None:
        """Tell that a checkpoint could not be written."""
        self._tell(f"the checkpoint of step {step} was not saved ({why}); the training goes on")

    def slow(self, straggler: Straggler) -> bool:
        """Name a straggler; tells whether it is to be replaced."""
        terms = self.spec.straggler
        before = sum(replaced for _, replaced in self.history.stragglers)
        replaced = terms.action == "replace" and before < terms.most_replaced
        self.history.stragglers.append((straggler, replaced))
        end = "it is replaced" if replaced else "it is left alone, as the catalog says"
        self._tell(f"straggler: {straggler.reason}; {end}")
        self._on_straggler(straggler, replaced)
        return replaced


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder that the ranks can read, for what they are given; gone when it is left.

    Folders that a killed process has left behind are removed on the way.
    """
    shared = os.environ.get(FOLDER)
    if shared is None:
        sweep(Path(tempfile.gettempdir()))
        root = Path(tempfile.mkdtemp(prefix=PREFIX))
    else:
        root = Path(shared)
        forget(root.parent)
        root.mkdir(parents=True)
    put(root / OWNER, json.dumps(asdict(holder(""))).encode())
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def sweep(place: Path) -> None:
    """Remove the folders of processes of this machine that are known to be gone."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError, TypeError):
            if is_dead(Holder(**json.loads((folder / OWNER).read_bytes()))):
                shutil.rmtree(folder, ignore_errors=True)


def forget(place: Path, now: float | None = None) -> None:
    """Remove what trainings on several nodes have left behind for longer than they may take.

    Whether a process of another machine still runs is not known here.
    """
    now = time.time() if now is None else now
    for folder in place.iterdir() if place.exists() else ():
        with suppress(OSError):
            if now - (folder / OWNER).stat().st_mtime > LONGEST_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


class _Following:
    """From start to end of one set of ranks."""

    def __init__(
        self,
        owner: Processes,
        folder: Folder,
        engine: Engine,
        on_round: Callable[[int, Mapping[str, float]], None],
        checkpointer: Checkpoints | None,
    ) -> None:
        self.owner, self.folder, self.engine = owner, folder, engine
        self.on_round, self.checkpointer = on_round, checkpointer
        self.events = Events(folder)
        self.rounds = 0
        self.named: set[tuple[str, int]] = set()
        self.saved_at = self.looked_at = self.moved_at = time.monotonic()
        self.last: tuple[int, int] = (0, 0)
        self.replacing: int | None = None

    def follow(self) -> int:
        until: float | None = None
        while True:
            code = self.engine.poll()
            self._hear()
            if code is not None:
                self._settle()
                return code
            now = time.monotonic()
            if until is None and self._interrupted():
                self.folder.stop.touch()
                until = now + GRACE_SECONDS
            if until is not None and now > until:
                self.engine.end()
            self._ask(now)
            if now - self.looked_at >= LOOK_SECONDS:
                self.looked_at = now
                self._look()
            self._hangs(now)
            time.sleep(TICK)

    def _hear(self) -> None:
        for event in self.events.new():
            self.moved_at = time.monotonic()
            if event["kind"] == "round":
                # After a restart the ranks tell some rounds again.
                if event["step"] > self.rounds:
                    self.rounds = event["step"]
                    self.on_round(event["step"], event["metrics"])
            elif event["kind"] == "saved":
                self._saved(event["step"], Path(event["path"]), event["seconds"])
            elif event["kind"] == "missed":
                self._missed(event["step"], event["why"], event["seconds"])
            else:
                self.owner.told(event)

    def _missed(self, step: int, why: str, seconds: float) -> None:
        self.saved_at = time.monotonic()
        if self.checkpointer is not None:
            self.checkpointer.missed(step, why, paused=seconds)
        else:
            self.owner.missed(step, why)

    def _saved(self, step: int, path: Path, seconds: float) -> None:
        self.saved_at = time.monotonic()
        if self.checkpointer is not None:
            # Linked, for the ranks keep the last ones only, and it is written while they go on.
            mine = self.folder.root / "leaving" / path.name
            try:
                shutil.copytree(path, mine, copy_function=os.link, dirs_exist_ok=True)
            except OSError as error:
                if path.exists():  # else newer ones have come meanwhile
                    self.checkpointer.missed(step, str(error), paused=seconds)
            else:
                self.checkpointer.save(step, contents(mine), paused=seconds)
                for old in mine.parent.iterdir():  # those before it are durable by now
                    if old != mine:
                        shutil.rmtree(old)
        if self.replacing is not None:
            (self.folder.replace / str(self.replacing)).touch()
            self.replacing = None

    def _ask(self, now: float) -> None:
        """Ask for a checkpoint where one is due."""
        if self.checkpointer is None:
            due = now - self.saved_at >= OWN_CHECKPOINT_SECONDS
        else:
            due = self.checkpointer.due(self._step())
        if due and not self.folder.asked.exists():
            with suppress(OSError):  # of a full disk: it is asked for again at the next look
                self.folder.asked.touch()

    def _step(self) -> int:
        return self.last[1]

    def _look(self) -> None:
        met = watching.latest(self.folder)
        if met is None:
            return
        step = met.step()
        if (met.born, step) != self.last:
            self.last, self.moved_at = (met.born, step), time.monotonic()
        found = watching.slow(met, self.owner.spec.straggler)
        if found is None:
            return
        straggler, number = found
        process = straggler.place.host, straggler.place.pid
        if process in self.named:
            return
        self.named.add(process)
        if self.owner.slow(straggler):
            # First what was done is saved; then it goes.
            self.replacing = number
            self.folder.asked.touch()

    def _hangs(self, now: float) -> None:
        """The ranks have a time-out of their own; this is for when even that does not help."""
        allowed = 2 * self.owner.spec.step_timeout_seconds + STARTING_SECONDS
        if now - self.moved_at > allowed:
            raise TransientError(
                f"no rank has done a step for {allowed} s, they were ended; the next attempt goes "
                f"on from the last checkpoint. {_last_words(self.folder)}"
            )

    def _interrupted(self) -> bool:
        return self.checkpointer is not None and self.checkpointer.interrupted

    def _settle(self) -> None:
        """What was asked for is durable; whoever was told to stop says so."""
        if self.checkpointer is None:
            return
        if not (self.folder.result / "done").exists():
            self.checkpointer.stop_if_interrupted(self._step())


def contents(path: Path) -> dict[str, Path]:
    """The files of a checkpoint's folder by their names."""
    return {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}


def put_back(checkpointer: Checkpoints, folder: Folder) -> int | None:
    """Lay the newest checkpoint that is whole where the ranks look for it; its step."""
    found = checkpointer.load()
    if found is None:
        return None
    path = folder.checkpoint(found.step)
    for name, content in found.state.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return int(found.step)


def _last_words(folder: Folder, most: int = 600) -> str:
    """The end of what the newest log says, for a person."""
    logs = sorted(folder.logs.glob("*.log"), key=lambda p: p.stat().st_mtime)
    for path in reversed(logs):
        text = path.read_text(errors="replace").strip()
        if text:
            return f"Last words of {path.name}: …{text[-most:]}"
    return "The ranks have said nothing."
