"""The last place before the wire: what is created in the cluster is admitted here, or not sent.

A run launcher and an executor make their Jobs of layers: the code location's image, config of
launcher and executor, tags of run and op, overrides by step. What counts is what comes out at the
end. So the client that they are given judges the body of every request that writes, of whatever
kind, as it would be sent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import kubernetes.client

from platform_assets.domain.admission import Layer, admit, images_of, witnessed
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.images import ImageLock
from platform_assets.domain.placing import Place, placed
from resources.environment import IMAGE

WRITES = ("POST", "PUT", "PATCH")
WORKLOADS = (
    *("Pod", "PodTemplate", "ReplicationController", "ReplicaSet", "Deployment", "StatefulSet"),
    *("DaemonSet", "Job", "CronJob"),
)
"""Kinds that have containers: one without is no good one."""

_BODY = 3
"""Place of the body among what `call_api` may be given without names after path and method."""


@dataclass(frozen=True)
class Making:
    """What is being made, and of what, for the words of a refusal; and where it belongs."""

    what: str
    layers: Sequence[Layer]
    place: Place | None = None


_making: ContextVar[Making | None] = ContextVar("signalbox_making", default=None)


@contextmanager
def making(what: str, layers: Sequence[Layer], place: Place | None = None) -> Iterator[None]:
    """Say what the requests of this block are for; Jobs of it are put in their place."""
    token = _making.set(Making(what, layers, place))
    try:
        yield
    finally:
        _making.reset(token)


class AdmittingApiClient(kubernetes.client.ApiClient):  # type: ignore[misc]
    """A client of the API server that sends no container that is not admitted."""

    def __init__(self, lock: Callable[[], ImageLock], **settings: Any) -> None:
        super().__init__(**settings)
        self._lock = lock

    def call_api(self, resource_path: str, method: str, *rest: Any, **named: Any) -> Any:
        """See the client.

        Raises:
            RefusedError: the body has a container whose image may not run; nothing was sent.
        """
        if method in WRITES:
            body = named.pop("body", None)
            if len(rest) > _BODY:
                body, rest = rest[_BODY], (*rest[:_BODY], None, *rest[_BODY + 1 :])
            document = self.sanitize_for_serialization(body)
            if document is not None and self.judge(document, f"{method} {resource_path}"):
                document = witnessed(document, IMAGE)
                now = _making.get()
                if now is not None and now.place is not None and document.get("kind") == "Job":
                    document = placed(document, now.place, now.what)
            if len(rest) > _BODY:
                rest = (*rest[:_BODY], document, *rest[_BODY + 1 :])
            else:
                named["body"] = document
        return super().call_api(resource_path, method, *rest, **named)

    def judge(self, document: Any, request: str) -> bool:
        """Raise unless everything that would start is admitted; whether anything would."""
        if not isinstance(document, Mapping):
            # A JSON patch names an image by a path and a value, at any depth.
            raise RefusedError(
                f"{request} is refused, nothing was sent: its body is {type(document).__name__}, "
                "whose images cannot be judged; send the whole object"
            )
        found = next(images_of(document), None)
        if document.get("kind") not in WORKLOADS and found is None:
            return False
        now = _making.get()
        named = str((document.get("metadata") or {}).get("name") or "")
        what = now.what if now else f"{document.get('kind') or request} {named}".strip()
        admit(document, self._lock(), now.layers if now else ()).require(what)
        return True
