"""Which version an alias points at: changed by compare-and-swap, each change one line of history.

One row per model and alias holds the version and a counter that grows by one with each change. Who
promotes names both as it saw them when the candidate was judged; if either has changed since, it
has lost, and is told to whom. No clock takes part, so none that jumps does harm, and a version that
came back (3, 5, 3) is not taken for one that never left.

What may not be promoted is refused here, in the transaction that would write it, and so on every
path that there is or will be.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal

from platform_assets.domain.errors import PromotionConflictError, RefusedError, UsageError
from platform_assets.domain.lease import Lease
from resources.ledger.base import fields_of, insert_into
from resources.ledger.engine import alone, explained, writing
from resources.ledger.environments import CanaryNeeded, require_canary
from resources.ledger.evaluations import Evaluations, evaluation_of, holds_in, put_hold
from resources.ledger.leases import require_held
from resources.ledger.promotion_records import (
    AliasState,
    EvaluationRecord,
    HoldRecord,
    PromotionRecord,
)
from resources.ledger.records import ChampionRecord
from resources.ledger.tables import tables

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "CHAMPION",
    "AliasState",
    "EvaluationRecord",
    "HoldRecord",
    "PromotionRecord",
    "Promotions",
]

CHAMPION = "champion"
Action = Literal["promote", "rollback"]

TURN_SECONDS = 60.0
"""How long a promoter waits for its turn: a few judgements of others."""


class Promotions(Evaluations):
    """The aliases of all models."""

    # --- what is in force -----------------------------------------------------------------------

    def alias_state(self, model: str, alias: str = CHAMPION) -> AliasState | None:
        """What an alias points at; None if it never pointed at anything."""
        t = tables().alias_states
        query = t.select().where(t.c.model == model, t.c.alias == alias)
        return next((AliasState(*row) for row in self._rows(query)), None)

    def promotions(self, model: str, alias: str = CHAMPION) -> list[PromotionRecord]:
        """All changes of an alias, oldest first."""
        t = tables().promotions
        query = t.select().where(t.c.model == model, t.c.alias == alias).order_by(t.c.counter)
        return [PromotionRecord(*row) for row in self._rows(query)]

    def champion(self, pipeline: str) -> ChampionRecord | None:
        """The champion in force."""
        t = tables().promotions
        mine = (t.c.pipeline == pipeline) & (t.c.alias == CHAMPION)
        query = t.select().where(mine).order_by(t.c.id.desc()).limit(1)
        return next((_champion(row) for row in self._rows(query)), None)

    def champions(self, pipeline: str) -> list[ChampionRecord]:
        """All champions that there were, oldest first."""
        t = tables().promotions
        mine = (t.c.pipeline == pipeline) & (t.c.alias == CHAMPION)
        return [_champion(row) for row in self._rows(t.select().where(mine).order_by(t.c.id))]

    @contextmanager
    def turn(self, model: str, alias: str = CHAMPION, wait: float = TURN_SECONDS) -> Iterator[bool]:
        """Wait for one's turn to look, judge and promote; tells whether one has it.

        It guards nothing: the compare-and-swap does. But of many who judge at once all but one
        have judged in vain, and who is slow might never win. Postgres has them queue, first come
        first served; whoever dies has left the queue, and nobody waits for longer than `wait`
        seconds. The turn is a connection's, outside of any transaction: a server that ends what
        is idle in one does not end a long judgement, and one that ends the connection ends the
        turn alone. On SQLite nobody queues: its few writers take turns at the file.
        """
        if not self.url.startswith("postgresql"):
            yield False
            return
        import sqlalchemy as sa

        with ExitStack() as stack:
            with explained(self.url):
                connection = stack.enter_context(alone(self.url))
                connection.execute(sa.text(f"SET lock_timeout = {int(1000 * wait)}"))
                lock = sa.text("SELECT pg_advisory_lock(hashtextextended(:name, 0))")
                try:
                    connection.execute(lock, {"name": f"signalbox {model}@{alias}"})
                    mine = True
                except sa.exc.OperationalError as error:
                    state = getattr(error.orig, "sqlstate", getattr(error.orig, "pgcode", ""))
                    if state != "55P03":
                        raise
                    mine = False
            yield mine

    # --- changes --------------------------------------------------------------------------------

    def promote(
        self,
        pipeline: str,
        model: str,
        version: int,
        *,
        model_date: date,
        expected: AliasState | None,
        evaluation_id: int,
        reason: str,
        by: str,
        run_id: str,
        at: datetime,
        digest: str | None = None,
        canary: CanaryNeeded | None = None,
        alias: str = CHAMPION,
        lease: Lease | None = None,
    ) -> PromotionRecord:
        """Have an alias point at a version, if it still is as it was when that was judged.

        Args:
            model_date: the date that the version was trained for.
            expected: the alias's state when the evaluation was made; None: it had none.
            evaluation_id: a verdict of this version against the expected one, passed.
            at: the pipeline's clock, which holds are reckoned by.
            digest: of the version's files, as the verdict has to name it too.
            canary: that the promotion goes by where the environment has changed.
            lease: under which the decision was made; checked by the transaction that writes.

        Raises:
            PromotionConflictError: somebody else changed the alias meanwhile.
            RefusedError: the verdict is another pair's or on other files, or did not pass; the
                version is held, or the alias points at it already; or the canary that it goes by
                is not the newest one.
            UsageError: there is no such verdict.
            LeaseLostError: the lease was taken over meanwhile.
            Of each, nothing was changed.
        """
        change = _Change(
            pipeline,
            model,
            alias,
            "promote",
            version,
            model_date,
            evaluation_id,
            reason,
            by,
            run_id,
        )
        with writing(self.url) as connection:
            if lease is not None:
                require_held(connection, lease)
            # In this order: who lost the race is to hear that, and not of a verdict gone stale.
            done = _swap(connection, change, expected)
            _require_verdict(connection, change, expected, digest)
            _require_free(connection, change, at)
            if canary is not None:
                require_canary(connection, model, canary)
        return done

    def roll_back(
        self,
        pipeline: str,
        model: str,
        version: int,
        *,
        expected: AliasState,
        reason: str,
        by: str,
        run_id: str,
        at: datetime,
        hold_until: datetime | None = None,
        alias: str = CHAMPION,
        lease: Lease | None = None,
    ) -> PromotionRecord:
        """Have an alias point at a version that it pointed at before, and hold the present one.

        Both in one transaction: what was rolled back from cannot come back in between.

        Args:
            expected: the alias's state when it was decided.
            at: the pipeline's clock.
            hold_until: until when the present version may not be promoted; None: until released.

        Raises:
            PromotionConflictError: somebody else changed the alias meanwhile.
            RefusedError: the version never was what the alias points at, is it now, or is held.
            LeaseLostError: the lease was taken over meanwhile.
            Of each, nothing was changed.
        """
        t = tables().promotions
        with writing(self.url) as connection:
            if lease is not None:
                require_held(connection, lease)
            mine = (t.c.model == model) & (t.c.alias == alias) & (t.c.version == version)
            query = t.select().where(mine).order_by(t.c.counter.desc()).limit(1)
            was = connection.execute(query).one_or_none()
            if was is None:
                raise RefusedError(
                    f"{model}: version {version} was never {alias}, a roll back goes to one that "
                    "was; see them with `signalbox promotions PIPELINE`"
                )
            change = _Change(
                *(pipeline, model, alias, "rollback", version, was.model_date),
                *(None, reason, by, run_id),
            )
            done = _swap(connection, change, expected)
            _require_free(connection, change, at)
            put_hold(connection, model, expected.version, reason, by, at, hold_until)
        return done


@dataclass(frozen=True)
class _Change:
    pipeline: str
    model: str
    alias: str
    action: Action
    version: int
    model_date: date
    evaluation_id: int | None
    reason: str
    by: str
    run_id: str


def _swap(
    connection: "Connection", change: _Change, expected: AliasState | None
) -> PromotionRecord:
    """The compare-and-swap and its line of history, in the caller's transaction."""
    if expected is not None and (expected.model, expected.alias) != (change.model, change.alias):
        raise ValueError(f"{expected} is not the state of {change.model}@{change.alias}")
    t, now = tables().alias_states, datetime.now(UTC)
    counter = expected.counter + 1 if expected else 1
    values = {"version": change.version, "counter": counter, "changed_at": now}
    if expected is None:
        insert = insert_into(t, connection.dialect.name)
        first = insert.values(model=change.model, alias=change.alias, **values)
        done = connection.execute(first.on_conflict_do_nothing())
    else:
        # Postgres looks at the row again once it has the lock on it: of those that wait for one
        # who changes it, none finds what it expected.
        same = (
            (t.c.model == change.model)
            & (t.c.alias == change.alias)
            & (t.c.version == expected.version)
            & (t.c.counter == expected.counter)
        )
        done = connection.execute(t.update().where(same).values(**values))
    if done.rowcount != 1:
        raise _conflict(connection, change, expected)
    if expected is not None and expected.version == change.version:
        raise RefusedError(
            f"{change.model}: version {change.version} is {change.alias} already, nothing was "
            "changed"
        )
    row = {
        **fields_of(change),
        "previous": expected.version if expected else None,
        "counter": counter,
        "decided_at": now,
    }
    p = tables().promotions
    number = connection.execute(p.insert().returning(p.c.id), row).scalar_one()
    return PromotionRecord(id=int(number), **row)


def _conflict(
    connection: "Connection", change: _Change, expected: AliasState | None
) -> PromotionConflictError:
    p = tables().promotions
    mine = (p.c.model == change.model) & (p.c.alias == change.alias)
    query = p.select().where(mine).order_by(p.c.counter.desc()).limit(1)
    found = connection.execute(query).one_or_none()
    winner = PromotionRecord(*found) if found else None
    return PromotionConflictError(
        f"{change.model}@{change.alias}",
        version=change.version,
        expected=expected.version if expected else None,
        found=winner.version if winner else None,
        winner=f"change {winner.counter}: {winner.describe()}" if winner else "nothing is known",
    )


def _require_verdict(
    connection: "Connection", change: _Change, expected: AliasState | None, digest: str | None
) -> None:
    """Refuse, and so roll back, what no passed verdict on exactly this pair stands behind."""
    t = tables().evaluations
    query = t.select().where(t.c.id == change.evaluation_id, t.c.model == change.model)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UsageError(
            f"{change.model} has no evaluation {change.evaluation_id}, a promotion needs one; "
            "make it with `signalbox promote PIPELINE VERSION --evaluate`"
        )
    found = evaluation_of(row)
    pair = (change.version, expected.version if expected else None)
    if (found.candidate, found.champion) != pair:
        raise RefusedError(
            f"{change.model}: evaluation {found.id} is of version {found.candidate} against "
            f"{_named(found.champion)}, it says nothing of version {pair[0]} against "
            f"{_named(pair[1])}; evaluate that pair with `signalbox promote PIPELINE {pair[0]} "
            "--evaluate`"
        )
    if found.digest != digest:
        raise RefusedError(
            f"{change.model}: evaluation {found.id} is of version {found.candidate} with digest "
            f"{found.digest or 'unknown'}, and version {change.version} has {digest or 'none'} by "
            "now; each needs a verdict of its own, make it with "
            f"`signalbox promote PIPELINE {change.version} --evaluate`"
        )
    if not found.passed:
        raise RefusedError(
            f"{change.model}: version {found.candidate} did not pass its evaluation against "
            f"{_named(found.champion)} ({found.report.get('reason', 'no reason was kept')}); "
            "only one that passed can be promoted"
        )


def _require_free(connection: "Connection", change: _Change, at: datetime) -> None:
    for held in holds_in(connection, change.model, at):
        if held.version == change.version:
            raise RefusedError(
                f"{change.model}: version {change.version} is {held.describe()}; promote another "
                f"one, or release it with `signalbox release-hold PIPELINE {held.id}`"
            )


def _champion(row: Any) -> ChampionRecord:
    return ChampionRecord(
        row.pipeline,
        row.model,
        row.version,
        row.model_date,
        row.reason,
        row.decided_at,
        row.run_id,
    )


def _named(version: int | None) -> str:
    return f"champion {version}" if version is not None else "no champion"
