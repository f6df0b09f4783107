"""What was found in the rows of whole days when they were read to build from them.

Hours are judged when they arrive; of a day's rows only who reads them all can tell. What is found
is kept with the digests of the very files, so that every later look finds the day suspicious
without reading it again, and other files in their place are judged anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from platform_assets.domain.completeness import Verdict
from platform_assets.domain.partition import PartitionKey
from resources.ledger.records import VerdictRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from platform_assets.domain.completeness import SourceReport
    from platform_assets.domain.spec import PipelineSpec
    from resources.ledger import Ledger


@dataclass(frozen=True)
class Finding:
    """Why the rows of a partition are suspicious.

    Attributes:
        contents: digest of the files that it was found in, by source.
        why: by source.
    """

    contents: Mapping[str, str]
    why: Mapping[str, str]

    def of(self, sources: Iterable[SourceReport]) -> Mapping[str, str]:
        """What holds of the sources as they are now: nothing if a file is another one."""
        now = {s.source: s.content for s in sources}
        same = all(now.get(name) == content for name, content in self.contents.items())
        return self.why if same else {}


class Findings:
    """The findings of one pipeline, kept as verdicts on the rows."""

    def __init__(self, spec: PipelineSpec, ledger: Ledger) -> None:
        self._pipeline, self._ledger = spec.pipeline, ledger
        self._asset = f"{spec.asset('features')}/rows"
        self._rules = spec.row_rules
        self._sources = spec.judged_sources

    def read(self, partitions: Iterable[PartitionKey]) -> dict[PartitionKey, Finding]:
        """What was found by the rules that are in force, of some partitions."""
        if not self._rules:
            return {}
        names = [str(partition) for partition in partitions]
        return {
            PartitionKey.parse(name): Finding(record.report["contents"], record.report["why"])
            for name, record in self._ledger.verdicts(self._pipeline, self._asset, names).items()
            if record.report["rules"] == self._rules
        }

    def record(
        self,
        partition: PartitionKey,
        sources: Iterable[SourceReport],
        why: Mapping[str, str],
        as_of: datetime,
    ) -> None:
        """Write down why the rows of a partition are suspicious, in place of what was before.

        Args:
            partition: whose rows were read.
            sources: what they were read from.
            why: by source.
            as_of: on the pipeline's clock.
        """
        contents = {s.source: s.content for s in sources if s.source in self._sources}
        report = {"contents": contents, "why": dict(why), "rules": self._rules}
        self._ledger.record_verdict(
            VerdictRecord(
                pipeline=self._pipeline,
                asset=self._asset,
                partition=str(partition),
                verdict=Verdict.SUSPICIOUS,
                report=report,
                as_of=as_of,
                recorded_at=datetime.now(UTC),
            )
        )
