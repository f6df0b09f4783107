"""Requested runs that failed and were not made up for: one row a job and partition."""

from collections.abc import Sequence

from resources.ledger.base import Store, fields_of, upsert_statement
from resources.ledger.engine import writing
from resources.ledger.records import FailureRecord
from resources.ledger.tables import tables


class Failures(Store):
    """What the daily lane cannot get done, of all pipelines."""

    def all(self, pipeline: str) -> list[FailureRecord]:
        """Those of a pipeline, by job and partition."""
        t = tables().failures
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.job, t.c.partition)
        return [FailureRecord(*row) for row in self._rows(query)]

    def note(self, failing: Sequence[FailureRecord], over: Sequence[FailureRecord]) -> None:
        """Keep those that fail in place of the ones before, and forget those that are over."""
        if not failing and not over:
            return
        t = tables().failures
        with writing(self.url) as connection:
            for record in over:
                connection.execute(
                    t.delete().where(
                        t.c.pipeline == record.pipeline,
                        t.c.job == record.job,
                        t.c.partition == record.partition,
                        t.c.run_key == record.run_key,
                    )
                )
            if failing:
                statement = upsert_statement(t, connection.dialect.name)
                connection.execute(statement, [fields_of(record) for record in failing])
