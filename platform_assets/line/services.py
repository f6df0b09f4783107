"""What the stages of one pipeline work with, opened on first use."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any

from platform_assets.domain.attention import with_weekdays
from platform_assets.domain.clock import Clock, FixedClock, WallClock
from platform_assets.domain.completeness import Verdict
from platform_assets.domain.errors import HomeError
from platform_assets.domain.lease import Lease
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.stopwatch import Stopwatch
from resources import processes
from resources.giving_way import FREE, HOLDING, Way, gives_way
from resources.home import Home
from resources.lake import Dataset
from resources.landing import LandingZone
from resources.landing.setaside import SetAside
from resources.leasing import acquire, keeper
from resources.ledger import Ledger, open_ledger
from resources.ledger.alerts import Alerts
from resources.ledger.environments import Environments
from resources.ledger.failures import Failures
from resources.ledger.leases import Leases
from resources.ledger.quarantine import Quarantine
from resources.ledger.records import TransitionRecord, VerdictRecord, VersionRecord
from resources.ledger.restatements import Restatements, Watch
from resources.ledger.waivers import Waivers
from resources.serving import FolderSlot
from resources.tracking import Tracking
from resources.tracking.client import shown

CLAIM_SECONDS = 600.0
"""How long a run waits for a partition that another one is at work on, before it gives up."""

_log = logging.getLogger(__name__)

MOST_REASON = 1000
"""Characters of a reason in the history of a verdict."""


@dataclass(frozen=True)
class Outcome:
    """What a stage did for one partition.

    Attributes:
        asset: asset key, `flights/features`.
        partition: partition key; none for an asset without partitions.
        data_version: content digest, 64 hexadecimal digits.
        changed: whether anything was written.
        metadata: plain values for people.
        figures: PNG images by title.
        inputs: data version by upstream asset key, where there is one upstream partition.
    """

    asset: str
    partition: str | None
    data_version: str
    changed: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Services:
    """The adapters of one pipeline in one home.

    Attributes:
        fixed_clock: in place of the catalog's.
        restate: who asked that what is there be made again: a backfill or a run. Whatever carries
            this name already was made again, and is not a second time. Empty: nobody.
        tell: is told what a person at the log should know.
        ran: what the cluster says of the container that this process is in, as far as it is known
            by now: `image_id`, `pod`, `node`. Nothing outside of one.
        canceled: whether somebody has asked for the run to be ended.
        saved: called once a training of the run has saved something to go on from.
    """

    home: Home
    spec: PipelineSpec
    fixed_clock: Clock | None = None
    restate: str = ""
    tell: Callable[[str], None] = _log.info
    ran: Callable[[], Mapping[str, str]] = dict
    canceled: Callable[[], bool] = lambda: False
    saved: Callable[[], None] = lambda: None

    @classmethod
    def open(
        cls,
        spec: PipelineSpec,
        home: Home | None = None,
        *,
        restate: str = "",
        tell: Callable[[str], None] = _log.info,
        ran: Callable[[], Mapping[str, str]] = dict,
        canceled: Callable[[], bool] = lambda: False,
        saved: Callable[[], None] = lambda: None,
    ) -> "Services":
        """Open the services of a pipeline.

        Raises:
            HomeError: the home was not initialised, or by another version.
        """
        located = home or Home.locate()
        located.require()
        services = cls(
            located, spec, restate=restate, tell=tell, ran=ran, canceled=canceled, saved=saved
        )
        _ = services.stopwatch  # it starts with its first use
        return services

    @cached_property
    def stopwatch(self) -> Stopwatch:
        return Stopwatch.of_process()

    @cached_property
    def ledger(self) -> Ledger:
        return open_ledger(self.home.ledger_url)

    @cached_property
    def waivers(self) -> Waivers:
        return Waivers(self.home.ledger_url)

    @cached_property
    def environments(self) -> Environments:
        return Environments(self.home.ledger_url)

    @cached_property
    def quarantine(self) -> Quarantine:
        return Quarantine(self.home.ledger_url)

    @cached_property
    def restatements(self) -> Restatements:
        return Restatements(self.home.ledger_url)

    @cached_property
    def watch(self) -> Watch:
        return Watch(self.home.ledger_url)

    @cached_property
    def leases(self) -> Leases:
        return Leases(self.home.ledger_url)

    @cached_property
    def alerts(self) -> Alerts:
        return Alerts(self.home.ledger_url)

    @cached_property
    def failures(self) -> Failures:
        return Failures(self.home.ledger_url)

    @cached_property
    def zone(self) -> LandingZone:
        set_aside = SetAside(self.home.root, self.quarantine)
        return LandingZone(self.home.landing, self.spec, self.ledger, set_aside)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.home.dataset_path(self.spec.pipeline), self.spec.partitions.key)

    @cached_property
    def tracking(self) -> Tracking:
        return Tracking(
            self.home.mlflow_uri,
            None if self.home.mlflow_uri.startswith("http") else self.home.mlflow_artifacts,
            spool=self.home.root / "tracking",
            owner=owner_of(self.home.ledger_url),
        )

    @cached_property
    def slot(self) -> FolderSlot:
        root = self.home.root / "serving" / self.spec.model.name
        return FolderSlot(root, self.spec.serving.keep)

    @property
    def clock(self) -> Clock:
        """The clock that the catalog asks for: the wall's, or how far the replay has landed."""
        if self.fixed_clock is not None:
            return self.fixed_clock
        if self.spec.schedule.clock == "wall":
            return WallClock()
        reached = self.ledger.clock(self.spec.pipeline)
        first = local_hours(self.spec.partitions.start, self.spec.partitions.timezone)[0]
        return FixedClock(reached or first)

    @contextmanager
    def claim(
        self, asset: str, partition: str | None, run_id: str, *, wait: float | None = None
    ) -> Iterator[Lease]:
        """Be the only one at work on a partition, until the block is left.

        What a partition is made of is to be read within the block: before, another run may still
        be about to change what is there.

        Args:
            asset: asset key, `flights/features`.
            partition: partition key; none for an asset without partitions.
            run_id: who works.
            wait: for how many seconds another run is waited for; None: CLAIM_SECONDS.

        In the pod of a step nothing is claimed before the executor has said what the pod runs: what
        runs in another image is ended then, and has written nothing.

        Raises:
            LeaseTakenError: another run was at work on it for all of that time.
        """
        self.ran()
        self.step_aside()
        lease = acquire(
            self.leases,
            f"{asset} {partition}" if partition else asset,
            processes.holder(run_id),
            limit=CLAIM_SECONDS if wait is None else wait,
            tell=self.tell,
        )
        with keeper(self.home.ledger_url).keep(lease, fences=True):
            yield lease
        self.step_aside()

    def step_aside(self, ended: Callable[[], bool] = lambda: False) -> None:
        """If this is a run that stands back: do nothing while one in a hurry needs the machine.

        Args:
            ended: whether somebody has asked for an end meanwhile.
        """
        if gives_way():
            patience = HOLDING if keeper(self.home.ledger_url).holds_work else FREE
            aside = Way(self.home.root).step_aside(patience, self.tell, ended)
            self.stopwatch.leave_out(aside)

    def record(
        self,
        *,
        lease: Lease,
        asset: str,
        partition: str,
        data_version: str,
        rows: int,
        run_id: str,
        table_version: int | None = None,
        detail: Mapping[str, Any] | None = None,
        always: bool = False,
    ) -> bool:
        """Append a partition's version unless it is the current one; tells whether it did.

        `always` appends even then: a retrained model has a registered version of its own, rows
        that were committed again lie at another table version.

        Raises:
            LeaseLostError: somebody else has taken the lease over; nothing was recorded.
        """
        current = self.ledger.current_version(asset, partition)
        if current is not None and current.data_version == data_version and not always:
            return False
        self.ledger.record_version(
            VersionRecord(
                asset=asset,
                partition=partition,
                data_version=data_version,
                table_version=table_version,
                rows=rows,
                detail={**self.whereabouts(), **(detail or {}), "cost": self.stopwatch.lap()},
                run_id=run_id,
                committed_at=datetime.now(UTC),
            ),
            lease,
        )
        return True

    def whereabouts(self) -> dict[str, Any]:
        """Where a version is made, for its detail: the value of the environment, and the container.

        Nothing where SIGNALBOX_IMAGE names no digest: a training refuses that before it begins,
        and here the work is done already.
        """
        from resources.surroundings import environment_fingerprint

        try:
            here = environment_fingerprint()
        except HomeError:
            return {}
        self.environments.note(here.value, here.document)
        ran = dict(self.ran())
        return {
            "environment_fingerprint": here.value,
            **({"image": here.image} if here.image else {}),
            **({"ran": ran} if ran else {}),
        }

    def record_verdict(
        self, asset: str, partition: str, verdict: str, report: Mapping[str, Any], as_of: datetime
    ) -> bool:
        """Write a verdict down; tells whether it differs from the one before."""
        return bool(self.record_verdicts(asset, {partition: (verdict, report)}, as_of))

    def record_verdicts(
        self,
        asset: str,
        verdicts: Mapping[str, tuple[str, Mapping[str, Any]]],
        as_of: datetime,
        reasons: Mapping[str, str] | None = None,
        *,
        trailing: bool = False,
    ) -> list[str]:
        """Write down the verdict and report of partitions; returns those that have a new one.

        Args:
            asset: asset key, `flights/features`.
            verdicts: verdict and report by partition.
            as_of: on the pipeline's clock.
            reasons: kept with the verdicts' history; without, the history is not.
            trailing: later days are measured by these. Where one is no measure any more because
                it is suspicious, or has become one, the same weekdays that follow are attended.
        """
        before = self.ledger.verdicts(self.spec.pipeline, asset, verdicts)
        changed, now = [], datetime.now(UTC)
        measures: dict[date, str] = {}
        transitions: list[TransitionRecord] = []
        for partition, (verdict, report) in verdicts.items():
            known = before.get(partition)
            if known is None or known.verdict != verdict or known.report != dict(report):
                changed.append(
                    VerdictRecord(
                        pipeline=self.spec.pipeline,
                        asset=asset,
                        partition=partition,
                        verdict=verdict,
                        report=dict(report),
                        as_of=as_of,
                        recorded_at=now,
                    )
                )
                if (known is not None and known.verdict == Verdict.SUSPICIOUS) != (
                    verdict == Verdict.SUSPICIOUS
                ):
                    why = f"{partition} is {verdict}, it was {known.verdict if known else 'new'}"
                    measures[PartitionKey.parse(partition).date] = why
                said = known and (known.verdict, _counts(known.report))
                if reasons is not None and said != (verdict, _counts(report)):
                    transitions.append(
                        self.transition(asset, partition, verdict, reasons[partition], as_of, now)
                    )
        attend = self.live(with_weekdays(self.spec, measures)) if trailing else {}
        self.ledger.record_verdicts(changed, transitions, {self.spec.pipeline: attend})
        return [record.partition for record in changed]

    def transition(
        self,
        asset: str,
        partition: str,
        verdict: str,
        reason: str,
        as_of: datetime,
        now: datetime,
        run_id: str | None = None,
    ) -> TransitionRecord:
        """A line of a partition's history, `now` on the machine's clock."""
        return TransitionRecord(
            pipeline=self.spec.pipeline,
            asset=asset,
            partition=partition,
            verdict=verdict,
            reason=reason[:MOST_REASON],
            as_of=as_of,
            recorded_at=now,
            run_id=run_id,
        )

    def note_outcome(
        self, asset: str, partition: str, verdict: str, reason: str, run_id: str
    ) -> None:
        """Add to a partition's history how a run on it ended; its verdict stays what it is."""
        now, as_of = datetime.now(UTC), self.clock.as_of()
        said = self.transition(asset, partition, verdict, reason, as_of, now, run_id)
        self.ledger.record_verdicts([], [said])

    def attend(self, dates: Iterable[date], why: str) -> None:
        """Have the sensor look at live dates again; those of backfills are left out."""
        self.watch.attend(self.spec.pipeline, self.live(dict.fromkeys(dates, why)))

    def live(self, dates: Mapping[date, str]) -> dict[date, str]:
        """Of some dates the live ones."""
        first = max(self.spec.schedule.live_from, self.spec.partitions.start)
        return {day: why for day, why in dates.items() if first <= day <= self.spec.partitions.end}

    def partition(self, text: str, *, keyed: bool) -> PartitionKey:
        return self.spec.require_partition(PartitionKey.parse(text), keyed=keyed)


def owner_of(ledger_url: str) -> str:
    """The name of a ledger, on the MLflow runs that it decides about."""
    return hashlib.sha256(shown(ledger_url).encode()).hexdigest()[:16]


def _counts(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What of a report is worth a line of history: not that another hour came to be due."""
    return [(s["verdict"], s["observed"], len(s["rejected"])) for s in report.get("sources", ())]
