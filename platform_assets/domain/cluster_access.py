"""Who may do what in the namespace, and who may speak to whom."""

from typing import Any

from platform_assets.domain.cluster_settings import ClusterSettings, Door
from platform_assets.domain.gang import GROUP, JOBSET_LABEL, PLURAL
from platform_assets.domain.placing import RUN_ACCOUNT, STEP_ACCOUNT

Manifest = dict[str, Any]

COMPONENT = "app.kubernetes.io/component"
CODE_PORT, UI_PORT = 4000, 3000
LAUNCHERS = ("webserver", "daemon", "run_worker")
"""What speaks to the API server: it launches, looks after, or ends Jobs. Steps do not."""

RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("batch", ("jobs",), ("create", "get", "list", "watch", "delete")),
    ("batch", ("jobs/status",), ("get",)),
    ("", ("pods",), ("get", "list", "watch", "delete")),
    ("", ("pods/log",), ("get",)),
    ("", ("events",), ("get", "list")),
)
"""API group, resources and verbs of the one Role: what dagster-k8s asks of the API server."""

RANKS_RULE = (GROUP, (PLURAL,), ("create", "get", "list", "delete"))
"""What trainings on several nodes need besides."""


def namespace(settings: ClusterSettings) -> Manifest:
    """The namespace, which takes no pod that is less than "restricted"."""
    labels = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": settings.namespace, "labels": labels},
    }


def accounts(settings: ClusterSettings) -> list[Manifest]:
    """Two accounts: one that launches Jobs, and one for steps, which has no right at all."""
    pulls = {"imagePullSecrets": [{"name": settings.pull_secret}]} if settings.pull_secret else {}
    found: list[Manifest] = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": settings.namespace},
            "automountServiceAccountToken": False,
            **pulls,
        }
        for name in (RUN_ACCOUNT, STEP_ACCOUNT)
    ]
    own = {"name": RUN_ACCOUNT, "namespace": settings.namespace}
    rules = [
        {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
        for group, resources, verbs in (*RULES, *((RANKS_RULE,) if settings.jobset else ()))
    ]
    api = "rbac.authorization.k8s.io"
    found.append({"apiVersion": f"{api}/v1", "kind": "Role", "metadata": own, "rules": rules})
    found.append(
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": dict(own),
            "roleRef": {"apiGroup": api, "kind": "Role", "name": RUN_ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", **own}],
        }
    )
    if settings.gpu_inventory:
        found += _inventory(settings)
    return found


def _inventory(settings: ClusterSettings) -> list[Manifest]:
    """What planning by the cluster's GPUs needs: to list nodes, and the pods of all namespaces."""
    api, name = "rbac.authorization.k8s.io", f"{settings.namespace}-gpus"
    rules = [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list"]}]
    account = {"kind": "ServiceAccount", "name": RUN_ACCOUNT, "namespace": settings.namespace}
    return [
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name},
            "subjects": [account],
        },
    ]


def network(settings: ClusterSettings) -> list[Manifest]:
    """Nobody speaks to anybody, but for what is listed."""
    stores: list[Door] = [settings.postgres, settings.s3, settings.mlflow, *settings.other_doors]
    launchers = _of(*LAUNCHERS)
    asking = _of("webserver", "daemon")
    code = [{"port": CODE_PORT, "protocol": "TCP"}]
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    found = [
        _policy("nothing", settings, {}, {"policyTypes": ["Ingress", "Egress"]}),
        _policy(
            "names",
            settings,
            {},
            _egress({"to": [names], "ports": [_port(53, "UDP"), _port(53, "TCP")]}),
        ),
        _policy("stores", settings, {}, _egress(*(_door(door) for door in stores))),
        _policy("api-server", settings, launchers, _egress(_door(settings.api_server))),
        _policy("to-code", settings, asking, _egress({"to": [_pods("code")], "ports": code})),
        _policy(
            "code",
            settings,
            _of("code"),
            _ingress({"from": [{"podSelector": asking}], "ports": code}),
        ),
    ]
    if settings.jobset:
        found += _ranks(settings)
    if settings.ui_from:
        values = list(settings.ui_from)
        chosen = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": values}
        sources = [{"namespaceSelector": {"matchExpressions": [chosen]}}]
        rule = _ingress({"from": sources, "ports": [_port(UI_PORT, "TCP")]})
        found.append(_policy("ui", settings, _of("webserver"), rule))
    return found


def _ranks(settings: ClusterSettings) -> list[Manifest]:
    """A training's ranks speak to each other and to their step, on ports that they agree upon.

    Pods of another training are let in as well: a NetworkPolicy cannot say "of the same".
    """
    ranks = {"matchExpressions": [{"key": JOBSET_LABEL, "operator": "Exists"}]}
    steps = _of("step_worker")
    both = [{"podSelector": ranks}, {"podSelector": steps}]
    everything = {"policyTypes": ["Ingress", "Egress"]}
    return [
        _policy(
            "ranks",
            settings,
            ranks,
            {**everything, "ingress": [{"from": both}], "egress": [{"to": both}]},
        ),
        _policy(
            "steps-of-ranks",
            settings,
            steps,
            {
                **everything,
                "ingress": [{"from": [{"podSelector": ranks}]}],
                "egress": [{"to": [{"podSelector": ranks}]}],
            },
        ),
    ]


def _policy(name: str, settings: ClusterSettings, pods: Manifest, rules: Manifest) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": settings.namespace},
        "spec": {"podSelector": pods, **rules},
    }


def _of(*components: str) -> Manifest:
    expression = {"key": COMPONENT, "operator": "In", "values": list(components)}
    return {"matchExpressions": [expression]}


def _pods(component: str) -> Manifest:
    return {"podSelector": _of(component)}


def _port(number: int, protocol: str) -> Manifest:
    return {"port": number, "protocol": protocol}


def _door(door: Door) -> Manifest:
    return {"to": [{"ipBlock": {"cidr": door.cidr}}], "ports": [_port(door.port, "TCP")]}


def _egress(*rules: Manifest) -> Manifest:
    return {"policyTypes": ["Egress"], "egress": list(rules)}


def _ingress(*rules: Manifest) -> Manifest:
    return {"policyTypes": ["Ingress"], "ingress": list(rules)}
