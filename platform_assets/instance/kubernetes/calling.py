"""How the API server is spoken to where it refuses for a while: bounded, and never twice.

dagster-k8s tries four times at a distance of 10 s after some answers (401, 500, 503, 504), gives up
at once on others that pass (409, 429), and waits for ever for an answer that does not come. Here
each request has a time-out, each wait is spread, `Retry-After` is followed up to a limit, and a Job
that an earlier try has created is taken for the one that was asked for.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3.exceptions
from kubernetes.client.exceptions import ApiException

from platform_assets.domain.admission import images_of
from platform_assets.domain.cluster_budgets import ClusterError
from platform_assets.domain.cluster_causes import Cause, refusal

_log = logging.getLogger(__name__)

TIMEOUT = (5.0, 20.0)
"""Seconds to connect, and to wait for an answer, where the caller has none of its own."""

PASSING = (408, 409, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed. 409 is one of them for a quota's counter that
was changed by somebody else; a name that is taken is told apart."""

UNKNOWN = (408, 500, 502, 503, 504)
"""Answers after which the request may have been done: by a proxy, or by a server on its way out."""

OWN_LABELS = ("dagster/run-id", "dagster/op", "dagster/job")


@dataclass(frozen=True)
class Patience:
    """How long one request is tried.

    Attributes:
        reads, writes: tries of a request, the first one among them.
        first, longest: seconds of the first wait and of any; each is twice the one before.
        whole: seconds of all waits of a request together.
    """

    reads: int = 3
    writes: int = 6
    first: float = 0.5
    longest: float = 30.0
    whole: float = 60.0
    pause: Callable[[float], None] = field(default=time.sleep)
    chance: Callable[[], float] = field(default=random.random)

    def seconds(self, tried: int, asked: float | None) -> float:
        """Wait before the next try, given what the server asked for."""
        own = min(self.first * 2.0**tried, self.longest) * (0.5 + self.chance() / 2)
        return min(max(own, asked or 0.0), self.longest)


def persist(
    send: Callable[[], Any],
    what: str,
    patience: Patience,
    *,
    writes: bool,
    repeatable: bool,
    renew: Callable[[], None] | None,
    mine: Callable[[], Any | None],
) -> Any:
    """Send a request until it is answered, within its patience.

    Args:
        what: the request, for a person, as in `POST /apis/batch/v1/…/jobs`.
        repeatable: whether sending it twice is the same as once.
        renew: reads the credentials again.
        mine: what is there by the name that is to be created, if it is what was to be created.

    A creation that is given up after an answer that was late or none is looked for once more, by
    its name: what is there is what was asked for.

    Raises:
        ClusterError: what was tried, and the last answer in the server's words; `perhaps` where it
            may have been created and it could not be asked whether it was.
        ApiException: 404, or a conflict that the caller must resolve.
    """
    most = patience.writes if writes else patience.reads
    tried, spent, renewed, unsure = 0, 0.0, False, False
    creates = what.startswith("POST") and repeatable

    def given_up(error: ClusterError, cause: Exception) -> Any:
        """What is there after all; else the error, with whether it is known that nothing is."""
        error.__cause__ = cause
        if not (creates and unsure):
            raise error
        try:
            found = mine()
        except ApiException as asked:
            error.perhaps = asked.status != 404
        except urllib3.exceptions.HTTPError:
            error.perhaps = True
        else:
            if found is not None:
                return found
        raise error

    while True:
        try:
            return send()
        except ApiException as error:
            status, words, asked = answer(error)
            if status == 401 and renew is not None and not renewed:
                renewed = True
                renew()
                continue
            if status == 409 and _taken(error):
                try:
                    found = mine()
                except (ApiException, urllib3.exceptions.HTTPError):
                    unsure = True  # asked again: it is there, or gone meanwhile
                else:
                    if found is not None:
                        return found
                    raise ClusterError(
                        Cause.FORBIDDEN, f"{what}: {words}; it is not what was to be created"
                    ) from error
            if status in (404, 410) or (status == 409 and not what.startswith("POST")):
                raise
            if status not in PASSING:
                return given_up(ClusterError(_cause(status, words), f"{what}: {words}"), error)
            unsure = unsure or status in UNKNOWN
            cause: Exception = error
        except urllib3.exceptions.HTTPError as error:
            words, asked, cause = f"{type(error).__name__}: {error}", None, error
            unsure = True
        tried += 1
        pause = patience.seconds(tried - 1, asked)
        if not repeatable or tried >= most or spent + pause > patience.whole:
            return given_up(
                ClusterError(Cause.API, f"{what}: {words} ({tried} times in {spent:.0f} s)"), cause
            )
        _log.warning("%s: %s; tried again in %.1f s", what, words, pause)
        patience.pause(pause)
        spent += pause


def answer(error: ApiException) -> tuple[int, str, float | None]:
    """Status, words and `Retry-After` in seconds of an answer that is none."""
    status = int(error.status or 0)
    try:
        message = json.loads(error.body or "").get("message")
    except (ValueError, AttributeError, TypeError):
        message = None
    words = f"{status} {error.reason}" + (f": {message}" if message else "")
    asked = (error.headers or {}).get("Retry-After")
    try:
        seconds = float(asked) if asked is not None else None
    except ValueError:
        seconds = None  # a date, which the API server does not send
    return status, words, seconds


def same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether what is there is what was to be created: of the same run and step, and not leaving.

    Names of Jobs hold run, step and attempt; the labels tell those of another deployment apart, and
    the images those that somebody else, or a run worker with another lock, has made.
    """
    metadata, labels = found.get("metadata") or {}, (wanted.get("metadata") or {}).get("labels")
    there = metadata.get("labels") or {}
    own = {name: (labels or {}).get(name) for name in OWN_LABELS}
    return (
        metadata.get("deletionTimestamp") is None
        and own[OWN_LABELS[0]] is not None
        and {name: there.get(name) for name in OWN_LABELS} == own
        and list(images_of(found.get("spec"))) == list(images_of(wanted.get("spec")))
    )


def _taken(error: ApiException) -> bool:
    try:
        return bool(json.loads(error.body or "").get("reason") == "AlreadyExists")
    except (ValueError, AttributeError, TypeError):
        return False


def _cause(status: int, words: str) -> Cause:
    if status == 401:
        return Cause.CREDENTIALS
    return refusal(words) if status == 403 else Cause.FORBIDDEN
