"""The execution of a run claims a slot of its lane itself, wherever the run came from.

The queue keeps to the lanes for what is submitted. `dg launch`, a script, a notebook execute past
it; they meet here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dagster as dg

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.image_spec import deployment
from platform_assets.domain.lanes import Lane, lane_of
from platform_assets.instance.coordinator import parent_of, wanted_tags
from platform_assets.instance.whereabouts import own_tag
from resources.home import Home
from resources.lanes import load_lanes
from resources.slots import slot

RETRIES, RETRY_SECONDS = 2, 5.0
"""How often a step is tried again after transient errors alone, and how long it waits."""


def lane_of_run(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> Lane:
    """The lane of the run that is executing."""
    return lane_of(context.run.tags, parent_of(context.instance, context.run))


@contextmanager
def in_lane(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    tell: Callable[[str], Any] | None = None,
) -> Iterator[Lane]:
    """Hold a slot of the run's lane while the block works; waits for one.

    A run that the queue has not seen gets the tags of its lane here, and one that nobody launched
    that of its process, so that it is watched and can be terminated.

    Raises:
        dagster.RetryRequested: no slot came free in time, or the ledger did not answer; nothing
            was done, and the step is tried again.
        dagster.Failure: the lanes cannot be read; nothing was done.
    """
    run, lane = context.run, lane_of_run(context)
    with ExitStack() as held:
        try:
            lanes = load_lanes()
            missing = wanted_tags(context.instance, lanes, run)
            if deployment(os.environ) == "local":
                missing |= own_tag(run)
            if missing:
                context.instance.add_run_tags(run.run_id, missing)
            url = Home.locate().ledger_url
            held.enter_context(slot(url, lanes, lane, run.run_id, tell=tell or context.log.info))
        except SignalboxError as error:
            failure = dg.Failure(description=str(error), allow_retries=error.retryable)
            if not error.retryable:
                raise failure from error
            failure.__cause__ = error
            raise dg.RetryRequested(RETRIES, RETRY_SECONDS) from failure
        yield lane
