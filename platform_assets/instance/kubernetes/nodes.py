"""The GPUs of the cluster that the API server speaks for."""

import json
import os
from collections.abc import Callable
from typing import Any

import kubernetes.client
import kubernetes.config
import urllib3.exceptions
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from yaml import YAMLError

from platform_assets.domain.cluster_budgets import ClusterError
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.gpu_inventory import Inventory, of_cluster
from platform_assets.instance.kubernetes.calling import TIMEOUT, answer

PAGE = 500
"""Objects that are asked for at once."""


def cluster_inventory(core: kubernetes.client.CoreV1Api) -> Inventory:
    """Nodes and the pods of all namespaces, as they are now.

    Raises:
        RefusedError: the API server does not answer, or does not let us list them.
        UsageError: what it says of GPUs is no quantity.
    """
    try:
        nodes = _all(core.list_node)
        pods = _all(core.list_pod_for_all_namespaces)
    except ApiException as error:
        _, words, _ = answer(error)
        raise RefusedError(
            f"the cluster's nodes and pods cannot be listed ({words}); "
            "the account needs list on nodes and on pods of all namespaces (gpu_inventory: true "
            "in cluster.yaml), or name a file in SIGNALBOX_GPUS"
        ) from error
    except (ClusterError, urllib3.exceptions.HTTPError) as error:
        raise RefusedError(
            f"the cluster's nodes and pods cannot be listed ({error}); try again when the API "
            "server answers and lets nodes and pods of all namespaces be listed, or name a file "
            "in SIGNALBOX_GPUS"
        ) from error
    return of_cluster(nodes, pods, "the cluster's nodes")


def _all(listing: Callable[..., Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    more: str | None = None
    while True:
        page = {"_continue": more} if more else {}
        response = listing(limit=PAGE, _preload_content=False, _request_timeout=TIMEOUT, **page)
        document = json.loads(response.data)
        found += document.get("items") or ()
        more = (document.get("metadata") or {}).get("continue")
        if not more:
            return found


def own_client() -> kubernetes.client.CoreV1Api:
    """A client by the pod's own account, else by the kubeconfig of who calls.

    Raises:
        UsageError: there is neither.
    """
    own = kubernetes.client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            kubernetes.config.load_incluster_config(client_configuration=own)
        else:
            kubernetes.config.load_kube_config(
                os.environ.get("KUBECONFIG"), client_configuration=own
            )
    except (ConfigException, OSError, ValueError, YAMLError) as error:
        told = " ".join(str(error).split())
        raise UsageError(
            f"there is no cluster to ask ({told}); set KUBECONFIG, or name a file with "
            "--inventory FILE"
        ) from error
    own.retries = False
    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(own))
