"""The last word on runs whose own process cannot say it any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.training_end import end_of
from resources.tracking.client import AwayError, attempt, shown
from resources.tracking.messages import Begun
from resources.tracking.run import REFUSALS, TrackedRun
from resources.tracking.spool import Entry
from resources.tracking.store import DAGSTER_RUN_TAG, OWNER_TAG, Tracking

logger = logging.getLogger(__name__)

StateOf = Callable[[str], str | None]
"""The state of a Dagster run by its id ("FAILURE", "CANCELED", "SUCCESS", any other while it goes
on), None for a run that Dagster does not know."""

Recorded = Callable[[Mapping[str, str], str], bool]
"""Whether the ledger has a model of an MLflow run, by the run's tags and its id."""


def sweep(tracking: Tracking, state_of: StateOf, recorded: Recorded) -> list[tuple[str, str]]:
    """Tell MLflow what processes that are gone could not tell it.

    Of those that were killed in the middle the state follows from Dagster and the ledger, as soon
    as Dagster knows that its run is over.

    Returns:
        (MLflow run id, its state) of each run that has ended by this.

    What MLflow refuses for good (somebody deleted the run) is set aside with its reason, and
    hinders nothing behind it.

    Raises:
        AwayError: the server is away still; what is to be told is kept.
        Exception: the first that was met and may pass, after all others were looked at.
    """
    if tracking.spool is None or not tracking.spool.pending():  # costs no import of MLflow
        return []
    ended: list[tuple[str, str]] = []
    failed: Exception | None = None
    for entry in tracking.spool.abandoned():
        try:
            found = _settled(tracking, entry, state_of, recorded)
        except AwayError:
            raise  # as it would be for all that follow
        except REFUSALS as error:
            entry.set_aside(str(error))
            logger.warning("%s was set aside in %s: %s", entry.key, tracking.spool.folder, error)
        except Exception as error:  # noqa: BLE001 - it is kept, and those behind it go on
            failed = failed or error
        else:
            ended += [found] if found else []
    if failed is not None:
        raise failed
    return ended


def _settled(
    tracking: Tracking, entry: Entry, state_of: StateOf, recorded: Recorded
) -> tuple[str, str] | None:
    """Tell MLflow all of one entry; None where it is not known yet how it ended.

    Raises:
        RefusedError: MLflow took what it could, and refused the rest for good.
    """
    begun, messages = _read(entry)
    run = TrackedRun(tracking.link(), begun, entry)
    last = run.restore(messages)
    done, refused = run.tell()
    if done and last is None:
        known = recorded(begun.tags, run.run_id)
        last = end_of(state_of(begun.tags.get(DAGSTER_RUN_TAG, "")), recorded=known)
        if last is None:
            return None
        done, more = run.tell(last)
        refused += more
    if not done:
        if refused:
            entry.keep(asdict(begun), messages)  # else what was refused would be gone
        raise AwayError(
            f"the tracking server {shown(tracking.uri)} does not answer, what it has yet to "
            "be told is kept: start it"
        )
    if refused:
        raise RefusedError("; ".join(dict.fromkeys(refused)))
    entry.discard()
    return run.run_id, str(last)


def _read(entry: Entry) -> tuple[Begun, list[Any]]:
    """An entry's run and messages.

    Raises:
        RefusedError: it cannot be read.
    """
    try:
        header, messages = entry.read()
        return Begun(**header), messages
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"the entry {entry.key} cannot be read ({error}), nothing of it was told to MLflow: "
            "look into the file"
        ) from error


def reconcile(tracking: Tracking, state_of: StateOf, recorded: Recorded) -> list[tuple[str, str]]:
    """End the RUNNING runs whose Dagster run is over: their process was killed.

    Returns:
        (MLflow run id, its new state) of each run that was changed.
    """
    link = tracking.link()
    changed: list[tuple[str, str]] = []
    for run_id, tags in _running(tracking):
        known = recorded(tags, run_id)
        new = end_of(state_of(tags[DAGSTER_RUN_TAG]), recorded=known)
        if new is None:
            continue
        # It may have ended by itself since it was listed.
        current = attempt(link.uri, partial(link.client.get_run, run_id))
        if current.info.status == "RUNNING":
            attempt(link.uri, partial(link.client.set_terminated, run_id, status=new))
            changed.append((run_id, new))
    return changed


def _running(tracking: Tracking) -> list[tuple[str, dict[str, str]]]:
    """Id and tags of the RUNNING runs of our Dagster; a server may have those of others."""
    client = tracking.link().client
    condition = f"attributes.status = 'RUNNING' AND tags.`{DAGSTER_RUN_TAG}` != ''"

    def experiments(token: str | None) -> Any:
        return client.search_experiments(page_token=token)

    def runs(token: str | None) -> Any:
        return client.search_runs(known, condition, page_token=token)

    known = [found.experiment_id for found in _pages(tracking, experiments)]
    return [
        (run.info.run_id, run.data.tags)
        for run in _pages(tracking, runs)
        if run.data.tags.get(OWNER_TAG, tracking.owner) == tracking.owner
    ]


def _pages(tracking: Tracking, search: Callable[[str | None], Any]) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = attempt(tracking.uri, partial(search, token))
        found += page
        token = page.token
        if not token:
            return found
