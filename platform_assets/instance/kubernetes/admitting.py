"""The last place before the wire: what is created in the cluster is admitted here, or not sent.

A run launcher and an executor make their Jobs of layers: the code location's image, config of
launcher and executor, tags of run and op, overrides by step. What counts is what comes out at the
end. So the client that they are given judges the body of every request that writes, of whatever
kind, as it would be sent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import kubernetes.client
import kubernetes.config

from platform_assets.domain.admission import WORKLOADS, Layer, admit, images_of, witnessed
from platform_assets.domain.cluster_budgets import restarting
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.gang import gang
from platform_assets.domain.images import ImageLock
from platform_assets.domain.placing import Place, placed
from platform_assets.instance.kubernetes.calling import TIMEOUT, Patience, persist, same
from resources.environment import IMAGE

WRITES = ("POST", "PUT", "PATCH")
_BODY = 3
"""Place of the body among what `call_api` may be given without names after path and method."""


@dataclass(frozen=True)
class Making:
    """What is being made, and of what, for the words of a refusal; and where it belongs.

    Attributes:
        came: the Jobs of it, as they came to be placed.
    """

    what: str
    layers: Sequence[Layer]
    place: Place | None = None
    came: list[dict[str, Any]] = field(default_factory=list)


_making: ContextVar[Making | None] = ContextVar("signalbox_making", default=None)


@contextmanager
def making(what: str, layers: Sequence[Layer], place: Place | None = None) -> Iterator[Making]:
    """Say what the requests of this block are for; Jobs of it are put in their place."""
    made = Making(what, layers, place)
    token = _making.set(made)
    try:
        yield made
    finally:
        _making.reset(token)


class AdmittingApiClient(kubernetes.client.ApiClient):  # type: ignore[misc]
    """A client of the API server that sends no container that is not admitted.

    What the server refuses for a while is sent again, within the patience; see `calling`.
    """

    def __init__(
        self,
        lock: Callable[[], ImageLock],
        credentials: Callable[[kubernetes.client.Configuration], None] | None = None,
        patience: Patience | None = None,
        **settings: Any,
    ) -> None:
        own = _own_retries(settings.pop("configuration", None))
        super().__init__(configuration=own, **settings)
        self._lock, self._credentials = lock, credentials
        self._patience = patience or Patience()

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
                    now.came.append(document)
                    document = _placed(document, now.place, now.what)
            if len(rest) > _BODY:
                rest = (*rest[:_BODY], document, *rest[_BODY + 1 :])
            else:
                named["body"] = document
        if not named.get("_request_timeout"):
            named["_request_timeout"] = TIMEOUT
        if named.get("async_req"):
            return super().call_api(resource_path, method, *rest, **named)
        return self._persist(resource_path, method, rest, named)

    def _persist(
        self, resource_path: str, method: str, rest: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        send = super().call_api
        parameters = rest[0] if rest else named.get("path_params")
        wanted = rest[_BODY] if len(rest) > _BODY else named.get("body")
        name = (wanted.get("metadata") or {}).get("name") if isinstance(wanted, Mapping) else None

        def mine() -> Any | None:
            """What is there by the name; None where it is not what was to be created."""
            types = {key: named.get(key) for key in ("response_types_map", "auth_settings")}
            found = send(
                f"{resource_path}/{{name}}",
                "GET",
                {**(parameters or {}), "name": name},
                header_params={"Accept": "application/json"},
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
                **types,
            )
            if not same(self.sanitize_for_serialization(found), wanted or {}):
                return None
            return found if named.get("_return_http_data_only") else (found, 200, {})

        return persist(
            lambda: send(resource_path, method, *rest, **named),
            f"{method} {resource_path.format_map(_Shown(parameters or {}))}",
            self._patience,
            writes=method in (*WRITES, "DELETE"),
            # Without a name of its own each one sent would be another.
            repeatable=method != "POST" or name is not None,
            renew=self._renew if self._credentials is not None else None,
            mine=mine,
        )

    def _renew(self) -> None:
        assert self._credentials is not None
        self._credentials(self.configuration)

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
        again = restarting(document)
        if again:
            raise RefusedError(
                f"{what} is refused, nothing was created: {again}, for Dagster has recorded the "
                "failure by the time that Kubernetes starts another pod; retries are declared in "
                "failures.yaml, and by the op's RetryPolicy"
            )
        admit(document, self._lock(), now.layers if now else ()).require(what)
        return True


def _placed(job: dict[str, Any], place: Place, what: str) -> dict[str, Any]:
    if place.ranks is not None:
        # What its ranks may not be is found before there is anything of the step.
        gang(job, "", place.ranks, place)
    return placed(job, place, what)


class _Shown(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


def _own_retries(
    configuration: kubernetes.client.Configuration | None,
) -> kubernetes.client.Configuration:
    """A configuration without urllib3's retries, which follow any `Retry-After`, however long."""
    own = configuration or kubernetes.client.Configuration.get_default_copy()
    own.retries = False
    return own


def credentials(
    inside: bool, file: str | None
) -> Callable[[kubernetes.client.Configuration], None]:
    """What reads a token again into a configuration: a service account's changes every hour."""

    def renew(configuration: kubernetes.client.Configuration) -> None:
        if inside:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
        else:
            kubernetes.config.load_kube_config(file, client_configuration=configuration)

    return renew
