"""What each partition of a run cost: wall and CPU seconds from one recorded version to the next."""

import time

from resources.giving_way import seconds_aside

_start_is_told = False


class Stopwatch:
    """Laps of one process; the first one also tells what its start took until here.

    The CPU seconds are those of the whole process, all threads: a process works on one partition
    at a time. What follows a version's record (events, plots) counts to the next partition.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._start: dict[str, float] = {}

    @classmethod
    def of_process(cls) -> "Stopwatch":
        """One that tells the start of this process, if none has done so yet.

        What it has stood aside for by then is no part of it.

        A process that was forked from one that had, such as a run of a prepared process, has a
        start of its own that takes next to nothing and is told by nobody.
        """
        global _start_is_told
        watch = cls()
        if not _start_is_told:
            _start_is_told = True
            watch._start = _since_start()
        return watch

    def leave_out(self, seconds: float) -> None:
        """Count this time to no partition: it did nothing, and used no CPU."""
        self._wall += seconds

    def lap(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds` since the lap before."""
        wall, cpu = time.monotonic(), time.process_time()
        found = {"seconds": wall - self._wall, "cpu_seconds": cpu - self._cpu, **self._start}
        self._wall, self._cpu, self._start = wall, cpu, {}
        return {name: round(value, 4) for name, value in found.items()}


def _since_start() -> dict[str, float]:
    import psutil

    started = psutil.Process().create_time()
    return {
        "start_seconds": max(0.0, time.time() - started - seconds_aside()),
        "start_cpu_seconds": time.process_time(),
    }
