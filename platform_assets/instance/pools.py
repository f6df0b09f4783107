"""Dagster's pools: Signalbox has none, and says so where somebody else's definitions do.

A run that a pool blocks counts against the limits of its tags although it does not run
(dagster-io/dagster#25743): two of them keep a whole lane waiting.
"""

import dagster as dg


def pools_of(defs: dg.Definitions) -> dict[str, list[str]]:
    """The assets and ops in each pool that definitions name, by pool."""
    found: dict[str, set[str]] = {}
    for job in defs.get_repository_def().get_all_jobs():
        for node in job.all_node_defs:
            for pool in node.pools:
                found.setdefault(pool, set()).add(node.name)
    return {pool: sorted(names) for pool, names in sorted(found.items())}
