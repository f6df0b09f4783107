"""JobSets in the cluster: created through the client that admits, looked at, deleted."""

from collections.abc import Mapping
from typing import Any

import kubernetes.client
from kubernetes.client.exceptions import ApiException

from platform_assets.domain.gang import GROUP, PLURAL, VERSION
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making


class Gangs:
    """The JobSets of a namespace.

    Args:
        client: judges what is created; every image of every part is admitted, or nothing is sent.
        namespace: of the steps.
    """

    def __init__(self, client: AdmittingApiClient, namespace: str) -> None:
        self._api = kubernetes.client.CustomObjectsApi(client)
        self._where = {
            "group": GROUP,
            "version": VERSION,
            "namespace": namespace,
            "plural": PLURAL,
        }

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Create it.

        Raises:
            RefusedError: an image in it may not run; nothing was sent.
            ClusterError: the server refuses it.
        """
        with making(f"JobSet {manifest['metadata']['name']}", ()):
            self._api.create_namespaced_custom_object(**self._where, body=dict(manifest))

    def ended(self, name: str) -> tuple[bool, str] | None:
        """Whether it ended well, and in the controller's words why; None as long as it runs.

        One that is not there any more has not ended well.
        """
        try:
            found = self._api.get_namespaced_custom_object(**self._where, name=name)
        except ApiException as error:
            if error.status != 404:
                raise
            return False, f"JobSet {name} is not there any more"
        for condition in (found.get("status") or {}).get("conditions") or ():
            if condition.get("status") == "True" and condition["type"] in ("Completed", "Failed"):
                return condition["type"] == "Completed", str(condition.get("message", ""))
        return None

    def delete(self, name: str) -> None:
        """Delete it, and with it its pods; one that is not there is no error."""
        try:
            self._api.delete_namespaced_custom_object(
                **self._where, name=name, propagation_policy="Background"
            )
        except ApiException as error:
            if error.status != 404:
                raise
