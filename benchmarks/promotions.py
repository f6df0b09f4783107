"""How fast promoters are that all want the same alias, and whether each of them gets its turn.

Each promoter, a process of its own, looks, records a verdict on its version against the champion
that it sees, and promotes; who loses does all of it again against the winner. Per promotion: the
seconds from the first look to the win, and how often it had lost. The verdicts are given: what is
measured is the ledger. On Postgres, as the tests start it (no fsync), or any that is named.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import PromotionConflictError
from resources.ledger import Ledger, open_ledger, upgrade
from resources.ledger.promotions import EvaluationRecord

MODEL = "benchmark"
DAY = date(2013, 1, 1)


def promote(ledger: Ledger, version: int, *, queue: bool) -> tuple[float, list[float]]:
    """Until it has won: seconds in all, and of each compare-and-swap."""
    begun = time.perf_counter()
    with ledger.turn(MODEL) if queue else contextlib.nullcontext():
        swaps = until_won(ledger, version)
    return time.perf_counter() - begun, swaps


def until_won(ledger: Ledger, version: int) -> list[float]:
    """Look, judge, swap, until it is the winner: seconds of each swap."""
    swaps = []
    while True:
        state = ledger.alias_state(MODEL)
        verdict = ledger.record_evaluation(
            EvaluationRecord(
                pipeline=MODEL,
                model=MODEL,
                candidate=version,
                champion=state.version if state else None,
                judged_date=DAY,
                rows_digest="",
                passed=True,
                report={"reason": "given"},
                recorded_at=datetime.now(UTC),
                run_id="benchmark",
            )
        )
        asked = time.perf_counter()
        with contextlib.suppress(PromotionConflictError):
            ledger.promote(
                MODEL,
                MODEL,
                version,
                model_date=DAY,
                expected=state,
                evaluation_id=verdict.id,
                reason="given",
                by="benchmark",
                run_id="benchmark",
                at=datetime.now(UTC),
            )
            swaps.append(time.perf_counter() - asked)
            return swaps
        swaps.append(time.perf_counter() - asked)


def promoter(url: str, number: int, each: int, queue: bool, barrier: Any, results: Any) -> None:
    ledger = open_ledger(url)
    ledger.alias_state(MODEL)  # connects
    barrier.wait()
    found = [promote(ledger, 1 + number * each + n, queue=queue) for n in range(each)]
    results.put((found, time.perf_counter()))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(url: str, promoters: int, each: int, *, queue: bool) -> dict[str, Any]:
    upgrade(url)
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(promoters + 1), fork.Queue()
    children = [
        fork.Process(target=promoter, args=(url, n, each, queue, barrier, results))
        for n in range(promoters)
    ]
    for child in children:
        child.start()
    barrier.wait()
    begun = time.perf_counter()
    ended = [results.get() for _ in children]
    for child in children:
        child.join()
    seconds = max(at for _, at in ended) - begun
    wins = [win for found, _ in ended for win in found]
    waits = [wait for wait, _ in wins]
    swaps = [swap for _, made in wins for swap in made]
    history = open_ledger(url).promotions(MODEL)
    linear = [c.previous for c in history] == [None, *(c.version for c in history[:-1])]
    return {
        "promoters": promoters,
        "promotions": len(history),
        "asked_for": promoters * each,
        "history_is_linear": linear,
        "seconds": round(seconds, 2),
        "promotions_per_second": round(len(wins) / seconds, 1),
        "swaps_per_second": round(len(swaps) / seconds, 1),
        "swap_ms": {f"p{int(100 * q)}": round(1000 * quantile(swaps, q), 1) for q in (0.5, 0.99)},
        "until_won_ms": {
            f"p{int(100 * q)}": round(1000 * quantile(waits, q), 1) for q in (0.5, 0.99)
        },
        "attempts": {
            "mean": round(len(swaps) / len(wins), 1),
            "most": max(len(made) for _, made in wins),
        },
        "promoters_that_got_their_turn": sum(len(found) == each for found, _ in ended),
    }


@contextlib.contextmanager
def database(url: str | None) -> Iterator[str]:
    """The one that is named, or a new Postgres."""
    if url is not None:
        yield url
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests import postgres

    with postgres.server() as server:
        yield postgres.create_database(server)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promoters", type=int, default=64)
    parser.add_argument("--each", type=int, default=5, help="promotions of each promoter")
    parser.add_argument("--url", help="an empty database; default: a Postgres of its own")
    parser.add_argument("--sqlite", action="store_true", help="on a new SQLite file instead")
    parser.add_argument("--no-queue", action="store_true", help="all at once, nobody waits")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db" if given.sqlite else given.url
        with database(url) as found:
            result = measure(found, given.promoters, given.each, queue=not given.no_queue)
    print(json.dumps(result, indent=2))
    whole = result["promotions"] == result["asked_for"] and result["history_is_linear"]
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
